//! What the dates of certificates and CAs mean today. Pure: the time is passed in.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Severity;

/// How long before its end a certificate is worth a warning, in days. Automatic renewal happens a third of the lifetime
/// before the end, so 30 days before for 90-day certificates and some 15 for 45-day ones: what has less than 14 days left
/// was missed at least once, and there is still time.
pub const EXPIRES_SOON_DAYS: i64 = 14;

const DAY_S: i64 = 86_400;

/// From when until when a certificate is valid, both included (RFC 5280 section 4.1.2.5), seconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before_unix_s: i64,
    pub not_after_unix_s: i64,
}

/// What is to be said of a server certificate's dates.
pub fn of_certificate(validity: Validity, now_unix_s: i64) -> Option<(Severity, String)> {
    if let Some(text) = of_ca(validity, now_unix_s) {
        return Some((Severity::Error, format!("{text}; clients will refuse it")));
    }
    let left_s = validity.not_after_unix_s.saturating_sub(now_unix_s);
    if left_s >= EXPIRES_SOON_DAYS * DAY_S {
        return None;
    }
    let days = match left_s / DAY_S {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    Some((Severity::Warning, format!("expires in {days}, on {}", show(validity.not_after_unix_s))))
}

/// What is to be said of a CA's dates: only that today is outside them. A CA that ends soon is its owner's plan.
pub fn of_ca(validity: Validity, now_unix_s: i64) -> Option<String> {
    if now_unix_s > validity.not_after_unix_s {
        Some(format!("expired on {}", show(validity.not_after_unix_s)))
    } else if now_unix_s < validity.not_before_unix_s {
        Some(format!("is not valid before {}", show(validity.not_before_unix_s)))
    } else {
        None
    }
}

/// A time as RFC 3339 text, UTC.
fn show(unix_s: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix_s).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_s} s after 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2025-01-01T00:00:00Z to 2025-04-01T00:00:00Z.
    const QUARTER: Validity = Validity { not_before_unix_s: 1_735_689_600, not_after_unix_s: 1_743_465_600 };

    #[test]
    fn both_ends_are_valid() {
        assert_eq!(of_ca(QUARTER, QUARTER.not_before_unix_s), None);
        assert_eq!(of_ca(QUARTER, QUARTER.not_after_unix_s), None);
        assert_eq!(of_certificate(QUARTER, QUARTER.not_before_unix_s), None);
        let early = of_ca(QUARTER, QUARTER.not_before_unix_s - 1);
        assert_eq!(early.as_deref(), Some("is not valid before 2025-01-01T00:00:00Z"));
        let late = of_certificate(QUARTER, QUARTER.not_after_unix_s + 1);
        let expected = "expired on 2025-04-01T00:00:00Z; clients will refuse it".to_owned();
        assert_eq!(late, Some((Severity::Error, expected)));
    }

    #[test]
    fn the_last_two_weeks_warn() {
        let at = |days: i64| of_certificate(QUARTER, QUARTER.not_after_unix_s - days * DAY_S);
        assert_eq!(at(EXPIRES_SOON_DAYS), None);
        let expected = "expires in 13 days, on 2025-04-01T00:00:00Z".to_owned();
        let just_below = of_certificate(QUARTER, QUARTER.not_after_unix_s - EXPIRES_SOON_DAYS * DAY_S + 1);
        assert_eq!(just_below, Some((Severity::Warning, expected)));
        assert!(at(1).is_some_and(|(_, text)| text.starts_with("expires in 1 day,")));
        assert!(at(0).is_some_and(|(_, text)| text.starts_with("expires in less than a day,")));
    }

    #[test]
    fn times_beyond_the_calendar_are_shown_as_numbers() {
        assert_eq!(show(i64::MAX), format!("{} s after 1970", i64::MAX));
    }
}
