//! I3: resumption never widens access. Each case takes a ticket, changes something, and offers the ticket again.

use std::time::{Duration, Instant};

use rustls::AlertDescription as Alert;

use crate::harness::origin::Manner;
use crate::harness::{ACME, Auth, Authority, Edge, End, GLOBEX, Identity, Origin, SOON, Tls, Validity, World, wait};

/// The counter of tickets by what became of them.
fn tickets(edge: &Edge, result: &str) -> f64 {
    edge.metric(&format!("hostward_tickets_total{{result=\"{result}\"}}"))
}

/// 020: control: where nothing changed a ticket resumes, again and again, and the origin is told the same identity.
#[test]
fn t020_a_ticket_resumes_where_nothing_changed() {
    let world = World::new();
    let origin = Origin::start(Manner::ProxyEcho);
    let host = world.host(ACME, &origin).require(&[&world.acme]).with_proxy_header();
    let edge = Edge::start(world.settings().host(host));
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version);
        for round in 0..5 {
            let before = tickets(&edge, "resumed");
            let session = client.expect_in(edge.address(), ACME);
            assert_eq!(session.resumed(), round > 0, "{version:?} round {round}");
            edge.expect_metric("hostward_tickets_total{result=\"resumed\"}", before + f64::from(u8::from(round > 0)));
            let ssl = origin.last_header().ssl().expect("an SSL TLV");
            assert_eq!((ssl.verify, ssl.common_name.as_deref()), (0, Some("alice")), "{version:?} round {round}");
            assert!(ssl.certificate_in_session, "{version:?} round {round}: {ssl:?}");
        }
        let label = version.label();
        edge.expect_metric(
            &format!("hostward_handshakes_total{{result=\"ok\",version={label:?},resumed=\"true\"}}"),
            4.0,
        );
    }
}

/// 021: the verdict of a client without a certificate is resumed as just that.
#[test]
fn t021_a_resumed_client_without_certificate_stays_without() {
    let world = World::new();
    let origin = Origin::start(Manner::ProxyEcho);
    let host = world.host(ACME, &origin).request(&[&world.acme]).with_proxy_header();
    let edge = Edge::start(world.settings().host(host));
    for version in Tls::BOTH {
        let client = world.client().tls(version);
        client.expect_in(edge.address(), ACME);
        assert!(client.expect_in(edge.address(), ACME).resumed(), "{version:?}");
        let ssl = origin.last_header().ssl().expect("an SSL TLV");
        assert_ne!(ssl.verify, 0, "{ssl:?}");
        assert!(!ssl.certificate_in_session && ssl.common_name.is_none(), "{ssl:?}");
    }
}

/// 022: Acme's ticket at Globex is worth nothing: a full handshake follows, and refuses Acme's client.
#[test]
fn t022_a_ticket_of_another_customer_is_worth_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings();
    let settings = settings.host(world.host(ACME, &origin).require(&[&world.acme]));
    let edge = Edge::start(settings.host(world.host(GLOBEX, &origin).require(&[&world.globex])));
    for (index, version) in Tls::BOTH.into_iter().enumerate() {
        let client = world.acme_client("alice").tls(version);
        client.tickets().withhold(true);
        for _ in 0..3 {
            client.expect_in(edge.address(), ACME);
        }
        client.tickets().withhold(false);
        assert!(client.tickets().count() > 0);
        client.expect_alert(edge.address(), GLOBEX, Alert::UnknownCA);
        edge.expect_metric("hostward_tickets_total{result=\"declined_record\"}", index as f64 * 2.0 + 1.0);
        // Without a certificate at hand: the ticket alone opens nothing either.
        client.present(None);
        client.expect_alert(edge.address(), GLOBEX, Alert::CertificateRequired);
        edge.expect_metric("hostward_tickets_total{result=\"declined_record\"}", index as f64 * 2.0 + 2.0);
        // And tickets are still good where they came from.
        assert!(client.expect_in(edge.address(), ACME).resumed(), "{version:?}");
    }
}

