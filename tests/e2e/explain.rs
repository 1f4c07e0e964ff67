//! 280-289: `hostward explain` says what happens: the same reason, the same alert, at the depth where it is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::AlertDescription as Alert;
use serde_json::Value;

use crate::harness::http::{Http, HttpOrigin};
use crate::harness::process::{Finished, HOSTWARD, run};
use crate::harness::{ACME, Auth, Authority, Edge, Identity, Origin, Validity, World};

fn explain(file: &Path, identity: Option<&Identity>, options: &[&str]) -> Finished {
    let mut command = Command::new(HOSTWARD);
    command.arg("explain").arg("-c").arg(file).args(options);
    if let Some(identity) = identity {
        let pem = file.with_file_name("client.pem");
        // With its key behind it, as people keep them.
        fs::write(&pem, format!("{}{}", identity.chain_pem, identity.key_pem)).expect("a file");
        command.arg("--cert").arg(pem);
    }
    run(&mut command, Duration::from_secs(30))
}

/// The same as JSON, with the exit code.
#[track_caller]
fn answer(file: &Path, identity: Option<&Identity>, options: &[&str]) -> (Value, Option<i32>) {
    let finished = explain(file, identity, &[&["--json"], options].concat());
    let value = serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.output()));
    (value, finished.code())
}

/// 280: for every kind of client certificate, a running edge does what is explained, alert and reason.
#[test]
fn t280_what_is_explained_is_what_happens() {
    let world = World::new();
    let origin = Origin::echo();
    let old = Authority::with_validity("Old Clients CA", Validity::expired());
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme, &old])));
    let below = world.acme.descend(2);
    let other_key = Authority::new("Acme Clients CA");
    let server_auth = [ExtendedKeyUsagePurpose::ServerAuth];
    let expired_below = world.acme.descend(2).leaf("ann").valid(Validity::expired()).issue();
    let mut cut = below.leaf("ann").issue();
    cut.chain_pem = cut.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").take(2).collect();
    cut.chain.truncate(2);
    for (what, identity, reason, depth, alert) in [
        ("a good one", Some(world.acme.leaf("ann").issue()), None, None, None),
        ("one below intermediates", Some(below.leaf("ann").issue()), None, None, None),
        ("none", None, Some("no_certificate"), None, Some(Alert::CertificateRequired)),
        (
            "another customer's",
            Some(world.globex.leaf("eve").issue()),
            Some("unknown_ca"),
            Some(0),
            Some(Alert::UnknownCA),
        ),
        (
            "a CA of the same name",
            Some(other_key.leaf("eve").issue()),
            Some("unknown_ca"),
            Some(0),
            Some(Alert::UnknownCA),
        ),
        ("self-signed", Some(Identity::self_signed("eve")), Some("unknown_ca"), Some(0), Some(Alert::UnknownCA)),
        ("without its second intermediate", Some(cut), Some("unknown_ca"), Some(1), Some(Alert::UnknownCA)),
        ("expired", Some(expired_below), Some("expired"), Some(0), Some(Alert::CertificateExpired)),
        (
            "not yet valid",
            Some(world.acme.leaf("ann").valid(Validity::future()).issue()),
            Some("not_yet_valid"),
            Some(0),
            Some(Alert::CertificateExpired),
        ),
        (
            "a server's",
            Some(world.acme.leaf("ann").purposes(&server_auth).issue()),
            Some("wrong_usage"),
            Some(0),
            Some(Alert::UnsupportedCertificate),
        ),
        (
            "of an expired CA",
            Some(old.leaf("ann").issue()),
            Some("ca_expired"),
            Some(1),
            Some(Alert::CertificateExpired),
        ),
        (
            "a long chain",
            Some(world.acme.descend(5).leaf("ann").issue()),
            Some("chain_too_long"),
            None,
            Some(Alert::BadCertificate),
        ),
    ] {
        let (explained, code) = answer(&edge.file(), identity.as_ref(), &["--host", ACME]);
        assert_eq!(explained["refusal"].as_str(), reason, "{what}: {explained}");
        assert_eq!(code, Some(if reason.is_some() { 4 } else { 0 }), "{what}");
        assert_eq!(explained["chain"]["failed"]["depth"].as_u64(), depth, "{what}: {explained}");
        let client = identity.map_or_else(|| world.client(), |identity| world.client().with_identity(identity));
        match (reason, alert) {
            (Some(reason), Some(alert)) => {
                let before = edge.refusals(reason);
                client.expect_alert(edge.address(), ACME, alert);
                edge.expect_refusals(reason, before + 1.0);
                let event = edge.events.named(&["refused"]).pop().expect("a line");
                assert_eq!(
                    explained["client_sees"],
                    format!("the TLS alert {}", event["alert"].as_str().expect("a name"))
                );
            }
            _ => drop(client.expect_in(edge.address(), ACME)),
        }
    }
}

