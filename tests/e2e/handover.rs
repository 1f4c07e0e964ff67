//! USR2 has a new process take over: sockets, backlog, tickets and all, and nobody notices.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use rustls::AlertDescription as Alert;
use serde_json::Value;

use crate::harness::http::{Framing, Http, HttpOrigin, send_body};
use crate::harness::payload::Payload;
use crate::harness::process::{HOSTWARD, tool};
use crate::harness::{ACME, Auth, Authority, Edge, End, GLOBEX, Origin, SOON, Settings, Tls, World, wait};

const FAILED: &str = "hostward_handovers_total{result=\"failed\"}";

fn settings(world: &World, origin: &Origin) -> Settings {
    let settings = world.settings().host(world.host(ACME, origin).require(&[&world.acme]));
    settings.host(world.host(GLOBEX, origin).require(&[&world.globex])).limit("drain_timeout = \"60s\"")
}

/// Runs `change` while six clients come and go and six stay; nobody may be refused, cut or left waiting.
fn under_load(world: &World, edge: &Edge, change: impl FnOnce(&dyn Fn())) {
    let (stop, new, pings) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let client = world.acme_client("alice").tls(Tls::BOTH[thread % 2]);
            let (stop, new, pings) = (&stop, &new, &pings);
            scope.spawn(move || {
                let mut lasting = client.expect_in(edge.address(), ACME);
                while !stop.load(Ordering::Relaxed) {
                    lasting.ping().unwrap_or_else(|end| panic!("an open connection was lost: {end:?}"));
                    pings.fetch_add(1, Ordering::Relaxed);
                    let session = client.expect_in(edge.address(), ACME);
                    assert_eq!(session.finish(), End::CloseNotify);
                    new.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(lasting.finish(), End::CloseNotify);
            });
        }
        let goes_on = || {
            let (seen_new, seen_pings) = (new.load(Ordering::Relaxed), pings.load(Ordering::Relaxed));
            wait::until("the load goes on", SOON, || {
                new.load(Ordering::Relaxed) > seen_new + 30 && pings.load(Ordering::Relaxed) > seen_pings + 30
            });
        };
        goes_on();
        change(&goes_on);
        goes_on();
        stop.store(true, Ordering::Relaxed);
    });
}

/// No process of the edge cut anybody.
#[track_caller]
fn expect_none_cut(edge: &Edge, processes: usize) {
    let stopped = || edge.events.named(&["stopped"]);
    wait::until("every old process has ended", SOON, || stopped().len() >= processes);
    for event in stopped() {
        assert_eq!(event["connections_cut"], 0, "{event}");
    }
}

fn status(edge: &Edge) -> Value {
    let (code, body) = edge.admin("/status");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// A copy of the program in a directory of its own.
fn copy_of_the_program(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    // A new file, as package managers do it: a running one cannot be written to.
    let fresh = directory.join("fresh");
    fs::copy(HOSTWARD, &fresh).expect("a copy");
    fs::rename(&fresh, &path).expect("a name");
    path
}

/// Puts a script where the program was.
fn put_script(path: &Path, script: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).expect("a script");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::rename(&fresh, path).expect("a name");
}

/// 290: hand-overs under load, one after the other, lose no connection and no request; each old process ends in order.
#[test]
fn t290_hand_overs_under_load_lose_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let mut old = Vec::new();
    under_load(&world, &edge, |goes_on| {
        for _ in 0..5 {
            old.push(edge.hand_over());
            goes_on();
        }
    });
    for pid in old {
        assert_eq!(edge.exit_code_within(pid, SOON), Some(0), "{}", edge.events.text());
    }
    expect_none_cut(&edge, 5);
    assert_eq!(edge.metric("hostward_handshakes_total{result=\"refused\"}") as u64, 0);
    assert_eq!(status(&edge)["pid"], edge.pid());
    assert_eq!(status(&edge)["generation"], 6);
}

/// 291: what is open stays with the old process, which ends with its last connection.
#[test]
fn t291_an_open_connection_stays_until_it_ends() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let client = world.acme_client("alice");
    let mut session = client.expect_in(edge.address(), ACME);
    let old = edge.hand_over();
    for _ in 0..100 {
        session.ping().expect("the old process goes on with what it has");
    }
    client.expect_in(edge.address(), ACME);
    assert_eq!(edge.exit_code_within(old, Duration::from_millis(300)), None, "it waits for its connection");
    assert_eq!(session.finish(), End::CloseNotify);
    assert_eq!(edge.exit_code_within(old, SOON), Some(0), "{}", edge.events.text());
    wait::until("the new process knows", SOON, || !edge.events.named(&["predecessor_ended"]).is_empty());
    client.expect_in(edge.address(), ACME);
}

