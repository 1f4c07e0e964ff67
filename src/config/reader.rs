//! TOML tables read key by key: every fault is collected with its place, and reading goes on.
//!
//! serde stops at the first error and knows spans only where types ask for them; here each value is asked for by name,
//! and what is wrong with it is written down while the caller gets `None` and carries on with a default that is never
//! used, since a configuration with errors is never handed out.
//!
//! Keys and values come from the file and may be anything, a private key included: [`quote`] is the way into a message.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Place, Problem};
use super::units::{parse_duration, parse_size, show_duration, show_size};

/// How much of a text from the file a message repeats, in characters: enough to find it, not enough to flood a terminal.
const QUOTE_CHARS_MAX: usize = 80;

/// One configuration file's text, and where its lines begin.
pub(super) struct Source {
    pub file: Arc<Path>,
    pub text: String,
    line_starts: Vec<usize>,
}

impl Source {
    pub fn new(file: Arc<Path>, text: String) -> Self {
        let after_newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { file, text, line_starts }
    }

    /// The place of a byte offset.
    pub fn place(&self, offset: usize) -> Place {
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Place { file: Arc::clone(&self.file), line: number(line), column: number(column) }
    }
}

/// Reads one file and collects what is wrong with it.
pub(super) struct Reader<'a> {
    pub source: &'a Source,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a Source) -> Self {
        Self { source, problems: RefCell::new(Vec::new()) }
    }

    /// The file's top level.
    pub fn root<'r>(&'r self, table: &'r DeTable<'r>, keys: &'static [&'static str]) -> Table<'r> {
        Table::new(self, "the top level of the file".to_owned(), table, 0, keys)
    }

    pub fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// One table and the keys it may have.
pub(super) struct Table<'a> {
    reader: &'a Reader<'a>,
    /// As the reader of the file knows it: `[server]`, `[[hostname]]`.
    pub title: String,
    table: &'a DeTable<'a>,
    offset: usize,
    keys: &'static [&'static str],
}

impl<'a> Table<'a> {
    /// Takes a table and reports every key that is not among `keys`.
    fn new(
        reader: &'a Reader<'a>,
        title: String,
        table: &'a DeTable<'a>,
        offset: usize,
        keys: &'static [&'static str],
    ) -> Self {
        for key in table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())) {
            let place = reader.source.place(key.span().start);
            let text = format!("unknown key {} in {title}", quote(key.get_ref()));
            reader.push(place.error(with_suggestion(text, key.get_ref(), keys)));
        }
        Self { reader, title, table, offset, keys }
    }

    /// Where the table begins.
    pub fn place(&self) -> Place {
        self.reader.source.place(self.offset)
    }

    /// Reports an error with the table as a whole.
    pub fn error(&self, text: impl Into<String>) {
        self.reader.push(self.place().error(text));
    }

    /// Reports an error at a place in it.
    pub fn error_at(&self, place: &Place, text: impl Into<String>) {
        self.reader.push(place.error(text));
    }

    /// The value of a key, if the file gives one.
    pub fn get(&self, key: &'static str) -> Option<Value<'a>> {
        debug_assert!(self.keys.contains(&key), "{key} is not declared for {}", self.title);
        let value = self.table.get(key)?;
        Some(Value { reader: self.reader, key, value })
    }

    /// The value of a key that must be there.
    pub fn require(&self, key: &'static str, remedy: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            self.error(format!("{} needs the key \"{key}\": {remedy}", self.title));
        }
        value
    }
}

