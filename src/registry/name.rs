//! Hostnames as TLS and DNS know them: the name of a record, and the server name a client sends.
//!
//! Both sides of a lookup are normalised by this one file, to the same form: lower-case ASCII, A-labels, no trailing dot.
//! [`Name::parse_record`] runs in the control plane and may allocate; [`normalise_sni`] runs once per handshake and does
//! not. What either accepts, `rustls_pki_types::DnsName` accepts too (a test holds the two together), since rustls drops
//! or refuses anything else before it reaches us.
//!
//! Underscores are allowed: RFC 952 host names have none, but names with them are in use, public resolvers and browsers
//! take them, and `DnsName` does. A record that cannot be written would be a customer who cannot be served.

use std::fmt;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

/// The longest name in its text form, without the trailing dot (RFC 1035 section 2.3.4: 255 octets on the wire, of which
/// two are the first length octet and the root label).
pub const NAME_BYTES_MAX: usize = 253;

/// The longest label (RFC 1035 section 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;

/// What a one-label wildcard record starts with.
const WILDCARD_PREFIX: &str = "*.";

/// What an A-label starts with (RFC 5890 section 2.3.1).
const ACE_PREFIX: &[u8] = b"xn--";

/// A normalised hostname: lower case, no trailing dot, A-labels; may start with `*.` in a record.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Name(Box<str>);

/// Why a text is not a hostname.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// Nothing, or only a dot.
    Empty,
    /// Two dots in a row, or a dot at the start.
    EmptyLabel,
    /// More than [`NAME_BYTES_MAX`] bytes after conversion to A-labels.
    TooLong,
    /// A label of more than [`LABEL_BYTES_MAX`] bytes after conversion to A-labels.
    LabelTooLong,
    /// A label starts or ends with a hyphen.
    Hyphen,
    /// A character that no hostname has.
    Character,
    /// A `*` anywhere but as the whole first label.
    Wildcard,
    /// A port behind the name.
    Port,
    /// An IP address, or a name whose last label is a number and would be read as one.
    IpAddress,
    /// A label beyond ASCII, or an A-label, that IDNA (UTS 46) does not allow.
    Idna,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a hostname must not be empty",
            Self::EmptyLabel => "a hostname must not have an empty label (two dots in a row, or one at the start)",
            Self::TooLong => "a hostname has at most 253 bytes (after conversion to A-labels)",
            Self::LabelTooLong => "a label of a hostname has at most 63 bytes (after conversion to an A-label)",
            Self::Hyphen => "a label of a hostname must not start or end with a hyphen",
            Self::Character => "a hostname has only letters, digits, hyphens, underscores and dots",
            Self::Wildcard => "a wildcard is one whole label at the start, as in \"*.acme.example\"",
            Self::Port => "a hostname is written without a port; the ports are those of server.listen",
            Self::IpAddress => "clients never send an IP address as server name (RFC 6066 section 3); give a hostname",
            Self::Idna => "the name is not valid under IDNA (UTS 46)",
        })
    }
}

impl std::error::Error for NameError {}