/// 292: tickets of the old process resume at the new one, where they came from and nowhere else.
#[test]
fn t292_tickets_outlive_the_process_and_no_border() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let clients = Tls::BOTH.map(|version| world.acme_client("alice").tls(version));
    for client in &clients {
        client.tickets().withhold(true);
        for _ in 0..3 {
            client.expect_in(edge.address(), ACME);
        }
        client.tickets().withhold(false);
    }
    edge.hand_over();
    edge.hand_over();
    for (index, client) in clients.iter().enumerate() {
        client.expect_alert(edge.address(), GLOBEX, Alert::UnknownCA);
        edge.expect_metric("hostward_tickets_total{result=\"declined_record\"}", index as f64 + 1.0);
        client.present(None);
        assert!(client.expect_in(edge.address(), ACME).resumed(), "client {index}");
    }
}

/// 293: what a ticket rests on may have changed between the two processes: then it is worth nothing.
#[test]
fn t293_a_ticket_does_not_outlive_its_trust() {
    let world = World::new();
    let (origin, next) = (Origin::echo(), Authority::new("Acme Clients CA"));
    let edge = Edge::start(settings(&world, &origin));
    let clients = Tls::BOTH.map(|version| world.acme_client("alice").tls(version));
    for client in &clients {
        client.expect_in(edge.address(), ACME);
        assert!(client.expect_in(edge.address(), ACME).resumed());
    }
    edge.rewrite(|settings| settings.named(ACME).set_auth(Auth::Require, &[&next]));
    edge.hand_over();
    for client in &clients {
        assert!(client.tickets().count() > 0);
        client.expect_alert(edge.address(), ACME, Alert::UnknownCA);
    }
    edge.expect_metric("hostward_tickets_total{result=\"declined_trust\"}", 2.0);
}

/// 294: a configuration that is wrong leaves the old process serving, which says why.
#[test]
fn t294_a_bad_configuration_changes_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let client = world.acme_client("alice");
    let mut session = client.expect_in(edge.address(), ACME);
    let pid = edge.pid();
    edge.rewrite(|settings| settings.named(ACME).lines = vec!["clientauth = 1".into()]);
    let why = edge.try_hand_over().expect_err("a bad file");
    assert!(
        why["why"].as_str().is_some_and(|why| why.contains("clientauth") && why.contains("hostward.toml:")),
        "{why}"
    );
    edge.expect_metric(FAILED, 1.0);
    edge.rewrite(|settings| {
        settings.named(ACME).lines.clear();
        settings.named(ACME).cas = vec![String::new()];
    });
    edge.try_hand_over().expect_err("an empty CA file");
    edge.expect_metric(FAILED, 2.0);
    assert_eq!(status(&edge)["pid"], pid);
    session.ping().expect("nothing has changed");
    assert!(client.expect_in(edge.address(), ACME).resumed(), "nothing has changed");
    edge.rewrite(|settings| settings.named(ACME).set_auth(Auth::Require, &[&world.acme]));
    edge.hand_over();
    session.ping().expect("an open connection goes on");
    client.expect_in(edge.address(), ACME);
}

/// 295: a program that is missing, no program at all, or one that breaks at its start, while clients come and go.
#[test]
fn t295_a_broken_program_changes_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let program = copy_of_the_program(directory.path(), "hostward");
    let edge = Edge::start_program(&[], &program, settings(&world, &origin));
    let pid = edge.pid();
    under_load(&world, &edge, |goes_on| {
        let expect_failure = |what: &str, word: &str| {
            let why = edge.try_hand_over().expect_err(what);
            assert!(why["why"].as_str().is_some_and(|why| why.contains(word)), "{what}: {why}");
            goes_on();
        };
        fs::remove_file(&program).expect("the program");
        expect_failure("missing", "No such file");
        fs::write(&program, "not a program").expect("a file");
        expect_failure("not executable", "ermission denied");
        put_script(&program, "exit 7");
        expect_failure("ends at once", "exit status: 7");
        put_script(&program, "kill -SEGV $$");
        expect_failure("crashes", "signal: 11");
    });
    assert_eq!(edge.pid(), pid);
    edge.expect_metric(FAILED, 4.0);
    copy_of_the_program(directory.path(), "hostward");
    edge.hand_over();
    world.acme_client("alice").expect_in(edge.address(), ACME);
}

