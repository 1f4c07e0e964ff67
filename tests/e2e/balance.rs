//! Which of an origin's addresses a request goes to: by turns, by load, by hash; and which it no longer goes to, for how long.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::config::Host;
use crate::harness::http::{Http, HttpOrigin, Response, Vacant};
use crate::harness::{ACME, Edge, SOON, World, wait};

fn connect(world: &World, edge: &Edge) -> Http {
    Http::new(world.client().open(edge.address(), ACME).expect("a connection"))
}

fn host(world: &World, urls: &[&str], lines: &[&str]) -> Host {
    lines.iter().fold(world.host_at(ACME, urls).http(), |host, line| host.origin_line(line))
}

fn start(world: &World, urls: &[&str], lines: &[&str]) -> Edge {
    Edge::start(world.settings().workers(1).host(host(world, urls, lines)))
}

#[track_caller]
fn expect_error(response: &Response, status: u16, error: &str) {
    let told = response.head.get("proxy-status").unwrap_or_default();
    assert_eq!((response.status(), told), (status, format!("hostward; error={error}").as_str()), "{response:?}");
}

/// Closes the connection instead of answering.
fn hang_up() -> io::Result<()> {
    Err(io::ErrorKind::Other.into())
}

/// 390: requests take turns, those over pooled connections too: each address gets its share and is connected to once.
#[test]
fn t390_pooled_connections_obey_the_turn() {
    let world = World::new();
    let origins = ["one", "two", "three"].map(HttpOrigin::named);
    let urls = origins.each_ref().map(HttpOrigin::url);
    let edge = start(&world, &urls.each_ref().map(String::as_str), &[]);
    let mut http = connect(&world, &edge);
    for _ in 0..12 {
        assert_eq!(http.get(ACME, "/").status(), 200);
    }
    for origin in &origins {
        assert_eq!((origin.heads().len(), origin.accepted()), (4, 1));
    }
}

/// 391: the same value of a header leads to the same address, over whatever connection and on whatever worker; without the
/// header the client's address counts. An address that is gone moves only its own.
#[test]
fn t391_a_header_sticks_to_its_address() {
    let world = World::new();
    let origins = ["one", "two", "three"].map(HttpOrigin::named);
    let urls = origins.each_ref().map(HttpOrigin::url);
    let urls = urls.each_ref().map(String::as_str);
    let lines = ["balance = { hash_header = \"X-Tenant\" }"];
    let edge = Edge::start(world.settings().workers(2).host(host(&world, &urls, &lines)));
    let ask =
        |http: &mut Http, field: &str| http.ask(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n{field}\r\n")).body.text();
    let tenants: Vec<String> = (0..24).map(|n| format!("x-tenant: t{n}\r\n")).collect();
    let round = || -> Vec<String> {
        let mut http = connect(&world, &edge);
        tenants.iter().map(|field| ask(&mut http, field)).collect()
    };
    let first = round();
    let mut counts = HashMap::<&str, usize>::new();
    for name in &first {
        *counts.entry(name).or_default() += 1;
    }
    assert_eq!(counts.len(), 3, "24 tenants at three addresses: {counts:?}");
    for _ in 0..4 {
        assert_eq!(round(), first);
    }
    let unnamed: Vec<_> = (0..6).map(|_| ask(&mut connect(&world, &edge), "")).collect();
    assert!(unnamed.iter().all(|name| *name == unnamed[0]), "one client without the header: {unnamed:?}");
    edge.reconfigure(|settings| {
        let host = settings.named(ACME);
        host.origin.retain(|url| *url != origins[1].url());
    });
    for (before, after) in first.iter().zip(round()) {
        assert!(before == "two" || *before == after, "{before} moved to {after}");
        assert_ne!(after, "two");
    }
}

/// 392: hashed by its address, a client meets one address of the origin, over connections of its own in tcp mode as well.
#[test]
fn t392_a_client_sticks_to_its_address() {
    use crate::harness::{Origin, origin::Manner};
    let world = World::new();
    let origins = ["one", "two", "three", "four"].map(|name| Origin::start(Manner::Name(name)));
    let urls = origins.each_ref().map(Origin::url);
    let host = world.host_at(ACME, &urls).origin_line("balance = { hash = \"client_address\" }");
    let edge = Edge::start(world.settings().workers(2).host(host));
    for _ in 0..8 {
        world.client().open(edge.address(), ACME).expect("a connection").read_text();
    }
    let mut counts = origins.each_ref().map(Origin::accepted);
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 0, 8]);
}

/// 393: with `least_pending`, an address that answers nothing gets no more than what it stalls already.
#[test]
fn t393_least_pending_avoids_a_stalled_address() {
    let world = World::new();
    let stalled = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.wait_for_release();
        talk.answer("200 OK", "stalled")
    });
    let quick = HttpOrigin::named("quick");
    let edge = start(&world, &[&stalled.url(), &quick.url()], &["balance = \"least_pending\""]);
    let mut waiting = Vec::new();
    wait::until("a request stalls", SOON, || {
        let mut http = connect(&world, &edge);
        http.send(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        let (asked, stalls) = (waiting.len() + 1, stalled.heads().len());
        waiting.push(http);
        wait::until("it is with an origin", SOON, || stalled.heads().len() + quick.heads().len() == asked);
        stalls < stalled.heads().len()
    });
    let mut http = connect(&world, &edge);
    for _ in 0..30 {
        assert_eq!(http.get(ACME, "/").body.text(), "quick");
    }
    assert_eq!(stalled.heads().len(), 1);
    stalled.release();
    for mut http in waiting {
        assert_eq!(http.response().status(), 200);
    }
}

