//! Storage for the fields of a head.

/// Where the fields of one head stand; reused from head to head, so that parsing does not allocate.
#[derive(Debug, Default)]
pub struct Slots {}
