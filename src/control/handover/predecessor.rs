//! The new process's side: what it was given, and its word with the old one.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{SocketType, sockopt};

use super::channel::Channel;
use super::message::{self, Message};
use super::{AdminAddress, AdminSocket, Sockets, State, VARIABLE};
use crate::control::listen::Group;
use crate::tls::ticket::Keyring;

/// How long the old process may take to say all it has to say, which it does at once, and to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// What a process that takes over was given.
#[derive(Debug)]
pub struct Inherited {
    pub predecessor: Predecessor,
    pub sockets: Sockets,
    /// `None`: of a version this one does not know.
    pub state: Option<State>,
}

/// The old process.
#[derive(Clone, Debug)]
pub struct Predecessor {
    pub pid: i32,
    channel: Arc<Channel>,
}

/// What the old process says once this one serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// It has stopped accepting.
    Over {
        /// The configuration may have changed since it was read.
        reload: bool,
    },
    /// Its last connection has ended, and so has it.
    Ended,
}

/// Takes what a predecessor hands over; `None` when there is none. To be called before anything else opens descriptors.
///
/// # Errors
/// What was said could not be understood, or a socket is not what it was said to be. Nothing has been changed by then.
pub fn receive() -> Result<Option<Inherited>, String> {
    let Some((number, pid)) = std::env::var(VARIABLE).ok().as_deref().and_then(parse) else { return Ok(None) };
    if std::os::unix::process::parent_id() != pid.unsigned_abs() {
        return Ok(None);
    }
    let fail = |error: io::Error| format!("{VARIABLE} names no channel to process {pid}: {error}");
    let channel = crate::sys::inherited(number).and_then(Channel::new).map_err(fail)?;
    let predecessor = Predecessor { pid, channel: Arc::new(channel) };
    match take(&predecessor.channel) {
        Ok((sockets, state)) => Ok(Some(Inherited { predecessor, sockets, state })),
        Err(why) => {
            let why = format!("cannot take over from process {pid}: {why}");
            predecessor.failed(&why);
            Err(why)
        }
    }
}

/// `DESCRIPTOR:PID`.
fn parse(value: &str) -> Option<(i32, i32)> {
    let (number, pid) = value.split_once(':')?;
    Some((number.parse().ok()?, pid.parse().ok()?))
}

impl Predecessor {
    /// Tells it that this process will not serve.
    pub fn failed(&self, why: &str) {
        let _ = self.channel.send(&Message::Failed(why.to_owned()));
    }

    /// Tells it that everything is prepared and what was not taken, and waits for leave to accept. Blocks.
    ///
    /// # Errors
    /// It has given the hand-over up, or is gone.
    pub fn ready(&self, refused: Vec<SocketAddr>, admin_address: bool, admin_socket: bool) -> Result<(), String> {
        let answer = self
            .channel
            .send(&Message::Ready { refused, admin_address, admin_socket })
            .and_then(|()| self.channel.receive(Some(Instant::now() + LIMIT)));
        match answer {
            Ok(Some((Message::Go, _))) => Ok(()),
            Ok(_) => Err(format!("process {} has given the hand-over up", self.pid)),
            Err(error) => Err(format!("process {} does not answer: {error}", self.pid)),
        }
    }

    /// Tells it that this process accepts.
    pub fn serving(&self) {
        let _ = self.channel.send(&Message::Serving);
    }

    /// Tells it that the configuration was read anew.
    pub fn reloaded(&self) {
        let _ = self.channel.send(&Message::Reload);
    }

    /// Waits for its next word. Blocks.
    pub fn listen(&self) -> Word {
        loop {
            match self.channel.receive(None) {
                Ok(Some((Message::Over { reload }, _))) => return Word::Over { reload },
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Word::Ended,
            }
        }
    }
}

/// Reads everything up to the last message.
fn take(channel: &Channel) -> Result<(Sockets, Option<State>), String> {
    let deadline = Instant::now() + LIMIT;
    let mut sockets = Sockets::default();
    let (mut state, mut keyring, mut ids) = (None, None, HashMap::new());
    let mut greeted = false;
    loop {
        let (message, descriptors) = match channel.receive(Some(deadline)) {
            Ok(Some(received)) => received,
            Ok(None) => return Err("it has given the hand-over up".into()),
            Err(error) => return Err(error.to_string()),
        };
        match message {
            Message::Hello { protocol } if protocol == message::PROTOCOL => greeted = true,
            Message::Hello { protocol } => {
                return Err(format!(
                    "it hands over by version {protocol}, and this program knows {}; restart instead",
                    message::PROTOCOL
                ));
            }
            _ if !greeted => return Err("it did not begin with its version".into()),
            Message::Listeners { configured, bound } => add_listeners(&mut sockets, configured, bound, descriptors)?,
            Message::AdminAddress { configured, bound } => {
                let listener = tcp_listener(only(descriptors)?, bound)?;
                sockets.admin = Some(AdminAddress { configured, bound, listener });
            }
            Message::AdminSocket { path } => {
                let listener = UnixListener::from(listening(only(descriptors)?)?);
                let address = listener.local_addr().map_err(|error| error.to_string())?;
                if address.as_pathname() != Some(&path) {
                    return Err(format!("a socket is not bound to {}, as it was said to be", path.display()));
                }
                sockets.socket = Some(AdminSocket { path, listener });
            }
            Message::State { version, generation } => state = Some((version, generation)),
            // What another version means by these is not guessed at.
            Message::Keys(_) | Message::Records(_) if !known(state) => {}
            Message::Keys(keys) => {
                keyring = Some(Keyring::import(&keys).ok_or("its ticket keys are malformed")?);
            }
            Message::Records(list) => {
                let read = message::read_records(&list, |name, id| _ = ids.insert(name.to_owned(), id));
                read.map_err(|_| "its list of records is malformed")?;
            }
            Message::Complete => break,
            other => return Err(format!("it said what does not belong here: {other:?}")),
        }
    }
    let state = match (state, keyring) {
        (Some((_, generation)), Some(keyring)) => Some(State { generation, keyring, ids }),
        _ => None,
    };
    Ok((sockets, state))
}

