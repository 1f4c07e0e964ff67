//! I6 and I10: a change acts on what is open within a second, and on nothing else; a bad change acts on nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::AlertDescription as Alert;

use crate::harness::edge::Reload;
use crate::harness::origin::Manner;
use crate::harness::{ACME, Auth, Authority, Client, Edge, GLOBEX, Identity, Origin, SOON, Session, Tls, World, wait};

/// I6: what a narrowing change may take to close what is open.
const NARROWING: Duration = Duration::from_secs(1);

/// The label of reloads that were refused.
const FAILED: &str = "hostward_config_reload_total{result=\"failed\"}";
const SUCCEEDED: &str = "hostward_config_reload_total{result=\"ok\"}";

/// Asserts that a session is closed, and not by its own fault, within a second.
#[track_caller]
fn expect_closed(session: &mut Session, what: &str) {
    assert!(session.end_within(NARROWING).is_some(), "{what}: still open after {NARROWING:?}");
}

#[track_caller]
fn expect_open(session: &mut Session, what: &str) {
    session.ping().unwrap_or_else(|end| panic!("{what}: was closed: {end:?}"));
}

/// 100: reloads under load lose nothing: open connections go on, and every new one is let in.
#[test]
fn t100_reloads_under_load_lose_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(ACME, &origin).require(&[&world.acme]));
    let edge = Edge::start(settings);
    let (stop, new, pings) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let client = world.acme_client("alice").tls(Tls::BOTH[thread % 2]);
            let (stop, edge, new, pings) = (&stop, &edge, &new, &pings);
            scope.spawn(move || {
                let mut lasting = client.expect_in(edge.address(), ACME);
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    lasting.ping().unwrap_or_else(|end| panic!("an open connection was lost: {end:?}"));
                    pings.fetch_add(1, Ordering::Relaxed);
                    if round % 4 == 0 {
                        client.expect_in(edge.address(), ACME);
                        new.fetch_add(1, Ordering::Relaxed);
                    }
                    round += 1;
                }
            });
        }
        for round in 0..20 {
            edge.reconfigure(|settings| match round % 2 {
                0 => settings.hosts.push(world.host(GLOBEX, &origin).require(&[&world.globex])),
                _ => settings.remove(GLOBEX),
            });
            let (seen_new, seen_pings) = (new.load(Ordering::Relaxed), pings.load(Ordering::Relaxed));
            wait::until("the load goes on", SOON, || {
                new.load(Ordering::Relaxed) > seen_new + 2 && pings.load(Ordering::Relaxed) > seen_pings + 20
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(edge.metric(SUCCEEDED) as u64, 20);
    assert_eq!(edge.metric("hostward_handshakes_total{result=\"refused\"}") as u64, 0);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"trust_changed\"}", 0.0);
}

/// 101: a bad file changes nothing, says what is wrong and where, and is counted; a good one after it works.
#[test]
fn t101_a_bad_file_changes_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let client = world.acme_client("alice");
    let mut open = client.expect_in(edge.address(), ACME);
    let bad: [(&str, &str); 4] = [
        ("clientauth = \"off\"", "clientauth"),
        ("origin = ", "hostward.toml"),
        ("min_version = \"1.9\"", "1.9"),
        ("certificate = \"elsewhere.pem\"", "duplicate key"),
    ];
    for (index, (line, word)) in bad.into_iter().enumerate() {
        let reload = edge.try_reconfigure(|settings| settings.named(ACME).lines = vec![line.into()]);
        let Reload::Failed(event) = reload else { panic!("{line:?} was accepted") };
        assert!(event.to_string().contains(word), "{word} is not in {event}");
        assert_eq!(edge.metric(FAILED) as usize, index + 1);
        assert_eq!(edge.metric("hostward_config_last_reload_success") as u64, 0);
        expect_open(&mut open, line);
        assert!(client.expect_in(edge.address(), ACME).resumed(), "{line}: tickets were lost");
        world.globex_client("bob").expect_alert(edge.address(), ACME, Alert::UnknownCA);
    }
    edge.reconfigure(|settings| settings.named(ACME).lines.clear());
    assert_eq!(edge.metric("hostward_config_last_reload_success") as u64, 1);
    expect_open(&mut open, "after the good file");
}

