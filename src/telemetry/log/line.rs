//! One line as plain data, and how it becomes text.

use std::time::SystemTime;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Level, Refused, Value};

/// A line that waits to be written.
#[derive(Debug)]
pub(super) struct Line {
    at: SystemTime,
    level: Level,
    event: &'static str,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Fields(Vec<(&'static str, Value)>),
    Refused {
        refused: Box<Refused>,
        /// Refusal lines of this worker the rate limit swallowed since its last one.
        suppressed: u64,
    },
}

impl Line {
    pub(super) fn event(at: SystemTime, level: Level, event: &'static str, fields: Vec<(&'static str, Value)>) -> Self {
        Self { at, level, event, body: Body::Fields(fields) }
    }

    pub(super) fn refused(at: SystemTime, refused: Refused, suppressed: u64) -> Self {
        let body = Body::Refused { refused: Box::new(refused), suppressed };
        Self { at, level: Level::Info, event: "refused", body }
    }

    /// Appends the line as JSON and a newline. `dropped` lines went missing before it.
    pub(super) fn format(self, dropped: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"ts\":");
        write(&timestamp(self.at), out);
        field("level", &self.level.label().into(), out);
        field("event", &self.event.into(), out);
        match self.body {
            Body::Fields(fields) => fields.iter().for_each(|(name, value)| field(name, value, out)),
            Body::Refused { refused, suppressed } => {
                refused.fields(|name, value| field(name, &value, out));
                if suppressed > 0 {
                    field("suppressed", &suppressed.into(), out);
                }
            }
        }
        if dropped > 0 {
            field("dropped", &json!(dropped), out);
        }
        out.extend_from_slice(b"}\n");
    }
}

pub(super) fn field(name: &str, value: &Value, out: &mut Vec<u8>) {
    out.push(b',');
    write(&name.into(), out);
    out.push(b':');
    write(value, out);
}

pub(super) fn write(value: &Value, out: &mut Vec<u8>) {
    // Neither a Vec nor a Value of strings, numbers and lists can fail.
    let _ = serde_json::to_writer(out, value);
}

/// RFC 3339 in UTC, to the millisecond.
pub(super) fn timestamp(at: SystemTime) -> Value {
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(FORMAT).map_or(Value::Null, Value::String)
}
