//! Which keys each table has, what their values mean and which ranges they keep to.
//!
//! Each function reads one table. What is wrong is reported to the reader; the value returned then is a default that
//! nobody uses, because a file with errors makes no configuration.

mod balancing;
pub(super) mod check;
pub(super) mod hostname;
pub(super) mod origin;
pub(super) mod rewrite;
pub(super) mod rule;
pub(super) mod settings;
pub(super) mod tls;

/// The keys of the top level.
pub(super) const ROOT_KEYS: &[&str] =
    &["include", "server", "admin", "tls", "limits", "cache", "log", "origin", "hostname"];
