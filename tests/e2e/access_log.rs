//! 260-269: the access log: a line for every connection, whatever happens to its file, and nothing a client can forge.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use rustls::AlertDescription;
use serde_json::Value;

use crate::harness::edge::Reload;
use crate::harness::process::tool;
use crate::harness::{ACME, Edge, Origin, SOON, Settings, Tls, World, wait};

const FILE: &str = "access = \"access.log\"";
const DROPPED: &str = "hostward_log_lines_dropped_total{log=\"access\"}";

fn path(edge: &Edge, name: &str) -> PathBuf {
    edge.file().with_file_name(name)
}

/// The lines of a file; each must be JSON of its own.
#[track_caller]
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Waits for this many lines.
#[track_caller]
fn expect_lines(path: &Path, count: usize) -> Vec<Value> {
    let whole = || fs::read_to_string(path).unwrap_or_default().matches('\n').count();
    wait::for_value("lines in the access log", SOON, &count, whole);
    lines(path)
}

fn settings(world: &World, origin: &Origin) -> Settings {
    world.settings().host(world.host(ACME, origin).request(&[&world.acme])).log(FILE)
}

/// 260: a connection's line says who, where and how much; a refused client leaves none here.
#[test]
fn t260_a_connection_leaves_its_line() {
    let world = World::new();
    let origin = Origin::echo();
    let mut settings = settings(&world, &origin);
    settings.named(ACME).names.push("*.acme.test".into());
    settings.named(ACME).certificates = vec![world.servers.server(&[ACME, "*.acme.test"]).issue()];
    let edge = Edge::start(settings);
    let verified = world.client().with_identity(world.acme.leaf("ops-ann").serial(0x0a0b).issue());
    for (client, version, name, record, verdict) in [
        (verified.clone().tls(Tls::V1_3), "TLSv1.3", ACME, ACME, "SUCCESS"),
        (verified.tls(Tls::V1_2), "TLSv1.2", "any.acme.test", "*.acme.test", "SUCCESS"),
        (world.client(), "TLSv1.3", ACME, ACME, "NONE"),
        (world.globex_client("mallory"), "TLSv1.3", ACME, ACME, "FAILED:unknown_ca"),
    ] {
        let file = path(&edge, "access.log");
        let before = lines(&file).len();
        let mut session = client.expect_in(edge.address(), name);
        session.ping().expect("an echo");
        session.finish();
        let line = expect_lines(&file, before + 1).pop().expect("a line");
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        for (key, expected) in [
            ("hostname", name),
            ("record", record),
            ("protocol", "tcp"),
            ("tls", version),
            ("verdict", verdict),
            ("client_address", "127.0.0.1"),
            ("origin", "o0"),
            ("end", "clean"),
        ] {
            assert_eq!(text(key), expected, "{key} of {line}");
        }
        assert!(text("cipher").starts_with("TLS_"), "{line}");
        assert_eq!(origin.url(), format!("tcp://{}", text("origin_address")), "{line}");
        // Two pings of 13 bytes, echoed.
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&26.into(), &26.into()), "{line}");
        assert!(line["duration_us"].as_u64() >= line["origin_connect_us"].as_u64(), "{line}");
        assert!(line["client_port"].as_u64() > Some(0) && line["worker"].is_u64(), "{line}");
        if verdict == "SUCCESS" {
            assert_eq!((text("client_subject"), text("client_serial")), ("CN=ops-ann".into(), "0a0b".into()), "{line}");
            assert_eq!(text("client_fingerprint").len(), 64, "{line}");
        } else {
            assert!(line.get("client_subject").is_none(), "an unverified certificate names nobody: {line}");
        }
    }
    let before = lines(&path(&edge, "access.log")).len();
    edge.reconfigure(|settings| settings.named(ACME).set_auth(crate::harness::Auth::Require, &[&world.acme]));
    world.globex_client("mallory").expect_alert(edge.address(), ACME, AlertDescription::UnknownCA);
    world.acme_client("ops-ann").expect_in(edge.address(), ACME).finish();
    let line = expect_lines(&path(&edge, "access.log"), before + 1).pop();
    assert_eq!(line.expect("a line")["verdict"], "SUCCESS");
}

/// 261: the file is renamed and opened again under load, many times: every connection has its line, in one of the files.
#[test]
fn t261_rotation_under_load_loses_nothing() {
    const CLIENTS: usize = 4;
    const ROTATIONS: usize = 8;
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let file = path(&edge, "access.log");
    let stop = AtomicBool::new(false);
    let connections: usize = std::thread::scope(|scope| {
        let load = || {
            let client = world.client();
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                client.expect_in(edge.address(), ACME).finish();
                count += 1;
            }
            count
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(load)).collect();
        for rotation in 1..=ROTATIONS {
            wait::until("the file has lines", SOON, || fs::metadata(&file).is_ok_and(|file| file.len() > 0));
            fs::rename(&file, path(&edge, &format!("access.log.{rotation}"))).expect("renaming");
            edge.signal(Signal::USR1);
            let reopened = || edge.events.named(&["logs_reopened"]).len();
            wait::for_value("the file is opened again", SOON, &rotation, reopened);
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).sum()
    });
    let all = || {
        let rotated = (1..=ROTATIONS).map(|rotation| path(&edge, &format!("access.log.{rotation}")));
        rotated.chain([file.clone()]).map(|file| lines(&file)).collect::<Vec<_>>()
    };
    wait::for_value("all lines", SOON, &connections, || all().concat().len());
    assert!(all()[..ROTATIONS].iter().all(|lines| !lines.is_empty()));
    assert_eq!(edge.metric(DROPPED), 0.0);
    assert_eq!(edge.metric("hostward_log_reopens_total{result=\"ok\"}"), ROTATIONS as f64);
}

