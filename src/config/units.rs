//! Sizes and durations as people write them: "64KiB", "250ms", "12h".
//!
//! One number and one unit, no fractions, no sums, no unit left out: what can be written two ways is misread in one of
//! them. Overflow is an error, never a wrap.

use std::fmt;
use std::time::Duration;

/// The units of a size, in bytes. Binary only: "KB" means 1000 to some and 1024 to others.
const SIZES: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// The units of a duration, in milliseconds.
const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Why a text is not a size or a duration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitError {
    example: &'static str,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.example)
    }
}

/// A size in bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let example = "write a whole number and a unit, B, KiB, MiB, GiB or TiB, as in \"64KiB\"";
    parse(text, &SIZES).ok_or(UnitError { example })
}

/// A duration, to the millisecond.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let example = "write a whole number and a unit, ms, s, m, h or d, as in \"250ms\" or \"10s\"";
    parse(text, &DURATIONS).map(Duration::from_millis).ok_or(UnitError { example })
}

/// A size in the largest unit that shows it exactly.
pub fn show_size(bytes: u64) -> String {
    show(bytes, &SIZES)
}

/// A duration in the largest unit that shows it exactly; below a millisecond it is cut.
pub fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATIONS)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().rev().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    let (unit, factor) = exact.or_else(|| units.first()).copied().unwrap_or(("", 1));
    format!("{}{unit}", value / factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_durations_are_read() {
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("0B"), Ok(0));
        assert_eq!(parse_size("2TiB"), Ok(2 << 40));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "64", "KiB", "64KB", "64kib", "64 KiB", "-1B", "+1B", "1.5GiB", "1_0B", "16777216TiB", "٣B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["", "10", "s", "10S", "10 s", "-1s", "1.5s", "1h30m", "18446744073709551615d", "1us"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value: u64) {
            prop_assert_eq!(parse_size(&show_size(value)), Ok(value));
            prop_assert_eq!(parse_duration(&show_duration(Duration::from_millis(value))), Ok(Duration::from_millis(value)));
        }
    }
}
