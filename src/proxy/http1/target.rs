//! The target of a request: its four forms (RFC 9112 section 3.2), and the path that rules judge (DECISIONS 19).

use memchr::memchr2;

use crate::policy::path::{Ambiguous, canonical};

use super::head::{Fault, bad};
use super::{Rejected, authority};
use crate::policy::Refusal;

/// A target as it is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target<'a> {
    /// Path and query, or `*`.
    pub forwarded: &'a str,
    pub path: &'a str,
    /// The authority of an absolute-form target.
    pub authority: Option<&'a str>,
}

/// Reads a target.
pub(super) fn read<'a>(method: &str, target: &'a str) -> Result<Target<'a>, Fault> {
    // httparse lets no control characters and spaces through. RFC 9112 section 3.2 has no fragment in any form.
    if !target.is_ascii() || target.contains('#') {
        return Err(bad("the target has a character no target has"));
    }
    if target.starts_with('/') {
        return Ok(Target { forwarded: target, path: without_query(target), authority: None });
    }
    if target == "*" {
        return if method == "OPTIONS" {
            Ok(Target { forwarded: target, path: target, authority: None })
        } else {
            Err(bad("the target * is for OPTIONS only"))
        };
    }
    let rest = cut_scheme(target).ok_or(bad("the target is neither a path nor an http URI"))?;
    let (authority, forwarded) = rest.split_at(memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len()));
    if authority::host(authority).is_none() {
        return Err(bad("the target has no proper authority"));
    }
    let forwarded = match forwarded {
        // RFC 9112 section 3.2.4: OPTIONS about no path is about the server.
        "" if method == "OPTIONS" => "*",
        "" => "/",
        // Would need a path put before it; nobody sends it.
        query if query.starts_with('?') => return Err(bad("the target has a query and no path")),
        path => path,
    };
    Ok(Target { forwarded, path: without_query(forwarded), authority: Some(authority) })
}

/// The target without the prefix that is cut from the front of its path: two parts, to be written one after the other. What
/// is left begins with one slash, so that nobody takes it for the name of a host.
///
/// # Errors
///
/// 404 for a path that is not below the prefix, 400 for one that an origin could resolve to another (as with rules): it
/// might be below the prefix only until somebody resolves it.
pub(super) fn strip<'a>(prefix: &str, target: &'a str, path: &str) -> Result<[&'a str; 2], Rejected> {
    if target == "*" {
        return Ok(["", target]);
    }
    judge(path, &mut String::new())?;
    let rest = target.strip_prefix(prefix);
    match rest.map(|rest| (rest, rest.bytes().next())) {
        Some((rest, Some(b'/'))) => Ok(["", rest]),
        Some((rest, Some(b'?') | None)) => Ok(["/", rest]),
        _ => {
            let detail = "the path is not below the hostname's strip_prefix";
            Err(Rejected { status: 404, reason: Refusal::NotFound, detail })
        }
    }
}

