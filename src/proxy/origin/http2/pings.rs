//! When a connection that has been silent is asked whether it lives. Pure: time comes in.

use std::time::{Duration, Instant};

/// How long a connection with streams may be silent before it is asked.
///
/// Servers of gRPC take more frequent pings than one in five minutes for abuse, and end the connection with
/// ENHANCE_YOUR_CALM. What ends sooner than that is a matter of `response_timeout` and of TCP.
pub const SILENCE: Duration = Duration::from_secs(5 * 60 + 5);

/// How long the answer may take.
pub const ANSWER: Duration = Duration::from_secs(20);

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Nothing before this moment.
    Wait(Instant),
    Ping,
    /// It does not answer.
    Dead,
}

/// The pings of one connection.
#[derive(Default, Debug)]
pub struct Pings {
    asked: Option<Instant>,
}

impl Pings {
    /// What to do, of a connection that was heard of last at `heard`.
    pub fn next(&mut self, heard: Instant, now: Instant) -> Act {
        match self.asked {
            Some(asked) if heard > asked => self.asked = None,
            Some(asked) if now >= asked + ANSWER => return Act::Dead,
            Some(asked) => return Act::Wait(asked + ANSWER),
            None => {}
        }
        if now < heard + SILENCE {
            return Act::Wait(heard + SILENCE);
        }
        self.asked = Some(now);
        Act::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_and_no_answer_is_death() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pings = Pings::default();
        assert_eq!(pings.next(start, at(1)), Act::Wait(start + SILENCE));
        assert_eq!(pings.next(start, start + SILENCE), Act::Ping);
        let asked = start + SILENCE;
        assert_eq!(pings.next(start, asked + Duration::from_secs(1)), Act::Wait(asked + ANSWER));
        let heard = asked + Duration::from_secs(2);
        assert_eq!(pings.next(heard, heard), Act::Wait(heard + SILENCE));
        assert_eq!(pings.next(heard, heard + SILENCE), Act::Ping);
        assert_eq!(pings.next(heard, heard + SILENCE + ANSWER), Act::Dead);
    }
}
