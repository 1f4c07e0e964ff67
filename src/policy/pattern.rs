//! The `*` patterns of rules: what a star may stand for, selector by selector, and matching in linear time.
//!
//! A pattern is compiled once per record and matched on the data plane. The text is cut at the separators a star must not
//! cross, and each piece between them is a list of literals: the first must start the piece, the last must end it, those
//! between are searched from left to right. Nothing is ever tried twice, so a hostile value costs its own length.

use memchr::{memchr, memchr2, memchr3, memmem};

/// The longest pattern, in bytes.
///
/// A DNS name has at most 253 and a SPIFFE ID at most 2048 bytes (SPIFFE-ID section 2.3); the names people write rules
/// over are far shorter, and a pattern is held in memory for every hostname that has it.
pub(super) const PATTERN_BYTES_MAX: usize = 2048;

/// The longest DNS name that is compared, in bytes (RFC 1035 section 2.3.4 allows 253 as text). A longer dNSName is no
/// DNS name and matches nothing; the bound lets it be lower-cased on the stack.
const DNS_BYTES_MAX: usize = 255;

/// The most values of one kind a certificate may have to be matched at all; one with more matches nothing.
///
/// Clients' certificates have a handful of names. A chain of 16 KiB could carry 5000 of one letter, and 64 patterns tried
/// on each of them held a core for 22 ms (`benches/pure.rs`, test profile, busy machine); with this bound, under 2 ms.
const VALUES_MAX: usize = 256;

/// What a selector's `*` may stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Any run of characters, none included. Compared exactly.
    Text,
    /// The path of a request: any run of characters, `/` included. Compared exactly.
    Path,
    /// A DNS name: a run of characters within one label. Compared without regard to ASCII case.
    Dns,
    /// A URI: a run of characters within one segment, that is without `/`, `?` and `#`; a closing `/**` stands for one or
    /// more further segments of the path. Compared exactly.
    Uri,
    /// A mail address: a run of characters without `@`. Compared exactly.
    Email,
}

impl Kind {
    /// The position and value of the first separator in `text`.
    fn separator(self, text: &[u8]) -> Option<usize> {
        match self {
            Self::Text | Self::Path => None,
            Self::Dns => memchr(b'.', text),
            Self::Uri => memchr3(b'/', b'?', b'#', text),
            Self::Email => memchr(b'@', text),
        }
    }

    /// Whether a star that is a whole piece must stand for at least one character: `*.acme.example` is about names with
    /// a first label, and an empty one is malformed.
    fn whole_star_is_nonempty(self) -> bool {
        matches!(self, Self::Dns | Self::Uri | Self::Email)
    }
}

/// One pattern that has at least one star.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wildcard {
    pieces: Box<[Piece]>,
    /// The pattern ended in `/**`: at least one more non-empty segment follows, and no query or fragment.
    rest: bool,
}

/// What stands between two separators.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Piece {
    /// The separator that ends the piece; `None` for the last.
    end: Option<u8>,
    glob: Glob,
}

/// Literals with stars between them.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Glob {
    Exact(Box<[u8]>),
    Stars { prefix: Box<[u8]>, middle: Box<[Box<[u8]>]>, suffix: Box<[u8]>, nonempty: bool },
}

impl Glob {
    fn compile(text: &[u8], whole_star_is_nonempty: bool) -> Self {
        let mut literals = text.split(|&byte| byte == b'*');
        let prefix = literals.next().unwrap_or_default().into();
        let Some(suffix) = literals.next_back() else { return Self::Exact(prefix) };
        // An empty literal between two stars says nothing.
        let middle = literals.filter(|literal| !literal.is_empty()).map(Box::from).collect();
        Self::Stars { prefix, middle, suffix: suffix.into(), nonempty: whole_star_is_nonempty && text == b"*" }
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(literal) => **literal == *value,
            Self::Stars { prefix, middle, suffix, nonempty } => {
                let Some(inner) = value.strip_prefix(&**prefix).and_then(|rest| rest.strip_suffix(&**suffix)) else {
                    return false;
                };
                // The leftmost place for each literal leaves the most for those after it.
                let mut rest = inner;
                for literal in middle {
                    let Some(at) = memmem::find(rest, literal) else { return false };
                    rest = &rest[at + literal.len()..];
                }
                !(*nonempty && inner.is_empty())
            }
        }
    }
}

impl Wildcard {
    fn compile(kind: Kind, text: &str) -> Result<Self, String> {
        let mut rest_of_pattern = text.as_bytes();
        let mut rest = false;
        if kind == Kind::Uri && text.contains("**") {
            let Some(head) = text.strip_suffix("/**") else {
                return Err(format!("\"{text}\": \"**\" can only be the whole last segment of a URI, as in \"/**\""));
            };
            if head.contains("**") || !has_authority(head) {
                return Err(format!("\"{text}\": \"**\" can only follow a scheme and an authority, and only once"));
            }
            rest = true;
            rest_of_pattern = head.as_bytes();
        } else if text.contains("**") {
            return Err(format!("\"{text}\": \"**\" means nothing here; write \"*\""));
        }
        let mut pieces = Vec::new();
        while let Some(at) = kind.separator(rest_of_pattern) {
            let glob = Glob::compile(&rest_of_pattern[..at], kind.whole_star_is_nonempty());
            pieces.push(Piece { end: Some(rest_of_pattern[at]), glob });
            rest_of_pattern = &rest_of_pattern[at + 1..];
        }
        let end = rest.then_some(b'/');
        pieces.push(Piece { end, glob: Glob::compile(rest_of_pattern, kind.whole_star_is_nonempty()) });
        Ok(Self { pieces: pieces.into(), rest })
    }