/// 023: two hostnames with the very same CA, and two that ask nobody: still no ticket crosses.
#[test]
fn t023_a_ticket_does_not_cross_between_alike_hostnames() {
    for mode in [Auth::Off, Auth::Request, Auth::Require] {
        let world = World::new();
        let origin = Origin::echo();
        let cas: &[_] = if mode == Auth::Off { &[] } else { &[&world.acme] };
        let settings = world.settings().host(world.host(ACME, &origin).auth(mode, cas));
        let edge = Edge::start(settings.host(world.host(GLOBEX, &origin).auth(mode, cas)));
        for version in Tls::BOTH {
            let client = world.acme_client("alice").tls(version);
            client.expect_in(edge.address(), ACME);
            assert!(!client.expect_in(edge.address(), GLOBEX).resumed(), "{mode:?} {version:?}");
        }
        edge.expect_metric("hostward_tickets_total{result=\"declined_record\"}", 2.0);
    }
}

/// 024: a ticket minted under Acme's old CA is worth nothing after the CA was replaced, by another name or by the same.
#[test]
fn t024_a_ticket_dies_with_its_ca() {
    for next in [Authority::new("Acme Clients CA 2"), Authority::new("Acme Clients CA")] {
        let world = World::new();
        let origin = Origin::echo();
        let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
        let clients = Tls::BOTH.map(|version| world.acme_client("alice").tls(version));
        for client in &clients {
            client.expect_in(edge.address(), ACME);
            assert!(client.expect_in(edge.address(), ACME).resumed());
        }
        edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&next]));
        for client in &clients {
            assert!(client.tickets().count() > 0);
            client.expect_alert(edge.address(), ACME, Alert::UnknownCA);
        }
        edge.expect_refusals("unknown_ca", 2.0);
        edge.expect_metric("hostward_tickets_total{result=\"declined_trust\"}", 2.0);
    }
}

/// 025: a ticket taken while nobody was asked does not spare the certificate once it is required.
#[test]
fn t025_a_ticket_taken_in_off_is_worth_nothing_in_require() {
    for earlier in [Auth::Off, Auth::Request] {
        let world = World::new();
        let origin = Origin::echo();
        let cas: &[_] = if earlier == Auth::Off { &[] } else { &[&world.acme] };
        let edge = Edge::start(world.settings().host(world.host(ACME, &origin).auth(earlier, cas)));
        let clients = Tls::BOTH.map(|version| world.client().tls(version));
        for client in &clients {
            client.expect_in(edge.address(), ACME);
            assert!(client.tickets().count() > 0);
        }
        edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&world.acme]));
        for client in &clients {
            client.expect_alert(edge.address(), ACME, Alert::CertificateRequired);
        }
        edge.expect_refusals("no_certificate", 2.0);
    }
}

/// 026: a client whose certificate is not accepted in `request` gets no ticket, and nothing to show in `require`.
#[test]
fn t026_an_unverified_client_gets_no_ticket() {
    let world = World::new();
    let origin = Origin::start(Manner::ProxyEcho);
    let host = world.host(ACME, &origin).request(&[&world.acme]).with_proxy_header();
    let edge = Edge::start(world.settings().host(host));
    let identities = [
        Identity::self_signed("alice"),
        world.globex.leaf("alice").issue(),
        world.acme.leaf("alice").valid(Validity::expired()).issue(),
    ];
    let clients: Vec<_> = Tls::BOTH
        .iter()
        .flat_map(|version| identities.iter().map(|id| world.client().tls(*version).with_identity(id.clone())))
        .collect();
    for client in &clients {
        for _ in 0..2 {
            assert!(!client.expect_in(edge.address(), ACME).resumed());
            assert_eq!(client.tickets().count(), 0, "a ticket for a client that is not verified");
            assert_ne!(origin.last_header().ssl().expect("an SSL TLV").verify, 0);
        }
    }
    assert_eq!(tickets(&edge, "minted") as u64, 0);
    edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&world.acme]));
    for client in clients {
        let end = client.enter(edge.address(), ACME).err();
        assert!(matches!(end, Some(End::Alert(Alert::UnknownCA | Alert::CertificateExpired))), "{end:?}");
    }
}

