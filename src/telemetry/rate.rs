//! A token bucket: so many at once, so many a second afterwards. Pure; the caller brings the time.

/// Allows a burst, then a steady rate. Time is microseconds of any clock that does not go back; one that does is taken
/// as standing still.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    burst: u64,
    per_second: u64,
    /// Millionths of a token: a rate of one a second earns one of them a microsecond.
    level: u64,
    at_us: u64,
}

/// Millionths in a token.
const TOKEN: u64 = 1_000_000;

impl TokenBucket {
    /// A full bucket of `burst` tokens that earns `per_second` tokens a second.
    pub fn new(burst: u32, per_second: u32, now_us: u64) -> Self {
        let burst = u64::from(burst) * TOKEN;
        Self { burst, per_second: u64::from(per_second), level: burst, at_us: now_us }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now_us: u64) -> bool {
        let elapsed_us = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        self.level = self.level.saturating_add(elapsed_us.saturating_mul(self.per_second)).min(self.burst);
        match self.level.checked_sub(TOKEN) {
            Some(left) => {
                self.level = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TokenBucket;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(3, 2, 1_000);
        assert_eq!((0..5).filter(|_| bucket.take(1_000)).count(), 3);
        assert!(!bucket.take(500_999), "one microsecond short of half a second");
        assert!(bucket.take(501_000));
        assert!(!bucket.take(501_000));
        assert_eq!(
            (0..9).filter(|_| bucket.take(u64::MAX)).count(),
            3,
            "a long rest fills it no further than the burst"
        );
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(
            burst in 1u32..20, per_second in 1u32..50, steps in prop::collection::vec(0u64..400_000, 1..300),
        ) {
            let mut bucket = TokenBucket::new(burst, per_second, 0);
            let (mut now_us, mut taken) = (0, 0u64);
            for step in steps {
                now_us += step;
                taken += u64::from(bucket.take(now_us));
                prop_assert!(taken <= u64::from(burst) + now_us * u64::from(per_second) / 1_000_000);
            }
        }

        #[test]
        fn a_clock_that_goes_back_earns_nothing(times in prop::collection::vec(0u64..1_000_000, 1..100)) {
            let mut bucket = TokenBucket::new(1, 1, 0);
            let taken = times.iter().filter(|&&now_us| bucket.take(now_us)).count();
            prop_assert!(taken <= 1 + 1);
        }
    }
}