/// 102: a file whose CA, certificate or key cannot be read or does not fit changes nothing either.
#[test]
fn t102_a_bad_file_beside_it_changes_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let good = world.host(ACME, &origin).require(&[&world.acme]);
    let stranger = world.servers.server(&[ACME]).issue();
    let mut broken_ca = good.clone();
    broken_ca.cas = vec!["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()];
    let mut empty_ca = good.clone();
    empty_ca.cas = vec![String::new()];
    let mut wrong_key = good.clone();
    wrong_key.certificates[0].key_pem.clone_from(&stranger.key_pem);
    let mut no_certificate = good.clone();
    no_certificate.certificates[0].chain_pem.clear();
    let cases = [("broken CA", broken_ca), ("empty CA", empty_ca), ("wrong key", wrong_key), ("empty", no_certificate)];
    for (what, host) in cases {
        let reload = edge.try_reconfigure(|settings| *settings.named(ACME) = host);
        assert!(matches!(reload, Reload::Failed(_)), "{what} was accepted");
        world.acme_client("alice").expect_in(edge.address(), ACME);
        world.client().expect_alert(edge.address(), ACME, Alert::CertificateRequired);
    }
}

/// 103: what cannot change while running (where it listens, how many workers) refuses the file whole, naming the key.
#[test]
fn t103_a_reload_cannot_move_the_edge() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().workers(1).host(world.host(ACME, &origin)));
    let reload = edge.try_reconfigure(|settings| {
        settings.workers = 2;
        settings.hosts.push(world.host(GLOBEX, &origin));
    });
    let Reload::Failed(event) = reload else { panic!("the number of workers changed") };
    assert!(event.to_string().contains("workers"), "{event}");
    world.client().expect_alert(edge.address(), GLOBEX, Alert::UnrecognisedName);
    world.client().expect_in(edge.address(), ACME);
}

/// 104: a CA removed while 1,000 connections are open: its own close within a second, the others notice nothing.
#[test]
fn t104_a_removed_ca_closes_its_connections() {
    const EACH: usize = 250;
    let world = World::new();
    let (origin, second) = (Origin::echo(), Authority::new("Acme Clients CA 2"));
    let settings = world.settings().host(world.host(ACME, &origin).require(&[&world.acme, &second]));
    let settings = settings.host(world.host("other.acme.test", &origin).require(&[&world.acme]));
    let edge = Edge::start(settings.host(world.host(GLOBEX, &origin).require(&[&world.globex])));
    let client = |identity: Identity, version| world.client().with_identity(identity).tls(version);
    let open = |client: &Client, name: &str| -> Vec<Session> {
        (0..EACH / 2).map(|_| client.expect_in(edge.address(), name)).collect()
    };
    let both = |authority: &Authority, name: &str| -> Vec<Session> {
        Tls::BOTH.iter().flat_map(|version| open(&client(authority.leaf("alice").issue(), *version), name)).collect()
    };
    let mut removed = both(&world.acme, ACME);
    let mut kept = both(&second, ACME);
    kept.extend(both(&world.acme, "other.acme.test"));
    kept.extend(both(&world.globex, GLOBEX));
    assert_eq!(removed.len() + kept.len(), 1000);

    let begun = Instant::now();
    edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&second]));
    for session in &mut removed {
        let left = NARROWING.saturating_sub(begun.elapsed());
        let end = session.end_within(left);
        assert!(end.is_some(), "still open {:?} after the reload was asked for", begun.elapsed());
    }
    for session in &mut kept {
        expect_open(session, "a connection of another CA or hostname");
    }
    edge.expect_metric("hostward_tunnels_ended_total{end=\"trust_changed\"}", EACH as f64);
    edge.expect_metric("hostward_connections_open", 750.0);
}

/// 105: a removed record closes its connections.
#[test]
fn t105_a_removed_record_closes_its_connections() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(ACME, &origin).require(&[&world.acme]));
    let edge = Edge::start(settings.host(world.host(GLOBEX, &origin)));
    let mut sessions = Tls::BOTH.map(|version| world.acme_client("a").tls(version).expect_in(edge.address(), ACME));
    let mut other = world.client().expect_in(edge.address(), GLOBEX);
    edge.reconfigure(|settings| settings.remove(ACME));
    for session in &mut sessions {
        expect_closed(session, "a connection to a removed hostname");
    }
    expect_open(&mut other, "another hostname");
}

/// 106: a tightened rule closes those it denies now, and leaves those it still lets in.
#[test]
fn t106_a_tightened_rule_closes_whom_it_denies() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    for version in Tls::BOTH {
        let mut alice = world.acme_client("alice").tls(version).expect_in(edge.address(), ACME);
        let mut bob = world.acme_client("bob").tls(version).expect_in(edge.address(), ACME);
        edge.reconfigure(|settings| settings.named(ACME).rules = vec!["allow = { common_name = [\"bob\"] }".into()]);
        expect_closed(&mut alice, "alice, who is denied now");
        expect_open(&mut bob, "bob, who is let in still");
        edge.reconfigure(|settings| settings.named(ACME).rules.clear());
        expect_open(&mut bob, "bob, when the rule is gone");
    }
}

