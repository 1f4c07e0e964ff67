//! Reads the files, follows `include`, and checks what only shows when all of them are read.
//!
//! `include` stands at the top of a file and takes glob patterns, relative to that file. `*`, `?` and `[..]` match within
//! one directory level, `**` any number of them; names that begin with a dot need the dot in the pattern. What a pattern
//! matches is read in the order of its paths. A pattern that matches nothing is fine (an empty `conf.d`), a plain path
//! that does not exist is an error. Any file may hold any table, but each of `[server]`, `[admin]`, `[tls]`, `[limits]`,
//! `[cache]` and `[log]` stands in one file only, and no file is read twice.
//!
//! A file whose TOML does not parse is reported with all its syntax errors and nothing else: what follows from half a
//! file is noise. The other files are still checked; only names that might be defined in it are not missed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glob::MatchOptions;
use toml::de::DeTable;

use super::reader::{Reader, Source, Table, Value, quote, with_suggestion};
use super::report::{Place, Problem, Report, Severity};
use super::schema::hostname::{HOSTNAME_KEYS, HostnameDraft, hostname};
use super::schema::origin::{OriginDraft, OriginReference, origin, unfit};
use super::schema::tls::{SUITES_CANNOT_SERVE, TLS_KEYS, suites_can_serve, tls};
use super::schema::{ROOT_KEYS, settings};
use super::types::{Admin, Cache, Config, Hostname, Limits, Log, Server, Tls};
use crate::registry::{Mode, Name, Origin, OriginAddress, ProxyProtocol, Scheme};

/// How deep files may include files: the main file is at depth 0. Two levels are in use (a directory of customers, each
/// with parts), four leave room, and a loop of links ends.
pub const INCLUDE_DEPTH_MAX: usize = 4;

/// The most files of one configuration. Beyond some ten thousand hostnames the registry is the place for them.
pub const FILES_MAX: usize = 16_384;

/// The largest configuration file, in bytes. Half a million hostnames fit; a log or a disk image named by mistake does not.
pub const CONFIG_BYTES_MAX: u64 = 256 << 20;

/// Reads and checks a configuration. Opens configuration files only; certificates, keys and CAs are opened by
/// `control::assemble`.
///
/// # Errors
///
/// Everything that is wrong, warnings included, in the order of the files. The old configuration stays as it is.
pub fn load(path: &Path) -> Result<Config, Report> {
    let (config, report) = read(path);
    if report.has_errors() { Err(report) } else { Ok(Config { warnings: report.problems, ..config }) }
}

/// Reads as much of a configuration as can be read, for `check --full`: files that sound tables name are worth opening
/// whatever is wrong elsewhere. It can be served only if the report has no errors.
pub fn read(path: &Path) -> (Config, Report) {
    let mut draft = Draft::default();
    draft.read_file(path, None, 0);
    draft.finish()
}

/// A table that may stand once.
type Single<T> = Option<(Place, T)>;

/// What was read so far.
#[derive(Default)]
struct Draft {
    files: Vec<Arc<Path>>,
    /// Canonical paths, so that a file under two names is one.
    seen: HashMap<PathBuf, Arc<Path>>,
    report: Report,
    /// A file could not be read to the end: names defined there are unknown, and not to be missed.
    incomplete: bool,
    server: Single<Server>,
    admin: Single<Admin>,
    tls: Single<Tls>,
    limits: Single<Limits>,
    cache: Single<Cache>,
    log: Single<Log>,
    origins: BTreeMap<String, (Place, OriginDraft)>,
    hostnames: Vec<HostnameDraft>,
}