impl Name {
    /// The normalised text; a wildcard's starts with `*.`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a one-label wildcard.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(WILDCARD_PREFIX)
    }

    /// The name of a record: exact, or a one-label wildcard `*.rest`. U-labels become A-labels, upper case becomes lower,
    /// one trailing dot is cut.
    pub fn parse_record(text: &str) -> Result<Self, NameError> {
        let (prefix, rest) = match text.strip_prefix(WILDCARD_PREFIX) {
            Some(rest) => (WILDCARD_PREFIX, rest),
            None => ("", text),
        };
        if rest.contains('*') {
            return Err(NameError::Wildcard);
        }
        if rest.rsplit_once(':').is_some_and(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok()) {
            return Err(NameError::Port);
        }
        // IDNA would lower ASCII too, but says only "invalid" where we can say what is wrong: our own checks go first for
        // plain names. Hyphens in the third and fourth place are allowed (CheckHyphens = false): such names exist.
        let ascii = if rest.is_ascii() && !has_a_label(rest.as_bytes()) {
            rest.to_ascii_lowercase()
        } else {
            if rest.is_ascii() {
                check(cut_root(rest.to_ascii_lowercase().as_bytes()))?;
            }
            let idna = Uts46::new();
            let ascii = idna.to_ascii(rest.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore);
            ascii.map_err(|_| NameError::Idna)?.into_owned()
        };
        let ascii = ascii.strip_suffix('.').unwrap_or(&ascii);
        check(ascii.as_bytes())?;
        if prefix.len() + ascii.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        Ok(Self(format!("{prefix}{ascii}").into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Normalises what a client sent as server name into `out`: lower case, one trailing dot cut.
///
/// RFC 6066 section 3: the name is ASCII (A-labels for anything else), without a trailing dot, and never a literal IPv4 or
/// IPv6 address. A trailing dot is forgiven because clients send it for absolute names; it changes nothing about who is
/// meant. `None`: not a valid DNS hostname; the caller refuses it as it would an unknown one.
///
/// Called per handshake: one pass to copy and lower, one to check, no allocation. A `*` never passes, so that a client
/// cannot ask for a wildcard record by its own name.
pub fn normalise_sni<'a>(raw: &[u8], out: &'a mut [u8; 255]) -> Option<&'a str> {
    // The longest name with its root dot has one byte more. rustls counts the dot and refuses it, so we do too: whoever
    // reads a ClientHello differently from us would decide before us.
    if raw.len() > NAME_BYTES_MAX {
        return None;
    }
    let raw = cut_root(raw);
    let out = out.get_mut(..raw.len())?;
    out.copy_from_slice(raw);
    out.make_ascii_lowercase();
    check(out).ok()?;
    std::str::from_utf8(out).ok()
}

/// Cuts one trailing dot: the root label of an absolute name.
fn cut_root(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// Whether a label claims to be an A-label.
fn has_a_label(name: &[u8]) -> bool {
    name.split(|&byte| byte == b'.').any(is_a_label)
}

fn is_a_label(label: &[u8]) -> bool {
    label.get(..ACE_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(ACE_PREFIX))
}

/// Checks a lower-case name without trailing dot: labels, lengths, characters, not an address.
fn check(name: &[u8]) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    let mut last: &[u8] = &[];
    for label in name.split(|&byte| byte == b'.') {
        check_label(label)?;
        last = label;
    }
    if is_number(last) { Err(NameError::IpAddress) } else { Ok(()) }
}

/// Checks one lower-case label.
fn check_label(label: &[u8]) -> Result<(), NameError> {
    let (Some(first), Some(last)) = (label.first(), label.last()) else {
        return Err(NameError::EmptyLabel);
    };
    if label.len() > LABEL_BYTES_MAX {
        return Err(NameError::LabelTooLong);
    }
    for &byte in label {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            // The only place of a colon or bracket in what people take for a hostname is an IPv6 address.
            b':' | b'[' | b']' => return Err(NameError::IpAddress),
            b'*' => return Err(NameError::Wildcard),
            _ => return Err(NameError::Character),
        }
    }
    if *first == b'-' || *last == b'-' {
        return Err(NameError::Hyphen);
    }
    // Whether the rest decodes is IDNA's business when a record is written; a name no record has is simply not found.
    // "xn--" alone ends in a hyphen and was refused above.
    Ok(())
}

