//! How long things took: one set of histograms a worker, written by it alone and cloned when someone asks.
//!
//! hdrhistogram keeps every value within one part in a hundred from a microsecond to a minute, so that percentiles are
//! exact enough to compare and the metrics text can cut its buckets wherever it likes.

use hdrhistogram::Histogram;

/// The smallest time told apart, in microseconds: the clock's own noise is below it.
const LOW_US: u64 = 1;

/// The longest time told apart, in microseconds. Every timeout that ends in one of these histograms is shorter (a
/// handshake has 10 s, a connect 2 s by default); what is longer counts as this.
const HIGH_US: u64 = 60_000_000;

/// Two significant digits: at most 1 % off, and 20 KiB a histogram instead of 180 KiB at three.
const SIGNIFICANT_DIGITS: u8 = 2;

/// Times of one kind.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    /// The exact sum, which the histogram does not keep and Prometheus wants.
    sum_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(LOW_US, HIGH_US, SIGNIFICANT_DIGITS)
            .expect("the bounds are constants: 1 <= low, 2 * low <= high, digits <= 5");
        Self { histogram, sum_us: 0 }
    }
}

impl Latency {
    /// Records one time in microseconds; what is above a minute counts as a minute.
    pub fn record_us(&mut self, us: u64) {
        let us = us.min(HIGH_US);
        self.histogram.saturating_record(us);
        self.sum_us = self.sum_us.wrapping_add(us);
    }

    /// Adds another worker's times.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same constant bounds, so that adding cannot fail; and were it to, a metric is not worth a panic.
        let _ = self.histogram.add(&other.histogram);
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many times were recorded.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Their sum in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The time in microseconds below which `percentile` per cent of the recorded ones lie.
    pub fn percentile_us(&self, percentile: f64) -> u64 {
        self.histogram.value_at_percentile(percentile)
    }

    /// For each upper bound, in ascending order, how many recorded times are at most it (within the resolution).
    pub fn cumulative(&self, bounds_us: &[u64]) -> Vec<u64> {
        let mut counts = Vec::with_capacity(bounds_us.len());
        let mut steps = self.histogram.iter_recorded().peekable();
        let mut below = 0;
        for &bound in bounds_us {
            while let Some(step) = steps.next_if(|step| step.value_iterated_to() <= bound) {
                below += step.count_since_last_iteration();
            }
            counts.push(below);
        }
        counts
    }
}

/// What one worker times.
#[derive(Clone, Debug, Default)]
pub struct Histograms {
    /// `hostward_handshake_seconds`: from accept to the end of the handshake, waiting for admission included.
    pub handshake: Latency,
    /// `hostward_origin_connect_seconds`: from the first attempt to a connected origin.
    pub origin_connect: Latency,
    /// `hostward_request_seconds`: from the first byte of a request to the last of its response.
    pub request: Latency,
    /// `hostward_origin_seconds`: from a request judged to the first byte of its response.
    pub origin: Latency,
    /// `hostward_worker_turn_seconds`: one turn of the loop without its wait: how late I/O may be served.
    pub turn: Latency,
}

impl Histograms {
    /// Adds another worker's times.
    pub fn merge(&mut self, other: &Self) {
        self.handshake.merge(&other.handshake);
        self.origin_connect.merge(&other.origin_connect);
        self.request.merge(&other.request);
        self.origin.merge(&other.origin);
        self.turn.merge(&other.turn);
    }
}

#[cfg(test)]
mod tests {
    use super::{HIGH_US, Latency};
    use proptest::prelude::*;

    const BOUNDS: [u64; 5] = [10, 100, 1_000, 1_000_000, HIGH_US * 2];

    proptest! {
        #[test]
        fn cumulative_counts_agree_with_counting_by_hand(values in prop::collection::vec(0..2 * HIGH_US, 0..200)) {
            let mut latency = Latency::default();
            for &value in &values {
                latency.record_us(value);
            }
            let counts = latency.cumulative(&BOUNDS);
            prop_assert_eq!(latency.count(), values.len() as u64);
            prop_assert_eq!(latency.sum_us(), values.iter().map(|&v| v.min(HIGH_US)).sum::<u64>());
            prop_assert_eq!(*counts.last().unwrap(), values.len() as u64);
            for (&bound, &count) in BOUNDS.iter().zip(&counts) {
                // A value within 1 % of the bound may fall on either side.
                let sure = values.iter().filter(|&&v| v.min(HIGH_US) * 100 <= bound * 99).count() as u64;
                let possible = values.iter().filter(|&&v| v.min(HIGH_US) * 99 <= bound * 100).count() as u64;
                prop_assert!(sure <= count && count <= possible, "{bound}: {sure} <= {count} <= {possible}");
            }
        }
    }

    #[test]
    fn merging_adds() {
        let (mut a, mut b) = (Latency::default(), Latency::default());
        a.record_us(50);
        b.record_us(5_000);
        b.record_us(u64::MAX);
        a.merge(&b);
        assert_eq!(a.count(), 3);
        assert_eq!(a.sum_us(), 50 + 5_000 + HIGH_US);
        assert_eq!(a.cumulative(&[100, 10_000]), [1, 2]);
        assert!((49..=51).contains(&a.percentile_us(1.0)));
    }
}