impl Draft {
    /// Reads one file and what it includes. `named_at` is where a file names it, `None` for the main one.
    fn read_file(&mut self, path: &Path, named_at: Option<&Place>, depth: usize) {
        let file: Arc<Path> = path.into();
        let fail = |draft: &mut Self, text: String| {
            draft.incomplete = true;
            let place = named_at.cloned().unwrap_or_else(|| Place::of_file(path));
            let text = if named_at.is_some() { format!("include {}: {text}", path.display()) } else { text };
            draft.report.push(place.error(text));
        };
        if let Ok(canonical) = path.canonicalize()
            && let Some(first) = self.seen.insert(canonical, Arc::clone(&file))
        {
            let first = first.display().to_string();
            return fail(self, format!("is read already, as {first}; include each file once"));
        }
        if self.files.len() >= FILES_MAX {
            return fail(self, format!("is one file too many; a configuration has at most {FILES_MAX}"));
        }
        let text = match read_text(path) {
            Ok(text) => text,
            Err(reason) => return fail(self, reason),
        };
        self.files.push(Arc::clone(&file));
        let source = Source::new(file, text);
        let (root, errors) = DeTable::parse_recoverable(&source.text);
        if !errors.is_empty() {
            self.incomplete = true;
            for error in &errors {
                let place = source.place(error.span().map_or(0, |span| span.start));
                // The message describes what was expected and never repeats the text: it may be anything.
                self.report.push(place.error(format!("not TOML: {}", error.message().replace('\n', ", "))));
            }
            return;
        }
        let reader = Reader::new(&source);
        let includes = self.read_tables(&reader.root(root.get_ref(), ROOT_KEYS));
        self.report.problems.extend(reader.into_problems());
        for (path, place) in includes {
            if depth >= INCLUDE_DEPTH_MAX {
                self.incomplete = true;
                self.report.push(place.error(format!(
                    "include is nested too deeply: files may include files up to {INCLUDE_DEPTH_MAX} levels deep"
                )));
                return;
            }
            self.read_file(&path, Some(&place), depth + 1);
        }
    }

    /// Reads the tables of one file; returns the files it includes.
    fn read_tables(&mut self, root: &Table<'_>) -> Vec<(PathBuf, Place)> {
        let report = &mut self.report;
        single(&mut self.server, root, "server", settings::SERVER_KEYS, settings::server, report);
        single(&mut self.admin, root, "admin", settings::ADMIN_KEYS, settings::admin, report);
        single(&mut self.tls, root, "tls", TLS_KEYS, tls, report);
        single(&mut self.limits, root, "limits", settings::LIMITS_KEYS, settings::limits, report);
        single(&mut self.cache, root, "cache", settings::CACHE_KEYS, settings::cache, report);
        single(&mut self.log, root, "log", settings::LOG_KEYS, settings::log, report);
        for value in root.get("origin").map(|value| value.members("[origin.NAME]")).unwrap_or_default() {
            let Some(origin) = origin(value) else { continue };
            let place = value.place();
            match self.origins.get(value.key) {
                Some((first, _)) => value.error(format!(
                    "is defined twice: [origin.{}] stands at {} already",
                    value.key,
                    first.line_reference()
                )),
                None => {
                    self.origins.insert(value.key.to_owned(), (place, origin));
                }
            }
        }
        if let Some(value) = root.get("hostname") {
            self.hostnames.extend(value.tables("[[hostname]]", HOSTNAME_KEYS).iter().map(hostname));
        }
        let patterns = root.get("include").map(|value| value.one_or_more()).unwrap_or_default();
        patterns.into_iter().flat_map(included_files).collect()
    }

