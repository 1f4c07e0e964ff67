//! The socket behind tokio's traits.

use std::io::{ErrorKind, Read, Write};
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::*;
use crate::ring::{Stream, spawn, timeout};

/// Megabytes both ways at once through tokio's own copying, in odd pieces, then a half-close from each side.
#[test]
fn tokio_copies_through_it_both_ways() {
    run(|| async {
        const TOTAL: u64 = 8 << 20;
        let (left_edge, left) = pair();
        let (right_edge, right) = pair();
        left_edge.set_receive(Receive::Stream);
        let tunnel = async move {
            let (mut a, mut b) = (Stream::new(left_edge), Stream::new(right_edge));
            tokio::io::copy_bidirectional(&mut a, &mut b).await.unwrap()
        };
        let peer = |mut stream: std::net::TcpStream, writes: u64, reads: u64| {
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                let sending = std::thread::spawn(move || {
                    let mut chance = Chance(writes);
                    let mut at = 0;
                    while at < TOTAL {
                        let piece = 1 + chance.below(70_000).min(TOTAL - at - 1);
                        writer.write_all(&stream_bytes(writes, at, piece as usize)).unwrap();
                        at += piece;
                    }
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                });
                let mut chance = Chance(reads);
                let mut at = 0;
                loop {
                    let mut buffer = vec![0; 1 + chance.below(50_000) as usize];
                    match stream.read(&mut buffer).unwrap() {
                        0 => break,
                        len => at += check(reads, at, &buffer[..len]),
                    }
                }
                sending.join().unwrap();
                at
            })
        };
        let threads = [peer(left, 31, 32), peer(right, 32, 31)];
        let copied = timeout(Duration::from_secs(60), tunnel).await.unwrap();
        assert_eq!(copied, (TOTAL, TOTAL));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), TOTAL);
        }
    });
}

/// An echo between two streams of the ring, split in halves, with reads of every small size.
#[test]
fn halves_read_and_write_at_the_same_time() {
    run(|| async {
        const TOTAL: u64 = 1 << 20;
        let (ours, theirs) = ring_pair();
        spawn(async move {
            let mut stream = Stream::new(theirs);
            let mut buffer = vec![0; 777];
            loop {
                match stream.read(&mut buffer).await.unwrap() {
                    0 => break,
                    len => stream.write_all(&buffer[..len]).await.unwrap(),
                }
            }
            stream.shutdown().await.unwrap();
        });
        let (mut reader, mut writer) = tokio::io::split(Stream::new(ours));
        spawn(async move {
            let mut at = 0;
            let mut chance = Chance(41);
            while at < TOTAL {
                let piece = (1 + chance.below(9_000)).min(TOTAL - at);
                writer.write_all(&stream_bytes(41, at, piece as usize)).await.unwrap();
                at += piece;
            }
            writer.shutdown().await.unwrap();
        });
        let mut at = 0;
        let mut chance = Chance(42);
        loop {
            let mut buffer = vec![0; 1 + chance.below(3_000) as usize];
            match timeout(Duration::from_secs(10), reader.read(&mut buffer)).await.unwrap().unwrap() {
                0 => break,
                len => at += check(41, at, &buffer[..len]),
            }
        }
        assert_eq!(at, TOTAL);
    });
}

/// A write returns with what it took; a flush ends when the kernel has it; errors come out of the next call.
#[test]
fn writes_push_back_and_report_errors() {
    run(|| async {
        let (ours, peer) = pair();
        let mut stream = Stream::new(ours);
        let large = vec![5; 16 << 20];
        let taken = stream.write(&large).await.unwrap();
        assert!(taken > 0 && taken <= 64 * 1024, "{taken}");
        let outcome = timeout(Duration::from_millis(100), stream.write_all(&large)).await;
        assert!(outcome.is_err(), "nobody reads");
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        let error = timeout(Duration::from_secs(5), stream.write_all(&large)).await.unwrap().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        assert!(stream.write_all(b"x").await.is_err() || stream.flush().await.is_err());
    });
}

/// A read without room is ready at once, as with every other stream.
#[test]
fn a_read_without_room_does_not_wait() {
    run(|| async {
        let (ours, mut peer) = pair();
        let mut stream = Stream::new(ours);
        let mut nothing = [0; 0];
        std::future::poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut nothing);
            assert!(Pin::new(&mut stream).poll_read(cx, &mut buffer).is_ready());
            assert!(Pin::new(&mut stream).poll_flush(cx).is_ready(), "nothing to flush");
            Poll::Ready(())
        })
        .await;
        peer.write_all(b"bytes").unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"bytes");
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 0);
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 0);
    });
}
