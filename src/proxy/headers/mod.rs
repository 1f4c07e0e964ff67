//! What origins are told about a client, and what clients may not tell them.

mod session;

pub use session::{SessionFacts, SessionFields};