    /// Checks what needs all files, and makes the configuration.
    fn finish(mut self) -> (Config, Report) {
        let tls = self.tls.take().map_or_else(Tls::default, |(_, tls)| tls);
        let mut used = HashSet::new();
        let mut hostnames = Vec::with_capacity(self.hostnames.len());
        let drafts = std::mem::take(&mut self.hostnames);
        self.check_names(&drafts);
        self.check_default(&drafts);
        let mut unnamed: HashMap<String, OriginDraft> = HashMap::new();
        let nowhere = Arc::new(Origin::new(String::new(), Vec::new(), Scheme::Any));
        for draft in drafts {
            let mode = draft.mode;
            let named_at = draft.origin.as_ref().map(|(_, place)| place.clone());
            let origin = match draft.origin {
                Some((OriginReference::Named(name), place)) => {
                    used.insert(name.clone());
                    self.named_origin(&name, &place)
                }
                // The same address is the same origin, whoever names it.
                Some((OriginReference::Url(draft), _)) => {
                    Some(unnamed.entry(draft.origin.name.clone()).or_insert(draft).clone())
                }
                None => None,
            };
            let min_version = draft.min_version.as_ref().map_or(tls.min_version, |(version, _)| *version);
            let cipher_suites = match &draft.cipher_suites {
                Some((suites, _)) => suites.clone(),
                None => tls.cipher_suites.clone(),
            };
            // Where [tls] alone is at fault, it has been told so.
            let own = draft.cipher_suites.map(|(_, place)| place).or(draft.min_version.map(|(_, place)| place));
            if let Some(place) = own
                && !suites_can_serve(&cipher_suites, min_version)
            {
                self.report.push(place.error(format!("cipher_suites {SUITES_CANNOT_SERVE}")));
            }
            // What is missing has been reported, so that nobody serves what stands in for it here; the files can be opened.
            if let (Some(draft), Some(mode), Some(place)) = (&origin, mode, named_at)
                && let Some(text) = unfit(&draft.origin, mode)
            {
                self.report.push(place.error(text));
            }
            let origin = origin.unwrap_or_else(|| OriginDraft { origin: Arc::clone(&nowhere), tls: None });
            let mode = mode.unwrap_or(Mode::Tcp);
            hostnames.push(Hostname {
                place: draft.place,
                names: draft.names,
                certificates: draft.certificates,
                origin: origin.origin,
                origin_tls: origin.tls,
                mode,
                is_default: draft.default.is_some(),
                min_version,
                cipher_suites,
                alpn: draft.alpn,
                keep_unusual_headers: draft.keep_unusual_headers,
                rewrites: draft.rewrites,
                client_auth: draft.client_auth,
                rules: draft.rules,
            });
        }
        self.warn_of_unused(&used, hostnames.is_empty());
        self.warn_of_shared_bytes(&hostnames);
        self.report.sort(&self.files);
        debug_assert!(!self.incomplete || self.report.has_errors(), "what is incomplete has been told");
        fn or_default<T: Default>(single: Single<T>) -> T {
            single.map(|(_, value)| value).unwrap_or_default()
        }
        let config = Config {
            files: self.files,
            server: or_default(self.server),
            admin: or_default(self.admin),
            tls,
            limits: or_default(self.limits),
            cache: or_default(self.cache),
            log: or_default(self.log),
            origins: self.origins.into_values().map(|(_, draft)| draft.origin).collect(),
            hostnames,
            warnings: Vec::new(),
        };
        (config, self.report)
    }

    /// Finds a named origin, or says that there is none.
    fn named_origin(&mut self, name: &str, place: &Place) -> Option<OriginDraft> {
        if let Some((_, origin)) = self.origins.get(name) {
            return Some(origin.clone());
        }
        if !self.incomplete {
            let names: Vec<&str> = self.origins.keys().map(String::as_str).collect();
            let text = format!(
                "origin {} is not defined: there is no such [origin.NAME] table, and it is no URL",
                quote(name)
            );
            self.report.push(place.error(with_suggestion(text, name, &names)));
        }
        None
    }

    /// Each name belongs to one hostname.
    fn check_names(&mut self, drafts: &[HostnameDraft]) {
        let mut taken: HashMap<&Name, &Place> = HashMap::new();
        for (name, place) in drafts.iter().flat_map(|draft| &draft.names) {
            if let Some(first) = taken.get(name) {
                let first = first.line_reference();
                self.report
                    .push(place.error(format!("name \"{name}\" is taken already, at {first}; each name stands once")));
            } else {
                taken.insert(name, place);
            }
        }
    }

    /// At most one hostname is the default.
    fn check_default(&mut self, drafts: &[HostnameDraft]) {
        let mut places = drafts.iter().filter_map(|draft| draft.default.as_ref());
        let Some(first) = places.next() else { return };
        let first = first.line_reference();
        let text = format!("default = true stands at {first} already; one hostname can serve the names no record has");
        let problems: Vec<Problem> = places.map(|place| place.error(text.clone())).collect();
        self.report.problems.extend(problems);
    }

