//! From the results of checks to up and down. Pure.

/// What is known of one address.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Judge {
    /// `None`: it was never checked.
    up: Option<bool>,
    /// Results in a row that say otherwise.
    against: u32,
}

impl Judge {
    /// Takes a result. Returns what the address is from now on, if that is news.
    ///
    /// An address that was never checked counts as up, and its first check decides alone: a process that begins must not
    /// send its clients to a dead address for as long as `unhealthy_after` takes.
    pub fn take(&mut self, passed: bool, healthy_after: u32, unhealthy_after: u32) -> Option<bool> {
        let Some(up) = self.up else {
            self.up = Some(passed);
            return (!passed).then_some(false);
        };
        if passed == up {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        if self.against < if up { unhealthy_after } else { healthy_after } {
            return None;
        }
        *self = Self { up: Some(passed), against: 0 };
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::Judge;
    use proptest::prelude::*;

    fn news(results: &str) -> String {
        let mut judge = Judge::default();
        let mut told = String::new();
        for result in results.chars() {
            told.push(match judge.take(result == '+', 2, 3) {
                Some(true) => 'U',
                Some(false) => 'D',
                None => '.',
            });
        }
        told
    }

    #[test]
    fn only_so_many_in_a_row_are_news() {
        for (results, told) in [
            ("++++", "...."),
            ("+---++", "...D.U"),
            ("+--+--+---", ".........D"),
            ("-+-++", "D...U"),
            ("-----", "D...."),
            ("-++---", "D.U..D"),
        ] {
            assert_eq!(news(results), told, "{results}");
        }
    }

    proptest! {
        #[test]
        fn news_alternate_and_follow_a_run(results in proptest::collection::vec(any::<bool>(), 0..60), rise in 1u32..5, fall in 1u32..5) {
            let mut judge = Judge::default();
            let mut up = true;
            for (index, &passed) in results.iter().enumerate() {
                let Some(now) = judge.take(passed, rise, fall) else { continue };
                prop_assert!(now != up && now == passed);
                let run = results[..=index].iter().rev().take_while(|&&other| other == passed).count() as u32;
                let needed = if now { rise } else { fall };
                prop_assert!(index == 0 || run >= needed);
                up = now;
            }
        }
    }
}