fn known(state: Option<(u32, u64)>) -> bool {
    state.is_some_and(|(version, _)| version == message::STATE)
}

fn add_listeners(
    sockets: &mut Sockets,
    configured: SocketAddr,
    bound: SocketAddr,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    let listeners = descriptors.into_iter().map(|descriptor| tcp_listener(descriptor, bound));
    let listeners: Vec<TcpListener> = listeners.collect::<Result<_, _>>()?;
    match sockets.groups.iter_mut().find(|group| group.bound == bound) {
        Some(group) => group.sockets.extend(listeners),
        None => sockets.groups.push(Group::listening(configured, bound, listeners)),
    }
    Ok(())
}

fn only(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| "not one descriptor, but another number")?;
    Ok(descriptor)
}

/// A socket that listens at this address, and nothing else.
fn tcp_listener(descriptor: OwnedFd, bound: SocketAddr) -> Result<TcpListener, String> {
    let listener = TcpListener::from(listening(descriptor)?);
    match listener.local_addr() {
        Ok(address) if address == bound => Ok(listener),
        _ => Err(format!("a socket is not bound to {bound}, as it was said to be")),
    }
}

fn listening(descriptor: OwnedFd) -> Result<OwnedFd, String> {
    let stream = sockopt::socket_type(descriptor.as_fd()) == Ok(SocketType::STREAM);
    match stream && sockopt::socket_acceptconn(descriptor.as_fd()) == Ok(true) {
        true => Ok(descriptor),
        false => Err("a descriptor is no listening socket".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use zeroize::Zeroizing;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        (listener, bound)
    }

    /// A message and the descriptors that go with it.
    type Words = (Message, Vec<OwnedFd>);

    /// What comes of these words.
    fn said(words: &[Words]) -> Result<(Sockets, Option<State>), String> {
        let (old, new) = Channel::pair().unwrap();
        for (message, descriptors) in words {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            old.send_with(message, &borrowed).unwrap();
        }
        drop(old);
        take(&new)
    }

    fn hello() -> Words {
        (Message::Hello { protocol: message::PROTOCOL }, vec![])
    }

    #[test]
    fn sockets_keys_and_identities_are_taken() {
        let (one, bound) = listener();
        let two = one.try_clone().unwrap();
        let keyring = Keyring::generate(7).unwrap();
        let words = [
            hello(),
            (Message::Listeners { configured: bound, bound }, vec![one.into()]),
            (Message::Listeners { configured: bound, bound }, vec![two.into()]),
            (Message::State { version: message::STATE, generation: 5 }, vec![]),
            (Message::Keys(keyring.export()), vec![]),
            (message::records([("a.test", crate::registry::RecordId([9; 16]))].into_iter()).next().unwrap(), vec![]),
            (Message::Complete, vec![]),
        ];
        let (sockets, state) = said(&words).unwrap();
        assert_eq!((sockets.groups.len(), sockets.groups[0].sockets.len()), (1, 2));
        let state = state.unwrap();
        assert_eq!((state.generation, state.ids["a.test"].0), (5, [9; 16]));
        assert_eq!(*state.keyring.export(), *keyring.export());
    }

    #[test]
    fn an_unknown_version_of_state_is_left_alone() {
        let words = [
            hello(),
            (Message::State { version: message::STATE + 1, generation: 5 }, vec![]),
            (Message::Keys(Zeroizing::new(vec![1, 2, 3])), vec![]),
            (Message::Records(vec![1]), vec![]),
            (Message::Complete, vec![]),
        ];
        assert!(said(&words).unwrap().1.is_none());
    }

    #[test]
    fn what_is_not_what_it_was_said_to_be_is_refused() {
        let (one, bound) = listener();
        let (other, _) = listener();
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listeners = || Message::Listeners { configured: bound, bound };
        let cases: Vec<(&str, Vec<Words>)> = vec![
            ("another address", vec![hello(), (listeners(), vec![other.into()])]),
            ("no listening socket", vec![hello(), (listeners(), vec![silent.into()])]),
            ("a datagram socket", vec![hello(), (listeners(), vec![udp.into()])]),
            ("no descriptor", vec![hello(), (Message::AdminAddress { configured: bound, bound }, vec![])]),
            ("an unknown protocol", vec![(Message::Hello { protocol: 2 }, vec![])]),
            ("no greeting", vec![(listeners(), vec![one.into()])]),
            ("an early end", vec![hello()]),
            ("nothing", vec![]),
            ("an answer", vec![hello(), (Message::Go, vec![])]),
            (
                "keys that are none",
                vec![
                    hello(),
                    (Message::State { version: message::STATE, generation: 1 }, vec![]),
                    (Message::Keys(Zeroizing::new(vec![1])), vec![]),
                ],
            ),
        ];
        for (what, words) in cases {
            assert!(said(&words).is_err(), "{what}");
        }
    }

    #[test]
    fn the_variable_is_read_strictly() {
        assert_eq!(parse("7:123"), Some((7, 123)));
        for bad in ["", "7", "7:", ":7", "a:1", "7:1:2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
