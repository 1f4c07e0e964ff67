//! Each operation of a socket against a real peer: receive, send, poll, shut down, close.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::*;
use crate::ring::{Elapsed, spawn, timeout};

// --- receiving ------------------------------------------------------------------------------------------------------

#[test]
fn receives_at_the_edges_of_a_small_buffer() {
    for mode in [Receive::Single, Receive::Stream] {
        run(move || async move {
            let small = RingConfig::default().small_bytes as u64;
            let (socket, mut peer) = pair();
            socket.set_receive(mode);
            let mut at = 0;
            for count in [1, small - 1, small, small + 1, 2 * small, 1] {
                peer.write_all(&stream_bytes(1, at, count as usize)).unwrap();
                expect_stream(&socket, 1, at, count).await;
                at += count;
            }
            drop(peer);
            assert_eq!(socket.receive(|bytes| bytes.len()).await.unwrap(), None);
            assert_eq!(socket.receive(|bytes| bytes.len()).await.unwrap(), None, "the end stays the end");
        });
    }
}

#[test]
fn bytes_and_end_that_came_before_anyone_read_are_read_in_order() {
    for mode in [Receive::Single, Receive::Stream] {
        run(move || async move {
            let (socket, mut peer) = pair();
            socket.set_receive(mode);
            write_stream(&mut peer, 2, 50_000, 7_000).unwrap();
            drop(peer);
            sleep_ms(10).await;
            expect_stream(&socket, 2, 0, 50_000).await;
            assert_eq!(socket.receive(|bytes| bytes.len()).await.unwrap(), None);
        });
    }
}

#[test]
fn a_reset_is_an_error_and_stays_one() {
    for mode in [Receive::Single, Receive::Stream] {
        run(move || async move {
            let (socket, peer) = pair();
            socket.set_receive(mode);
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            let reset = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                drop(peer);
            });
            for _ in 0..2 {
                let error = socket.receive(|bytes| bytes.len()).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            reset.join().unwrap();
        });
    }
}

/// Bulk is received in large buffers, small messages in small ones again, and not a byte is lost at either switch.
#[test]
fn the_stream_mode_follows_what_flows() {
    run(|| async {
        let small = RingConfig::default().small_bytes;
        let (socket, mut peer) = pair();
        socket.set_receive(Receive::Stream);
        let (go, wait) = channel::<(u64, usize)>();
        let writer = std::thread::spawn(move || {
            let mut at = 0;
            while let Ok((count, piece)) = wait.recv() {
                let end = at + count;
                while at < end {
                    let bytes = stream_bytes(3, at, piece.min((end - at) as usize));
                    peer.write_all(&bytes).unwrap();
                    at += bytes.len() as u64;
                }
            }
        });
        let mut at = 0;
        for round in 0..5 {
            // Small messages, one by one.
            for message in 0..20 {
                go.send((300, 300)).unwrap();
                let mut largest = 0;
                let end = at + 300;
                while at < end {
                    let len = socket.receive(|bytes| check(3, at, bytes)).await.unwrap().unwrap();
                    largest = largest.max(len);
                    at += len;
                }
                assert!(largest <= 300, "round {round}, message {message}");
            }
            // Bulk.
            let bulk = 4 << 20;
            go.send((bulk, 256 * 1024)).unwrap();
            let (mut largest, end) = (0, at + bulk);
            while at < end {
                let len = socket.receive(|bytes| check(3, at, bytes)).await.unwrap().unwrap();
                largest = largest.max(len);
                at += len;
            }
            assert!(largest > 4 * small as u64, "round {round}: {largest} bytes at most at once");
        }
        // Small again: after some messages a burst finds small buffers.
        for _ in 0..20 {
            go.send((100, 100)).unwrap();
            expect_stream(&socket, 3, at, 100).await;
            at += 100;
        }
        go.send((32 * 1024, 32 * 1024)).unwrap();
        sleep_ms(20).await;
        let first = socket.receive(|bytes| check(3, at, bytes)).await.unwrap().unwrap();
        expect_stream(&socket, 3, at + first, 32 * 1024 - first).await;
        drop(go);
        writer.join().unwrap();
    });
}

