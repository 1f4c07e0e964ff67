//! Distinguished names as text, by RFC 4514.

use std::borrow::Cow;

use x509_parser::asn1_rs::{Any, Class, Tag};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The attribute types that have a short name: those RFC 4514 section 3 lists, every other is a dotted OID. Contents of
/// the OIDs in DER; `2.5.4.x` unless a comment says otherwise.
const SHORT_NAMES: [(&[u8], &str); 9] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 9], "STREET"),
    // 0.9.2342.19200300.100.1.25
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19], "DC"),
    // 0.9.2342.19200300.100.1.1
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01], "UID"),
];

/// Writes a name as RFC 4514 text: the last RDN first (section 2.1), the attributes of a multi-valued one joined by `+`
/// (section 2.2).
///
/// The standard leaves the order within an RDN open; it is the reverse of the certificate's, as OpenSSL has it. Control
/// characters are escaped too, which section 2.4 allows: the text goes into logs and headers.
pub(super) fn to_rfc4514(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let rdns: Vec<_> = name.iter_rdn().collect();
    for (index, rdn) in rdns.into_iter().rev().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let attributes: Vec<_> = rdn.iter().collect();
        for (index, attribute) in attributes.into_iter().rev().enumerate() {
            if index > 0 {
                out.push('+');
            }
            push_attribute(&mut out, attribute);
        }
    }
    out
}

fn push_attribute(out: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let oid = attribute.attr_type();
    let short = SHORT_NAMES.iter().find(|(bytes, _)| *bytes == oid.as_bytes()).map(|(_, name)| *name);
    match short {
        Some(name) => out.push_str(name),
        None => out.push_str(&oid.to_id_string()),
    }
    out.push('=');
    let value = attribute.attr_value();
    // Section 2.4: the hexadecimal form is for types without a short name and for values that are no text.
    match short.and_then(|_| directory_text(value)) {
        Some(text) => push_escaped(out, &text),
        None => push_hex_of_element(out, value),
    }
}

/// A value of a DirectoryString or another string type as text. `None` if it is of no such type or its bytes are not what
/// the type says.
///
/// TeletexString outside ASCII is not text here: some readers take it for T.61, others for Latin-1.
pub(super) fn directory_text<'a>(value: &Any<'a>) -> Option<Cow<'a, str>> {
    if value.class() != Class::Universal || value.header.is_constructed() {
        return None;
    }
    let bytes = value.data;
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString | Tag::TeletexString => {
            if bytes.is_ascii() { std::str::from_utf8(bytes).ok().map(Cow::Borrowed) } else { None }
        }
        // The Basic Multilingual Plane has no surrogates: two bytes are one character or nothing.
        Tag::BmpString => decode_units(bytes.chunks(2), |unit| {
            <[u8; 2]>::try_from(unit).ok().map(|unit| u32::from(u16::from_be_bytes(unit)))
        }),
        Tag::UniversalString => {
            decode_units(bytes.chunks(4), |unit| <[u8; 4]>::try_from(unit).ok().map(u32::from_be_bytes))
        }
        _ => None,
    }
}

fn decode_units<'a, 'out>(
    units: impl Iterator<Item = &'a [u8]>,
    value: impl Fn(&'a [u8]) -> Option<u32>,
) -> Option<Cow<'out, str>> {
    units.map(|unit| value(unit).and_then(char::from_u32)).collect::<Option<String>>().map(Cow::Owned)
}

/// Escapes a value by RFC 4514 section 2.4.
fn push_escaped(out: &mut String, text: &str) {
    let last = text.chars().next_back().map_or(0, |c| text.len() - c.len_utf8());
    for (at, c) in text.char_indices() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            '#' if at == 0 => out.push_str("\\#"),
            c if c.is_control() => {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    out.push('\\');
                    push_hex(out, &[byte]);
                }
            }
            c => out.push(c),
        }
    }
}

/// `#` and the hexadecimal of the whole element (RFC 4514 section 2.4). X.509 names are DER, so identifier and length
/// are rebuilt as DER has them.
fn push_hex_of_element(out: &mut String, value: &Any<'_>) {
    out.push('#');
    match value.header.raw_tag() {
        Some(identifier) => push_hex(out, identifier),
        // Not from a parser: cannot have a tag that needs more than one byte.
        None => push_hex(out, &[value.tag().0.to_be_bytes()[3]]),
    }
    let length = value.data.len();
    if length < 0x80 {
        push_hex(out, &[length.to_be_bytes()[size_of::<usize>() - 1]]);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[length.leading_zeros() as usize / 8..];
        push_hex(out, &[0x80 | bytes.len().to_be_bytes()[size_of::<usize>() - 1]]);
        push_hex(out, bytes);
    }
    push_hex(out, value.data);
}

/// Appends two upper-case digits a byte, as the escapes have them.
fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}
