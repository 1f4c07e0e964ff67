//! rustls' view of our tickets: every decision is made from the connection in scope.

use rustls::server::ProducesTickets;

use crate::policy::{Facts, Verdict};
use crate::telemetry::counters::Ticket;
use crate::tls::scope::{self, Standing, Trust};

use super::envelope::Sealed;

/// How many tickets of one ClientHello are tried. A client keeps a few; trying more would be work for an attacker's
/// asking (each try derives a key and opens up to 16 KiB).
const TICKETS_TRIED_MAX: u8 = 4;

/// The ticketer of every tenant: it holds nothing, and acts for the connection whose scope it is called in.
#[derive(Debug)]
pub struct ScopedTicketer {
    /// Seconds; sent to clients as the lifetime hint, and the age after which a ticket is refused.
    pub lifetime_s: u32,
}

impl ProducesTickets for ScopedTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime_s
    }

    fn encrypt(&self, plaintext: &[u8]) -> Option<Vec<u8>> {
        scope::with(|trust| {
            let ticket = mint(trust, plaintext)?;
            trust.ticket_results.push(Ticket::Minted);
            Some(ticket)
        })?
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        scope::with(|trust| match open(trust, ticket) {
            Ok(sealed) => {
                let plaintext = sealed.plaintext.clone();
                trust.candidate = Some(sealed);
                Some(plaintext)
            }
            Err(result) => {
                trust.candidate = None;
                trust.ticket_results.push(result);
                None
            }
        })?
    }
}

/// Seals what is known of the client. The standing is the one this handshake established: verified now, or carried over
/// from the ticket it resumed (TLS 1.2 mints again on resumption); its first authentication keeps its time.
fn mint(trust: &Trust, plaintext: &[u8]) -> Option<Vec<u8>> {
    let (standing, leaf) = match (&trust.verified, &trust.candidate) {
        (Some(verified), _) => (verified.clone(), trust.leaf.clone()),
        (None, Some(sealed)) => (sealed.standing.clone(), sealed.leaf.clone()),
        (None, None) => {
            let standing = Standing { verdict: Verdict::None, path: None, authenticated_unix_s: trust.now_unix_s };
            (standing, Vec::new())
        }
    };
    if matches!(standing.verdict, Verdict::Failed(_)) {
        return None;
    }
    let binding = &trust.tenant.binding;
    let sealed = Sealed {
        record_id: binding.record_id.0,
        trust_digest: binding.trust_digest,
        standing,
        leaf,
        plaintext: plaintext.to_vec(),
    };
    sealed.seal(&trust.keyring)
}

/// Every check of I3, in the order of their cost. `Err` names why the ticket is declined.
fn open(trust: &mut Trust, ticket: &[u8]) -> Result<Sealed, Ticket> {
    if trust.tickets_tried >= TICKETS_TRIED_MAX {
        return Err(Ticket::DeclinedExcess);
    }
    trust.tickets_tried += 1;
    let sealed = Sealed::open(ticket, &trust.keyring).ok_or(Ticket::DeclinedUnknown)?;
    let tenant = &trust.tenant;
    if sealed.record_id != tenant.binding.record_id.0 {
        return Err(Ticket::DeclinedRecord);
    }
    if sealed.trust_digest != tenant.binding.trust_digest {
        return Err(Ticket::DeclinedTrust);
    }
    // A clock that was set back makes tickets younger than they are; one minted in the future is refused.
    match trust.now_unix_s.checked_sub(sealed.standing.authenticated_unix_s) {
        Some(age) if age < trust.ticket_lifetime_s => {}
        _ => return Err(Ticket::DeclinedAge),
    }
    if !tenant.still_stands(&sealed.standing, trust.now_unix_s) {
        return Err(Ticket::DeclinedExpired);
    }
    let identity = if tenant.record.rules.needs_identity() && !sealed.leaf.is_empty() {
        Some(crate::tls::identity::parse(&sealed.leaf).map_err(|_| Ticket::DeclinedUnknown)?)
    } else {
        None
    };
    let facts = Facts {
        verdict: sealed.standing.verdict,
        identity: identity.as_ref(),
        source: trust.source,
        method: None,
        path: None,
    };
    // Rules that look at a request are judged at each request; those of the whole hostname here.
    if !tenant.record.rules.needs_request() && tenant.record.rules.judge(&facts).is_err() {
        return Err(Ticket::DeclinedRule);
    }
    Ok(sealed)
}