/// 262: what stands in a certificate stays in its field.
#[test]
fn t262_a_certificate_forges_no_line() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let hostile = "eve\",\"verdict\":\"FORGED\n{\"time\":\"\u{2028}\\";
    world.acme_client(hostile).expect_in(edge.address(), ACME).finish();
    let line = expect_lines(&path(&edge, "access.log"), 1).pop().expect("a line");
    assert_eq!(line["verdict"], "SUCCESS");
    assert!(line["client_subject"].as_str().is_some_and(|subject| subject.contains("FORGED")), "{line}");
}

/// 263: a file that cannot be opened again is told and counted, and the old one goes on.
#[test]
fn t263_what_cannot_be_reopened_goes_on() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let (file, old) = (path(&edge, "access.log"), path(&edge, "old.log"));
    fs::rename(&file, &old).expect("renaming");
    fs::create_dir(&file).expect("a directory in its place");
    edge.signal(Signal::USR1);
    edge.expect_metric("hostward_log_reopens_total{result=\"failed\"}", 1.0);
    assert_eq!(edge.events.named(&["log_not_reopened"]).len(), 1);
    world.client().expect_in(edge.address(), ACME).finish();
    expect_lines(&old, 1);
}

/// 264: a reload turns the log on, moves it and turns it off; a place that cannot be used changes nothing.
#[test]
fn t264_a_reload_moves_it() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let connect = || {
        world.client().expect_in(edge.address(), ACME).finish();
    };
    connect();
    edge.reconfigure(|settings| settings.log = vec![FILE.into()]);
    connect();
    expect_lines(&path(&edge, "access.log"), 1);
    edge.reconfigure(|settings| settings.log = vec!["access = \"./second\"".into()]);
    connect();
    expect_lines(&path(&edge, "second"), 1);
    let Reload::Failed(event) = edge.try_reconfigure(|settings| settings.log = vec!["access = \"no/such\"".into()])
    else {
        panic!("a directory that is not there was taken");
    };
    assert!(event.to_string().contains("there is no directory"), "{event}");
    connect();
    expect_lines(&path(&edge, "second"), 2);
    edge.reconfigure(|settings| settings.log = vec![]);
    connect();
    edge.signal(Signal::TERM);
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
    assert_eq!(lines(&path(&edge, "access.log")).len() + lines(&path(&edge, "second")).len(), 3);
}

/// 266: a file that cannot grow any more (here by the limit on file sizes; a full disk is alike): clients are served on, what
/// is lost is counted and told once, and when there is room again lines go on.
#[test]
fn t266_a_full_disk_stops_nobody() {
    if tool("prlimit").is_none() {
        return;
    }
    let world = World::new();
    let origin = Origin::echo();
    let settings = settings(&world, &origin);
    let edge = Edge::start_under(&["prlimit", "--fsize=2000"], settings);
    for _ in 0..30 {
        world.client().expect_in(edge.address(), ACME).finish();
    }
    let file = path(&edge, "access.log");
    wait::until("lines are lost, and the others written", SOON, || {
        let whole = fs::read_to_string(&file).unwrap_or_default().matches('\n').count();
        whole > 0 && edge.metric(DROPPED) + whole as f64 == 30.0
    });
    assert!(edge.metric("hostward_log_write_errors_total{log=\"access\"}") >= 1.0);
    let told = edge.events.named(&["access_log_not_written"]);
    assert!((1..=3).contains(&told.len()), "{told:?}");
    fs::rename(&file, path(&edge, "access.log.1")).expect("renaming");
    edge.signal(Signal::USR1);
    edge.expect_metric("hostward_log_reopens_total{result=\"ok\"}", 1.0);
    let lost = edge.metric(DROPPED);
    world.client().expect_in(edge.address(), ACME).finish();
    let line = expect_lines(&file, 1).pop().expect("a line");
    assert_eq!(line["dropped"].as_f64(), Some(lost), "{line}");
}

/// 265: what was handed over is written before the process ends.
#[test]
fn t265_the_last_lines_are_written() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let mut sessions: Vec<_> = (0..50).map(|_| world.client().expect_in(edge.address(), ACME)).collect();
    edge.signal(Signal::TERM);
    sessions.drain(..).for_each(|session| drop(session.finish()));
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
    assert_eq!(lines(&path(&edge, "access.log")).len(), 50);
}