#[test]
fn an_idle_reader_that_stopped_receiving_reads_on_later() {
    run(|| async {
        let (socket, mut peer) = pair();
        socket.set_receive(Receive::Stream);
        let mut at = 0;
        for round in 0..50 {
            peer.write_all(&stream_bytes(4, at, 1000)).unwrap();
            if round % 2 == 0 {
                socket.stop_receiving();
            }
            expect_stream(&socket, 4, at, 1000).await;
            at += 1000;
            socket.stop_receiving();
            socket.set_receive(if round % 3 == 0 { Receive::Single } else { Receive::Stream });
        }
    });
}

/// What is here already can be had without waiting, in order, and the end is known before it is read.
#[test]
fn what_has_arrived_can_be_taken_without_waiting() {
    for mode in [Receive::Single, Receive::Stream] {
        run(move || async move {
            let (socket, mut peer) = pair();
            socket.set_receive(mode);
            assert!(socket.arrived(|_| ()).is_none(), "nothing was ever asked for");
            assert!(!socket.peer_ended());
            peer.write_all(&stream_bytes(12, 0, 1000)).unwrap();
            expect_stream(&socket, 12, 0, 1000).await;
            assert!(socket.arrived(|_| ()).is_none());
            // A receive is armed and nobody waits for it.
            assert!(timeout(Duration::from_millis(2), socket.receive(|_| ())).await.is_err());
            peer.write_all(&stream_bytes(12, 1000, 500)).unwrap();
            let mut at = 1000;
            let taken = eventually(|| {
                while let Some(Ok(Some(len))) = socket.arrived(|bytes| check(12, at, bytes)) {
                    at += len;
                }
                at == 1500
            });
            assert!(taken.await);
            peer.write_all(&stream_bytes(12, 1500, 10)).unwrap();
            drop(peer);
            if mode == Receive::Single {
                // Each receive asks once: for the bytes, and for the end.
                expect_stream(&socket, 12, 1500, 10).await;
                assert!(timeout(Duration::from_millis(50), socket.receive(|_| ())).await.unwrap().unwrap().is_none());
            } else {
                assert!(eventually(|| socket.peer_ended()).await);
                expect_stream(&socket, 12, 1500, 10).await;
            }
            assert!(socket.peer_ended());
            assert!(matches!(socket.arrived(|_| ()), Some(Ok(None))), "the end, as often as one asks");
        });
    }
}

// --- sending --------------------------------------------------------------------------------------------------------

/// A peer that reads slowly, through a small window.
fn slow_reader(mut peer: TcpStream, seed: u64) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 100_000];
        let mut at = 0;
        loop {
            match peer.read(&mut buffer).unwrap() {
                0 => return at,
                len => at += check(seed, at, &buffer[..len]),
            }
            if at % 5 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    })
}

#[test]
fn sends_all_to_a_slow_reader_and_gives_the_buffer_back() {
    run(|| async {
        let (socket, peer) = pair();
        SockRef::from(&peer).set_recv_buffer_size(16 * 1024).unwrap();
        let reader = slow_reader(peer, 5);
        let bytes = stream_bytes(5, 0, 8 << 20);
        let (result, back) = socket.send(bytes).await;
        result.unwrap();
        assert_eq!(back.len(), 8 << 20);
        let (result, back) = socket.send(Vec::new()).await;
        result.unwrap();
        assert!(back.is_empty());
        // Only the filled part of a buffer goes out, and all of it comes back.
        let mut longer = stream_bytes(5, 8 << 20, 1000);
        longer.resize(5000, 0);
        let (result, back) = socket.send_prefix(longer, 1000).await;
        result.unwrap();
        assert_eq!(back.len(), 5000);
        socket.send_prefix(back, 0).await.0.unwrap();
        socket.shutdown_write().unwrap();
        assert_eq!(timeout(Duration::from_secs(30), wait_for(reader)).await.unwrap(), (8 << 20) + 1000);
    });
}

