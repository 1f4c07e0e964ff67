//! 470-489: WebSockets through an edge, as the Autobahn suite tries servers: every length and fragmentation, closes and pings,
//! both directions at once, and ends in the middle of everything. Over whatever carries a client's tunnel.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Bytes, Error, Message};

use crate::harness::payload::Payload;
use crate::harness::websocket::{CARRIERS, HALF_A_FRAME, Open, Scene, Socket, fragments, numbered};
use crate::harness::{SOON, wait};

/// Lengths at which the form of a frame changes, and some in between.
const LENGTHS: [usize; 11] = [0, 1, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20];

/// Runs a case over each carrier.
fn over_each(scene: &Scene, case: impl Fn(&Scene, Open)) {
    for (name, open) in CARRIERS {
        eprintln!("over {name}");
        case(scene, open);
    }
}

/// Text of this many bytes, with characters of one to four.
fn text(length: usize) -> String {
    let mut text = "aß€😀".repeat(length / 10);
    text.push_str(&"x".repeat(length - text.len()));
    text
}

fn binary(length: usize) -> Bytes {
    let mut payload = Payload::new(length as u64, length as u64);
    let mut bytes = Vec::new();
    while let Some(block) = payload.next_block() {
        bytes.extend_from_slice(block);
    }
    bytes.into()
}

/// The next message that is neither ping nor pong; answers what is to be answered.
#[track_caller]
fn next(socket: &mut Socket) -> Message {
    loop {
        match socket.read() {
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(message) => return message,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Closes and reads to the end; it must be one in order.
#[track_caller]
fn close(socket: &mut Socket, frame: Option<CloseFrame>) {
    socket.close(frame.clone()).expect("sent");
    assert_eq!(next(socket), Message::Close(frame));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)), "the end of the tunnel");
}

/// How a tunnel ends: `Ok` in order, or by which error.
fn end(socket: &mut Socket) -> Result<(), ErrorKind> {
    let mut block = [0; 4096];
    loop {
        match socket.get_mut().read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

/// 470: messages of every length come back as they were, and pass to the byte as they were sent: masks are not touched.
#[test]
fn t470_messages_of_every_length() {
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        let mut socket = scene.connect(open, "/echo");
        for length in LENGTHS {
            for message in [Message::text(text(length)), Message::binary(binary(length))] {
                socket.send(message.clone()).expect("sent");
                assert!(next(&mut socket) == message, "{length} bytes came back as others");
            }
        }
        // Many at once, which travel together.
        for length in LENGTHS.iter().take(7).cycle().take(500) {
            socket.write(Message::binary(binary(*length))).expect("written");
        }
        socket.flush().expect("sent");
        for length in LENGTHS.iter().take(7).cycle().take(500) {
            assert_eq!(next(&mut socket), Message::binary(binary(*length)));
        }
        close(&mut socket, None);
        scene.expect_untouched(socket);
    });
}

/// 471: messages in fragments, also in the middle of characters, with pings between them, in both directions.
#[test]
fn t471_fragments_and_pings_between() {
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        for path in ["/echo", "/fragments"] {
            let mut socket = scene.connect(open, path);
            let (mut pings, mut pongs) = (0, 0);
            for length in LENGTHS {
                for message in [Message::text(text(length)), Message::binary(binary(length))] {
                    for (number, frame) in fragments(message.clone()).into_iter().enumerate() {
                        socket.send(Message::Frame(frame)).expect("sent");
                        socket.send(Message::Ping(format!("{path} {number}").into())).expect("sent");
                        pings += 1;
                    }
                    loop {
                        match socket.read().expect("a message") {
                            Message::Pong(_) => pongs += 1,
                            Message::Ping(word) => assert_eq!(word, "between"),
                            whole => break assert!(whole == message, "{length} bytes in fragments"),
                        }
                    }
                }
            }
            while pongs < pings {
                match socket.read().expect("a pong") {
                    Message::Pong(_) => pongs += 1,
                    other => assert!(other.is_ping(), "{other:?}"),
                }
            }
            // A message of a thousand fragments of one byte.
            for number in 0..1000 {
                let kind = if number == 0 { Data::Binary } else { Data::Continue };
                let frame = Frame::message(vec![number as u8], OpCode::Data(kind), number == 999);
                socket.send(Message::Frame(frame)).expect("sent");
            }
            assert_eq!(next(&mut socket), Message::binary((0..1000).map(|number| number as u8).collect::<Vec<_>>()));
            close(&mut socket, None);
            scene.expect_untouched(socket);
        }
    });
}