/// Whether a last label is a number, decimal or hexadecimal: such a "name" is an IPv4 address to most parsers, in one of
/// its many spellings (WHATWG URL, "ends in a number"; RFC 9849 section 6.1.7).
fn is_number(label: &[u8]) -> bool {
    let hexadecimal = label.strip_prefix(b"0x").is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    hexadecimal || label.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_port_is_told_as_one() {
        for text in ["shop.test:443", "*.shop.test:8443", "localhost:1"] {
            assert_eq!(super::Name::parse_record(text), Err(super::NameError::Port), "{text}");
        }
        for text in ["shop.test:", "shop.test:https", "::1", "a:b:1"] {
            assert_ne!(super::Name::parse_record(text), Err(super::NameError::Port), "{text}");
        }
    }

    use proptest::prelude::*;
    use rustls_pki_types::DnsName;

    use super::*;

    fn record(text: &str) -> Result<String, NameError> {
        Name::parse_record(text).map(|name| name.as_str().to_owned())
    }

    fn sni(raw: &[u8]) -> Option<String> {
        normalise_sni(raw, &mut [0; 255]).map(str::to_owned)
    }

    #[test]
    fn record_names_are_normalised() {
        for (text, expected) in [
            ("pay.acme.example", "pay.acme.example"),
            ("PAY.Acme.Example.", "pay.acme.example"),
            ("*.Acme.example", "*.acme.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("*.bücher.example.", "*.xn--bcher-kva.example"),
            ("日本語。jp", "xn--wgv71a119e.jp"),
            ("my_app.example", "my_app.example"),
            ("r3---sn-x.example", "r3---sn-x.example"),
            ("localhost", "localhost"),
            ("1.example", "1.example"),
        ] {
            assert_eq!(record(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_record_name_says_why() {
        let label = "a".repeat(64);
        let long = format!("{}example", "abcdefg.".repeat(31));
        assert_eq!(long.len(), 255);
        for (text, expected) in [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("*.", NameError::Empty),
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a.b..", NameError::EmptyLabel),
            (&label, NameError::LabelTooLong),
            (&long, NameError::TooLong),
            ("-a.example", NameError::Hyphen),
            ("a-.example", NameError::Hyphen),
            ("xn--.example", NameError::Hyphen),
            ("a b.example", NameError::Character),
            ("a/b.example", NameError::Character),
            ("a\0.example", NameError::Character),
            ("*", NameError::Wildcard),
            ("*a.example", NameError::Wildcard),
            ("*.*.example", NameError::Wildcard),
            ("a.*.example", NameError::Wildcard),
            ("192.0.2.1", NameError::IpAddress),
            ("192.0.2.0x1", NameError::IpAddress),
            ("１９２.0.2.1", NameError::IpAddress),
            ("a.0x", NameError::IpAddress),
            ("2001:db8::1", NameError::IpAddress),
            ("[::1]", NameError::IpAddress),
            ("xn--zzzzzzz-.example", NameError::Hyphen),
            ("xn--a.example", NameError::Idna),
            ("a\u{d7}\u{10ffff}.example", NameError::Idna),
        ] {
            assert_eq!(record(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_wildcard_counts_towards_the_length() {
        // 251 bytes below the wildcard fit, 252 do not, though they would as an exact name.
        let rest = format!("{}abc", "abcdefg.".repeat(31));
        assert_eq!(rest.len(), 251);
        assert!(record(&format!("*.{rest}")).is_ok());
        assert_eq!(record(&format!("*.{rest}d")), Err(NameError::TooLong));
        assert!(record(&format!("{rest}d")).is_ok());
    }

    #[test]
    fn server_names_are_normalised() {
        assert_eq!(sni(b"Pay.ACME.example").as_deref(), Some("pay.acme.example"));
        assert_eq!(sni(b"pay.acme.example.").as_deref(), Some("pay.acme.example"));
        assert_eq!(sni(b"xn--bcher-kva.example").as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!(sni(&[b'a'; 63]).map(|name| name.len()), Some(63));
        for raw in [
            &b""[..],
            b".",
            b"a..b",
            b"a..",
            b".a",
            b"-a.example",
            b"*.acme.example",
            b"192.0.2.1",
            b"2001:db8::1",
            b"[::1]",
            b"a\0b.example",
            "b\u{fc}cher.example".as_bytes(),
            b"\xff.example",
            &[b'a'; 64],
            &[b'.'; 255],
            &[b'a'; 70_000],
        ] {
            assert_eq!(sni(raw), None, "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn the_longest_name_is_found_without_its_root_dot_only() {
        let longest = format!("{}abcde", "abcdefg.".repeat(31));
        assert_eq!(longest.len(), NAME_BYTES_MAX);
        let with_dot = format!("{longest}.");
        assert_eq!(record(&with_dot).as_deref(), Ok(longest.as_str()));
        assert_eq!(sni(longest.as_bytes()).as_deref(), Some(longest.as_str()));
        assert_eq!(sni(with_dot.as_bytes()), None);
        assert!(DnsName::try_from(with_dot.as_str()).is_err());
    }

    proptest! {
        /// A client that sends a record's name, in any case and with or without the root dot, finds the record.
        #[test]
        fn a_record_name_is_found_by_its_own_server_name(text in "[a-zA-Z0-9_üß日-]{1,10}(\\.[a-zA-Z0-9_ü-]{1,8}){0,4}\\.?") {
            if let Ok(name) = Name::parse_record(&text) {
                let own = name.as_str().to_owned();
                let with_dot = format!("{}.", own.to_ascii_uppercase());
                prop_assert_eq!(sni(own.as_bytes()), Some(own.clone()));
                prop_assert_eq!(sni(with_dot.as_bytes()), Some(own.clone()));
                prop_assert_eq!(record(&own), Ok(own));
            }
        }

        /// Without A-labels, whose validity only the record checks, both sides accept the same and agree on the form.
        #[test]
        fn record_and_server_name_agree(text in "[a-zA-Z0-9._:/ -]{0,24}") {
            prop_assume!(!has_a_label(text.as_bytes()));
            prop_assert_eq!(record(&text).ok(), sni(text.as_bytes()));
        }

        /// What we accept rustls accepts, and the reverse: it would otherwise decide before us.
        #[test]
        fn server_name_agrees_with_rustls(raw in "([a-zA-Z0-9._-]|0x|\\PC){0,70}|([a-z]{1,63}\\.){3,6}[a-z]{1,63}\\.?") {
            let theirs = DnsName::try_from(raw.as_str()).ok().map(|name| name.as_ref().to_ascii_lowercase());
            prop_assert_eq!(sni(raw.as_bytes()), theirs);
        }

        /// No input at all panics, and what comes out is normalised: doing it again changes nothing.
        #[test]
        fn any_bytes_are_survived(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(name) = sni(&raw) {
                prop_assert_eq!(sni(name.as_bytes()), Some(name));
            }
        }
    }
}
