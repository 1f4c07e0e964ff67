//! `[[hostname]]` and `[hostname.client_auth]`.

use std::path::PathBuf;
use std::sync::Arc;

use super::origin::{OriginReference, reference};
use super::rewrite::rewrites;
use super::rule::{RULE_KEYS, rules};
use super::tls::{cipher_suites, min_version};
use crate::config::reader::{Table, Value, one_of, quote, with_suggestion};
use crate::config::report::Place;
use crate::config::types::{CertificateFiles, ClientAuthFiles, Rule};
use crate::policy::IdentitySets;
use crate::registry::{ClientAuthMode, Mode, Name, Rewrites, TlsVersion};
use crate::tls::CHAIN_CERTIFICATES_MAX;

pub const HOSTNAME_KEYS: &[&str] = &[
    "name",
    "certificate",
    "private_key",
    "origin",
    "mode",
    "default",
    "min_version",
    "cipher_suites",
    "alpn",
    "keep_unusual_headers",
    "host_header",
    "strip_prefix",
    "add_headers",
    "remove_headers",
    "response_headers",
    "remove_response_headers",
    "client_auth",
    "rule",
];
pub const CLIENT_AUTH_KEYS: &[&str] = &["mode", "ca", "verify_depth", "allow_expired_ca", "send_ca_names", "headers"];

/// What clients are offered with `mode = "http"` (DECISIONS 31): what is built, in order of preference. A client that
/// names only the older version, as `curl --http1.0` does, would otherwise be refused what it could be served.
const ALPN_HTTP: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// The longest name of an ALPN protocol (RFC 7301 section 3.1: a length of one byte).
const ALPN_BYTES_MAX: usize = 255;

/// The most protocols one hostname may offer: each is compared with each of the client's.
const ALPN_MAX: usize = 16;

/// The most certificates one hostname may have: one for each kind of key clients differ in, with room.
const CERTIFICATES_MAX: usize = 8;

/// A hostname as its own table tells it; what other tables and files say is added when all are read.
pub struct HostnameDraft {
    pub place: Place,
    pub names: Vec<(Name, Place)>,
    pub certificates: Vec<CertificateFiles>,
    pub origin: Option<(OriginReference, Place)>,
    pub mode: Option<Mode>,
    /// Where `default = true` is.
    pub default: Option<Place>,
    pub min_version: Option<(TlsVersion, Place)>,
    pub cipher_suites: Option<(Vec<String>, Place)>,
    pub alpn: Vec<Vec<u8>>,
    pub keep_unusual_headers: bool,
    pub rewrites: Option<Arc<Rewrites>>,
    pub client_auth: ClientAuthFiles,
    pub rules: Vec<Rule>,
}

/// `[[hostname]]`
pub fn hostname(table: &Table<'_>) -> HostnameDraft {
    let names = table.require("name", "the hostname clients ask for, as in \"pay.acme.example\"");
    let mode = table.get("mode").map_or(Some(Mode::Http), mode);
    let origin = table.require("origin", "the name of an [origin.NAME] table, or a URL as in \"http://10.0.0.5:8080\"");
    let (client_auth, auth_mode) = client_auth(table, mode);
    let rule_tables = table.get("rule").map(|value| value.tables("[[hostname.rule]]", RULE_KEYS)).unwrap_or_default();
    HostnameDraft {
        place: table.place(),
        names: names.map(self::names).unwrap_or_default(),
        certificates: certificates(table),
        origin: origin.and_then(|value| Some((reference(value)?, value.place()))),
        mode,
        default: table.get("default").filter(|value| value.boolean() == Some(true)).map(|value| value.place()),
        min_version: table.get("min_version").and_then(|value| Some((min_version(value)?, value.place()))),
        cipher_suites: table.get("cipher_suites").map(|value| (cipher_suites(value), value.place())),
        alpn: table.get("alpn").map_or_else(|| alpn_default(mode), |value| alpn(value, mode)),
        keep_unusual_headers: http_only(table, "keep_unusual_headers", mode).is_some_and(|v| v.boolean() == Some(true)),
        rewrites: rewrites(table, mode),
        rules: rules(rule_tables, mode, auth_mode),
        client_auth,
    }
}

fn names(value: Value<'_>) -> Vec<(Name, Place)> {
    let mut names = Vec::new();
    for element in value.one_or_more() {
        let Some(text) = element.string() else { continue };
        match Name::parse_record(text) {
            Ok(name) => names.push((name, element.place())),
            Err(error) => element.error(format!("is {}: {error}", quote(text))),
        }
    }
    names
}

fn mode(value: Value<'_>) -> Option<Mode> {
    match value.string()? {
        "http" => Some(Mode::Http),
        "tcp" => Some(Mode::Tcp),
        "passthrough" => {
            value.error(
                "= \"passthrough\" is not built yet; there are \"http\", and \"tcp\": decrypted bytes, as they come",
            );
            None
        }
        other => {
            value.error(format!("must be \"http\" or \"tcp\", not {}", quote(other)));
            None
        }
    }
}

/// The value of a key that says something about HTTP requests.
pub fn http_only<'a>(table: &Table<'a>, key: &'static str, mode: Option<Mode>) -> Option<Value<'a>> {
    let value = table.get(key)?;
    if mode == Some(Mode::Tcp) {
        value.error("has no meaning with mode = \"tcp\", where bytes pass as they come; remove it");
        return None;
    }
    Some(value)
}

fn alpn_default(mode: Option<Mode>) -> Vec<Vec<u8>> {
    if mode == Some(Mode::Http) { ALPN_HTTP.map(<[u8]>::to_vec).to_vec() } else { Vec::new() }
}