/// The value of a key, or one element of its list.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    reader: &'a Reader<'a>,
    pub key: &'a str,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    /// Where the value is.
    pub fn place(&self) -> Place {
        self.reader.source.place(self.value.span().start)
    }

    /// Reports an error with the value; the key's name is put before the text.
    pub fn error(&self, text: impl std::fmt::Display) {
        self.reader.push(self.place().error(format!("{} {text}", self.shown_key())));
    }

    /// Reports a warning with the value; the key's name is put before the text.
    pub fn warning(&self, text: impl std::fmt::Display) {
        self.reader.push(self.place().warning(format!("{} {text}", self.shown_key())));
    }

    /// The key as it may be printed: one that is a name of the file's own choice can be anything.
    fn shown_key(&self) -> Cow<'a, str> {
        let plain = self.key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if plain && !looks_like_pem(self.key) { Cow::Borrowed(self.key) } else { Cow::Owned(quote(self.key)) }
    }

    fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        let article = |name: &str| if name.starts_with(['a', 'i']) { "an" } else { "a" };
        let found = self.value.get_ref().type_str();
        self.error(format!("must be {expected}, not {} {found}", article(found)));
        None
    }

    pub fn string(&self) -> Option<&'a str> {
        self.value.get_ref().as_str().or_else(|| self.wrong_type("a string"))
    }

    /// The text, if it is a string; nothing is reported if it is not.
    pub fn as_word(&self) -> Option<&'a str> {
        self.value.get_ref().as_str()
    }

    /// Whether it is a table.
    pub fn is_table(&self) -> bool {
        self.value.get_ref().as_table().is_some()
    }

    pub fn boolean(&self) -> Option<bool> {
        self.value.get_ref().as_bool().or_else(|| self.wrong_type("true or false"))
    }

    /// A whole number within a range.
    pub fn integer(&self, range: &RangeInclusive<usize>) -> Option<usize> {
        let Some(integer) = self.value.get_ref().as_integer() else {
            return self.wrong_type("a whole number");
        };
        let number = usize::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.error(format!("must be between {} and {}, not {integer}", range.start(), range.end()));
        }
        number
    }

    /// A share of the whole, from 0 to 1, in millionths.
    pub fn millionths(&self) -> Option<u32> {
        let value = self.value.get_ref();
        let share = match (value.as_float(), value.as_integer()) {
            (Some(float), _) => float.as_str().replace('_', "").parse::<f64>().ok(),
            (None, Some(integer)) => u32::from_str_radix(integer.as_str(), integer.radix()).ok().map(f64::from),
            (None, None) => return self.wrong_type("a number from 0.0 to 1.0"),
        };
        let share = share.filter(|share| (0.0..=1.0).contains(share));
        if share.is_none() {
            self.error("must be a number from 0.0 to 1.0");
        }
        // Within the range this is at most a million.
        share.map(|share| (share * 1e6).round() as u32)
    }

    /// A duration within a range.
    pub fn duration(&self, range: &RangeInclusive<Duration>) -> Option<Duration> {
        let Some(text) = self.value.get_ref().as_str() else {
            return self.wrong_type("a string with a unit, as in \"10s\"");
        };
        match parse_duration(text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
                self.error(format!("must be between \"{low}\" and \"{high}\", not {}", quote(text)));
                None
            }
            Err(remedy) => {
                self.error(format!("is not a duration: {}; {remedy}", quote(text)));
                None
            }
        }
    }

    /// A size in bytes within a range.
    pub fn size(&self, range: &RangeInclusive<u64>) -> Option<u64> {
        let Some(text) = self.value.get_ref().as_str() else {
            return self.wrong_type("a string with a unit, as in \"64KiB\"");
        };
        match parse_size(text) {
            Ok(size) if range.contains(&size) => Some(size),
            Ok(_) => {
                let (low, high) = (show_size(*range.start()), show_size(*range.end()));
                self.error(format!("must be between \"{low}\" and \"{high}\", not {}", quote(text)));
                None
            }
            Err(remedy) => {
                self.error(format!("is not a size: {}; {remedy}", quote(text)));
                None
            }
        }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
        if found.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let problem = format!("must be {}, not {}", one_of(&names), quote(text));
            self.error(with_suggestion(problem, text, &names));
        }
        found
    }

    /// The path of a file, relative to the file that names it.
    pub fn path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        if looks_like_pem(text) {
            self.error("must be the path of a file, not its content: write the PEM text to a file and name that");
            return None;
        }
        if text.is_empty() || text.contains(char::is_control) {
            self.error(format!("must be the path of a file, not {}", quote(text)));
            return None;
        }
        Some(self.directory().join(text))
    }

    /// The directory of the file, to which the paths in it are relative.
    pub fn directory(&self) -> &'a Path {
        self.reader.source.file.parent().unwrap_or_else(|| Path::new(""))
    }

    /// The elements of a list, which may be empty.
    pub fn list(&self) -> Option<Vec<Value<'a>>> {
        let Some(array) = self.value.get_ref().as_array() else {
            return self.wrong_type("a list");
        };
        Some(array.iter().map(|value| Value { value, ..*self }).collect())
    }

    /// The elements of a list that is not empty, or the one value that stands for such a list.
    pub fn one_or_more(&self) -> Vec<Value<'a>> {
        match self.value.get_ref().as_array() {
            None => vec![*self],
            Some(array) => {
                if array.is_empty() {
                    self.error("must not be an empty list");
                }
                array.iter().map(|value| Value { value, ..*self }).collect()
            }
        }
    }

    /// The strings of [`Value::one_or_more`]; what is of another type, or could not be printed, is reported and left out.
    pub fn strings(&self) -> Vec<String> {
        let printable = |value: &Value<'_>| {
            let text = value.string()?;
            if looks_like_pem(text) || text.contains(char::is_control) {
                value.error(format!("must be plain text of one line, not {}", quote(text)));
                return None;
            }
            Some(text.to_owned())
        };
        self.one_or_more().iter().filter_map(printable).collect()
    }

    /// A table.
    pub fn table(&self, title: impl Into<String>, keys: &'static [&'static str]) -> Option<Table<'a>> {
        let title = title.into();
        match self.value.get_ref().as_table() {
            Some(table) => Some(Table::new(self.reader, title, table, self.value.span().start, keys)),
            None => self.wrong_type(&format!("a table, {title}")),
        }
    }

    /// The values of a table whose keys are names of the file's own choice: `[origin.NAME]`.
    pub fn members(&self, title: &str) -> Vec<Value<'a>> {
        match self.value.get_ref().as_table() {
            Some(table) => {
                let members = table.iter();
                members.map(|(key, value)| Value { reader: self.reader, key: key.get_ref(), value }).collect()
            }
            None => self.wrong_type::<Vec<Value<'a>>>(&format!("a table of tables, {title}")).unwrap_or_default(),
        }
    }

    /// The tables of an array of tables.
    pub fn tables(&self, title: &str, keys: &'static [&'static str]) -> Vec<Table<'a>> {
        match self.value.get_ref().as_array() {
            Some(array) => {
                let values = array.iter().map(|value| Value { value, ..*self });
                values.filter_map(|value| value.table(title, keys)).collect()
            }
            None => self
                .wrong_type::<Vec<Table<'a>>>(&format!("an array of tables, each begun by {title}"))
                .unwrap_or_default(),
        }
    }
}

