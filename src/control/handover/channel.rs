//! The channel between old and new process: a pair of Unix-domain sockets that keep messages apart.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair,
};
use zeroize::Zeroizing;

use super::message::{BYTES_MAX, Message};

/// Descriptors in one message; the kernel takes up to 253.
pub const DESCRIPTORS_MAX: usize = 64;

/// How long a message may wait for room. The other side does nothing but read while it is sent to.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// One end of the channel. Sending and receiving block their thread.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends, close-on-exec.
    ///
    /// # Errors
    /// Those of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Takes an end that was inherited.
    ///
    /// # Errors
    /// A descriptor that is no such socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        if sockopt::socket_domain(&fd)? != AddressFamily::UNIX || sockopt::socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(io::Error::other("the inherited descriptor is no channel"));
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Self(fd))
    }

    /// A copy that a program started now inherits: it has no close-on-exec.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn inheritable(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::dup(&self.0)?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// `EPIPE` when the other end is gone, `EAGAIN` when it has not read for ten seconds.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[])
    }

    /// Sends a message with at most [`DESCRIPTORS_MAX`] descriptors.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_with(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Sized at once: growing would leave copies of keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX));
        message.encode(&mut bytes);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if bytes.len() > BYTES_MAX
            || (!descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sockopt::set_socket_timeout(&self.0, Timeout::Send, Some(SEND_LIMIT))?;
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message and its descriptors, close-on-exec; `None` when the other end is gone. Waits until `deadline`.
    ///
    /// # Errors
    /// `TimedOut`, and `InvalidData` for what is no message.
    pub fn receive(&self, deadline: Option<Instant>) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let limit = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
            // The kernel takes 0 for no limit.
            Some(limit) => Some(limit.max(Duration::from_millis(1))),
            None => None,
        };
        sockopt::set_socket_timeout(&self.0, Timeout::Recv, limit)?;
        let mut bytes = Zeroizing::new(vec![0; BYTES_MAX]);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            // The other end closed with something unread.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message or its descriptors did not arrive whole",
            ));
        }
        let message = Message::decode(&bytes[..received.bytes])
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a message this version does not know"))?;
        Ok(Some((message, descriptors)))
    }

    /// Ends the conversation in both directions: whoever waits on either end wakes up.
    pub fn end(&self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_and_an_end_is_seen() {
        let (one, other) = Channel::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        one.send_with(&Message::Complete, &[writer.as_fd(), reader.as_fd()]).unwrap();
        one.send(&Message::Go).unwrap();
        drop(writer);
        let (message, descriptors) = other.receive(None).unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (Message::Complete, 2));
        for descriptor in &descriptors {
            assert!(rustix::io::fcntl_getfd(descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        rustix::io::write(&descriptors[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 2]).unwrap(), 1);
        assert_eq!(other.receive(None).unwrap().unwrap().0, Message::Go);
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(other.receive(Some(soon)).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(one);
        assert!(other.receive(None).unwrap().is_none());
        assert!(other.send(&Message::Go).is_err());
    }

    #[test]
    fn ending_wakes_who_waits() {
        let (one, other) = Channel::pair().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| other.receive(None).unwrap().is_none());
            other.end();
            assert!(waiting.join().unwrap());
        });
        assert!(one.receive(None).unwrap().is_none());
    }

    #[test]
    fn what_is_no_channel_is_refused() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(Channel::new(reader.into()).is_err());
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Channel::new(stream.into()).is_err());
    }
}
