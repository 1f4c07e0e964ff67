//! Bytes on their way to the client: records are written once, into memory that is initialised once.

/// A growing buffer of records. Its memory stays initialised, so that reuse costs no clearing.
#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    filled: usize,
}

impl Outgoing {
    /// A buffer around memory that was used before.
    pub fn with_memory(bytes: Vec<u8>) -> Self {
        Self { bytes, filled: 0 }
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The bytes that wait.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Gives memory and fill away, and starts with none.
    pub fn take(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.bytes), std::mem::take(&mut self.filled))
    }

    /// Appends bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        let room = self.room(bytes.len());
        room[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// At least `needed` initialised bytes behind what is filled. Say with [`Outgoing::advance`] how many were written.
    pub fn room(&mut self, needed: usize) -> &mut [u8] {
        let wanted = self.filled + needed;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// Counts bytes that were written into [`Outgoing::room`].
    pub fn advance(&mut self, written: usize) {
        self.filled += written;
        assert!(self.filled <= self.bytes.len(), "more written than there was room");
    }
}