/// 394: an address that does not accept is left out, told and shown; when it accepts again it is back, by one trial.
#[test]
fn t394_a_dead_address_is_left_out_and_comes_back() {
    let world = World::new();
    let (vacant, two) = (Vacant::new(), HttpOrigin::named("two"));
    let address = vacant.address.to_string();
    let edge = start(&world, &[&vacant.url(), &two.url()], &["slow_start = \"0s\""]);
    let mut http = connect(&world, &edge);
    for _ in 0..10 {
        assert_eq!(http.get(ACME, "/").body.text(), "two");
    }
    assert_eq!(edge.metric("hostward_origin_addresses_ejected"), 1.0);
    assert!(edge.metric("hostward_origin_ejections_total{cause=\"connect\"}") >= 1.0);
    assert!(edge.metric("hostward_origin_connects_total{result=\"failed\"}") <= 3.0, "it was asked each time");
    let told = edge.events.named(&["origin_ejected"]);
    assert_eq!((&told[0]["address"], &told[0]["cause"]), (&address.as_str().into(), &"failed".into()));
    let _one = HttpOrigin::start_at(vacant.listen(), |head, talk| {
        talk.body(head)?;
        talk.answer("200 OK", "one")
    });
    wait::until("it is back", SOON, || http.get(ACME, "/").body.text() == "one");
    assert_eq!(edge.metric("hostward_origin_addresses_ejected"), 0.0);
    wait::until("it is told", SOON, || {
        edge.events.named(&["origin_returned"]).iter().any(|line| line["address"] == address.as_str())
    });
    let names: Vec<_> = (0..4).map(|_| http.get(ACME, "/").body.text()).collect();
    assert_eq!(names.iter().filter(|name| *name == "one").count(), 2, "{names:?}");
}

/// 395: an address whose exchanges fail some times in a row is left out, although it accepts; an answer brings it back.
#[test]
fn t395_failing_exchanges_eject() {
    let world = World::new();
    let healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = Arc::clone(&healthy);
    let sick = HttpOrigin::start(move |head, talk| {
        talk.body(head)?;
        if is_healthy.load(Ordering::Acquire) { talk.answer("200 OK", "sick") } else { hang_up() }
    });
    let well = HttpOrigin::named("well");
    let edge = start(&world, &[&sick.url(), &well.url()], &["eject_after = 3", "slow_start = \"0s\""]);
    let mut failed = 0;
    for _ in 0..10 {
        let response = connect(&world, &edge).get(ACME, "/");
        if response.status() != 200 {
            expect_error(&response, 502, "connection_terminated");
            failed += 1;
        }
    }
    assert_eq!(failed, 3, "three of the first six, and none of the rest");
    assert_eq!(edge.metric("hostward_origin_ejections_total{cause=\"response\"}"), 1.0);
    let told = edge.events.named(&["origin_ejected"]);
    assert_eq!((told.len(), &told[0]["cause"]), (1, &"connection_terminated".into()));
    healthy.store(true, Ordering::Release);
    wait::until("it is back", SOON, || connect(&world, &edge).get(ACME, "/").body.text() == "sick");
    edge.expect_metric("hostward_origin_addresses_ejected", 0.0);
}

/// 396: what an origin answers itself, 503 as well, is no failure of ours: nothing is ejected, and it says what it says.
#[test]
fn t396_an_origins_own_errors_do_not_eject() {
    let world = World::new();
    let busy = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.answer("503 Service Unavailable", "busy")
    });
    let well = HttpOrigin::named("well");
    let edge = start(&world, &[&busy.url(), &well.url()], &["eject_after = 2"]);
    let mut http = connect(&world, &edge);
    let responses: Vec<_> = (0..12).map(|_| http.get(ACME, "/")).collect();
    let own: Vec<_> = responses.iter().filter(|response| response.status() == 503).collect();
    assert_eq!(own.len(), 6);
    assert!(own.iter().all(|response| response.head.get("proxy-status").is_none() && response.body.text() == "busy"));
    assert_eq!(edge.metric("hostward_origin_ejections_total"), 0.0);
}

/// 397: with every address left out, all are tried all the same, and that is counted.
#[test]
fn t397_with_all_left_out_all_are_tried() {
    let world = World::new();
    let (one, two) = (Vacant::new(), Vacant::new());
    let edge = start(&world, &[&one.url(), &two.url()], &[]);
    for _ in 0..3 {
        expect_error(&connect(&world, &edge).get(ACME, "/"), 502, "connection_refused");
    }
    assert!(edge.metric("hostward_origin_panics_total") >= 2.0);
    assert_eq!(edge.metric("hostward_origin_connects_total{result=\"exhausted\"}"), 3.0);
    let _one = HttpOrigin::start_at(one.listen(), |head, talk| {
        talk.body(head)?;
        talk.answer("200 OK", "one")
    });
    // At once, whatever the back-off is.
    assert_eq!(connect(&world, &edge).get(ACME, "/").body.text(), "one");
}