/// 281: names: exact, wildcard, default and none.
#[test]
fn t281_how_the_record_is_found() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = world.settings().host(world.host(ACME, &origin)).host(world.host("*.acme.test", &origin));
    let file = settings.write(directory.path());
    for (host, found, record) in [
        (ACME, Some("exact"), Some(ACME)),
        ("PAY.acme.test.", Some("exact"), Some(ACME)),
        ("any.acme.test", Some("wildcard"), Some("*.acme.test")),
        ("a.b.acme.test", None, None),
        ("127.0.0.1", None, None),
    ] {
        let (explained, code) = answer(&file, None, &["--host", host]);
        assert_eq!(explained["found_as"].as_str(), found, "{explained}");
        assert_eq!(explained["record"].as_str(), record, "{explained}");
        assert_eq!(code, Some(if found.is_some() { 0 } else { 4 }), "{explained}");
        if found.is_none() {
            assert_eq!(explained["client_sees"], "the TLS alert unrecognized_name");
        }
    }
    settings.named(ACME).lines.push("default = true".into());
    let file = settings.write(directory.path());
    let (explained, _) = answer(&file, None, &["--host", "127.0.0.1"]);
    assert_eq!((&explained["found_as"], &explained["name"]), (&"default".into(), &Value::Null));
}

/// 282: which rule decided, and which of its selectors did not hold; a fact that is missing is asked for.
#[test]
fn t282_which_rule_decided() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let host = world.host(ACME, &origin).with_proxy_header().auth(Auth::Request, &[&world.acme]);
    let host = host.rule("source = \"192.0.2.0/24\"\ndeny = true").rule("allow = { common_name = \"ops-*\" }");
    let file = world.settings().host(host).write(directory.path());
    let ann = world.acme.leaf("ops-ann").issue();
    let missing = explain(&file, Some(&ann), &["--host", ACME]);
    assert_eq!(missing.code(), Some(1));
    assert!(missing.stderr.contains("--source"), "{}", missing.output());

    let (explained, code) = answer(&file, Some(&ann), &["--host", ACME, "--source", "192.0.2.9"]);
    assert_eq!(
        (explained["rule"].as_u64(), explained["refusal"].as_str(), code),
        (Some(1), Some("rule_denied"), Some(4))
    );
    assert_eq!(explained["client_sees"], "the TLS alert access_denied");

    let (explained, code) = answer(&file, Some(&ann), &["--host", ACME, "--source", "::1"]);
    assert_eq!((explained["rule"].as_u64(), explained["let_in"].as_bool(), code), (Some(2), Some(true), Some(0)));
    let learns = explained["origin_learns"].as_str().expect("a sentence");
    assert!(learns.contains("SUCCESS") && learns.contains("common name ops-ann"), "{learns}");

    let bob = world.acme.leaf("dev-bob").issue();
    let (explained, _) = answer(&file, Some(&bob), &["--host", ACME, "--source", "::1"]);
    assert_eq!((&explained["rule"], &explained["rule_selector"]), (&2.into(), &"common_name".into()));

    // In `request` a fault of the chain is no refusal by itself.
    let eve = world.globex.leaf("ops-eve").issue();
    let (explained, _) = answer(&file, Some(&eve), &["--host", ACME, "--source", "::1"]);
    assert_eq!((&explained["verdict"], &explained["refusal"]), (&"FAILED:unknown_ca".into(), &"rule_denied".into()));
}