fn without_query(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// What follows the scheme of a URI with an authority; `None` for any other scheme than ours.
fn cut_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// The path as rules match it; the error says why it cannot be judged (DECISIONS 19).
pub(super) fn judge<'s>(path: &'s str, scratch: &'s mut String) -> Result<&'s str, Fault> {
    canonical(path, scratch).map_err(|Ambiguous(why)| bad(why))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_is_cut_or_the_path_is_not_there() {
        for (target, expected) in [
            ("/api/a/b?c=/d", Ok("/a/b?c=/d")),
            ("/api/", Ok("/")),
            ("/api", Ok("/")),
            ("/api?a", Ok("/?a")),
            ("/api/api", Ok("/api")),
            ("/api/a;v=1", Ok("/a;v=1")),
            ("*", Ok("*")),
            ("/", Err(404)),
            ("/apis", Err(404)),
            ("/API/a", Err(404)),
            ("/api;v=1/a", Err(404)),
            ("/x?/api/a", Err(404)),
            ("/api//evil.test", Err(400)),
            ("/api///", Err(400)),
            ("/api/\\evil.test", Err(400)),
            ("/api/%2Fevil.test", Err(400)),
            ("/api/%5cevil.test", Err(400)),
            ("/api/../admin", Err(400)),
            ("/api/..;/admin", Err(400)),
            ("/%61pi/a", Err(400)),
            ("//api/a", Err(400)),
        ] {
            let path = without_query(target);
            let stripped = strip("/api", target, path).map(|parts| parts.concat());
            assert_eq!(stripped.map_err(|rejected| rejected.status), expected.map(str::to_owned), "{target}");
        }
    }

    fn without_parameters(segment: &str) -> &str {
        segment.split_once(';').map_or(segment, |(name, _)| name)
    }

    #[test]
    fn targets_are_read_in_their_forms() {
        for (method, target, forwarded, path, authority) in [
            ("GET", "/", "/", "/", None),
            ("GET", "/a/b?c=/d?e", "/a/b?c=/d?e", "/a/b", None),
            ("GET", "//a", "//a", "//a", None),
            ("GET", "/?", "/?", "/", None),
            ("GET", "/http://a/", "/http://a/", "/http://a/", None),
            ("OPTIONS", "*", "*", "*", None),
            ("GET", "http://a", "/", "/", Some("a")),
            ("GET", "HTTPS://a:8443/b?c", "/b?c", "/b", Some("a:8443")),
            ("GET", "http://[::1]/", "/", "/", Some("[::1]")),
            ("OPTIONS", "http://a", "*", "*", Some("a")),
            ("OPTIONS", "http://a/", "/", "/", Some("a")),
        ] {
            assert_eq!(read(method, target), Ok(Target { forwarded, path, authority }), "{method} {target}");
        }
        for (method, target) in [
            ("GET", "*"),
            ("OPTIONS", "**"),
            ("GET", ""),
            ("GET", "a"),
            ("GET", "?a"),
            ("GET", "a:443"),
            ("GET", "ftp://a/"),
            ("GET", "http:/a/"),
            ("GET", "http:///a"),
            ("GET", "http://a?b"),
            ("GET", "http://u@a/"),
            ("GET", "http://a b/"),
            ("GET", "http://a\\b/"),
            ("GET", "/a#b"),
            ("GET", "/\u{fc}"),
        ] {
            assert_eq!(read(method, target).map_err(|fault| fault.status), Err(400), "{method} {target}");
        }
    }

    #[test]
    fn paths_are_judged_without_parameters() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b/", "/a/b/"),
            ("/a;v=1/b;w", "/a/b"),
            ("/;x", "/"),
            ("/a/;x", "/a/"),
            ("/.a/..b/a.", "/.a/..b/a."),
            ("/...", "/..."),
            ("/a%20b%25%C3%BC", "/a%20b%25%C3%BC"),
            ("*", "*"),
        ] {
            assert_eq!(judge(path, &mut String::new()), Ok(expected), "{path}");
        }
        for path in [
            "/.", "/..", "/a/./b", "/a/../b", "/a/..", "/..;/b", "/a/.;x/b", "//", "//a", "/a//b", "/;x/b", "/a\\b",
            "/a%", "/a%2", "/a%zz", "/a%+1", "/a%2fb", "/a%2Fb", "/a%5cb", "/%2e%2e/", "/a%2E", "/%61", "/%7e", "/%5f",
            "/a%00", "/a%0d%0a", "/a%7f",
        ] {
            assert_eq!(judge(path, &mut String::new()).map_err(|fault| fault.status), Err(400), "{path}");
        }
    }

    /// Resolves a path as the kindest of origins do: parameters cut, decoded until nothing changes, backslashes turned,
    /// slashes merged, dots resolved.
    fn resolve(path: &str) -> String {
        let cut: Vec<_> = path.split('/').map(without_parameters).collect();
        let mut text = cut.join("/");
        for encoded in ["%2e", "%2f", "%5c", "%61", "%00"] {
            let byte = u8::from_str_radix(&encoded[1..], 16).map(char::from).unwrap_or_default();
            text = text.replace(encoded, &byte.to_string()).replace(&encoded.to_uppercase(), &byte.to_string());
        }
        let mut resolved: Vec<&str> = Vec::new();
        let text = text.replace('\\', "/");
        let is_directory = text.ends_with('/') || text.ends_with("/.") || text.ends_with("/..");
        for segment in text.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(resolved.pop()),
                segment => resolved.push(segment),
            }
        }
        let slash = if is_directory && !resolved.is_empty() { "/" } else { "" };
        format!("/{}{slash}", resolved.join("/"))
    }

    proptest! {
        /// What is left of a path without its prefix begins with one slash, and is the rest of what came.
        #[test]
        fn a_stripped_path_is_a_path(target in "/(api)?(/|[ab.?]|\\\\|%2f|%5C|;|:){0,10}") {
            if let Ok(parts) = strip("/api", &target, without_query(&target)) {
                let stripped = parts.concat();
                prop_assert!(stripped.starts_with('/') && !stripped.starts_with("//") && !stripped.starts_with("/\\"));
                prop_assert!(target.ends_with(parts[1]) && target.starts_with("/api"));
                prop_assert_eq!(read("GET", &stripped).map(|read| read.forwarded), Ok(stripped.as_str()));
            }
        }

        /// The path that is judged is the one an origin resolves to, whatever it does to resolve it.
        #[test]
        fn nothing_resolves_to_another_path(path in "(/|[ab.]|\\.\\.|;|\\\\|%2e|%2F|%5c|%61|%00|%20){0,12}") {
            let path = format!("/{path}");
            let mut scratch = String::new();
            if let Ok(judged) = judge(&path, &mut scratch) {
                prop_assert_eq!(judged, resolve(&path));
            }
        }
    }
}
