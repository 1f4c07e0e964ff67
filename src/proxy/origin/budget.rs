//! How many requests of one origin may be sent again: a share of all, so that an origin that fails under its load is not
//! given a multiple of it.
//!
//! For one worker and one origin. Pure: time comes in as milliseconds of any monotonic clock.

/// One retry.
const WHOLE: u64 = 1_000;

/// What each request earns, in thousandths of a retry: one in five, as Envoy's and Finagle's budgets have it. A fault of one
/// address in five is hidden from every client, and an origin that fails whole gets a fifth more than its load.
const EARNED: u64 = WHOLE / 5;

/// Retries earned in a second whatever the load: an origin with a request now and then has a budget too.
const PER_SECOND: u64 = 3;

/// Retries that can be saved up. What is earned in quiet times is soon spent when all requests fail.
const SAVED_MAX: u64 = 30 * WHOLE;

/// What is left to spend.
#[derive(Debug)]
pub struct Budget {
    level: u64,
    /// When it was last asked; `None`: never.
    at_ms: Option<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { level: PER_SECOND * WHOLE, at_ms: None }
    }
}

impl Budget {
    /// A request begins.
    pub fn earn(&mut self) {
        self.level = (self.level + EARNED).min(SAVED_MAX);
    }

    /// Takes one retry, if there is one.
    pub fn spend(&mut self, now_ms: u64) -> bool {
        let before_ms = self.at_ms.unwrap_or(now_ms);
        let elapsed_ms = now_ms.saturating_sub(before_ms);
        self.at_ms = Some(before_ms.max(now_ms));
        let earned = elapsed_ms.saturating_mul(PER_SECOND * WHOLE / 1_000);
        self.level = self.level.saturating_add(earned).min(SAVED_MAX);
        match self.level.checked_sub(WHOLE) {
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
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_request_in_five_and_a_few_a_second() {
        let mut budget = Budget::default();
        let spent = |budget: &mut Budget, now_ms| (0..1_000).filter(|_| budget.spend(now_ms)).count() as u64;
        assert_eq!(spent(&mut budget, 0), PER_SECOND);
        (0..100).for_each(|_| budget.earn());
        assert_eq!(spent(&mut budget, 0), 20);
        assert_eq!(spent(&mut budget, 2_000), 2 * PER_SECOND);
        assert_eq!(spent(&mut budget, 1_000), 0, "a clock that goes back stands still");
        assert_eq!(spent(&mut budget, 2_500), 1, "and earns nothing twice");
        assert_eq!(spent(&mut budget, u64::MAX), SAVED_MAX / WHOLE);
    }

    proptest! {
        #[test]
        fn never_more_than_was_earned(steps in proptest::collection::vec((0u64..2_000, any::<bool>()), 0..300)) {
            let (mut budget, mut now_ms, mut requests, mut retries) = (Budget::default(), 0, 0u64, 0u64);
            for (ms, fails) in steps {
                now_ms += ms;
                requests += 1;
                budget.earn();
                retries += u64::from(fails && budget.spend(now_ms));
                let bound = PER_SECOND * WHOLE + requests * EARNED + now_ms * PER_SECOND * WHOLE / 1_000;
                prop_assert!(retries * WHOLE <= bound);
            }
        }
    }
}
