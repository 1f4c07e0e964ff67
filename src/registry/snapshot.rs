//! All records at one generation, and how a name finds its record.

use std::collections::HashMap;
use std::sync::Arc;

use super::HostnameRecord;

/// All records at one generation. Immutable; shared by all workers.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows with every change.
    pub generation: u64,
    by_name: HashMap<Box<str>, Arc<HostnameRecord>, foldhash::fast::RandomState>,
    default: Option<Arc<HostnameRecord>>,
}

/// Which record a name belongs to (I1).
#[derive(Debug)]
pub enum Resolution<'a> {
    /// The record has exactly this name.
    Exact(&'a Arc<HostnameRecord>),
    /// The record is the one-label wildcard above this name.
    Wildcard(&'a Arc<HostnameRecord>),
    /// No record has the name; this one is the default.
    Default(&'a Arc<HostnameRecord>),
    /// No record, no default.
    Unknown,
}

impl<'a> Resolution<'a> {
    /// The record, however it was found.
    pub fn record(self) -> Option<&'a Arc<HostnameRecord>> {
        match self {
            Self::Exact(record) | Self::Wildcard(record) | Self::Default(record) => Some(record),
            Self::Unknown => None,
        }
    }
}

impl Snapshot {
    /// Builds a snapshot. Names must be distinct and at most one record the default: the caller has checked both.
    pub fn new(generation: u64, records: impl IntoIterator<Item = Arc<HostnameRecord>>) -> Self {
        let mut snapshot = Self { generation, ..Self::default() };
        for record in records {
            if record.is_default {
                snapshot.default = Some(Arc::clone(&record));
            }
            snapshot.by_name.insert(record.name.as_str().into(), record);
        }
        snapshot
    }

    /// How many hostnames there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Every record, in no order.
    pub fn records(&self) -> impl Iterator<Item = &Arc<HostnameRecord>> {
        self.by_name.values()
    }

    /// The record of exactly this name.
    pub fn get(&self, name: &str) -> Option<&Arc<HostnameRecord>> {
        self.by_name.get(name)
    }

    /// Finds the record of a normalised name: exact, then the wildcard one label up, then the default (I1).
    pub fn resolve(&self, name: &str) -> Resolution<'_> {
        if let Some(record) = self.by_name.get(name) {
            return Resolution::Exact(record);
        }
        if let Some((_, parent)) = name.split_once('.') {
            let mut wildcard = String::with_capacity(parent.len() + 2);
            wildcard.push_str("*.");
            wildcard.push_str(parent);
            if let Some(record) = self.by_name.get(wildcard.as_str()) {
                return Resolution::Wildcard(record);
            }
        }
        self.resolve_default()
    }

    /// The record of a client that names no host.
    pub fn resolve_default(&self) -> Resolution<'_> {
        self.default.as_ref().map_or(Resolution::Unknown, Resolution::Default)
    }
}