    fn matches(&self, kind: Kind, value: &[u8]) -> bool {
        let mut value = value;
        for piece in &self.pieces {
            let at = kind.separator(value);
            if at.map(|at| value[at]) != piece.end {
                return false;
            }
            let Some(at) = at else {
                return piece.glob.matches(value);
            };
            if !piece.glob.matches(&value[..at]) {
                return false;
            }
            value = &value[at + 1..];
        }
        // Only a pattern that ends in `/**` gets here: its last piece ends with a separator.
        self.rest && memchr2(b'?', b'#', value).is_none() && value.split(|&byte| byte == b'/').all(|s| !s.is_empty())
    }
}

/// Whether `head` is at least `scheme://authority`.
fn has_authority(head: &str) -> bool {
    head.split_once("://")
        .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/'))
}

/// The patterns of one selector: a value matches the list if it matches one of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Patterns {
    kind: Kind,
    /// Sorted, so that a long list costs a binary search.
    exact: Box<[Box<[u8]>]>,
    wildcards: Box<[Wildcard]>,
}

impl Patterns {
    /// Compiles a list; an empty one matches nothing.
    ///
    /// # Errors
    ///
    /// A pattern is empty, too long or not of its kind, or more than `wildcards_max` have a star. The text names the
    /// pattern, not the selector.
    pub(super) fn compile(kind: Kind, texts: &[String], wildcards_max: usize) -> Result<Self, String> {
        let mut exact: Vec<Box<[u8]>> = Vec::new();
        let mut wildcards = Vec::new();
        for text in texts {
            check(kind, text)?;
            let text = if kind == Kind::Dns { &text.to_ascii_lowercase() } else { text };
            if text.contains('*') {
                wildcards.push(Wildcard::compile(kind, text)?);
            } else {
                exact.push(text.as_bytes().into());
            }
        }
        if wildcards.len() > wildcards_max {
            return Err(format!("{} patterns with \"*\"; at most {wildcards_max} are allowed", wildcards.len()));
        }
        exact.sort_unstable();
        exact.dedup();
        Ok(Self { kind, exact: exact.into(), wildcards: wildcards.into() })
    }

    /// Whether the list has no pattern.
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }

    /// Whether one of the patterns matches `value`.
    pub(super) fn matches(&self, value: &str) -> bool {
        let mut lower = [0; DNS_BYTES_MAX];
        let value = if self.kind == Kind::Dns {
            let Some(lower) = lower.get_mut(..value.len()) else { return false };
            lower.copy_from_slice(value.as_bytes());
            lower.make_ascii_lowercase();
            &*lower
        } else {
            value.as_bytes()
        };
        if self.exact.binary_search_by(|pattern| (**pattern).cmp(value)).is_ok() {
            return true;
        }
        // Whoever resolves the dots of such a URI ends outside the segments the pattern names.
        if self.kind == Kind::Uri && !self.wildcards.is_empty() && has_dot_segment(value) {
            return false;
        }
        self.wildcards.iter().any(|pattern| pattern.matches(self.kind, value))
    }

    /// Whether one of the patterns matches one of `values`, of which there may be [`VALUES_MAX`].
    pub(super) fn match_any(&self, values: &[String]) -> bool {
        values.len() <= VALUES_MAX && values.iter().any(|value| self.matches(value))
    }
}

/// Whether a segment is `.` or `..` (RFC 3986 section 3.3), in any percent-encoding of the dot.
fn has_dot_segment(uri: &[u8]) -> bool {
    uri.split(|byte| matches!(byte, b'/' | b'?' | b'#')).any(|segment| {
        let mut rest = segment;
        let mut dots = 0;
        while let Some(after) =
            rest.strip_prefix(b".").or_else(|| rest.strip_prefix(b"%2e")).or_else(|| rest.strip_prefix(b"%2E"))
        {
            rest = after;
            dots += 1;
        }
        rest.is_empty() && (dots == 1 || dots == 2)
    })
}

/// Says what is wrong with a pattern before it can silently match nothing.
fn check(kind: Kind, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("an empty pattern matches nothing; leave it out".into());
    }
    if text.len() > PATTERN_BYTES_MAX {
        return Err(format!("a pattern of {} bytes; at most {PATTERN_BYTES_MAX} are allowed", text.len()));
    }
    match kind {
        Kind::Text => Ok(()),
        Kind::Path if text.starts_with('/') || text == "*" => Ok(()),
        Kind::Path => Err(format!("\"{text}\" is no path: it must start with \"/\"")),
        Kind::Dns if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(format!("\"{text}\": certificates carry A-labels; write the \"xn--\" form, without spaces"))
        }
        Kind::Dns if text.split('.').any(str::is_empty) => {
            Err(format!("\"{text}\" has an empty label; write the name without a leading or trailing dot"))
        }
        Kind::Dns if text.len() > DNS_BYTES_MAX => Err(format!("\"{text}\" is longer than a DNS name can be")),
        Kind::Dns => Ok(()),
        Kind::Uri if !text.contains(':') => {
            Err(format!("\"{text}\" is no URI: it must name its scheme, as in \"spiffe://acme/ops/*\""))
        }
        Kind::Uri if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(format!("\"{text}\": certificates carry URIs in ASCII; percent-encode the rest"))
        }
        // A star that reaches back to the scheme would let the authority be anybody's.
        Kind::Uri if text.split_once(':').is_some_and(|(scheme, _)| scheme.contains('*') || scheme.contains('/')) => {
            Err(format!("\"{text}\": the scheme of a URI cannot have a \"*\""))
        }
        Kind::Uri => Ok(()),
        Kind::Email if text.bytes().filter(|&byte| byte == b'@').count() != 1 => {
            Err(format!("\"{text}\" is no mail address: it must have one \"@\""))
        }
        Kind::Email => Ok(()),
    }
}

#[cfg(test)]
mod tests;