/// 296: what is started is what stands now where the program stood, links followed anew.
#[test]
fn t296_the_program_of_today_is_started() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let [first, second] = ["first", "second"].map(|name| copy_of_the_program(directory.path(), name));
    let link = directory.path().join("hostward");
    symlink(&first, &link).expect("a link");
    let edge = Edge::start_program(&[], &link, settings(&world, &origin));
    let running = || fs::read_link(format!("/proc/{}/exe", edge.pid())).expect("the process lives");
    assert_eq!(running(), first);
    fs::remove_file(&link).expect("the link");
    symlink(&second, &link).expect("a link");
    edge.hand_over();
    assert_eq!(running(), second);
    copy_of_the_program(directory.path(), "second");
    assert!(running().to_str().is_some_and(|path| path.ends_with(" (deleted)")));
    edge.hand_over();
    assert_eq!(running(), second, "the file of that name, not the one that is gone");
}

/// 297: more workers, fewer, and as many again, under load: no listener is left that nobody accepts from.
#[test]
fn t297_the_number_of_workers_may_change() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    under_load(&world, &edge, |goes_on| {
        for workers in [4, 1, 3, 2] {
            edge.rewrite(|settings| settings.workers = workers);
            edge.hand_over();
            goes_on();
            let now = status(&edge)["workers"].as_array().map(Vec::len);
            assert_eq!(now, Some(workers));
        }
    });
    expect_none_cut(&edge, 4);
}

/// 298: an address that is gone from the configuration is closed, one that is new is served, one that stays never pauses.
#[test]
fn t298_addresses_come_and_go() {
    let world = World::new();
    let origin = Origin::echo();
    let mut with = settings(&world, &origin);
    with.listen.push("127.0.0.2:0".into());
    let edge = Edge::start(with);
    let address = |edge: &Edge, index: usize| -> SocketAddr {
        let listen = status(edge)["listen"][index].clone();
        listen.as_str().and_then(|text| text.parse().ok()).expect("an address")
    };
    let removed = address(&edge, 1);
    let client = world.acme_client("alice");
    let mut session = client.expect_in(removed, ACME);
    edge.rewrite(|settings| settings.listen[1] = "127.0.0.3:0".into());
    under_load(&world, &edge, |_| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (world, done) = (&world, &done);
            let knocking = scope.spawn(move || {
                let client = world.acme_client("bob");
                while !done.load(Ordering::Relaxed) {
                    match client.enter(removed, ACME) {
                        Ok(session) => assert_eq!(session.finish(), End::CloseNotify),
                        Err(end) => return end,
                    }
                }
                End::TimedOut
            });
            edge.hand_over();
            wait::within(SOON, || knocking.is_finished());
            done.store(true, Ordering::Relaxed);
            // Who comes in the microseconds between the last look at the backlog and the close is reset.
            let end = knocking.join().expect("no panic");
            assert!(matches!(end, End::Refused | End::Reset), "{end:?}");
        });
    });
    session.ping().expect("an open connection goes on, wherever it came in");
    let added = address(&edge, 1);
    assert_ne!(added.ip(), removed.ip());
    client.expect_in(added, ACME);
}

/// 299: the new process holds what a process holds, and the channel.
#[test]
fn t299_no_other_descriptor_is_inherited() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    world.acme_client("alice").expect_in(edge.address(), ACME);
    edge.expect_metric("hostward_connections_open", 0.0);
    let fresh = edge.proc().fds();
    let _sessions: Vec<_> = (0..50).map(|_| world.acme_client("alice").expect_in(edge.address(), ACME)).collect();
    edge.hand_over();
    world.acme_client("alice").expect_in(edge.address(), ACME);
    let bound = fresh + 1;
    wait::until(&format!("at most {bound} descriptors"), SOON, || edge.proc().fds() <= bound);
    let environment = fs::read_to_string(format!("/proc/{}/environ", edge.pid())).expect("the process lives");
    assert_eq!(environment.matches("HOSTWARD_HANDOVER").count(), 1);
}

