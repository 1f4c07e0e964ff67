//! What `hostward demo --once` tries, and what must come of it.

use std::fmt::Write;
use std::net::SocketAddr;

use rustls::ProtocolVersion;

use super::client::{Client, Seen};
use super::pki::Pki;
use super::{ACME, Customer, GLOBEX};

/// Header lines by which a client says that it is somebody else.
const FORGED: &str =
    "X-Client-Cert-Verify: SUCCESS\r\nX-Client-Cert-Subject: CN=admin\r\nx_client_cert_subject: CN=admin\r\n";

/// One case, played.
#[derive(Debug)]
pub struct Case {
    version: &'static str,
    what: &'static str,
    hostname: &'static str,
    expected: Seen,
    seen: Seen,
}

impl Case {
    /// Whether it went as it must.
    pub fn matches(&self) -> bool {
        self.expected == self.seen
    }
}

/// Plays every case in both TLS versions.
///
/// # Errors
/// A client that cannot be built.
pub fn play(address: SocketAddr, pki: &Pki) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for (version, protocol) in [("1.3", ProtocolVersion::TLSv1_3), ("1.2", ProtocolVersion::TLSv1_2)] {
        play_version(version, protocol, address, pki, &mut cases)?;
    }
    Ok(cases)
}

fn play_version(
    version: &'static str,
    protocol: ProtocolVersion,
    address: SocketAddr,
    pki: &Pki,
    cases: &mut Vec<Case>,
) -> Result<(), String> {
    let text = |error: rustls::Error| format!("the demo's client: {error}");
    let client = Client::new(&pki.provider_ca, protocol).map_err(text)?;
    let (acme, globex) = (Some(&pki.acme.client), Some(&pki.globex.client));
    let let_in = |customer: Customer, resumed| Seen::Answered {
        status: 200,
        from: Some(customer.name),
        subject: Some(customer.subject()),
        resumed,
    };
    let refused = |alert: &str| Seen::Alert(alert.to_owned());

    let plain = [
        ("Acme's certificate", acme, ACME, let_in(ACME, false)),
        ("no certificate", None, ACME, refused("certificate_required")),
        ("Acme's certificate", acme, GLOBEX, refused("unknown_ca")),
        ("Globex's certificate", globex, GLOBEX, let_in(GLOBEX, false)),
    ];
    for (what, shown, customer, expected) in plain {
        client.drop_ticket();
        client.show(shown).map_err(text)?;
        let hostname = customer.hostname;
        cases.push(Case { version, what, hostname, expected, seen: client.get(address, hostname) });
    }

    // What is said inside a connection that was let in.
    let misdirected = Seen::Answered { status: 421, from: None, subject: None, resumed: false };
    let inside = [
        ("Acme's certificate, Host of Globex", GLOBEX.hostname, "", misdirected),
        ("Acme's certificate, forged identity", ACME.hostname, FORGED, let_in(ACME, false)),
    ];
    for (what, host, lines, expected) in inside {
        client.drop_ticket();
        client.show(acme).map_err(text)?;
        let seen = client.ask(address, ACME.hostname, host, lines);
        cases.push(Case { version, what, hostname: ACME.hostname, expected, seen });
    }

    // Each begins with a fresh ticket of Acme's; the first shows that such a ticket is good where it came from.
    let with_ticket = [
        ("Acme's ticket and certificate", acme, ACME, let_in(ACME, true)),
        ("Acme's ticket, no certificate", None, GLOBEX, refused("certificate_required")),
        ("Acme's ticket and certificate", acme, GLOBEX, refused("unknown_ca")),
        ("Acme's ticket, Globex's certificate", globex, GLOBEX, let_in(GLOBEX, false)),
    ];
    for (what, shown, customer, expected) in with_ticket {
        client.show(acme).map_err(text)?;
        let seen = match client.take_ticket(address, ACME.hostname) {
            Ok(()) => {
                client.show(shown).map_err(text)?;
                client.get(address, customer.hostname)
            }
            Err(instead) => instead,
        };
        cases.push(Case { version, what, hostname: customer.hostname, expected, seen });
    }
    Ok(())
}

/// The table of what was expected and seen.
pub fn table(cases: &[Case]) -> String {
    let mut text = format!("{:<5}{:<38}{:<18}{:<48}{:<48}\n", "TLS", "client", "at", "expected", "seen");
    for case in cases {
        let mark = if case.matches() { "ok" } else { "WRONG" };
        let (expected, seen) = (describe(&case.expected), describe(&case.seen));
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "{:<5}{:<38}{:<18}{expected:<48}{seen:<48}{mark}", case.version, case.what, case.hostname);
    }
    text
}

fn describe(seen: &Seen) -> String {
    match seen {
        Seen::Answered { status, from, subject, resumed } => {
            let kind = if *resumed { ", resumed" } else { "" };
            match (from, subject) {
                (Some(name), Some(subject)) => format!("{status} from {name} to {subject}{kind}"),
                (Some(name), None) => format!("{status} from {name}{kind}"),
                (None, _) => format!("{status} from the edge{kind}"),
            }
        }
        Seen::Alert(alert) => format!("refused: {alert}"),
        Seen::Failed(why) => format!("failed: {why}"),
    }
}
