//! Session tickets that never widen access (I3, DECISIONS 1-5).
//!
//! A ticket is an envelope of our own around rustls' plaintext. It says under which record and trust it was minted, what
//! was found about the client, and which certificates that rests on. It opens only if the same client would pass now:
//! every check is made before rustls sees the plaintext, and any doubt means a full handshake, which refuses with the
//! exact alert.

mod envelope;
mod keyring;
mod ticketer;

pub use envelope::Sealed;
pub use keyring::{Keyring, NoRandom};
pub use ticketer::ScopedTicketer;