/// 300: the admin listeners are the new process's: status, metrics, commands; the socket's file outlives the old one.
#[test]
fn t300_the_new_process_answers_for_the_edge() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let before = status(&edge);
    assert_eq!((&before["generation"], &before["predecessor"]), (&1.into(), &Value::Null));
    let session = world.acme_client("alice").expect_in(edge.address(), ACME);
    let old = edge.hand_over();
    let after = status(&edge);
    assert_eq!((&after["pid"], &after["predecessor"]), (&edge.pid().into(), &old.into()));
    assert_eq!(after["generation"], 2);
    edge.expect_metric("hostward_handovers_total{result=\"ok\"}", 1.0);
    drop(session);
    assert_eq!(edge.exit_code_within(old, SOON), Some(0));
    wait::until("the predecessor is forgotten", SOON, || status(&edge)["predecessor"].is_null());
    let shown = edge.cli("status");
    assert!(shown.stdout.lines().any(|line| line.starts_with("pid ") && line.ends_with(&edge.pid().to_string())));
    assert_eq!(edge.cli("reload").code(), Some(0));
    assert_eq!(edge.cli("drain").code(), Some(0));
    assert_eq!(edge.exit_code_within(edge.pid(), SOON), Some(0), "{}", edge.events.text());
}

/// 301: a second USR2 while one is under way is refused; TERM meanwhile ends everything, the one that was started too.
#[test]
fn t301_a_hand_over_under_way_can_be_ended() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let program = copy_of_the_program(directory.path(), "hostward");
    let edge = Edge::start_program(&[], &program, settings(&world, &origin));
    put_script(&program, "exec sleep 600");
    edge.signal(Signal::USR2);
    let started = wait::for_some("it has been started", SOON, || edge.events.named(&["handover_started"]).pop());
    edge.signal(Signal::USR2);
    let refused = wait::for_some("the second is refused", SOON, || edge.events.named(&["handover_refused"]).pop());
    assert_eq!(refused["why"], "one is under way");
    world.acme_client("alice").expect_in(edge.address(), ACME);
    let old = edge.pid();
    edge.signal(Signal::TERM);
    assert_eq!(edge.exit_code_within(old, SOON), Some(0), "{}", edge.events.text());
    let successor = started["successor"].as_u64().expect("a pid");
    wait::until("the one that was started is gone", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{successor}/stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    });
    assert!(world.client().enter(edge.address(), ACME).is_err(), "the port is closed");
}

/// 302: what the new process reloads acts within a second on connections the old ones still have (I6).
#[test]
fn t302_withdrawn_trust_reaches_every_process() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let mut acme = Vec::new();
    let mut globex = Vec::new();
    for round in 0..3 {
        acme.push(world.acme_client("alice").expect_in(edge.address(), ACME));
        globex.push(world.globex_client("bob").expect_in(edge.address(), GLOBEX));
        if round < 2 {
            edge.hand_over();
        }
    }
    let next = Authority::new("Acme Clients CA 2");
    edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&next]));
    for (age, session) in acme.iter_mut().enumerate() {
        assert!(session.end_within(Duration::from_secs(1)).is_some(), "process {age} kept it");
    }
    for session in &mut globex {
        session.ping().expect("another customer's connection goes on");
    }
}

/// 303: a reload while the new process starts: both serve what the file says now.
#[test]
fn t303_a_reload_meanwhile_is_not_lost() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let next = Authority::new("Acme Clients CA 2");
    let mut session = world.acme_client("alice").expect_in(edge.address(), ACME);
    edge.signal(Signal::USR2);
    wait::until("it has been started", SOON, || !edge.events.named(&["handover_started"]).is_empty());
    edge.rewrite(|settings| settings.named(ACME).set_auth(Auth::Require, &[&next]));
    edge.signal(Signal::HUP);
    wait::until("somebody takes over", SOON, || !edge.events.named(&["handed_over"]).is_empty());
    assert!(session.end_within(SOON).is_some(), "{}", edge.events.text());
    let client = world.client().with_identity(next.leaf("carol").issue());
    wait::until("the new process has read it", SOON, || client.enter(edge.address(), ACME).is_ok());
    world.acme_client("alice").expect_alert(edge.address(), ACME, Alert::UnknownCA);
}

