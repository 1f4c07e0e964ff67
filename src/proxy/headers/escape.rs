//! Text from a certificate as part of a field's value.
//!
//! What the certificate's author wrote must end no line, no quoted string, no member of a list and no parameter. Two kinds
//! of text, each with the escaping its readers know anyway:
//!
//! A distinguished name is text by RFC 4514, in which every character with a meaning somewhere, and every byte beyond
//! printable ASCII, is a backslash and two hexadecimal digits (section 2.4 allows it for any character). Any reader of such
//! names undoes it. The `,` `+` and `=` of the name's own structure stay, so that an ordinary one is readable as it stands:
//! `CN=ann,O=Acme`. An organisation called `x, CN=root` is `O=x\2C CN\3Droot`, also to a reader who looks for `CN=` and
//! undoes nothing.
//!
//! A subject alternative name is percent-encoded (RFC 3986): decoding once gives the text back.

const UPPER: &[u8; 16] = b"0123456789ABCDEF";
const LOWER: &[u8; 16] = b"0123456789abcdef";

/// Appends a mark and two digits.
fn push_escaped(out: &mut String, mark: char, byte: u8) {
    out.push(mark);
    out.push(char::from(UPPER[usize::from(byte >> 4)]));
    out.push(char::from(UPPER[usize::from(byte & 15)]));
}

/// Whether a byte may stand in the value of a distinguished name as it is.
fn is_plain_in_value(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'+' | b',' | b';' | b'<' | b'=' | b'>' | b'\\')
}

/// Appends a distinguished name (RFC 4514 text).
pub fn push_distinguished_name(out: &mut String, name: &str) {
    // Whether this is inside a value: from the `=` after an attribute's type to the `,` or `+` before the next one.
    let mut in_value = false;
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                // RFC 4514 section 2.4: the next character is escaped, or the next two are hexadecimal digits.
                let mut ahead = bytes.clone();
                match (ahead.next(), ahead.next()) {
                    (Some(high), Some(low)) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                        push_escaped(out, '\\', digit(high) << 4 | digit(low));
                        bytes = ahead;
                    }
                    (Some(escaped), _) => {
                        push_escaped(out, '\\', escaped);
                        let _ = bytes.next();
                    }
                    (None, _) => push_escaped(out, '\\', byte),
                }
            }
            b',' | b'+' => {
                in_value = false;
                out.push(char::from(byte));
            }
            b'=' if !in_value => {
                in_value = true;
                out.push('=');
            }
            byte if is_plain_in_value(byte) => out.push(char::from(byte)),
            byte => push_escaped(out, '\\', byte),
        }
    }
}

/// Appends a subject alternative name: what may stand in a list, and in quotes.
pub fn push_name(out: &mut String, name: &str) {
    for byte in name.bytes() {
        // RFC 3986 section 2.2: a reserved character keeps its meaning, but those end a member of a list here.
        if matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'%' | b'\\' | b';' | b',') {
            out.push(char::from(byte));
        } else {
            push_escaped(out, '%', byte);
        }
    }
}

/// Appends lower-case hexadecimal, two digits a byte.
pub fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push(char::from(LOWER[usize::from(byte >> 4)]));
        out.push(char::from(LOWER[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn distinguished_name(name: &str) -> String {
        let mut out = String::new();
        push_distinguished_name(&mut out, name);
        out
    }

    fn name(name: &str) -> String {
        let mut out = String::new();
        push_name(&mut out, name);
        out
    }

    /// Undoes escapes of a mark and two digits, and those of a backslash and a character, as a reader does.
    fn decode(mark: u8, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        while let [first, after @ ..] = rest {
            rest = after;
            if *first != mark {
                out.push(*first);
                continue;
            }
            match rest {
                [high, low, after @ ..] if digit(*high).is_some() && digit(*low).is_some() => {
                    out.push(digit(*high).unwrap_or(0) << 4 | digit(*low).unwrap_or(0));
                    rest = after;
                }
                [escaped, after @ ..] if mark == b'\\' => {
                    out.push(*escaped);
                    rest = after;
                }
                _ => out.push(*first),
            }
        }
        out
    }

    #[test]
    fn ordinary_names_stay_readable() {
        for plain in ["CN=ann,OU=Ops+UID=7,O=Acme Inc.,C=DE", "2.5.4.97=#0C03585858,CN=a'b(c)%", ""] {
            assert_eq!(distinguished_name(plain), plain);
        }
        for plain in ["pay.acme.example", "spiffe://acme/ops/ann", "ann@acme.example", "https://a/?b=c&d"] {
            assert_eq!(name(plain), plain);
        }
    }

    #[test]
    fn hostile_names_are_encoded() {
        for (text, expected) in [
            ("CN=a\\,CN=root", "CN=a\\2CCN\\3Droot"),
            ("CN=a\\+b\\=c=d", "CN=a\\2Bb\\3Dc\\3Dd"),
            ("CN=a\\\\", "CN=a\\5C"),
            ("CN=a\\\\,O=b", "CN=a\\5C,O=b"),
            ("CN=a\\\"b", "CN=a\\22b"),
            ("CN=a\\;b", "CN=a\\3Bb"),
            ("CN=a\\0D\\0aX: y", "CN=a\\0D\\0AX: y"),
            ("CN=a\r\nX: y", "CN=a\\0D\\0AX: y"),
            ("CN=50%2C", "CN=50%2C"),
            ("CN=b\u{fc}", "CN=b\\C3\\BC"),
            ("CN=\\ a\\ ", "CN=\\20a\\20"),
            ("CN=\\#a\\<b\\>", "CN=\\23a\\3Cb\\3E"),
            ("CN=a\\", "CN=a\\5C"),
        ] {
            assert_eq!(distinguished_name(text), expected);
        }
        assert_eq!(name("a,DNS:b;\"c\\ %"), "a%2CDNS:b%3B%22c%5C%20%25");
    }

    proptest! {
        /// Whatever a certificate says: the text comes back, and nothing that ends a value comes out. Of backslashes only
        /// those of escapes are left.
        #[test]
        fn no_text_leaves_its_place(text in "(\\PC|[\\\\,;\"=%\r\n\t ]){0,40}") {
            let (dn, san) = (distinguished_name(&text), name(&text));
            prop_assert_eq!(decode(b'\\', &dn), decode(b'\\', &text));
            prop_assert_eq!(decode(b'%', &san), text.as_bytes());
            for encoded in [&dn, &san] {
                prop_assert!(encoded.bytes().all(|byte| matches!(byte, b' '..=b'~')));
                prop_assert!(!encoded.contains(['"', ';']));
            }
            prop_assert!(!san.contains([',', ' ', '\\']));
            for (at, _) in dn.match_indices('\\') {
                let digits = dn.get(at + 1..at + 3).unwrap_or_default();
                prop_assert!(digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", dn);
            }
        }

        /// A value with any characters stays one value: the encoded name has as many separators as names that were put
        /// together have.
        #[test]
        fn no_value_adds_an_attribute(values in prop::collection::vec("[a-z,+=;\"<>#\\\\ ]{0,12}", 1..5)) {
            let escape = |value: &String| {
                let escaped = value.chars().map(|c| if c.is_ascii_lowercase() { c.to_string() } else { format!("\\{c}") });
                escaped.collect::<String>()
            };
            let text: Vec<_> = values.iter().map(|value| format!("CN={}", escape(value))).collect();
            let encoded = distinguished_name(&text.join(","));
            prop_assert_eq!(encoded.split([',', '+']).count(), values.len());
            prop_assert_eq!(encoded.matches('=').count(), values.len());
        }
    }
}