/// A text from the file, safe to print: in quotes, control characters escaped, cut if long, and not at all if it may be
/// a private key.
pub(super) fn quote(text: &str) -> String {
    if looks_like_pem(text) {
        return "PEM text (not shown)".to_owned();
    }
    let mut quoted = String::from("\"");
    for (index, character) in text.chars().enumerate() {
        if index == QUOTE_CHARS_MAX {
            quoted.push_str("...");
            break;
        }
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // Formatting characters could reorder what a terminal shows.
            _ if character.is_control() || ('\u{2028}'..='\u{202e}').contains(&character) => {
                let _ = write!(quoted, "{}", character.escape_unicode());
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

fn looks_like_pem(text: &str) -> bool {
    text.contains("-----")
}

/// `"a", "b" or "c"`.
pub(super) fn one_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => format!("\"{only}\""),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|name| format!("\"{name}\"")).collect();
            format!("{} or \"{last}\"", first.join(", "))
        }
    }
}

/// Adds "did you mean" if one of the names is close to what was written.
pub(super) fn with_suggestion(text: String, written: &str, names: &[&str]) -> String {
    // A quarter of the letters may be wrong, and always one: beyond that a suggestion misleads more than it helps.
    let distance_max = (written.chars().count() / 4).max(1);
    let written = written.to_ascii_lowercase().replace('-', "_");
    let distance = |name: &str| strsim::damerau_levenshtein(&written, &name.to_ascii_lowercase().replace('-', "_"));
    let nearest = names.iter().map(|name| (distance(name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= distance_max => format!("{text}; did you mean \"{name}\"?"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters() {
        let source = Source::new(Path::new("a.toml").into(), "ä = 1\nb = 2\n".to_owned());
        let at = |offset| (source.place(offset).line, source.place(offset).column);
        assert_eq!(at(0), (1, 1));
        assert_eq!(at(3), (1, 3), "the umlaut has two bytes and is one character");
        assert_eq!(at(7), (2, 1));
        assert_eq!(at(13), (3, 1));
        assert_eq!(at(99), (3, 1));
    }

    #[test]
    fn a_key_is_never_quoted() {
        assert_eq!(quote("-----BEGIN PRIVATE KEY-----\nMC4CAQ"), "PEM text (not shown)");
        assert_eq!(quote("a\"b\u{1b}[2J"), "\"a\\\"b\\u{1b}[2J\"");
        assert_eq!(quote(&"x".repeat(200)).len(), QUOTE_CHARS_MAX + 5);
    }

    #[test]
    fn suggestions_are_near() {
        let names = ["client_auth", "certificate", "ca"];
        assert_eq!(with_suggestion(String::new(), "clientauth", &names), "; did you mean \"client_auth\"?");
        assert_eq!(with_suggestion(String::new(), "Client-Auth", &names), "; did you mean \"client_auth\"?");
        assert_eq!(with_suggestion(String::new(), "certifcates", &names), "; did you mean \"certificate\"?");
        assert_eq!(with_suggestion(String::new(), "crl", &names), "");
        assert_eq!(with_suggestion(String::new(), "headers", &names), "");
    }
}
