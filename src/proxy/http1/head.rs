//! Where a head ends, and that its lines end as they must.
//!
//! httparse forgives a line feed without its carriage return and any number of empty lines before the first; others do
//! not, so a head with either means two things (RFC 9112 section 2.2 allows to refuse). The lines are found before
//! httparse sees them, which also bounds what it has to look at, however slowly a head comes in.

use memchr::memchr_iter;

use super::{FIELDS_MAX, HeadLimits};

/// Why a message is refused: the status if it is a request, and for the log what is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub status: u16,
    pub detail: &'static str,
}

/// A fault that is answered with 400.
pub(super) const fn bad(detail: &'static str) -> Fault {
    Fault { status: 400, detail }
}

/// A head whose lines all end in CRLF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// Where the first line begins.
    pub start: usize,
    /// Where the first line ends, without its CRLF.
    pub first_line_end: usize,
    /// Where the head ends, with its empty line.
    pub end: usize,
}

/// Finds the end of the head. `None`: it has not come yet.
///
/// Looks at the lines in their order, so that more bytes never change a verdict. One empty line before the first is passed
/// over if it `may_lead` (RFC 9112 section 2.2).
pub(super) fn find(input: &[u8], limits: &HeadLimits, may_lead: bool) -> Result<Option<Span>, Fault> {
    let lines_max = limits.fields_max.min(FIELDS_MAX) + 1;
    let bounded = &input[..input.len().min(limits.bytes_max)];
    let mut start = 0;
    let mut first_line_end = None;
    let mut line_start = 0;
    let mut lines = 0;
    for at in memchr_iter(b'\n', bounded) {
        if at == line_start || bounded[at - 1] != b'\r' {
            return Err(bad("a line feed without carriage return"));
        }
        let line_end = at - 1;
        if line_end > line_start {
            lines += 1;
            if lines > lines_max {
                return Err(Fault { status: 431, detail: "more fields than allowed" });
            }
            first_line_end.get_or_insert(line_end);
        } else if let Some(first_line_end) = first_line_end {
            return Ok(Some(Span { start, first_line_end, end: at + 1 }));
        } else if may_lead && start == 0 {
            start = at + 1;
        } else {
            return Err(bad("empty lines before the first"));
        }
        line_start = at + 1;
    }
    if bounded.len() == limits.bytes_max {
        return Err(Fault { status: 431, detail: "a longer head than allowed" });
    }
    Ok(None)
}