#[test]
fn sends_more_parts_than_the_kernel_takes_at_once() {
    run(|| async {
        let (socket, peer) = pair();
        SockRef::from(&peer).set_recv_buffer_size(16 * 1024).unwrap();
        let reader = slow_reader(peer, 6);
        let mut chance = Chance(6);
        let mut at = 0;
        for parts in [1, 3, 1024, 1025, 5000] {
            let buffers: Vec<Vec<u8>> = (0..parts)
                .map(|_| {
                    // Some of them empty.
                    let bytes = stream_bytes(6, at, chance.below(5).pow(3) as usize * 7);
                    at += bytes.len() as u64;
                    bytes
                })
                .collect();
            let wanted = buffers.clone();
            let (result, back) = socket.send_vectored(buffers).await;
            result.unwrap();
            assert_eq!(back, wanted);
        }
        let large = stream_bytes(6, at, 4 << 20);
        at += large.len() as u64;
        socket.send_vectored(vec![Vec::new(), large]).await.0.unwrap();
        socket.send_vectored(vec![Vec::new(), Vec::new()]).await.0.unwrap();
        socket.send_vectored(Vec::new()).await.0.unwrap();
        socket.shutdown_write().unwrap();
        assert_eq!(timeout(Duration::from_secs(30), wait_for(reader)).await.unwrap(), at);
    });
}

#[test]
fn sending_to_a_peer_that_is_gone_is_an_error() {
    run(|| async {
        for vectored in [false, true] {
            let (socket, peer) = pair();
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            let reset = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                drop(peer);
            });
            // Far more than the socket buffers hold: the send waits when the reset comes.
            let bytes = vec![7; 32 << 20];
            let error = if vectored {
                let (result, back) = socket.send_vectored(vec![bytes]).await;
                assert_eq!(back[0].len(), 32 << 20);
                result.unwrap_err()
            } else {
                let (result, back) = socket.send(bytes).await;
                assert_eq!(back.len(), 32 << 20);
                result.unwrap_err()
            };
            assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
            let error = socket.send(vec![1]).await.0.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe, "and no signal");
            reset.join().unwrap();
        }
    });
}

// --- readiness, shutting down, closing ------------------------------------------------------------------------------

#[test]
fn readiness_is_what_poll_says() {
    run(|| async {
        let (socket, mut peer) = pair();
        assert_eq!(socket.ready(libc::POLLOUT).await.unwrap() & libc::POLLOUT, libc::POLLOUT);
        assert_eq!(timeout(Duration::from_millis(20), socket.ready(libc::POLLIN)).await.map(drop), Err(Elapsed));
        peer.write_all(b"x").unwrap();
        assert_eq!(socket.ready(libc::POLLIN).await.unwrap() & libc::POLLIN, libc::POLLIN);
        assert_eq!(socket.receive(|bytes| bytes.to_vec()).await.unwrap(), Some(b"x".to_vec()));
        drop(peer);
        let events = socket.ready(libc::POLLIN | libc::POLLRDHUP).await.unwrap();
        assert_eq!(events & libc::POLLRDHUP, libc::POLLRDHUP);
    });
}