/// 027: the ticket of a client whose certificate expired meanwhile is worth nothing, and its open connection ends.
#[test]
fn t027_a_ticket_dies_with_its_certificate() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let begun = Instant::now();
    let clients = Tls::BOTH.map(|version| {
        let leaf = world.acme.leaf("alice").valid(Validity::ending_in(4)).issue();
        world.client().tls(version).with_identity(leaf)
    });
    let mut sessions = Vec::new();
    for client in &clients {
        client.expect_in(edge.address(), ACME);
        let session = client.expect_in(edge.address(), ACME);
        assert!(session.resumed());
        sessions.push(session);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "too slow to tell: the certificates have expired already");
    for session in &mut sessions {
        let end = session.end_within(SOON).expect("the connection outlives the certificate");
        assert!(begun.elapsed() > Duration::from_secs(2), "ended too early: {end:?}");
    }
    // notAfter itself still counts (RFC 5280 section 4.1.2.5): one second later it is past in every view.
    wait::until("the certificates expired", SOON, || begun.elapsed() > Duration::from_secs(5));
    for client in &clients {
        assert!(client.tickets().count() > 0);
        client.expect_alert(edge.address(), ACME, Alert::CertificateExpired);
    }
    edge.expect_metric("hostward_tickets_total{result=\"declined_expired\"}", 2.0);
    edge.expect_refusals("expired", 2.0);
}

/// 028: a rule that denies a client now denies its ticket too, with the alert of a full handshake.
#[test]
fn t028_a_ticket_does_not_outlive_a_rule() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let clients = Tls::BOTH.map(|version| world.acme_client("alice").tls(version));
    for client in &clients {
        client.expect_in(edge.address(), ACME);
    }
    edge.reconfigure(|settings| settings.named(ACME).rules = vec!["allow = { common_name = [\"bob\"] }".into()]);
    for client in &clients {
        assert!(client.tickets().count() > 0);
        client.expect_alert(edge.address(), ACME, Alert::AccessDenied);
    }
    edge.expect_metric("hostward_tickets_total{result=\"declined_rule\"}", 2.0);
}

/// 029: the keys of tickets do not outlive the process (they are in memory): a full handshake, and the client is in.
#[test]
fn t029_a_ticket_of_another_process_means_a_full_handshake() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(ACME, &origin).require(&[&world.acme]));
    let (first, second) = (Edge::start(settings.clone()), Edge::start(settings));
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version);
        client.expect_in(first.address(), ACME);
        assert!(client.tickets().count() > 0);
        assert!(!client.expect_in(second.address(), ACME).resumed(), "{version:?}");
    }
    second.expect_metric("hostward_tickets_total{result=\"declined_unknown\"}", 2.0);
}

/// 030: names below one wildcard share the record, and still a ticket is not resumed under another name (RFC 8446
/// section 4.6.1 lets a client try; the name is part of what was authenticated).
#[test]
fn t030_a_ticket_does_not_cross_names_of_one_wildcard() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host("*.acme.test", &origin).require(&[&world.acme])));
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version);
        client.expect_in(edge.address(), "one.acme.test");
        assert!(!client.expect_in(edge.address(), "two.acme.test").resumed(), "{version:?}");
        assert!(client.expect_in(edge.address(), "two.acme.test").resumed(), "{version:?}");
    }
}

/// 031: resuming again and again does not stretch the lifetime: it counts from the full handshake.
#[test]
fn t031_resumption_does_not_extend_the_lifetime() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().tls("ticket_lifetime = \"3s\"");
    let edge = Edge::start(settings.host(world.host(ACME, &origin).require(&[&world.acme])));
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version);
        client.expect_in(edge.address(), ACME);
        let begun = Instant::now();
        let mut resumptions = 0;
        wait::until("a full handshake is asked for again", SOON, || {
            let resumed = client.expect_in(edge.address(), ACME).resumed();
            resumptions += u32::from(resumed);
            !resumed
        });
        assert!(resumptions > 0, "{version:?}: never resumed");
        assert!(begun.elapsed() > Duration::from_secs(1), "{version:?}: ended after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(6), "{version:?}: lived {:?}", begun.elapsed());
    }
}