/// Pairs certificates with their keys. Without `private_key` each certificate's file holds its key too.
fn certificates(table: &Table<'_>) -> Vec<CertificateFiles> {
    let Some(value) = table.require("certificate", "the PEM file of its certificate chain, leaf first") else {
        return Vec::new();
    };
    let certificates = value.one_or_more();
    if certificates.len() > CERTIFICATES_MAX {
        value.error(format!("names {} files; a hostname has at most {CERTIFICATES_MAX}", certificates.len()));
    }
    let files = |values: &[Value<'_>]| -> Vec<(Option<PathBuf>, Place)> {
        values.iter().map(|value| (value.path(), value.place())).collect()
    };
    let chains = files(&certificates);
    let keys = match table.get("private_key") {
        None => chains.clone(),
        Some(value) => {
            let keys = value.one_or_more();
            if keys.len() != certificates.len() {
                value.error(format!(
                    "names {} and certificate names {}: give one key for each certificate, in the same order, or leave \
                     private_key out if each certificate's file holds its key",
                    count(keys.len()),
                    count(certificates.len()),
                ));
            }
            files(&keys)
        }
    };
    let pairs = chains.into_iter().zip(keys);
    let pairs = pairs.filter_map(|((certificate, place), (private_key, key_place))| {
        Some(CertificateFiles { place, certificate: certificate?, private_key: private_key?, key_place })
    });
    pairs.collect()
}

fn count(files: usize) -> String {
    if files == 1 { "one file".to_owned() } else { format!("{files} files") }
}

fn alpn(value: Value<'_>, mode: Option<Mode>) -> Vec<Vec<u8>> {
    let mut protocols: Vec<Vec<u8>> = Vec::new();
    let elements = value.list().unwrap_or_default();
    if elements.len() > ALPN_MAX {
        value.error(format!("has {} protocols; a hostname offers at most {ALPN_MAX}", elements.len()));
    }
    for element in elements {
        let Some(text) = element.string() else { continue };
        if text.is_empty() || text.len() > ALPN_BYTES_MAX {
            element.error(format!(
                "must be protocol names of 1 to {ALPN_BYTES_MAX} bytes, as in \"h2\", not {}",
                quote(text)
            ));
        } else if protocols.iter().any(|protocol| protocol == text.as_bytes()) {
            element.error(format!("names {} twice", quote(text)));
        } else if mode == Some(Mode::Http) && !ALPN_HTTP.contains(&text.as_bytes()) {
            element.error(format!(
                "names {}, which mode = \"http\" does not speak; write \"h2\" or \"http/1.1\"",
                quote(text)
            ));
        }
        protocols.push(text.as_bytes().to_vec());
    }
    protocols
}

/// `[hostname.client_auth]`. The table must say its mode: an `off` that nobody wrote would open the door without a word.
///
/// Returns its mode once more, `None` where it is not known: then nothing that hangs on it is to be said.
fn client_auth(hostname: &Table<'_>, forwarding: Option<Mode>) -> (ClientAuthFiles, Option<ClientAuthMode>) {
    let mut auth = ClientAuthFiles {
        mode: ClientAuthMode::Off,
        ca: Vec::new(),
        allow_expired_ca: false,
        verify_depth: None,
        send_ca_names: false,
        headers: IdentitySets { client_cert: true, ..IdentitySets::default() },
    };
    let Some(value) = hostname.get("client_auth") else { return (auth, Some(ClientAuthMode::Off)) };
    let Some(table) = value.table("[hostname.client_auth]", CLIENT_AUTH_KEYS) else { return (auth, None) };
    let modes =
        [("off", ClientAuthMode::Off), ("request", ClientAuthMode::Request), ("require", ClientAuthMode::Require)];
    let mode = table.require("mode", "\"off\", \"request\" or \"require\"").and_then(|value| value.choice(&modes));
    if let Some(mode) = mode {
        auth.mode = mode;
    }
    if let Some(value) = table.get("ca") {
        let elements = value.one_or_more();
        auth.ca = elements.iter().filter_map(|element| Some((element.path()?, element.place()))).collect();
        if mode == Some(ClientAuthMode::Off) {
            value.error("is given, but mode is \"off\" and no client is asked; set mode = \"require\" or remove ca");
        }
    } else if mode.is_some_and(|mode| mode != ClientAuthMode::Off) {
        table.error(format!("{} needs the key \"ca\": the PEM files of the CAs whose clients may pass", table.title));
    }
    for (key, flag) in [("allow_expired_ca", &mut auth.allow_expired_ca), ("send_ca_names", &mut auth.send_ca_names)] {
        let Some(value) = table.get(key) else { continue };
        *flag = value.boolean() == Some(true);
        if *flag && mode == Some(ClientAuthMode::Off) {
            value.error("has no meaning with mode = \"off\"; remove it");
        }
    }
    if let Some(value) = table.get("verify_depth") {
        // The client's own certificate is one of the chain's.
        let depth = value.integer(&(0..=CHAIN_CERTIFICATES_MAX - 1));
        auth.verify_depth = depth.and_then(|depth| u8::try_from(depth).ok());
        if mode == Some(ClientAuthMode::Off) {
            value.error("has no meaning with mode = \"off\"; remove it");
        }
    }
    if let Some(value) = http_only(&table, "headers", forwarding) {
        auth.headers = identity_sets(value);
    }
    (auth, mode)
}

/// The sets of headers in which the origin is told who the client is; none, if the list is empty.
fn identity_sets(value: Value<'_>) -> IdentitySets {
    let mut sets = IdentitySets::default();
    for element in value.list().unwrap_or_default() {
        let Some(name) = element.string() else { continue };
        if !sets.insert(name) {
            let problem = format!("must be {}, not {}", one_of(&IdentitySets::NAMES), quote(name));
            element.error(with_suggestion(problem, name, &IdentitySets::NAMES));
        }
    }
    sets
}
