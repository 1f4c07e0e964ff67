//! What a hostname changes in requests and responses on their way.
//!
//! Plain data, checked when it was read (`config`): no name here has a meaning for framing, for one hop or for identities.

/// The changes of one hostname; most have none.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rewrites {
    /// `Host` as the origin gets it; `None`: the client's authority.
    pub host: Option<Box<str>>,
    /// Cut from the front of every path. Begins with a slash and ends with none.
    pub strip_prefix: Option<Box<str>>,
    /// Of requests, on the way to the origin.
    pub request: FieldChanges,
    /// Of responses, on the way to the client.
    pub response: FieldChanges,
}

/// Which fields of a head are taken out, and which are put in.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct FieldChanges {
    /// What does not pass, in lower case: what is removed, and what is put in, so that nobody else's stands beside it.
    drops: Box<[Box<str>]>,
    /// Name and value.
    added: Box<[(Box<str>, Box<str>)]>,
}

impl FieldChanges {
    /// Takes `removed` out, and whatever has a name of `added`; then puts `added` in.
    pub fn new(added: Vec<(String, String)>, removed: &[String]) -> Self {
        let names = removed.iter().chain(added.iter().map(|(name, _)| name));
        Self {
            drops: names.map(|name| name.to_ascii_lowercase().into_boxed_str()).collect(),
            added: added.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        }
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.drops.is_empty()
    }

    /// What does not pass, in lower case.
    pub fn drops(&self) -> &[Box<str>] {
        &self.drops
    }

    /// What is put in, name and value.
    pub fn added(&self) -> &[(Box<str>, Box<str>)] {
        &self.added
    }

    /// What is taken out and not put in again.
    pub fn removed(&self) -> impl Iterator<Item = &str> {
        let drops = self.drops.iter().map(AsRef::as_ref);
        drops.filter(|name: &&str| !self.added.iter().any(|(added, _)| added.eq_ignore_ascii_case(name)))
    }
}

impl Rewrites {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