/// 032: with `tickets = false` none is minted.
#[test]
fn t032_tickets_can_be_switched_off() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().tls("tickets = false");
    let edge = Edge::start(settings.host(world.host(ACME, &origin).require(&[&world.acme])));
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version);
        for _ in 0..2 {
            assert!(!client.expect_in(edge.address(), ACME).resumed());
        }
        assert_eq!(client.tickets().count(), 0, "{version:?}");
    }
    assert_eq!(tickets(&edge, "minted") as u64, 0);
}

/// 033: a hostname that is removed and made again is another record: tickets of the first are worth nothing.
#[test]
fn t033_a_ticket_dies_with_its_record() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(GLOBEX, &origin));
    let edge = Edge::start(settings.host(world.host(ACME, &origin).require(&[&world.acme])));
    let clients = Tls::BOTH.map(|version| world.acme_client("alice").tls(version));
    for client in &clients {
        client.expect_in(edge.address(), ACME);
    }
    edge.reconfigure(|settings| settings.remove(ACME));
    for client in &clients {
        client.tickets().withhold(true);
        client.expect_alert(edge.address(), ACME, Alert::UnrecognisedName);
        client.tickets().withhold(false);
    }
    edge.reconfigure(|settings| settings.hosts.push(world.host(ACME, &origin).require(&[&world.acme])));
    for client in &clients {
        assert!(client.tickets().count() > 0);
        assert!(!client.expect_in(edge.address(), ACME).resumed());
    }
}

/// 034: a reload that changes nothing about a hostname leaves its tickets alone.
#[test]
fn t034_a_reload_elsewhere_keeps_tickets() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let clients = Tls::BOTH.map(|version| world.acme_client("alice").tls(version));
    for client in &clients {
        client.expect_in(edge.address(), ACME);
    }
    edge.reconfigure(|settings| settings.hosts.push(world.host(GLOBEX, &origin).require(&[&world.globex])));
    for client in &clients {
        assert!(client.expect_in(edge.address(), ACME).resumed());
    }
}

/// 035: two workers honour each other's tickets.
#[test]
fn t035_workers_share_the_keys_of_tickets() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().workers(2).host(world.host(ACME, &origin).require(&[&world.acme])));
    let client = world.acme_client("alice").tls(Tls::V1_3);
    client.expect_in(edge.address(), ACME);
    // The kernel spreads connections by their ports: 40 of them reach both workers but for one chance in 2^39.
    for attempt in 0..40 {
        assert!(client.expect_in(edge.address(), ACME).resumed(), "attempt {attempt}");
    }
    edge.expect_metric("hostward_handshakes_total{result=\"ok\",resumed=\"true\"}", 40.0);
}

/// 036: a hello with hundreds of tickets is served, and only a few of them are tried: opening them is work.
#[test]
fn t036_many_tickets_are_not_all_tried() {
    use crate::harness::clienthello::{Hello, Raw, record};
    const OFFERED: usize = 200;
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    // RFC 8446 section 4.2.11: identities of 100 bytes each with their obfuscated age, then binders of 32 bytes each.
    let identity = [&[0, 100][..], &[0x42; 100], &[0; 4]].concat().repeat(OFFERED);
    let binders = [&[32][..], &[0x24; 32]].concat().repeat(OFFERED);
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("below 64 KiB").to_be_bytes();
    let extension = [&length(&identity)[..], &identity, &length(&binders), &binders].concat();
    let mut raw = Raw::connect(edge.address());
    raw.send(&Hello::modern(ACME).extension(41, extension).bytes()).expect("sent");
    let reply = raw.reply(SOON);
    assert!(reply.is_server_hello(), "{reply:?}");
    // The client gives up (handshake_failure), and what became of its tickets is counted.
    raw.send(&record(21, 0x0303, &[2, 40])).expect("sent");
    edge.expect_metric("hostward_handshake_aborts_total", 1.0);
    let tried = tickets(&edge, "declined_unknown");
    assert!(tried > 0.0 && tried < 10.0, "{tried} tickets were tried");
    assert!(tickets(&edge, "declined_excess") >= 1.0);
}
