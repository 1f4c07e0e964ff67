//! What the log says about a client that was refused: the rule that decided, the alert that was really sent.

use serde_json::Value;

use crate::harness::clienthello::{Hello, Raw};
use crate::harness::config::Auth;
use crate::harness::{ACME, Edge, GLOBEX, Origin, SOON, Tls, World, wait};

/// The next line of a refused client.
fn line(edge: &Edge, index: usize) -> Value {
    wait::for_some("a line about the refusal", SOON, || edge.events.named(&["refused"]).into_iter().nth(index))
}

/// 190: a line of `rule_denied` names the rule, counted from 1 as in the file, and the selector or verdict that decided.
#[test]
fn t190_a_denial_names_its_rule() {
    let world = World::new();
    let origin = Origin::echo();
    let host = world.host(ACME, &origin).request(&[&world.acme]);
    let host = host.rule("verify = \"NONE\"\ndeny = true");
    let host = host.rule("verify = \"SUCCESS\"\nallow = { common_name = [\"ops-*\"] }");
    let edge = Edge::start(world.settings().workers(1).host(host));
    let cases = [
        (world.client(), "rule 1 (verify = \"NONE\") says deny = true"),
        (world.acme_client("bob"), "rule 2 (verify = \"SUCCESS\") has allow.common_name, which does not hold"),
        (world.globex_client("eve"), "no rule is for this client (verify is FAILED:unknown_ca)"),
    ];
    let mut index = 0;
    for version in Tls::BOTH {
        for (client, detail) in &cases {
            let end = client.clone().tls(version).enter(edge.address(), ACME).err().expect("denied");
            assert!(end.is_denial(), "{end:?}");
            let line = line(&edge, index);
            assert_eq!((&line["reason"], &line["detail"]), (&"rule_denied".into(), &(*detail).into()), "{line}");
            index += 1;
        }
    }
}

/// 191: the alert in the line is the one on the wire, also where TLS itself came to no agreement.
#[test]
fn t191_the_line_has_the_alert_that_was_sent() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().workers(1).host(world.host(ACME, &origin)));
    let mut tls11 = Hello::tls12(ACME);
    tls11.version = 0x0302;
    let mut strange = Hello::tls12(ACME);
    strange.cipher_suites = vec![0x0005];
    for (index, (hello, alert, name, detail)) in [
        (tls11, 70, "protocol_version", Some("the client offers no TLS version of min_version or above")),
        (strange, 40, "handshake_failure", Some("the client offers none of the cipher suites served here")),
        (Hello::modern("nobody.test"), 112, "unrecognized_name", None),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(Raw::ask(edge.address(), &hello.bytes()).alert(), Some(alert), "{name}");
        let line = line(&edge, index);
        assert_eq!((&line["alert"], line["detail"].as_str()), (&name.into(), detail), "{line}");
    }
}

/// 192: where a mode becomes `off`, open connections are judged as new ones would be: by rules that see no certificate.
#[test]
fn t192_off_means_that_nothing_was_shown() {
    let world = World::new();
    let origin = Origin::echo();
    let named = "verify = \"SUCCESS\"\nallow = { common_name = [\"alice\"] }";
    let host = |name| world.host(name, &origin).require(&[&world.acme]).rule(named);
    let edge = Edge::start(world.settings().host(host(ACME)).host(host(GLOBEX).rule("verify = \"NONE\"\nallow = {}")));
    for version in Tls::BOTH {
        let alice = world.acme_client("alice").tls(version);
        let mut denied = alice.expect_in(edge.address(), ACME);
        let mut kept = alice.expect_in(edge.address(), GLOBEX);
        edge.reconfigure(|settings| {
            for name in [ACME, GLOBEX] {
                settings.named(name).set_auth(Auth::Off, &[]);
            }
        });
        assert!(denied.end_within(SOON).is_some(), "a new client is denied there, and this one is not");
        kept.ping().expect("a new client is let in there");
        let end = world.client().tls(version).enter(edge.address(), ACME).err().expect("denied");
        assert!(end.is_denial(), "{end:?}");
        edge.reconfigure(|settings| {
            for name in [ACME, GLOBEX] {
                settings.named(name).set_auth(Auth::Require, &[&world.acme]);
            }
        });
        kept.ping().expect("its certificate is good still");
    }
}

/// 193: a resumption that is drawn out past the end of its certificate lets nobody in.
#[test]
fn t193_a_slow_handshake_does_not_outlast_its_certificate() {
    use crate::harness::Validity;
    use std::time::{Duration, Instant};
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let ends_s = 5;
    let begun = Instant::now();
    let client = world.client().with_identity(world.acme.leaf("alice").valid(Validity::ending_in(ends_s)).issue());
    let client = client.tls(Tls::V1_3);
    client.expect_in(edge.address(), ACME);
    let mut slow = client.begin(edge.address(), ACME).expect("a connection");
    let hello = slow.take_outgoing();
    slow.send_raw(&hello).expect("sent");
    // The answer shows that the ticket was taken; it is left lying until the certificate has ended.
    assert!(slow.socket().peek(&mut [0]).is_ok_and(|count| count == 1));
    let past = Duration::from_secs(u64::try_from(ends_s).expect("positive") + 2);
    wait::until("the certificate has ended", 2 * past, || begun.elapsed() > past);
    assert!(slow.shake().and_then(|()| slow.ping()).is_err(), "let in after the end");
    edge.expect_refusals("expired", 1.0);
}