#[test]
fn shutting_down_the_writing_side_leaves_the_reading_side_open() {
    run(|| async {
        let (socket, mut peer) = pair();
        let reader = Rc::new(socket);
        let sender = Rc::clone(&reader);
        sender.send(b"last".to_vec()).await.0.unwrap();
        sender.shutdown_write().unwrap();
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"last");
        peer.write_all(b"answer").unwrap();
        assert_eq!(reader.receive(|bytes| bytes.to_vec()).await.unwrap(), Some(b"answer".to_vec()));
        assert_eq!(reader.send(b"x".to_vec()).await.0.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// What a peer that reads sees, and after how long.
fn peer_sees(mut peer: TcpStream) -> std::thread::JoinHandle<(std::io::Result<usize>, Duration)> {
    std::thread::spawn(move || {
        let started = Instant::now();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match peer.read(&mut buffer) {
                Ok(0) => return (Ok(0), started.elapsed()),
                Ok(_) => {}
                Err(error) => return (Err(error), started.elapsed()),
            }
        }
    })
}

#[test]
fn a_close_reaches_the_peer_at_once_whatever_is_in_flight() {
    for mode in [Receive::Single, Receive::Stream] {
        run(move || async move {
            let (socket, peer) = pair();
            socket.set_receive(mode);
            let seen = peer_sees(peer);
            assert!(timeout(Duration::from_millis(10), socket.receive(|bytes| bytes.len())).await.is_err());
            {
                // A poll in flight besides the receive.
                assert!(timeout(Duration::from_millis(10), socket.ready(libc::POLLPRI)).await.is_err());
            }
            drop(socket);
            let (outcome, _) = timeout(Duration::from_secs(2), wait_for(seen)).await.expect("the end of the stream");
            assert_eq!(outcome.unwrap(), 0);
        });
    }
    // A send in flight.
    run(|| async {
        let (socket, peer) = pair();
        assert!(timeout(Duration::from_millis(20), socket.send(vec![1; 32 << 20])).await.is_err());
        drop(socket);
        let (outcome, _) = timeout(Duration::from_secs(2), wait_for(peer_sees(peer))).await.expect("the end");
        assert_eq!(outcome.unwrap(), 0);
    });
}

#[test]
fn reset_on_close_is_a_reset_for_the_peer() {
    run(|| async {
        let (socket, peer) = pair();
        let seen = peer_sees(peer);
        assert!(timeout(Duration::from_millis(10), socket.receive(|bytes| bytes.len())).await.is_err());
        socket.reset_on_close();
        drop(socket);
        let (outcome, _) = timeout(Duration::from_secs(2), wait_for(seen)).await.expect("the reset");
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// `cancel_all` ends a send, a receive and a poll that wait, and the connection goes on.
#[test]
fn cancel_all_ends_what_waits() {
    run(|| async {
        let (socket, mut peer) = pair();
        let socket = Rc::new(socket);
        let (done, ended) = channel();
        for operation in 0..3 {
            let (socket, done) = (Rc::clone(&socket), done.clone());
            spawn(async move {
                let result = match operation {
                    0 => socket.receive(|bytes| bytes.len()).await.map(drop),
                    1 => socket.ready(libc::POLLPRI).await.map(drop),
                    // More than the socket buffers hold: a part of it is sent when the cancellation comes.
                    _ => socket.send(vec![1; 32 << 20]).await.0,
                };
                done.send((operation, result.map_err(|error| error.raw_os_error()))).unwrap();
            });
        }
        sleep_ms(30).await;
        assert!(ended.try_recv().is_err(), "all three wait");
        socket.cancel_all();
        let mut outcomes = Vec::new();
        assert!(
            eventually(|| {
                outcomes.extend(ended.try_iter());
                outcomes.len() == 3
            })
            .await,
            "{outcomes:?}"
        );
        for (operation, result) in outcomes {
            assert_eq!(result, Err(Some(libc::ECANCELED)), "operation {operation}");
        }
        peer.write_all(b"still here").unwrap();
        assert_eq!(socket.receive(|bytes| bytes.to_vec()).await.unwrap(), Some(b"still here".to_vec()));
        peer.shutdown(Shutdown::Both).unwrap();
        assert!(socket.as_fd().try_clone_to_owned().is_ok());
    });
}