/// 304: who stops the service signals both processes: the old one goes on draining, and ends at once at its second.
#[test]
fn t304_signals_to_both_processes() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let mut session = world.acme_client("alice").expect_in(edge.address(), ACME);
    let old = edge.hand_over();
    edge.signal_to(old, Signal::USR2);
    wait::until("who drains starts nobody", SOON, || !edge.events.named(&["handover_refused"]).is_empty());
    edge.signal_to(old, Signal::TERM);
    wait::until("the old one drains already", SOON, || !edge.events.named(&["draining_already"]).is_empty());
    session.ping().expect("the first signal found it draining");
    edge.signal_to(old, Signal::TERM);
    assert_eq!(edge.exit_code_within(old, SOON), Some(0));
    assert!(session.end_within(SOON).is_some());
    let stopped = edge.events.named(&["stopped"]).pop().expect("its last line");
    assert_eq!(stopped["connections_cut"], 1, "{stopped}");
    world.acme_client("alice").expect_in(edge.address(), ACME);
}

/// 305: who stands in the backlog of a process that is full is served by the next one.
#[test]
fn t305_the_backlog_is_kept() {
    let world = World::new();
    let origin = Origin::echo();
    let limit = "connections_per_worker = 1";
    let edge = Edge::start(settings(&world, &origin).workers(1).limit(limit));
    let client = world.acme_client("alice");
    let mut held = client.expect_in(edge.address(), ACME);
    let waiting = client.begin(edge.address(), ACME).expect("the kernel accepts it");
    edge.hand_over();
    let mut waiting = waiting;
    waiting.shake().expect("the new process has room");
    waiting.ping().expect("the new process has room");
    held.ping().expect("the old one goes on");
}

/// 306: a drain serves who stands in the backlog, too: the kernel has told them that they are in.
#[test]
fn t306_a_drain_serves_the_backlog() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin).workers(1).limit("connections_per_worker = 1"));
    let client = world.acme_client("alice");
    let held = client.expect_in(edge.address(), ACME);
    let mut waiting = client.begin(edge.address(), ACME).expect("the kernel accepts it");
    edge.signal(Signal::TERM);
    wait::until("it drains", SOON, || edge.admin("/readyz").0 == 503);
    assert_eq!(held.finish(), End::CloseNotify);
    waiting.shake().expect("it is its turn");
    waiting.ping().expect("it is its turn");
    assert_eq!(waiting.finish(), End::CloseNotify);
    assert_eq!(edge.exit_code_within(edge.pid(), SOON), Some(0));
    assert!(client.begin(edge.address(), ACME).is_err(), "nobody else comes in");
}

/// 307: the variable alone, of no parent of ours, means nothing; a channel that is none is said to be so.
#[test]
fn t307_a_stray_variable_is_harmless() {
    let world = World::new();
    let origin = Origin::echo();
    let Some(env) = tool("env") else { return };
    let env = env.to_str().expect("UTF-8");
    let edge = Edge::start_under(&[env, "HOSTWARD_HANDOVER=7:1"], settings(&world, &origin));
    world.acme_client("alice").expect_in(edge.address(), ACME);
    let mut child = std::process::Command::new(HOSTWARD)
        .args(["run", "-c", edge.file().to_str().expect("UTF-8")])
        .env("HOSTWARD_HANDOVER", format!("77:{}", std::process::id()))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("a program");
    let mut text = String::new();
    child.stderr.take().expect("the pipe").read_to_string(&mut text).expect("text");
    assert_eq!(child.wait().expect("a child").code(), Some(3), "{text}");
    assert!(text.contains("names no channel"), "{text}");
}

/// 308: where descriptors are fewer than connections asked for, the start says so; with enough of them it does not.
#[test]
fn t308_a_lowered_limit_is_told() {
    let Some(prlimit) = tool("prlimit") else { return };
    let world = World::new();
    let origin = Origin::echo();
    for (files, told) in [("--nofile=400", true), ("--nofile=4096", false)] {
        let with = settings(&world, &origin).limit("connections_per_worker = 500");
        let edge = Edge::start_under(&[prlimit.to_str().expect("UTF-8"), files], with);
        let event = edge.events.named(&["limit_lowered"]).pop();
        assert_eq!(event.is_some(), told, "{files}: {event:?}");
        if let Some(event) = event {
            assert_eq!(event["configured"], 500);
            assert!(event["allowed"].as_u64().is_some_and(|allowed| allowed < 200), "{event}");
        }
    }
}

