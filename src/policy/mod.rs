//! Who may come in: the closed list of refusals, the verdict on a client certificate, the identity it carries and the
//! rules a provider writes over both.
//!
//! Everything here is a pure function of its inputs; time, addresses and certificates are passed in. The room knows none
//! of the rooms above it.
#![forbid(unsafe_code)]

mod allow;
pub mod identity;
mod identity_sets;
pub mod path;
mod pattern;
pub mod refusal;
pub mod rules;
pub mod verdict;

pub use identity::Identity;
pub use identity_sets::IdentitySets;
pub use refusal::Refusal;
pub use rules::{AllowSpec, Decision, Facts, RuleError, RuleSpec, Rules, VerifySelector};
pub use verdict::Verdict;
