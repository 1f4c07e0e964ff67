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

/// The sockets of one address. The kernel spreads its connections over those that listen, and each of them must be accepted
/// from, or the clients in its backlog wait for ever.
#[derive(Debug)]
pub struct Group {
    /// As the configuration says it; its port may be 0.
    pub configured: SocketAddr,
    /// As it came to be.
    pub bound: SocketAddr,
    pub sockets: Vec<TcpListener>,
    /// How many of them, from the end, are bound and do not listen yet.
    silent: usize,
}

impl Group {
    /// Sockets that listen already: those of a predecessor.
    pub fn listening(configured: SocketAddr, bound: SocketAddr, sockets: Vec<TcpListener>) -> Self {
        Self { configured, bound, sockets, silent: 0 }
    }
}

/// Opens a socket a worker for each address, or takes over those of a predecessor from `inherited`; what is left there
/// belongs to no address any more.
///
/// More sockets than workers are all kept. Where there are fewer, those that are missing join the others in [`begin`]: the
/// kernel gives a socket clients as soon as it listens, and until the predecessor has let go they could still be lost.
///
/// # Errors
/// The first address that cannot be listened on.
pub fn open(addresses: &[SocketAddr], workers: usize, inherited: &mut Vec<Group>) -> Result<Vec<Group>, ListenError> {
    let mut groups = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let fail = |error| ListenError { address, error };
        let known = inherited.iter().position(|group| group.configured == address || group.bound == address);
        let mut group = match known {
            Some(index) => Group { configured: address, ..inherited.remove(index) },
            None => fresh(address).map_err(fail)?,
        };
        while group.sockets.len() < workers {
            group.sockets.push(socket(group.bound, true).map_err(fail)?.into());
            group.silent += 1;
        }
        if known.is_none() {
            listen(&mut group).map_err(fail)?;
        }
        groups.push(group);
    }
    Ok(groups)
}

/// Lets every socket listen that does not yet. One that cannot is left out: the others of its address serve on.
pub fn begin(groups: &mut [Group]) -> Vec<ListenError> {
    let mut failed = Vec::new();
    for group in groups {
        if let Err(error) = listen(group) {
            group.sockets.truncate(group.sockets.len() - group.silent);
            group.silent = 0;
            failed.push(ListenError { address: group.bound, error });
        }
    }
    failed
}

/// A list of sockets for each worker: every socket of every group has one worker that accepts from it.
///
/// # Errors
/// Those of `dup(2)`.
pub fn share(groups: &[Group], workers: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::with_capacity(groups.len())).collect();
    for group in groups {
        for (index, socket) in group.sockets.iter().enumerate() {
            shares[index % workers].push(socket.try_clone()?);
        }
    }
    Ok(shares)
}

fn fresh(address: SocketAddr) -> io::Result<Group> {
    // SO_REUSEPORT would let two processes of one user share a port in silence, each with half of the connections.
    // A bind without it finds out first.
    let probe = socket(address, false).and_then(|socket| local(&socket))?;
    let wanted = if address.port() == 0 { address } else { probe };
    let first = socket(wanted, true)?;
    let bound = local(&first)?;
    Ok(Group { configured: address, bound, sockets: vec![first.into()], silent: 1 })
}

fn listen(group: &mut Group) -> io::Result<()> {
    while group.silent > 0 {
        let socket = &group.sockets[group.sockets.len() - group.silent];
        rustix::net::listen(socket, i32::from(crate::worker::BACKLOG))?;
        group.silent -= 1;
    }
    Ok(())
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
    use super::{Group, ListenError, begin, open, share};
    use std::io::ErrorKind;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn open_new(addresses: &[SocketAddr], workers: usize) -> Result<Vec<Group>, ListenError> {
        open(addresses, workers, &mut Vec::new())
    }

    /// Connects this often and counts how many come out of these sockets.
    fn accepted(address: SocketAddr, sockets: &[TcpListener], clients: usize) -> usize {
        let _clients: Vec<_> = (0..clients).map(|_| TcpStream::connect(address).unwrap()).collect();
        let (mut count, deadline) = (0, Instant::now() + Duration::from_secs(5));
        while count < clients && Instant::now() < deadline {
            count += sockets.iter().filter(|socket| socket.accept().is_ok()).count();
        }
        count
    }

    #[test]
    fn every_worker_gets_the_port_the_kernel_chose() {
        let groups = open_new(&[any(), any()], 3).unwrap();
        assert_ne!(groups[0].bound.port(), 0);
        assert_ne!(groups[0].bound, groups[1].bound);
        let shares = share(&groups, 3).unwrap();
        for own in &shares {
            let locals: Vec<_> = own.iter().map(|listener| listener.local_addr().unwrap()).collect();
            assert_eq!(locals, [groups[0].bound, groups[1].bound]);
        }
        // Whichever worker's listener took it: accepted sockets answer at once, and accepting never blocks.
        let _client = TcpStream::connect(groups[0].bound).unwrap();
        let accepted = shares.iter().filter_map(|own| own[0].accept().ok()).collect::<Vec<_>>();
        assert_eq!(accepted.len(), 1);
        assert!(accepted[0].0.nodelay().unwrap());
        assert_eq!(shares[0][1].accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_port_that_another_one_shares_is_still_in_use() {
        let held = open_new(&[any()], 2).unwrap();
        let error = open_new(&[held[0].bound], 2).unwrap_err();
        assert_eq!(error.error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another process has it"), "{error}");
    }

    #[test]
    fn both_families_share_a_port() {
        let Ok(v6) = open_new(&["[::]:0".parse().unwrap()], 1) else {
            return; // A machine without IPv6 has nothing to show here.
        };
        let v4 = SocketAddr::new("0.0.0.0".parse().unwrap(), v6[0].bound.port());
        assert!(open_new(&[v4], 1).is_ok());
    }

    #[test]
    fn more_workers_than_sockets_join_only_when_told() {
        let old = open_new(&[any()], 1).unwrap();
        let bound = old[0].bound;
        let mut inherited = old;
        let mut groups = open(&[any()], 3, &mut inherited).unwrap();
        assert!(inherited.is_empty());
        assert_eq!((groups[0].bound, groups[0].sockets.len()), (bound, 3));
        // Whoever comes before that still finds the socket that always listened.
        assert_eq!(accepted(bound, &groups[0].sockets[..1], 50), 50);
        assert!(begin(&mut groups).is_empty());
        assert_eq!(accepted(bound, &groups[0].sockets, 50), 50);
    }

    #[test]
    fn fewer_workers_than_sockets_accept_from_all_of_them() {
        let mut inherited = open_new(&[any(), any()], 5).unwrap();
        let (bound, other) = (inherited[0].bound, inherited[1].bound);
        let groups = open(&[bound], 2, &mut inherited).unwrap();
        assert_eq!(inherited.len(), 1);
        assert_eq!(inherited[0].bound, other, "what is not listed any more is left over");
        let shares = share(&groups, 2).unwrap();
        assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        drop(groups);
        let all: Vec<_> = shares.into_iter().flatten().collect();
        assert_eq!(accepted(bound, &all, 100), 100);
    }
}