/// 472: every close code, from either side, with its reason; and the tunnel's orderly end behind it.
#[test]
fn t472_close_codes() {
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            for reason in ["".to_owned(), "goodbye".into(), text(123)] {
                let mut socket = scene.connect(open, "/echo");
                close(&mut socket, Some(CloseFrame { code: u16::into(code), reason: reason.into() }));
                scene.expect_untouched(socket);
            }
            let mut socket = scene.connect(open, &format!("/close?{code}"));
            let frame = CloseFrame { code: u16::into(code), reason: "as you wish".into() };
            assert_eq!(next(&mut socket), Message::Close(Some(frame)));
            assert!(matches!(socket.read(), Err(Error::ConnectionClosed)), "the end of the tunnel");
            scene.expect_untouched(socket);
        }
        let mut socket = scene.connect(open, "/echo");
        close(&mut socket, None);
        scene.expect_untouched(socket);
    });
    scene.edge.expect_metric("hostward_connections_open", 0.0);
    wait::until("no connection to the origin is left", SOON, || scene.origin.open() == 0);
}

/// 473: both sides send as fast as they can, and neither waits for the other.
#[test]
fn t473_both_directions_at_once() {
    const COUNT: u32 = 400;
    /// So many messages (a megabyte) are sent before as many are read: more than what waits on the way fills up.
    const BATCH: u32 = 16;
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        let mut socket = scene.connect(open, &format!("/both?{COUNT}"));
        for batch in 0..COUNT / BATCH {
            let numbers = batch * BATCH..(batch + 1) * BATCH;
            for number in numbers.clone() {
                socket.send(Message::binary(numbered(number))).expect("sent");
            }
            for number in numbers {
                assert!(next(&mut socket).into_data() == numbered(number), "message {number} came as another");
            }
        }
        close(&mut socket, None);
        scene.expect_untouched(socket);
    });
}

/// 474: the edge does not look into the tunnel: bytes that are no frames, unmasked ones, reserved bits and codes pass.
#[test]
fn t474_bytes_pass_whatever_they_are() {
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        let mut socket = scene.connect(open, "/raw");
        let mut sent: Vec<Vec<u8>> = vec![
            HALF_A_FRAME.to_vec(),
            b"GET /smuggled HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n".to_vec(),
            b"0\r\n\r\n".to_vec(),
            vec![0xff; 20],
            vec![0; 70_000],
        ];
        sent.extend((0..=255).map(|byte| vec![byte, 0x81, 1, 2, 3, 4, 5]));
        sent.push(binary(3 << 20).to_vec());
        for bytes in &sent {
            let writer = socket.get_mut();
            let mut back = vec![0; bytes.len()];
            let mut filled = 0;
            // No more at once than surely fits on the way there and back.
            for part in bytes.chunks(32 * 1024) {
                writer.write_all(part).expect("sent");
                writer.read_exact(&mut back[filled..filled + part.len()]).expect("echoed");
                filled += part.len();
            }
            assert!(back == *bytes, "{} bytes came back as others", bytes.len());
        }
        socket.get_mut().stream().finish();
        assert_eq!(end(&mut socket), Ok(()), "a half-close is answered with one");
        scene.expect_untouched(socket);
    });
}

/// 475: frames in pieces: byte by byte, half now and half later, and one that comes in one with the answer to the handshake.
#[test]
fn t475_frames_in_pieces() {
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        let mut socket = scene.connect(open, "/eager");
        assert_eq!(next(&mut socket), Message::text("eager"));
        let word = |number: usize| format!("word {number}");
        let masked = |number| {
            let mut frame = Frame::message(word(number), OpCode::Data(Data::Text), true);
            frame.header_mut().mask = Some([7, 77, 177, 0]);
            let mut bytes = Vec::new();
            frame.format(&mut bytes).expect("a frame");
            bytes
        };
        for byte in masked(0) {
            socket.get_mut().write_all(&[byte]).expect("sent");
        }
        assert_eq!(next(&mut socket), Message::text(word(0)));
        // The end of one and the beginning of the next travel together, at every cut.
        let mut rest = Vec::new();
        for number in 1..masked(0).len() {
            let frame = masked(number);
            let (now, later) = frame.split_at(number);
            socket.get_mut().write_all(&[&rest, now].concat()).expect("sent");
            if number > 1 {
                assert_eq!(next(&mut socket), Message::text(word(number - 1)));
            }
            rest = later.to_vec();
        }
        socket.get_mut().write_all(&rest).expect("sent");
        assert_eq!(next(&mut socket), Message::text(word(masked(0).len() - 1)));
        close(&mut socket, None);
        scene.expect_untouched(socket);
    });
}

