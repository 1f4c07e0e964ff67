//! What `hostward demo --once` tries, and what must come of it.

use std::fmt::Write;
use std::net::SocketAddr;

use rustls::ProtocolVersion;

use super::client::{Client, Seen};
use super::origin::page;
use super::pki::Pki;
use super::{ACME, Customer, GLOBEX};

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
    let let_in = |customer: Customer, resumed| Seen::Answered { status: 200, page: page(customer.name), resumed };
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
    let mut text = format!("{:<5}{:<38}{:<18}{:<32}{:<32}\n", "TLS", "client", "at", "expected", "seen");
    for case in cases {
        let mark = if case.matches() { "ok" } else { "WRONG" };
        let (expected, seen) = (describe(&case.expected), describe(&case.seen));
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "{:<5}{:<38}{:<18}{expected:<32}{seen:<32}{mark}", case.version, case.what, case.hostname);
    }
    text
}

fn describe(seen: &Seen) -> String {
    match seen {
        Seen::Answered { status, page, resumed } => {
            let whose = [ACME, GLOBEX].iter().find(|customer| *page == super::origin::page(customer.name));
            let whose = whose.map_or("another page", |customer| customer.name);
            let kind = if *resumed { ", resumed" } else { "" };
            format!("{status} from {whose}{kind}")
        }
        Seen::Alert(alert) => format!("refused: {alert}"),
        Seen::Failed(why) => format!("failed: {why}"),
    }
}
