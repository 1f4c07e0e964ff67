//! Where origins are right now: the addresses behind their names.
//!
//! The control plane resolves names and publishes a table; workers read it and never ask DNS.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::{OriginAddress, OriginTls, Scheme, Snapshot};

/// An address that can be connected to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ResolvedAddress {
    Tcp(SocketAddr),
    /// TLS is spoken there, with a server of this name (as the URL has it) unless the origin names another.
    Tls(SocketAddr, Arc<str>),
    /// A Unix-domain stream socket.
    Unix(PathBuf),
}

impl ResolvedAddress {
    /// The network address; `None` for a Unix-domain socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) | Self::Tls(address, _) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for ResolvedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Tls(address, _) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The addresses that checks found down, by the name of their origin.
pub type DownTable = HashMap<String, Vec<ResolvedAddress>>;

/// Where an origin is, and how it is spoken with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Whereabouts {
    /// In the order of its configuration; empty: none is known.
    pub addresses: Vec<ResolvedAddress>,
    pub tls: Option<Arc<OriginTls>>,
}

/// Every origin's whereabouts, by [`super::Origin::name`].
pub type OriginTable = HashMap<String, Whereabouts>;

/// What names resolved to, the last time they did.
pub type KnownHosts = HashMap<String, Vec<IpAddr>>;

/// The host names (not IP literals) the origins of a snapshot are written with.
pub fn names_to_resolve(snapshot: &Snapshot) -> BTreeSet<String> {
    let addresses = snapshot.records().flat_map(|record| &record.origin.addresses);
    addresses
        .filter_map(|address| match address {
            OriginAddress::Tcp { host, .. } if literal(host).is_none() => Some(host.clone()),
            _ => None,
        })
        .collect()
}

/// The table of a snapshot. An address appears once, even if two names lead to it.
pub fn table(snapshot: &Snapshot, known: &KnownHosts) -> OriginTable {
    let mut table = OriginTable::new();
    for record in snapshot.records() {
        let origin = &record.origin;
        if table.contains_key(&origin.name) {
            continue;
        }
        let mut resolved = Vec::with_capacity(origin.addresses.len());
        for address in &origin.addresses {
            let found: Vec<ResolvedAddress> = match address {
                OriginAddress::Unix(path) => vec![ResolvedAddress::Unix(path.clone())],
                OriginAddress::Tcp { host, port } => {
                    let name: Option<Arc<str>> = (origin.scheme == Scheme::Https).then(|| host.as_str().into());
                    let tcp = |ip: &IpAddr| match &name {
                        Some(name) => ResolvedAddress::Tls(SocketAddr::new(*ip, *port), Arc::clone(name)),
                        None => ResolvedAddress::Tcp(SocketAddr::new(*ip, *port)),
                    };
                    match literal(host) {
                        Some(ip) => vec![tcp(&ip)],
                        None => known.get(host).into_iter().flatten().map(tcp).collect(),
                    }
                }
            };
            for address in found {
                if !resolved.contains(&address) {
                    resolved.push(address);
                }
            }
        }
        table.insert(origin.name.clone(), Whereabouts { addresses: resolved, tls: origin.tls.clone() });
    }
    table
}

/// An IP address, with or without the brackets a URL puts around IPv6.
fn literal(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::IdentitySets;
    use crate::policy::Rules;
    use crate::registry::{ClientAuth, ClientAuthMode, HostnameRecord, Mode, Name, Origin, RecordId, TlsVersion};

    fn record(name: &str, origin: &str, addresses: Vec<OriginAddress>) -> Arc<HostnameRecord> {
        let client_auth = ClientAuth {
            mode: ClientAuthMode::Off,
            ca_set: None,
            allow_expired_ca: false,
            verify_depth: None,
            send_ca_names: false,
            headers: IdentitySets::default(),
        };
        Arc::new(HostnameRecord {
            id: RecordId([0; 16]),
            name: Name::parse_record(name).unwrap(),
            is_default: false,
            mode: Mode::Tcp,
            certificates: vec![],
            client_auth,
            rules: Rules::default(),
            origin: Arc::new(Origin::new(origin.into(), addresses, Scheme::Tcp)),
            min_version: TlsVersion::V1_2,
            cipher_suites: vec![],
            alpn: vec![],
            keep_unusual_headers: false,
            rewrites: None,
            digest: [0; 32],
        })
    }

    fn tcp(host: &str, port: u16) -> OriginAddress {
        OriginAddress::Tcp { host: host.into(), port }
    }

    #[test]
    fn names_are_looked_up_and_literals_are_not() {
        let unix = OriginAddress::Unix("/run/app.sock".into());
        let app = vec![tcp("app.internal", 80), tcp("10.0.0.1", 81), tcp("[::1]", 82), tcp("::1", 82), unix];
        let records = [record("a.test", "app", app), record("b.test", "gone", vec![tcp("gone.internal", 80)])];
        let snapshot = Snapshot::new(1, records);
        let names: Vec<_> = names_to_resolve(&snapshot).into_iter().collect();
        assert_eq!(names, ["app.internal", "gone.internal"]);

        let known = KnownHosts::from([("app.internal".into(), vec!["10.0.0.7".parse().unwrap()])]);
        let table = table(&snapshot, &known);
        let tcp = |text: &str| ResolvedAddress::Tcp(text.parse().unwrap());
        let unix = ResolvedAddress::Unix("/run/app.sock".into());
        assert_eq!(table["app"].addresses, [tcp("10.0.0.7:80"), tcp("10.0.0.1:81"), tcp("[::1]:82"), unix]);
        assert_eq!(table["gone"].addresses, []);
    }
}