/// 309: clients that connect and say nothing while processes change are still served when they speak.
#[test]
fn t309_who_has_connected_and_not_spoken_is_served() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin));
    let connect = |_| TcpStream::connect(edge.address()).expect("the port is open throughout");
    let mut silent: Vec<_> = (0..100).map(connect).collect();
    edge.hand_over();
    silent.extend((0..100).map(connect));
    edge.hand_over();
    let client = world.acme_client("alice");
    for socket in silent {
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        let mut session = client.begin_on(socket, ACME);
        session.shake().expect("it is served");
        session.ping().expect("it is served");
    }
}

/// A client over HTTP that keeps its connection as long as it may, and asks every request once.
struct Asking<'a> {
    world: &'a World,
    edge: &'a Edge,
    http: Option<Http>,
    /// Connections it was told to leave, or found closed before it asked.
    left: u64,
}

impl Asking<'_> {
    /// A request, whose response must come and be the right one: with a body every second time, of either framing.
    fn ask(&mut self, n: u64) {
        if let Some(end) = self.http.as_mut().and_then(|http| http.session().ended()) {
            assert_eq!(end, End::CloseNotify, "between requests");
            self.http = None;
            self.left += 1;
        }
        let open = || Http::new(self.world.client().open(self.edge.address(), ACME).expect("a connection"));
        let http = self.http.get_or_insert_with(open);
        let bytes = [0, 10, 0, 100_000][n as usize % 4];
        let (framing, field) = match n % 8 {
            0..4 => (Framing::Length(bytes), format!("Content-Length: {bytes}")),
            _ => (Framing::Chunked, "Transfer-Encoding: chunked".to_owned()),
        };
        let (method, framing, field) = match bytes {
            0 => ("GET", Framing::Length(0), "X: y".to_owned()),
            _ => ("POST", framing, field),
        };
        let head = format!("{method} /{n} HTTP/1.1\r\nHost: {ACME}\r\n{field}\r\n\r\n");
        let session = http.session();
        let digest = send_body(&head, framing, Payload::new(bytes, n), "", |bytes| session.send(bytes).is_ok());
        let response = http.response_to(false).unwrap_or_else(|end| panic!("{method} /{n} was lost: {end:?}"));
        assert_eq!((response.status(), response.body.text()), (200, format!("/{n} {digest}")));
        if response.head.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            assert_eq!(http.end(), End::CloseNotify, "after the last response");
            self.http = None;
            self.left += 1;
        }
    }
}

/// Runs `change` while eight clients ask one request after the other, four of them with pauses; no request may fail. Returns
/// how many connections ended.
fn asking(world: &World, edge: &Edge, change: impl FnOnce(&dyn Fn())) -> u64 {
    let (stop, asked, left) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (stop, asked, left) = (&stop, &asked, &left);
            scope.spawn(move || {
                let mut client = Asking { world, edge, http: None, left: 0 };
                let mut n = thread;
                while !stop.load(Ordering::Relaxed) {
                    client.ask(n);
                    n += 1;
                    asked.fetch_add(1, Ordering::Relaxed);
                    if thread >= 4 {
                        std::thread::sleep(Duration::from_millis(n % 20));
                    }
                }
                left.fetch_add(client.left, Ordering::Relaxed);
            });
        }
        let goes_on = || {
            let seen = asked.load(Ordering::Relaxed);
            wait::until("the load goes on", SOON, || asked.load(Ordering::Relaxed) > seen + 100);
        };
        goes_on();
        change(&goes_on);
        goes_on();
        stop.store(true, Ordering::Relaxed);
    });
    left.load(Ordering::Relaxed)
}

/// An origin that answers with what it was asked and the digest of the body.
fn digesting() -> HttpOrigin {
    HttpOrigin::start(|head, talk| {
        let digest = talk.body(head)?.digest;
        talk.answer("200 OK", &format!("{} {digest}", head.target()))
    })
}

