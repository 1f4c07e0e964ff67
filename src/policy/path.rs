//! Paths as rules compare them: one spelling for each resource, or none.
//!
//! An origin may decode a path, resolve it and cut it before it looks at it. A rule is worth something only if the path it
//! saw is the one the origin ends up with, in whatever order that one works (DECISIONS 19). So a path whose meaning hangs on
//! that order is no path to judge, and every other one is brought into one form.

use std::borrow::Cow;

/// Why a path cannot be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ambiguous(pub &'static str);

/// What becomes of one byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Stands for itself, encoded or not.
    Plain,
    /// Stands encoded, with capital digits.
    Encoded,
}

/// The path in its one form: without the parameters of its segments, percent-encodings in capital digits, and none where a
/// character may stand for itself (RFC 3986 section 3.3). The path as it is, if that is its form.
///
/// # Errors
///
/// [`Ambiguous`]: dot segments, empty segments, backslashes; encoded characters that need no encoding (there to look
/// different), encoded separators and control characters (there to be decoded by whoever comes after the rules).
pub fn canonical<'s>(path: &'s str, scratch: &'s mut String) -> Result<&'s str, Ambiguous> {
    if !path.starts_with('/') {
        // The asterisk, which no pattern of a path means.
        return Ok(path);
    }
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        // Parameters first: to Tomcat and its like `/..;x=y/` is a dot segment.
        match without_parameters(segment) {
            "." | ".." => return Err(Ambiguous("the path has a dot segment")),
            "" if segments.peek().is_some() => return Err(Ambiguous("the path has an empty segment")),
            _ => {}
        }
    }
    if path.bytes().all(|byte| byte == b'/' || form(byte) == Form::Plain) {
        return Ok(path);
    }
    scratch.clear();
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match *byte {
            b'/' => scratch.push('/'),
            // Up to the end of the segment; what stands there is checked all the same.
            b';' => {
                let end = after.iter().position(|&byte| byte == b'/').unwrap_or(after.len());
                check(&after[..end])?;
                rest = &after[end..];
            }
            b'%' => {
                let (byte, after) = decode(after)?;
                push(scratch, byte);
                rest = after;
            }
            b'\\' => return Err(BACKSLASH),
            byte => push(scratch, byte),
        }
    }
    Ok(scratch)
}

/// A pattern of a rule in the form of the paths it is compared with.
///
/// # Errors
///
/// What keeps it from ever matching, or from meaning what it says.
pub fn pattern(text: &str) -> Result<Cow<'_, str>, String> {
    let never = |why: &str| Err(format!("\"{text}\" matches no request: {why}"));
    if text.contains(['?', '#']) {
        return never("a path ends before the query");
    }
    if text.contains(';') {
        return never("parameters (\";...\") are cut before a path is compared");
    }
    if text.to_ascii_lowercase().contains("%2a") {
        return Err(format!("\"{text}\": an encoded star cannot be told from \"*\", which stands for anything"));
    }
    let mut scratch = String::new();
    match canonical(text, &mut scratch) {
        Ok(form) if form == text => Ok(Cow::Borrowed(text)),
        Ok(form) => Ok(Cow::Owned(form.to_owned())),
        Err(Ambiguous(why)) => never(&format!("{why}, and such requests are refused")),
    }
}

const BACKSLASH: Ambiguous = Ambiguous("the path has a backslash");

fn without_parameters(segment: &str) -> &str {
    segment.split_once(';').map_or(segment, |(name, _)| name)
}

/// Unreserved characters, sub-delims, ":" and "@" (RFC 3986 section 3.3), without the semicolon.
fn form(byte: u8) -> Form {
    if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte) { Form::Plain } else { Form::Encoded }
}

fn push(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    match form(byte) {
        Form::Plain => text.push(char::from(byte)),
        Form::Encoded => {
            text.push('%');
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// The byte that two digits behind a percent sign stand for, and what follows them.
fn decode(digits: &[u8]) -> Result<(u8, &[u8]), Ambiguous> {
    let value = |at: usize| digits.get(at).and_then(|&digit| char::from(digit).to_digit(16));
    let (Some(high), Some(low)) = (value(0), value(1)) else {
        return Err(Ambiguous("the path has a percent sign that encodes nothing"));
    };
    let byte = (high * 16 + low) as u8;
    match byte {
        b'/' | b'\\' => Err(Ambiguous("the path has an encoded slash")),
        b';' => Err(Ambiguous("the path has an encoded semicolon")),
        b'-' | b'.' | b'_' | b'~' => Err(Ambiguous("the path has an encoded character that needs no encoding")),
        byte if byte.is_ascii_alphanumeric() => {
            Err(Ambiguous("the path has an encoded character that needs no encoding"))
        }
        // Never in UTF-8 (RFC 3629 section 3); lenient decoders read longer spellings of dots and slashes out of them.
        0xc0 | 0xc1 | 0xf5..=0xff => Err(Ambiguous("the path has an encoded byte that is not UTF-8")),
        b'%' if digits[2..].len() >= 2 && digits[2..4].iter().all(u8::is_ascii_hexdigit) => {
            Err(Ambiguous("the path is encoded twice"))
        }
        byte if byte.is_ascii_control() => Err(Ambiguous("the path has an encoded control character")),
        byte => Ok((byte, &digits[2..])),
    }
}

/// Checks what is cut: an origin may keep it.
fn check(parameters: &[u8]) -> Result<(), Ambiguous> {
    let mut rest = parameters;
    while let [byte, after @ ..] = rest {
        rest = match *byte {
            b'%' => decode(after)?.1,
            b'\\' => return Err(BACKSLASH),
            _ => after,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_one_form() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b/", "/a/b/"),
            ("/v1/users:delete", "/v1/users:delete"),
            ("/v1/users%3Adelete", "/v1/users:delete"),
            ("/v1/users%3adelete", "/v1/users:delete"),
            ("/%40admin/%24%26%27%28%29%2B%2C%3D%21", "/@admin/$&'()+,=!"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b%3f", "/a%20b%3F"),
            ("/a|b\"", "/a%7Cb%22"),
            ("/a;v=1/b;w", "/a/b"),
            ("/a%20b;v", "/a%20b"),
            ("/100%25", "/100%25"),
            ("/100%25-x", "/100%25-x"),
            ("*", "*"),
        ] {
            assert_eq!(canonical(path, &mut String::new()), Ok(expected), "{path}");
        }
        for path in ["/x%c0%af..", "/%252e%252e/admin", "/a%252f", "/a;%2e%2e/b", "/a;\\", "/a%3Bb", "/a;%", "/é%2f"] {
            assert!(canonical(path, &mut String::new()).is_err(), "{path}");
        }
    }

    #[test]
    fn patterns_take_the_same_form_or_say_why_not() {
        for (text, expected) in [
            ("/admin/*", "/admin/*"),
            ("/@admin/*", "/@admin/*"),
            ("/%40admin/*", "/@admin/*"),
            ("/m%3Ax/*", "/m:x/*"),
            ("/é/a b", "/%C3%A9/a%20b"),
            ("*", "*"),
        ] {
            assert_eq!(pattern(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, why) in [
            ("/q?x=*", "query"),
            ("/a#b", "query"),
            ("/a;v/*", "parameters"),
            ("/d/../e", "dot segment"),
            ("//a", "empty segment"),
            ("/%7Eu/*", "needs no encoding"),
            ("/a%2fb", "encoded slash"),
            ("/a%2A", "star"),
        ] {
            let error = pattern(text).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
