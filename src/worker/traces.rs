//! Traces that begin at this worker (W3C Trace Context), for requests that bring none.

use std::cell::RefCell;

use crate::proxy::headers::Begun;

/// Random bytes fetched at once. A call into the generator costs most of a microsecond, however much it fetches: this makes
/// one for every 32 traces.
const RANDOM_BYTES: usize = 1024;

/// What one trace takes of them: its id, a span's, and whether it is sampled.
const TRACE_BYTES: usize = 28;

/// A worker's source of traces. The ids come from the cryptographic generator: nobody who sees some can tell the next.
pub struct Traces {
    /// How many of a million are to be recorded.
    sampled_millionths: u32,
    random: RefCell<Random>,
}

struct Random {
    bytes: [u8; RANDOM_BYTES],
    used: usize,
}

impl Traces {
    /// Traces of which this share is to be recorded.
    pub fn new(sampled_millionths: u32) -> Self {
        Self { sampled_millionths, random: RefCell::new(Random { bytes: [0; RANDOM_BYTES], used: RANDOM_BYTES }) }
    }

    /// Begins a trace; `None` if the system gives no random bytes.
    pub fn begin(&self) -> Option<Begun> {
        let mut random = self.random.borrow_mut();
        if RANDOM_BYTES - random.used < TRACE_BYTES {
            aws_lc_rs::rand::fill(&mut random.bytes).ok()?;
            random.used = 0;
        }
        let taken = &random.bytes[random.used..random.used + TRACE_BYTES];
        let ids: [u8; 24] = taken[..24].try_into().ok()?;
        let draw = u32::from_le_bytes(taken[24..].try_into().ok()?);
        random.used += TRACE_BYTES;
        // From 0 to 999,999, each as likely as the others within a part in four thousand.
        let draw = (u64::from(draw) * 1_000_000) >> 32;
        Some(Begun::new(ids, draw < u64::from(self.sampled_millionths)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Traces;

    #[test]
    fn traces_differ_and_are_sampled_as_told() {
        for (millionths, range) in [(0, 0..=0), (250_000, 2_200..=2_800), (1_000_000, 10_000..=10_000)] {
            let traces = Traces::new(millionths);
            let begun: Vec<_> = (0..10_000).filter_map(|_| traces.begin()).collect();
            let ids: HashSet<_> = begun.iter().map(|begun| begun.trace_id()).collect();
            assert_eq!(ids.len(), 10_000);
            let sampled = begun.iter().filter(|begun| begun.traceparent().ends_with(b"1")).count();
            assert!(range.contains(&sampled), "{millionths}: {sampled}");
        }
    }
}