/// 350: hand-overs under HTTP load fail no request, with a body or without: connections are asked to end, and end between
/// requests.
#[test]
fn t350_no_request_fails() {
    let world = World::new();
    let origin = digesting();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)).limit("drain_timeout = \"60s\""));
    let left = asking(&world, &edge, |goes_on| {
        for _ in 0..5 {
            let old = edge.hand_over();
            goes_on();
            assert_eq!(edge.exit_code_within(old, SOON), Some(0), "{}", edge.events.text());
        }
    });
    assert!(left >= 5 * 8, "every hand-over moves every client: {left}");
    expect_none_cut(&edge, 5);
}

/// 351: a reload under HTTP load fails no request and ends no connection.
#[test]
fn t351_reloads_end_no_connection() {
    let world = World::new();
    let origin = digesting();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let left = asking(&world, &edge, |goes_on| {
        for n in 0..10 {
            let rule = format!("path = \"/no/{n}\"\nallow = {{}}");
            edge.reconfigure(|settings| settings.named(ACME).rules = vec![rule, "allow = {}".into()]);
            goes_on();
        }
    });
    assert_eq!(left, 0);
}

/// One redirect over a connection: whether the connection may be used again.
fn redirected(socket: &mut TcpStream) -> bool {
    socket.write_all(format!("GET /x HTTP/1.1\r\nHost: {ACME}\r\n\r\n").as_bytes()).expect("sending");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).expect("an answer"), 1, "{}", String::from_utf8_lossy(&head));
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 308 "), "{head}");
    !head.contains("Connection: close")
}

/// 352: plain HTTP is redirected throughout, at the same address and to the same port, on connections old and new.
#[test]
fn t352_redirects_go_on() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin).server("redirect = [\"127.0.0.1:0\"]"));
    let (redirect, tls) = (edge.redirect(), edge.address());
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let connect = || {
        let socket = TcpStream::connect(redirect).expect("the port is open throughout");
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        socket
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (stop, asked, connect) = (&stop, &asked, &connect);
            scope.spawn(move || {
                let mut socket = connect();
                while !stop.load(Ordering::Relaxed) {
                    if !redirected(&mut socket) || thread % 2 == 0 {
                        socket = connect();
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..4 {
            let old = edge.hand_over();
            let seen = asked.load(Ordering::Relaxed);
            wait::until("the load goes on", SOON, || asked.load(Ordering::Relaxed) > seen + 100);
            assert_eq!(edge.redirect(), redirect);
            assert_eq!(edge.exit_code_within(old, SOON), Some(0), "{}", edge.events.text());
        }
        stop.store(true, Ordering::Relaxed);
    });
    expect_none_cut(&edge, 4);
    let handed = edge.events.named(&["handed_over"]).pop().expect("the last one");
    let listed = handed["listen"].as_array().expect("addresses");
    assert_eq!(*listed, [tls, redirect].map(|address| Value::from(address.to_string())));
    world.acme_client("alice").expect_in(tls, ACME);
}

/// 353: both processes write the same access log; USR1 to the one that serves moves it on, and no line is lost.
#[test]
fn t353_the_access_log_is_shared() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(settings(&world, &origin).log("access = \"access.log\""));
    let (file, rotated) = (edge.file().with_file_name("access.log"), edge.file().with_file_name("access.log.1"));
    let lines = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count()
    };
    let client = world.acme_client("alice");
    let mut kept: Vec<_> = (0..2).map(|_| client.expect_in(edge.address(), ACME)).collect();
    let old = edge.hand_over();
    assert_eq!(client.expect_in(edge.address(), ACME).finish(), End::CloseNotify);
    assert_eq!(kept.pop().expect("one").finish(), End::CloseNotify);
    wait::for_value("lines of both processes", SOON, &2, || lines(&file));
    fs::rename(&file, &rotated).expect("a name");
    edge.signal(Signal::USR1);
    wait::until("it is opened anew", SOON, || !edge.events.named(&["logs_reopened"]).is_empty());
    assert_eq!(client.expect_in(edge.address(), ACME).finish(), End::CloseNotify);
    wait::for_value("lines in the new file", SOON, &1, || lines(&file));
    // The old process was told nothing, and goes on where it was.
    assert_eq!(kept.pop().expect("the other").finish(), End::CloseNotify);
    assert_eq!(edge.exit_code_within(old, SOON), Some(0), "{}", edge.events.text());
    assert_eq!((lines(&file), lines(&rotated)), (1, 3));
}