/// 107: a raised mode closes those who have shown nothing, and leaves those who have shown what is required now.
#[test]
fn t107_a_raised_mode_closes_whom_it_does_not_know() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    for version in Tls::BOTH {
        edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Off, &[]));
        let mut unasked = world.acme_client("alice").tls(version).expect_in(edge.address(), ACME);
        edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Request, &[&world.acme]));
        let mut nobody = world.client().tls(version).expect_in(edge.address(), ACME);
        let mut stranger = world.globex_client("bob").tls(version).expect_in(edge.address(), ACME);
        let mut alice = world.acme_client("alice").tls(version).expect_in(edge.address(), ACME);
        edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&world.acme]));
        for (session, what) in [
            (&mut unasked, "a client that was never asked"),
            (&mut nobody, "a client without a certificate"),
            (&mut stranger, "a client of another CA"),
        ] {
            expect_closed(session, what);
        }
        expect_open(&mut alice, "a client that showed what is required now");
    }
}

/// 108: DECISIONS 16: an exact record below a wildcard takes over its name: connections that resolve elsewhere now close.
#[test]
fn t108_names_are_resolved_again() {
    let world = World::new();
    let (wide, exact) = (Origin::start(Manner::Echo), Origin::start(Manner::Echo));
    let edge = Edge::start(world.settings().host(world.host("*.shop.test", &wide)));
    let client = world.client();
    let mut vip = client.expect_in(edge.address(), "vip.shop.test");
    let mut other = client.expect_in(edge.address(), "other.shop.test");
    edge.reconfigure(|settings| settings.hosts.push(world.host("vip.shop.test", &exact)));
    expect_closed(&mut vip, "a connection whose name has a record of its own now");
    expect_open(&mut other, "another name below the wildcard");
    let mut vip = client.expect_in(edge.address(), "vip.shop.test");
    assert_eq!(exact.accepted(), 1);
    edge.reconfigure(|settings| settings.remove("vip.shop.test"));
    expect_closed(&mut vip, "a connection whose record is gone");
    client.expect_in(edge.address(), "vip.shop.test");
    assert_eq!((wide.accepted(), exact.accepted()), (3, 1));
}

/// 109: a name that nobody had is served once it has a record: misses are not remembered beyond a change.
#[test]
fn t109_a_remembered_miss_ends_with_a_change() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    for _ in 0..20 {
        world.client().expect_alert(edge.address(), GLOBEX, Alert::UnrecognisedName);
    }
    edge.reconfigure(|settings| settings.hosts.push(world.host(GLOBEX, &origin)));
    for _ in 0..20 {
        world.client().expect_in(edge.address(), GLOBEX);
    }
}

/// 110: a renewed server certificate is shown to the next client; who is connected stays.
#[test]
fn t110_a_renewed_certificate_is_shown_next() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let client = world.client();
    let mut open = client.expect_in(edge.address(), ACME);
    let next = world.servers.server(&[ACME]).issue();
    assert_ne!(open.server_certificate().expect("a certificate"), &next.chain[0]);
    edge.reconfigure(|settings| settings.named(ACME).certificates = vec![next.clone()]);
    client.tickets().clear();
    let session = client.expect_in(edge.address(), ACME);
    assert_eq!(session.server_certificate(), Some(&next.chain[0]));
    expect_open(&mut open, "a connection made under the old certificate");
}

/// 111: a reload over the admin socket is a reload; the command says what is wrong with a bad file, and nothing changes.
#[test]
fn t111_reload_by_command() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let good = edge.cli("reload");
    assert_eq!(good.code(), Some(0), "{good:?}");
    assert_eq!(edge.metric(SUCCEEDED) as u64, 1);
    std::fs::write(edge.file(), "[server]\nlisten = 7\n").expect("a file");
    let bad = edge.cli("reload");
    assert_eq!(bad.code(), Some(1), "{bad:?}");
    assert!(bad.output().contains("hostward.toml:2:"), "{bad:?}");
    world.client().expect_in(edge.address(), ACME);
}

/// 112: a storm of signals is a few reloads: nothing is lost, and the last file is the one that serves.
#[test]
fn t112_a_storm_of_reloads() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let mut open = world.client().expect_in(edge.address(), ACME);
    for _ in 0..200 {
        edge.signal(rustix::process::Signal::HUP);
    }
    edge.reconfigure(|settings| settings.hosts.push(world.host(GLOBEX, &origin)));
    wait::until("the last file serves", SOON, || world.client().enter(edge.address(), GLOBEX).is_ok());
    expect_open(&mut open, "a connection during the storm");
    assert_eq!(edge.metric(FAILED) as u64, 0);
}