    /// Says where bytes go to an HTTP origin that serves others too: a client of one hostname can ask there for another's
    /// pages, because nobody looks at its Host (DECISIONS 25). The PROXY header tells the origin which hostname it came for.
    fn warn_of_shared_bytes(&mut self, hostnames: &[Hostname]) {
        if self.incomplete || self.report.has_errors() {
            return;
        }
        let mut users: HashMap<&OriginAddress, Vec<usize>> = HashMap::new();
        for (index, hostname) in hostnames.iter().enumerate() {
            for address in &hostname.origin.addresses {
                users.entry(address).or_default().push(index);
            }
        }
        let speaks_http = |hostname: &Hostname| {
            hostname.mode == Mode::Http || hostname.alpn.iter().any(|name| name.starts_with(b"http/") || name == b"h2")
        };
        for (index, hostname) in hostnames.iter().enumerate() {
            if hostname.mode != Mode::Tcp || hostname.origin.proxy_protocol == ProxyProtocol::V2 {
                continue;
            }
            let others = hostname.origin.addresses.iter().filter_map(|address| users.get(address)).flatten();
            let mut others = others.filter(|other| **other != index).map(|other| &hostnames[*other]).peekable();
            let is_http = speaks_http(hostname) || others.clone().any(speaks_http);
            if let Some(other) = others.next().filter(|_| is_http) {
                let other = other.names.first().map_or("another hostname", |(name, _)| name.as_str());
                self.report.push(hostname.place.warning(format!(
                    "mode = \"tcp\" forwards requests unseen to an HTTP origin that serves {other} too: clients can ask for \
                     its pages by Host; write mode = \"http\", or proxy_protocol = \"v2\" and have the origin check its authority"
                )));
            }
        }
    }

    fn warn_of_unused(&mut self, used: &HashSet<String>, no_hostnames: bool) {
        if self.incomplete || self.report.has_errors() {
            return;
        }
        let unused = self.origins.iter().filter(|(name, _)| !used.contains(*name));
        let warnings = unused.map(|(name, (place, _))| place.warning(format!("no hostname uses [origin.{name}]")));
        let mut warnings: Vec<Problem> = warnings.collect();
        if no_hostnames && let Some(main) = self.files.first() {
            warnings.push(Place::of_file(main).warning("there is no [[hostname]]: every client will be refused"));
        }
        debug_assert!(warnings.iter().all(|problem| problem.severity == Severity::Warning));
        self.report.problems.extend(warnings);
    }
}

/// Reads a table that stands in one file only.
fn single<'a, T>(
    slot: &mut Single<T>,
    root: &Table<'a>,
    key: &'static str,
    keys: &'static [&'static str],
    read: impl FnOnce(&Table<'a>) -> T,
    report: &mut Report,
) {
    let Some(table) = root.get(key).and_then(|value| value.table(format!("[{key}]"), keys)) else { return };
    let place = table.place();
    let value = read(&table);
    match slot {
        Some((first, _)) => {
            let first = first.line_reference();
            report.push(place.error(format!("[{key}] stands at {first} already; it may stand in one file only")));
        }
        None => *slot = Some((place, value)),
    }
}

/// The files one pattern of `include` names, in order of their paths.
fn included_files(value: Value<'_>) -> Vec<(PathBuf, Place)> {
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let Some(pattern) = value.path() else { return Vec::new() };
    let place = value.place();
    let Some(text) = value.as_word() else { return Vec::new() };
    if !text.contains(['*', '?', '[']) {
        return vec![(pattern, place)];
    }
    // Only the part that was written is a pattern: a directory of the main file may well have a bracket in its name.
    let whole = match text.starts_with('/') {
        true => text.to_owned(),
        false => {
            let directory = value.directory().to_string_lossy();
            let directory = if directory.is_empty() { ".".into() } else { directory };
            format!("{}/{text}", glob::Pattern::escape(&directory))
        }
    };
    let paths = match glob::glob_with(&whole, options) {
        Ok(paths) => paths,
        Err(error) => {
            value.error(format!("is {}, which is not a pattern: {}", quote(text), error.msg));
            return Vec::new();
        }
    };
    let mut files = Vec::new();
    for path in paths {
        match path {
            Ok(path) if path.is_dir() => {}
            Ok(path) => files.push((path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path), place.clone())),
            Err(error) => value.error(format!("cannot look into {}: {}", error.path().display(), error.error())),
        }
    }
    files
}

/// Reads a file of bounded size as text.
fn read_text(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(format!("has more than {} MiB; this is no configuration file", CONFIG_BYTES_MAX >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("is not UTF-8 text: the byte at offset {} belongs to no character", error.utf8_error().valid_up_to())
    })
}
