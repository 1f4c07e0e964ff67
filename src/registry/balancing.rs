//! How the addresses of an origin share its work, and how it is found out which of them can.

use std::time::Duration;

/// How the address of a request is chosen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Each in turn.
    RoundRobin,
    /// Of two taken at random, the one with fewer exchanges in progress.
    LeastPending,
    /// The same client address leads to the same address of the origin.
    HashClientAddress,
    /// The same value of this field does, in lower case; requests without it go by the client's address.
    HashHeader(Box<str>),
}

/// How an origin's work is shared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Balancing {
    pub policy: Policy,
    /// Exchanges that must fail in a row before an address is left out; `None`: only one that does not accept is.
    pub eject_after: Option<u32>,
    /// How long the share of an address that comes back grows; zero: it is whole at once.
    pub slow_start: Duration,
}

impl Balancing {
    /// As many as Envoy's outlier detection waits for: fewer would eject an address for a few requests that no address
    /// can serve.
    pub const EJECT_AFTER_DEFAULT: u32 = 5;

    /// A process that was just started has cold caches and nothing compiled; ten seconds are enough for most and noticed by
    /// nobody where they are not needed.
    pub const SLOW_START_DEFAULT: Duration = Duration::from_secs(10);
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            policy: Policy::RoundRobin,
            eject_after: Some(Self::EJECT_AFTER_DEFAULT),
            slow_start: Self::SLOW_START_DEFAULT,
        }
    }
}
