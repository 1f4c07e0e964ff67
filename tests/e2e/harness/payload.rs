//! Bytes to send, made and hashed as they flow: a gigabyte needs no memory.

use aws_lc_rs::digest::{Context, SHA256};

/// How much is made at once. Not a multiple of a TLS record, so that records and blocks drift apart.
pub const BLOCK_BYTES: usize = 60_000;

/// A stream of bytes that is the same for the same seed and does not repeat.
pub struct Payload {
    left: u64,
    state: u64,
    block: Vec<u8>,
    hash: Hash,
}

impl Payload {
    pub fn new(bytes: u64, seed: u64) -> Self {
        Self { left: bytes, state: seed | 1, block: vec![0; BLOCK_BYTES], hash: Hash::new() }
    }

    /// The next bytes, or `None` when all were given.
    pub fn next_block(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        for word in self.block.chunks_mut(8) {
            // Marsaglia's xorshift64*: fast, and long enough for any test.
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let bytes = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        let take = self.left.min(BLOCK_BYTES as u64);
        self.left -= take;
        let block = &self.block[..usize::try_from(take).expect("at most a block")];
        self.hash.update(block);
        Some(block)
    }

    /// The hash of everything given.
    pub fn digest(self) -> String {
        self.hash.digest()
    }
}

/// SHA-256 and length of what came.
pub struct Hash {
    context: Context,
    bytes: u64,
}

impl Hash {
    pub fn new() -> Self {
        Self { context: Context::new(&SHA256), bytes: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// The length and the digest in one word, so that a comparison shows both.
    pub fn digest(self) -> String {
        use std::fmt::Write;
        let mut text = format!("{}:", self.bytes);
        for byte in self.context.finish().as_ref() {
            write!(text, "{byte:02x}").expect("writing to a string");
        }
        text
    }
}

/// The digest of `bytes` of the stream of `seed`, without sending them anywhere.
pub fn digest_of(bytes: u64, seed: u64) -> String {
    let mut payload = Payload::new(bytes, seed);
    while payload.next_block().is_some() {}
    payload.digest()
}
