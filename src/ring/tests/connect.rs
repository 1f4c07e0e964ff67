//! Connections come and go: accepting, and connecting over TCP and Unix sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_getfd};
use socket2::{SockAddr, SockRef};

use super::*;
use crate::ring::{Elapsed, Listener, spawn, timeout};

// --- accepting ------------------------------------------------------------------------------------------------------

#[test]
fn accepts_every_connection_nonblocking_and_close_on_exec() {
    run(|| async {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener);
        let clients =
            std::thread::spawn(move || (0..100).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>());
        let mut accepted = Vec::new();
        for _ in 0..100 {
            let fd = listener.accept().await.unwrap();
            assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
            assert!(rustix::fs::fcntl_getfl(&fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
            accepted.push(Socket::from(fd));
        }
        let clients = clients.join().unwrap();
        let mut ports: Vec<_> = accepted.iter().map(|socket| socket.peer_address().unwrap().port()).collect();
        let mut wanted: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap().port()).collect();
        ports.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(ports, wanted);
        assert_eq!(accepted[0].local_address(), Some(address));
    });
}

#[test]
fn a_paused_listener_leaves_connections_in_the_backlog() {
    run_alone(|| async {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener);
        let first = TcpStream::connect(address).unwrap();
        let taken = listener.accept().await.unwrap();
        listener.pause();
        sleep_ms(20).await;
        let before = open_fds();
        let second = TcpStream::connect(address).unwrap();
        sleep_ms(50).await;
        assert_eq!(open_fds(), before + 1, "only the client's own descriptor is new: nothing was accepted");
        let resumed = Socket::from(listener.accept().await.unwrap());
        assert_eq!(resumed.peer_address(), second.local_addr().ok());
        // And again, with the pause still on its way when the next accept asks.
        listener.pause();
        let third = TcpStream::connect(address).unwrap();
        let resumed = Socket::from(listener.accept().await.unwrap());
        assert_eq!(resumed.peer_address(), third.local_addr().ok());
        drop((first, taken));
    });
}

#[test]
fn connections_accepted_and_not_taken_are_closed_with_the_listener() {
    run_alone(|| async {
        let before = open_fds();
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener);
        // Arms the accept, and drops the future.
        assert_eq!(timeout(Duration::from_millis(5), listener.accept()).await.map(drop), Err(Elapsed));
        let mut clients: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(eventually(|| open_fds() == before + 1 + 20).await, "the listener, ten clients, ten accepted");
        drop(listener);
        assert!(eventually(|| open_fds() == before + 10).await, "ten clients");
        for client in &mut clients {
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
        }
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn accepting_goes_on_after_descriptors_ran_out() {
    run_alone(|| async {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener);
        let client = TcpStream::connect(address).unwrap();
        // The process is this test's own, so its limit may be lowered.
        let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let lowered = rustix::process::Rlimit { current: Some(200), ..limits };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, lowered).unwrap();
        let mut fill: Vec<OwnedFd> = Vec::new();
        while let Ok(fd) = rustix::io::fcntl_dupfd_cloexec(&client, 0) {
            fill.push(fd);
        }
        let error = listener.accept().await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        fill.clear();
        let socket = Socket::from(listener.accept().await.unwrap());
        assert_eq!(socket.peer_address(), client.local_addr().ok());
    });
}

// --- connecting -----------------------------------------------------------------------------------------------------

#[test]
fn connects_and_echoes() {
    run(|| async {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener);
        spawn(async move {
            let socket = Socket::from(listener.accept().await.unwrap());
            while let Some(bytes) = socket.receive(|bytes| bytes.to_vec()).await.unwrap() {
                socket.send(bytes).await.0.unwrap();
            }
        });
        let socket = Socket::connect(SockAddr::from(address)).await.unwrap();
        assert!(SockRef::from(&socket).tcp_nodelay().unwrap());
        for round in 0..20u64 {
            socket.send(stream_bytes(round, 0, 1000)).await.0.unwrap();
            expect_stream(&socket, round, 0, 1000).await;
        }
    });
}

#[test]
fn a_refused_connection_is_an_error() {
    run_alone(|| async {
        let address = listen().local_addr().unwrap();
        let before = open_fds();
        let error = Socket::connect(SockAddr::from(address)).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(eventually(|| open_fds() == before).await);
    });
}

/// A listener whose queue is full, so that Linux drops further SYNs and a connect stays in progress.
fn full_listener() -> (socket2::Socket, SockAddr, Vec<TcpStream>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = TcpStream::connect(address.as_socket().unwrap()).unwrap();
    (listener, address, vec![fill])
}

#[test]
fn a_connect_dropped_while_in_progress_leaves_nothing_behind() {
    run_alone(|| async {
        let (_listener, address, _fill) = full_listener();
        sleep_ms(5).await;
        let (fds, held) = (open_fds(), crate::ring::held());
        for _ in 0..20 {
            let connect = Socket::connect(address.clone());
            let outcome = timeout(Duration::from_millis(5), connect).await;
            assert!(outcome.is_err(), "the queue is full");
        }
        assert!(eventually(|| open_fds() == fds).await);
        // One more timer: the one `eventually` and this line's own future need is gone by now.
        assert_eq!(crate::ring::held(), held);
        assert_eq!(kernel_workers(), 0);
    });
}

#[test]
fn unix_sockets_connect_echo_and_end() {
    run(|| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes).unwrap();
            peer.write_all(&bytes).unwrap();
        });
        let socket = Socket::connect(SockAddr::unix(&path).unwrap()).await.unwrap();
        assert_eq!(socket.peer_address(), None);
        socket.set_receive(Receive::Stream);
        socket.send(stream_bytes(8, 0, 1 << 20)).await.0.unwrap();
        socket.shutdown_write().unwrap();
        expect_stream(&socket, 8, 0, 1 << 20).await;
        assert_eq!(socket.receive(|bytes| bytes.len()).await.unwrap(), None);
        wait_for(server).await;
        let error = Socket::connect(SockAddr::unix(dir.path().join("none")).unwrap()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

/// connect(2) to a Unix socket whose queue is full is refused at once with EAGAIN. Through the ring it would be tried
/// again by a kernel thread that blocks.
#[test]
fn a_unix_socket_with_a_full_queue_is_an_error_and_blocks_nobody() {
    run(|| async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin.sock");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        let address = SockAddr::unix(&path).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        let mut connected = Vec::new();
        let error = loop {
            assert!(connected.len() < 10, "a queue of length zero");
            match timeout(Duration::from_secs(2), Socket::connect(address.clone())).await {
                Ok(Ok(socket)) => connected.push(socket),
                Ok(Err(error)) => break error,
                Err(Elapsed) => panic!("connect waits; kernel threads: {}", kernel_workers()),
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(kernel_workers(), 0);
    });
}
