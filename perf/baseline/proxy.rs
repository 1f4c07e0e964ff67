//! The baseline's life of a connection: accept, `ClientHello`, handshake, connect, copy.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::LocalSet;
use tokio_rustls::LazyConfigAcceptor;

use crate::common::Failure;
use crate::hosts::Hosts;

/// Length of the accept queue: more than the 8,000 connections of the idle workload ever have waiting at once.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept, so that running out of file descriptors does not spin the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Accepts for ever; each connection runs as a task of this thread.
///
/// # Errors
/// Only when the listening socket cannot be made.
pub async fn serve(listen: SocketAddr, origin: SocketAddr, hosts: Hosts, buffer_bytes: usize) -> Result<(), Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(BACKLOG)?;
    let hosts = Rc::new(hosts);
    LocalSet::new().run_until(accept(listener, origin, hosts, buffer_bytes)).await;
    Ok(())
}

/// The accept loop. What goes wrong on one connection ends that connection only.
async fn accept(listener: TcpListener, origin: SocketAddr, hosts: Rc<Hosts>, buffer_bytes: usize) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let hosts = hosts.clone();
                tokio::task::spawn_local(async move { carry(client, origin, &hosts, buffer_bytes).await });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// One connection from its first byte to its last.
async fn carry(client: TcpStream, origin: SocketAddr, hosts: &Hosts, buffer_bytes: usize) -> io::Result<()> {
    client.set_nodelay(true)?;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), client).await?;
    let config = hosts.choose(hello.client_hello().server_name());
    let mut client = hello.into_stream(config).await?;
    let mut origin = TcpStream::connect(origin).await?;
    origin.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut origin, buffer_bytes, buffer_bytes).await?;
    Ok(())
}
