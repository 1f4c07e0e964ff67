//! What origins are told about a client, and what clients may not tell them.

mod escape;
mod identity;
mod names;
mod session;

pub(in crate::proxy) use names::{Meaning, meaning};
pub use session::{SessionFacts, SessionFields};
