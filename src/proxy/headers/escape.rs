//! Text from a certificate as part of a field's value.
//!
//! One escaping for every field of text: percent-encoding. A byte outside printable ASCII, and any of `"` `%` `\` `;`,
//! becomes `%` and two upper-case hexadecimal digits; decoding once gives the text back. What the certificate's author
//! wrote can so end no line, no quoted string, no member of a list and no parameter.
//!
//! A distinguished name keeps the `,` `+` and `=` of its own structure (RFC 4514), so that an ordinary one is readable as
//! it stands: `CN=ann,O=Acme`. Those in its values are encoded: an organisation called `x, CN=root` is
//! `O=x%5C%2C CN%3Droot`, also to a reader who looks for `CN=` without decoding.

/// Appends one byte as `%XX`.
fn push_encoded(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// Whether a byte has to be encoded wherever it stands.
fn is_unsafe(byte: u8) -> bool {
    !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'%' | b'\\' | b';')
}

/// Appends a distinguished name (RFC 4514 text).
pub fn push_distinguished_name(out: &mut String, name: &str) {
    // Whether this is inside a value: from the `=` after an attribute's type to the `,` or `+` before the next one.
    let mut in_value = false;
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                // RFC 4514 section 2.4: the next character is escaped, or the next two are hexadecimal digits, which may
                // stand as they are.
                push_encoded(out, byte);
                if let Some(escaped) = bytes.next() {
                    if escaped.is_ascii_alphanumeric() {
                        out.push(char::from(escaped))
                    } else {
                        push_encoded(out, escaped)
                    }
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
            b'=' => push_encoded(out, byte),
            byte if is_unsafe(byte) => push_encoded(out, byte),
            byte => out.push(char::from(byte)),
        }
    }
}

/// Appends a subject alternative name: what may stand in a list, so without comma and space too.
pub fn push_name(out: &mut String, name: &str) {
    for byte in name.bytes() {
        if is_unsafe(byte) || matches!(byte, b',' | b' ') {
            push_encoded(out, byte);
        } else {
            out.push(char::from(byte));
        }
    }
}

/// Appends lower-case hexadecimal, two digits a byte.
pub fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
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

    /// Percent-decodes once, as a reader does.
    fn decode(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            out.push(match byte {
                b'%' => {
                    let digit = |byte: Option<u8>| char::from(byte.expect("two digits")).to_digit(16).expect("a digit");
                    (digit(bytes.next()) * 16 + digit(bytes.next())) as u8
                }
                byte => byte,
            });
        }
        out
    }

    #[test]
    fn ordinary_names_stay_readable() {
        for plain in ["CN=ann,OU=Ops+UID=7,O=Acme Inc.,C=DE", "2.5.4.97=#0C03585858,CN=a'b(c)", ""] {
            assert_eq!(distinguished_name(plain), plain);
        }
        for plain in ["pay.acme.example", "spiffe://acme/ops/ann", "ann@acme.example", "https://a/?b=c&d"] {
            assert_eq!(name(plain), plain);
        }
    }

    #[test]
    fn hostile_names_are_encoded() {
        for (text, expected) in [
            ("CN=a\\,CN=root", "CN=a%5C%2CCN%3Droot"),
            ("CN=a\\+b\\=c", "CN=a%5C%2Bb%5C%3Dc"),
            ("CN=a\\\\", "CN=a%5C%5C"),
            ("CN=a\\\\,O=b", "CN=a%5C%5C,O=b"),
            ("CN=a\\\"b", "CN=a%5C%22b"),
            ("CN=a\\;b", "CN=a%5C%3Bb"),
            ("CN=a\\0D\\0AX: y", "CN=a%5C0D%5C0AX: y"),
            ("CN=a\r\nX: y", "CN=a%0D%0AX: y"),
            ("CN=50%", "CN=50%25"),
            ("CN=b\u{fc}", "CN=b%C3%BC"),
            ("CN=\\ a\\ ", "CN=%5C%20a%5C%20"),
            ("CN=a\\", "CN=a%5C"),
        ] {
            assert_eq!(distinguished_name(text), expected);
        }
        assert_eq!(name("a,DNS:b;\"c\\ %"), "a%2CDNS:b%3B%22c%5C%20%25");
    }

    proptest! {
        /// Whatever a certificate says: the text comes back, and nothing that ends a value comes out.
        #[test]
        fn no_text_leaves_its_place(text in "(\\PC|[\\\\,;\"=%\r\n\t ]){0,40}") {
            for encoded in [distinguished_name(&text), name(&text)] {
                prop_assert_eq!(decode(&encoded), text.as_bytes());
                prop_assert!(encoded.bytes().all(|byte| matches!(byte, b' '..=b'~')));
                prop_assert!(!encoded.contains(['"', '\\', ';']));
            }
            prop_assert!(!name(&text).contains([',', ' ']));
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
