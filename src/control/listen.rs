//! Opens the listening sockets: one a worker for each address, so that the kernel spreads connections over the workers.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Why a listener could not be opened.
#[derive(Debug)]
pub struct ListenError {
    pub address: SocketAddr,
    pub error: io::Error,
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: another process has it; stop that one (ss -ltnp shows it) or change \
                 server.listen"
            ),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot listen on {address}: not permitted; give CAP_NET_BIND_SERVICE (AmbientCapabilities= in the \
                 unit) or use a port above 1023"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "cannot listen on {address}: no interface has this address; change server.listen")
            }
            _ => write!(f, "cannot listen on {address}: {error}"),
        }
    }
}

impl std::error::Error for ListenError {}

/// All listeners: one list a worker, each in the order of `addresses`; and the addresses as they came to be, since the
/// kernel chooses where port 0 was asked for.
///
/// # Errors
/// The first address that cannot be listened on.
pub fn open(addresses: &[SocketAddr], workers: usize) -> Result<(Vec<Vec<TcpListener>>, Vec<SocketAddr>), ListenError> {
    let mut listeners: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::with_capacity(addresses.len())).collect();
    let mut bound = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let fail = |error| ListenError { address, error };
        // SO_REUSEPORT would let two processes of one user share a port in silence, each with half of the connections.
        // A bind without it finds out first.
        let probe = socket(address, false).and_then(|socket| local(&socket)).map_err(fail)?;
        let mut actual = if address.port() == 0 { None } else { Some(probe) };
        for own in &mut listeners {
            let socket = socket(actual.unwrap_or(address), true).map_err(fail)?;
            actual = Some(local(&socket).map_err(fail)?);
            socket.listen(i32::from(crate::worker::BACKLOG)).map_err(fail)?;
            own.push(socket.into());
        }
        bound.extend(actual);
    }
    Ok((listeners, bound))
}

fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// A bound socket. TCP_DEFER_ACCEPT is not set: it would save a turn where a client sends its ClientHello late, but the
/// kernel then holds silent connections where no limit, timeout or counter of ours sees them.
fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    // Socket::new sets close-on-exec.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // "[::]:443" and "0.0.0.0:443" stand beside each other in the configuration, whatever the system's default.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it, which saves a call for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::open;
    use std::io::ErrorKind;
    use std::net::{SocketAddr, TcpStream};

    #[test]
    fn every_worker_gets_the_port_the_kernel_chose() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (listeners, bound) = open(&[any, any], 3).unwrap();
        assert_eq!(listeners.len(), 3);
        assert_ne!(bound[0].port(), 0);
        assert_ne!(bound[0], bound[1]);
        for own in &listeners {
            let locals: Vec<_> = own.iter().map(|listener| listener.local_addr().unwrap()).collect();
            assert_eq!(locals, bound);
        }
        // Whichever worker's listener took it: accepted sockets answer at once, and accepting never blocks.
        let _client = TcpStream::connect(bound[0]).unwrap();
        let accepted = listeners.iter().filter_map(|own| own[0].accept().ok()).collect::<Vec<_>>();
        assert_eq!(accepted.len(), 1);
        assert!(accepted[0].0.nodelay().unwrap());
        assert_eq!(listeners[0][1].accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_port_that_another_one_shares_is_still_in_use() {
        let (_held, bound) = open(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
        let error = open(&bound, 2).unwrap_err();
        assert_eq!(error.error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another process has it"), "{error}");
    }

    #[test]
    fn both_families_share_a_port() {
        let Ok((_v6, bound)) = open(&["[::]:0".parse().unwrap()], 1) else {
            return; // A machine without IPv6 has nothing to show here.
        };
        let v4 = SocketAddr::new("0.0.0.0".parse().unwrap(), bound[0].port());
        assert!(open(&[v4], 1).is_ok());
    }
}
