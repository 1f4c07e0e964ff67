//! W3C Trace Context: which `traceparent` and `tracestate` are well-formed, and what a trace that begins here is told by.
//!
//! Hostward records no spans, so a trace that comes is passed on as it is, without a span of ours in between. A malformed
//! one is dropped: who reads it would begin a new trace, and the next one another.

/// A trace's id: 32 digits of lower-case hexadecimal, not all of them zero.
pub type TraceId = [u8; 32];

/// The length of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;

/// The longest `traceparent` of a version to come.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// The most members a `tracestate` has, all its fields together (section 3.3.1.1 of the recommendation).
pub const TRACESTATE_MEMBERS_MAX: usize = 32;

/// The longest value of a member (section 3.3.1.3.2).
const MEMBER_VALUE_BYTES_MAX: usize = 256;

/// The trace a `traceparent` names (section 3.2); `None` if it is malformed.
pub fn parse_traceparent(value: &[u8]) -> Option<TraceId> {
    let (fixed, rest) = value.split_at_checked(TRACEPARENT_BYTES)?;
    let [version, trace_id, parent_id, flags] =
        [(0, 2), (3, 32), (36, 16), (53, 2)].map(|(start, length)| &fixed[start..start + length]);
    let is_hex = |text: &[u8]| text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_some_id = |text: &[u8]| is_hex(text) && text.iter().any(|&byte| byte != b'0');
    let is_separated = [2, 35, 52].into_iter().all(|at| fixed[at] == b'-');
    // Version ff is none; of one to come the beginning is known, and more may follow after a dash.
    let is_known = match version {
        b"00" => rest.is_empty(),
        _ => {
            let is_plain = value.len() <= TRACEPARENT_BYTES_MAX && rest.iter().all(|byte| matches!(byte, b'!'..=b'~'));
            version != b"ff" && is_hex(version) && (rest.is_empty() || rest.starts_with(b"-") && is_plain)
        }
    };
    let is_whole = is_separated && is_known && is_some_id(trace_id) && is_some_id(parent_id) && is_hex(flags);
    trace_id.try_into().ok().filter(|_| is_whole)
}

/// How many members one `tracestate` field has (section 3.3); `None` if it is malformed.
pub fn tracestate_members(value: &[u8]) -> Option<usize> {
    let mut members = 0;
    for member in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        // Empty ones are allowed, for those who put fields together.
        if member.is_empty() {
            continue;
        }
        let at = member.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (&member[..at], &member[at + 1..]);
        let is_value = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
        if !is_key(key) || value.is_empty() || value.len() > MEMBER_VALUE_BYTES_MAX || !value.iter().all(is_value) {
            return None;
        }
        members += 1;
    }
    Some(members)
}

/// `vendor` or `tenant@vendor` (section 3.3.1.3.1).
fn is_key(key: &[u8]) -> bool {
    let is_inner = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let part = |part: &[u8], most: usize, digit_first: bool| match part {
        [first, rest @ ..] => {
            (first.is_ascii_lowercase() || digit_first && first.is_ascii_digit())
                && rest.len() < most
                && rest.iter().all(is_inner)
        }
        [] => false,
    };
    match key.iter().position(|&byte| byte == b'@') {
        Some(at) => part(&key[..at], 241, true) && part(&key[at + 1..], 14, false),
        None => part(key, 256, true),
    }
}

/// A trace that begins here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begun {
    text: [u8; TRACEPARENT_BYTES],
}

impl Begun {
    /// The trace of these random bytes: 16 of its id, 8 of the span that would be ours. `sampled` says whether it is to be
    /// recorded.
    pub fn new(mut random: [u8; 24], sampled: bool) -> Self {
        // An id of zeros is none.
        for last in [15, 23] {
            let start = if last == 15 { 0 } else { 16 };
            if random[start..=last].iter().all(|&byte| byte == 0) {
                random[last] = 1;
            }
        }
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        for (index, byte) in random.into_iter().enumerate() {
            let at = if index < 16 { 3 + 2 * index } else { 36 + 2 * (index - 16) };
            text[at] = b"0123456789abcdef"[usize::from(byte >> 4)];
            text[at + 1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        text[54] = if sampled { b'1' } else { b'0' };
        Self { text }
    }

    /// As `traceparent` has it.
    pub fn traceparent(&self) -> &[u8] {
        &self.text
    }

    pub fn trace_id(&self) -> TraceId {
        let mut id = [0; 32];
        id.copy_from_slice(&self.text[3..35]);
        id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn traceparents_are_told_apart() {
        let good = format!("00-{ID}-00f067aa0ba902b7-01");
        for value in [good.clone(), format!("cc-{ID}-00f067aa0ba902b7-01"), format!("cc-{ID}-00f067aa0ba902b7-01-more")]
        {
            assert_eq!(parse_traceparent(value.as_bytes()).as_ref().map(|id| &id[..]), Some(ID.as_bytes()), "{value}");
        }
        for value in [
            String::new(),
            good[1..].to_owned(),
            format!("{good}-more"),
            format!("{good} "),
            good.to_uppercase(),
            good.replace('-', "_"),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("cc-{ID}-00f067aa0ba902b7-01more"),
            format!("cc-{ID}-00f067aa0ba902b7-01-\u{fc}"),
            format!("cc-{ID}-00f067aa0ba902b7-01-{}", "x".repeat(256)),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{ID}-00f067aa0ba902b7-0g"),
            format!("0g-{ID}-00f067aa0ba902b7-01"),
            format!("{good},{good}"),
        ] {
            assert_eq!(parse_traceparent(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn tracestates_are_told_apart() {
        for (value, members) in [
            ("congo=t61rcWkgMzE", 1),
            ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", 2),
            (" a=b , , c=d ", 2),
            ("1tenant@vendor=a b", 1),
            ("", 0),
        ] {
            assert_eq!(tracestate_members(value.as_bytes()), Some(members), "{value}");
        }
        let long = format!("a={}", "x".repeat(257));
        for value in [
            "a",
            "a=",
            "=b",
            "A=b",
            "a=b=c",
            "a=b\u{fc}",
            "a@=b",
            "@a=b",
            "a@1b=c",
            "a@b@c=d",
            "a b=c",
            "a=b;c\t",
            &long,
        ] {
            let expected = if value == "a=b;c\t" { Some(1) } else { None };
            assert_eq!(tracestate_members(value.as_bytes()), expected, "{value}");
        }
    }

    proptest! {
        /// What begins here is well-formed, whatever the random bytes are.
        #[test]
        fn a_trace_that_begins_is_read_as_one(random: [u8; 24], zeros in 0_usize..25, sampled: bool) {
            let mut random = random;
            random[..zeros].fill(0);
            let begun = Begun::new(random, sampled);
            prop_assert_eq!(parse_traceparent(begun.traceparent()), Some(begun.trace_id()));
            let flags = if sampled { b"-01" } else { b"-00" };
            prop_assert!(begun.traceparent().ends_with(flags));
        }

        #[test]
        fn any_bytes_are_survived(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (parse_traceparent(&value), tracestate_members(&value));
        }
    }
}
