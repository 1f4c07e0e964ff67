//! Names for requests: `X-Request-Id` and the log.

use std::cell::Cell;

/// A worker's source of request ids: 128 bits, of which the first half is random for each worker and the second a counter,
/// scrambled so that ids tell nobody how many requests there were.
pub struct RequestIds {
    prefix: u64,
    seed: u64,
    count: Cell<u64>,
}

/// An id as text.
pub type RequestId = [u8; 32];

impl RequestIds {
    /// A source of its own.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn new() -> Result<Self, String> {
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| "the system gave no random bytes".to_owned())?;
        let [prefix, seed] =
            [&random[..8], &random[8..]].map(|half| half.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
        Ok(Self { prefix, seed, count: Cell::new(0) })
    }

    /// The next one.
    pub fn next(&self) -> RequestId {
        let count = self.count.get();
        self.count.set(count.wrapping_add(1));
        let mut text = [0; 32];
        let halves = [self.prefix, scramble(count.wrapping_add(self.seed))];
        for (index, digit) in text.iter_mut().enumerate() {
            let nibble = halves[index / 16] >> (60 - 4 * (index % 16)) & 15;
            *digit = b"0123456789abcdef"[nibble as usize];
        }
        text
    }
}

/// A permutation of the 64-bit numbers (the finaliser of splitmix64): different counts stay different.
fn scramble(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use super::RequestIds;
    use std::collections::HashSet;

    #[test]
    fn ids_are_distinct_and_share_only_their_worker() {
        let (one, other) = (RequestIds::new().unwrap(), RequestIds::new().unwrap());
        let ids: HashSet<_> = (0..1_000).flat_map(|_| [one.next(), other.next()]).collect();
        assert_eq!(ids.len(), 2_000);
        assert!(ids.iter().all(|id| id.iter().all(u8::is_ascii_hexdigit)));
        assert_eq!(one.next()[..16], one.next()[..16]);
        assert_ne!(one.next()[..16], other.next()[..16]);
    }
}
