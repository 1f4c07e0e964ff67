//! What origins are told about a client, and what clients may not tell them.

mod escape;
mod identity;
mod names;
mod session;
mod trace;

pub use identity::identity_fields;
pub(in crate::proxy) use names::is_spelling_of;
pub use names::{Meaning, meaning};
pub use session::{SessionFacts, SessionFields};
pub use trace::{Begun, TraceId};
pub(in crate::proxy) use trace::{TRACESTATE_MEMBERS_MAX, parse_traceparent, tracestate_members};
