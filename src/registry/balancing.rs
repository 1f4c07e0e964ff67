//! How the addresses of an origin share its work, how it is found out which of them can, and what is sent again.

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

/// Which requests are sent again, beyond the one whose idle connection turned out dead.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Retries {
    /// How often a request may be, at most.
    pub max: u32,
    /// Statuses that are not passed on if another try is left; otherwise only what was not answered is sent again.
    pub on_status: Vec<u16>,
}

/// How the addresses of an origin are checked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Check {
    pub kind: CheckKind,
    /// From the end of one check to the beginning of the next.
    pub interval: Duration,
    /// Bound on one check.
    pub timeout: Duration,
    /// Checks that must pass in a row before an address that is down is up.
    pub healthy_after: u32,
    /// Checks that must fail in a row before an address that is up is down.
    pub unhealthy_after: u32,
}

/// What a check asks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum CheckKind {
    /// Whether a connection is accepted.
    Tcp,
    /// How a request is answered.
    Http {
        path: String,
        /// The value of `Host`; `None`: the address.
        host: Option<String>,
        /// The statuses that pass, ascending; empty: those of 200 to 399.
        expect: Vec<u16>,
    },
}

impl Check {
    /// Often enough to find a dead address before many clients do, seldom enough that a hundred edges are no load.
    pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

    /// Whoever answers a check slower than this answers no client well.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

    /// One answer may be the last of a process that is ending.
    pub const HEALTHY_AFTER_DEFAULT: u32 = 2;

    /// One packet may be lost twice.
    pub const UNHEALTHY_AFTER_DEFAULT: u32 = 3;
}