/// 283: for people: every step a line; another day another answer; hostile names are made visible.
#[test]
fn t283_lines_for_people() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let file = world.settings().host(world.host(ACME, &origin).require(&[&world.acme])).write(directory.path());
    let ann = world.acme.leaf("ann\u{1b}[2J\u{202e}").issue();
    let today = explain(&file, Some(&ann), &["--host", ACME]);
    assert_eq!(today.code(), Some(0), "{}", today.output());
    for text in ["(exact)", "depth 0", "anchor", "Acme Clients CA", "SUCCESS", "let in", "origin"] {
        assert!(today.stdout.contains(text), "{text} is not in:\n{}", today.stdout);
    }
    assert!(!today.stdout.contains(['\u{1b}', '\u{202e}']), "{}", today.stdout.escape_debug());
    let later = explain(&file, Some(&ann), &["--host", ACME, "--at", "2999-01-01T00:00:00Z"]);
    assert_eq!(later.code(), Some(4), "{}", later.output());
    assert!(later.stdout.contains("expired"), "{}", later.stdout);
}

/// 284: wrong usage is 2, a configuration or certificate that cannot be read is 1, and no answer is printed.
#[test]
fn t284_exit_codes() {
    let world = World::new();
    let origin = Origin::echo();
    let directory = tempfile::tempdir().expect("a directory");
    let file = world.settings().host(world.host(ACME, &origin)).write(directory.path());
    let missing = directory.path().join("missing.toml");
    let broken = directory.path().join("broken.pem");
    fs::write(&broken, "no PEM").expect("a file");
    for (file, options, code) in [
        (&file, &[][..], 2),
        (&file, &["--host", ACME, "--path", "x"][..], 2),
        (&file, &["--host", ACME, "--at", "now"][..], 2),
        (&missing, &["--host", ACME][..], 1),
        (&file, &["--host", ACME, "--cert", broken.to_str().expect("UTF-8")][..], 1),
    ] {
        let finished = explain(file, None, options);
        assert_eq!(finished.code(), Some(code), "{options:?}: {}", finished.output());
        assert!(finished.stdout.is_empty() && !finished.stderr.is_empty(), "{options:?}: {}", finished.output());
    }
}

/// 285: for each path, a running edge does what is explained: let in, denied by a rule, or no path to judge.
#[test]
fn t285_paths_are_judged_alike() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world.http_host(ACME, &origin).rule("path = \"/admin/*\"\ndeny = true").rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    for (path, status, reason) in [
        ("/", 200, None),
        ("/admin", 200, None),
        ("/admin/x", 403, Some("rule_denied")),
        ("/admin;v=1/x", 403, Some("rule_denied")),
        ("/x/../admin/x", 400, Some("malformed_request")),
        ("/%61dmin/x", 400, Some("malformed_request")),
        ("//admin/x", 400, Some("malformed_request")),
    ] {
        let mut http = Http::new(world.client().open(edge.address(), ACME).expect("a connection"));
        assert_eq!(http.get(ACME, path).status(), status, "{path}");
        let (value, code) = answer(&edge.file(), None, &["--host", ACME, "--path", path]);
        assert_eq!(code, Some(if reason.is_none() { 0 } else { 4 }), "{path}: {value}");
        let told = value["refusal"].as_str();
        assert_eq!(told, reason, "{path}: {value}");
        if status != 200 {
            assert!(
                value["client_sees"].as_str().is_some_and(|seen| seen.contains(&status.to_string())),
                "{path}: {value}"
            );
        }
    }
}
