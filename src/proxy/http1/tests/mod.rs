//! Heads and bodies against a corpus of hostile ones, and against whatever proptest makes up.

mod bodies;
#[path = "../../../../tests/corpus/requests.rs"]
mod corpus;
mod forwarding;
mod requests;
mod responses;

use super::*;
use crate::policy::{IdentitySets, Verdict};
use crate::proxy::headers::{SessionFacts, SessionFields};
use crate::registry::ClientAuthMode;

const LIMITS: HeadLimits = HeadLimits { bytes_max: 64 * 1024, fields_max: 128 };

/// A connection without client authentication.
fn facts() -> SessionFacts<'static> {
    SessionFacts {
        mode: ClientAuthMode::Off,
        verdict: Verdict::None,
        sets: IdentitySets::default(),
        identity: None,
        chain: &[],
        client: [192, 0, 2, 7].into(),
        trusted_peer: false,
        keep_unusual_names: false,
        rewrites: None,
    }
}

/// The head as it is forwarded. Panics if `input` is no complete request.
fn forwarded(input: &[u8], facts: &SessionFacts<'_>) -> String {
    let session = SessionFields::new(facts);
    let mut slots = Slots::default();
    let Ok(Parsed::Complete(request)) = Request::parse(input, &LIMITS, &mut slots) else {
        panic!("not a request: {}", input.escape_ascii());
    };
    let mut out = Vec::new();
    let added = Added { session: &session, request_id: "made-7", begun: None };
    request.write(&added, &mut out).expect("is forwarded");
    String::from_utf8(out).expect("text")
}

/// What the pieces a body hands on come to, and how it ended.
fn pass_all<'a>(body: &mut Body, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Result<usize, BadBody>) {
    let mut out = Vec::new();
    let mut consumed = 0;
    for piece in pieces {
        match body.pass(piece, &mut |bytes| out.extend_from_slice(bytes)) {
            Ok(bytes) => {
                consumed += bytes;
                if bytes < piece.len() {
                    assert!(body.is_done(), "a body takes all there is until it is done");
                    break;
                }
            }
            Err(bad) => return (out, Err(bad)),
        }
    }
    (out, Ok(consumed))
}