/// 476: a client that goes without a word, or in the middle of a frame, and an origin that does: the other side learns which
/// it was.
#[test]
fn t476_abrupt_ends_are_told_apart() {
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        let before = scene.ended();
        // The client: in order but without a close, in the middle of a frame, cut off.
        let mut socket = scene.connect(open, "/echo");
        socket.send(Message::text("hello")).expect("sent");
        next(&mut socket);
        socket.get_mut().write_all(&HALF_A_FRAME).expect("sent");
        socket.get_mut().stream().finish();
        assert_eq!(end(&mut socket), Ok(()), "the origin has nothing more to say either");
        scene.expect_untouched(socket);
        assert_eq!(scene.error_of(before), None, "the client has ended its side");
        let mut socket = scene.connect(open, "/echo");
        socket.send(Message::text("hello")).expect("sent");
        next(&mut socket);
        socket.get_mut().write_all(&HALF_A_FRAME).expect("sent");
        socket.get_mut().stream().cut();
        assert_eq!(scene.error_of(before + 1), Some(ErrorKind::ConnectionReset), "the client is gone");

        // The origin: in order, in the middle of a frame, and by a reset.
        for (path, whole) in [("/gone", true), ("/half", true), ("/reset", false)] {
            let mut socket = scene.connect(open, path);
            socket.send(Message::text("now")).expect("sent");
            assert_eq!(end(&mut socket).is_ok(), whole, "{path}");
            if whole {
                // Nor has the client anything more to say.
                socket.get_mut().stream().finish();
            }
        }
    });
    for end in ["client_aborted", "origin_aborted"] {
        let query = format!("hostward_tunnels_ended_total{{end=\"{end}\"}}");
        wait::until(&query, SOON, || scene.edge.metric(&query) >= CARRIERS.len() as f64);
    }
    scene.edge.expect_metric("hostward_connections_open", 0.0);
    wait::until("no connection to the origin is left", SOON, || scene.origin.open() == 0);
}

/// 477: a tunnel lasts as long as something moves within `tunnel_timeout`, in either direction, and ends when nothing does.
#[test]
fn t477_silence_ends_a_tunnel() {
    let scene = Scene::new(|settings| settings.limit("tunnel_timeout = \"1s\""));
    over_each(&scene, |scene, open| {
        let mut socket = scene.connect(open, "/echo");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(2500) {
            std::thread::sleep(Duration::from_millis(250));
            socket.send(Message::Ping("still here".into())).expect("sent");
            assert_eq!(socket.read().expect("a pong"), Message::Pong("still here".into()));
        }
        let silent = Instant::now();
        assert_ne!(end(&mut socket), Ok(()), "nothing has ended in order");
        let took = silent.elapsed();
        assert!(took > Duration::from_millis(900) && took < SOON, "{took:?}");
    });
    scene.edge.expect_metric("hostward_timeouts_total{timeout=\"tunnel\"}", CARRIERS.len() as f64);
}

/// 478: many tunnels at once, each with a conversation of its own.
#[test]
fn t478_tunnels_do_not_mix() {
    const TUNNELS: u32 = 40;
    let scene = Scene::new(|settings| settings);
    over_each(&scene, |scene, open| {
        std::thread::scope(|scope| {
            for tunnel in 0..TUNNELS {
                scope.spawn(move || {
                    let mut socket = scene.connect(open, "/echo");
                    for round in 0..20 {
                        let message = Message::binary(numbered(tunnel * 1000 + round));
                        socket.send(message.clone()).expect("sent");
                        assert!(next(&mut socket) == message, "tunnel {tunnel}, round {round}");
                    }
                    close(&mut socket, None);
                });
            }
        });
    });
    scene.edge.expect_metric("hostward_connections_open", 0.0);
}
