//! A worker's spare buffers: memory that moves between connections only while bytes are on their way.
//!
//! An idle connection holds none. A buffer is emptied before it is kept, and only its fill is ever sent, so that bytes of
//! one connection never reach another (I9).

use std::cell::RefCell;

/// How much one pass collects for one send: about one large receive, so that a send makes one packet for segmentation
/// offload (see [`crate::ring::RingConfig`]). More only delays the other connections of the core.
pub const GATHER_BYTES: usize = 60 * 1024;

/// Most buffers kept. More are in use at once only when that many sends wait for slow peers.
const SPARE_MAX: usize = 64;

/// Largest buffer kept: a bulk receive and its records. Larger ones (a burst of records for a connection that was not
/// read) are given back.
const SPARE_BYTES_MAX: usize = 160 * 1024;

/// Spare memory of one worker.
#[derive(Default)]
pub struct Buffers {
    /// Empty, with capacity: for plaintext to the origin.
    plain: RefCell<Vec<Vec<u8>>>,
    /// Initialised to their length: for records to the client.
    records: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer.
    pub fn plain(&self) -> Vec<u8> {
        self.plain.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn keep_plain(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        keep(&self.plain, buffer);
    }

    /// Memory for records; its content means nothing.
    pub fn records(&self) -> Vec<u8> {
        self.records.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes memory for records back.
    pub fn keep_records(&self, buffer: Vec<u8>) {
        keep(&self.records, buffer);
    }
}

fn keep(spare: &RefCell<Vec<Vec<u8>>>, buffer: Vec<u8>) {
    let mut spare = spare.borrow_mut();
    if spare.len() < SPARE_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
        spare.push(buffer);
    }
}
