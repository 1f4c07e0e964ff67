//! From a checked configuration to the snapshot that workers serve: opens every certificate, key and CA.
//!
//! Whatever would make a hostname unservable, or widen or narrow whom it trusts without a word, is an error, and with one
//! error nothing changes (I10). What concerns one certificate and leaves the others fine is a finding: a certificate that
//! expired last night must not keep a server from starting with ten thousand other hostnames.
//!
//! | finding | `check --full` | `run` and reload |
//! |---|---|---|
//! | file missing, PEM broken, key does not belong to certificate, CA that is no CA, rule that does not compile | fails | refuse |
//! | certificate (or one of its chain) expired, not yet valid; does not cover the hostname; no CA of the set is valid today | fails | say so, and serve |
//! | certificate ends within 14 days; chain out of order; one CA of several outside its dates; private key in a CA file, or readable by everybody | says so | say so, and serve |
//!
//! The second row comes back in [`Assembled::warnings`] with [`Severity::Error`], the third with [`Severity::Warning`].
//!
//! Records are told apart by digest: one that equals the previous record of its name *is* that record, the same `Arc`, so
//! that workers see what changed by comparing pointers. CA sets are shared between hostnames by digest.

mod dates;
mod digest;
mod origin;
mod pem;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;

use self::pem::{CaCertificate, CaFile, CertificateFile};
use crate::config::{self, Config, Hostname, Place, Problem, Report, Severity};
use crate::policy::Rules;
use crate::registry::{
    CaSet, ClientAuth, ClientAuthMode, HostnameRecord, Name, Origin, RecordId, ServerCertificate, Snapshot,
};

/// The most CAs one hostname may trust. Each is a trust anchor to compare issuers with, some hundreds of bytes a worker.
const CAS_MAX: usize = 4096;

/// What came of a configuration whose every file could be used.
#[derive(Debug)]
pub struct Assembled {
    /// All records, at the generation asked for.
    pub snapshot: Arc<Snapshot>,
    /// What was found about the files, in the order of the hostnames. Nothing here stops a server; `check --full` fails on
    /// those of [`Severity::Error`]. The warnings of the configuration itself are in `Config::warnings`.
    pub warnings: Vec<Problem>,
}

/// Opens every file of a configuration and makes the records of the next snapshot.
///
/// # Errors
///
/// Everything that makes a record unusable, with the findings that would have been warnings; `previous` stays in force.
pub fn assemble(config: &Config, previous: Option<&Snapshot>, generation: u64) -> Result<Assembled, Report> {
    assemble_at(config, previous, generation, now_unix_s())
}

/// The time, in seconds since the Unix epoch. A clock before 1970 makes every certificate "not yet valid", which is what it
/// is then.
fn now_unix_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Like [`assemble`], with the time passed in, seconds since the Unix epoch.
///
/// # Errors
///
/// As [`assemble`].
pub fn assemble_at(
    config: &Config,
    previous: Option<&Snapshot>,
    generation: u64,
    now_unix_s: i64,
) -> Result<Assembled, Report> {
    Assembly::new(config.tls.provider.full(), previous, now_unix_s).assemble(config, generation)
}

/// Reads a configuration and opens every file it names: what `run` starts with and `check --full` reports. Records of the
/// names in `ids` keep the identity they had in the process that this one takes over from, as they keep it over a reload.
///
/// # Errors
///
/// All that is wrong, of the configuration and of the files, warnings included. Where keys are at fault the files are opened
/// all the same, so that one run tells everything.
pub fn load(
    path: &Path,
    ids: Option<&HashMap<String, RecordId>>,
    generation: u64,
) -> Result<(Config, Assembled), Report> {
    let assemble = |config: &Config| {
        let mut assembly = Assembly::new(config.tls.provider.full(), None, now_unix_s());
        assembly.ids = ids;
        assembly.assemble(config, generation)
    };
    let (mut config, mut report) = config::read(path);
    if !report.has_errors() {
        config.warnings = std::mem::take(&mut report.problems);
        return match assemble(&config) {
            Ok(assembled) => Ok((config, assembled)),
            Err(errors) => Err(Report { problems: config.warnings.into_iter().chain(errors.problems).collect() }),
        };
    }
    for hostname in &mut config.hostnames {
        // Their faults have been told.
        hostname.rules.clear();
        if hostname.client_auth.ca.is_empty() {
            hostname.client_auth.mode = ClientAuthMode::Off;
        }
    }
    let found = match assemble(&config) {
        Ok(assembled) => assembled.warnings,
        Err(errors) => errors.problems,
    };
    report.problems.extend(found);
    report.sort(&config.files);
    Err(report)
}

/// `check --full`: reports all that is found, warnings included. It passed if the report has no errors.
pub fn check_full(path: &Path) -> Report {
    match load(path, None, 0) {
        Ok((config, assembled)) => Report { problems: config.warnings.into_iter().chain(assembled.warnings).collect() },
        Err(report) => report,
    }
}

/// What hostnames share while a snapshot is made.
struct Assembly<'a> {
    provider: CryptoProvider,
    previous: HashMap<&'a str, &'a Arc<HostnameRecord>>,
    /// The identities records had in the process that served before this one.
    ids: Option<&'a HashMap<String, RecordId>>,
    ca_sets: HashMap<[u8; 32], Arc<CaSet>>,
    /// CA files by path: a thousand hostnames with one CA file read it once, and its faults are told once.
    ca_files: HashMap<PathBuf, Option<Arc<CaFile>>>,
    /// CA sets whose dates have been told.
    dated: HashSet<[u8; 32]>,
    /// Origins over TLS by name, with what their files hold; `None`: something is wrong with them, and has been told.
    origins: HashMap<String, Option<Arc<Origin>>>,
    /// The CAs of the system, once an origin needed them, and why there might be none.
    system_cas: Option<(Vec<CaCertificate>, Option<String>)>,
    /// Keys that every user can read, and that this has been told of.
    readable_keys: HashSet<PathBuf>,
    now_unix_s: i64,
    findings: Report,
    /// Whether one of the findings makes a record unusable.
    failed: bool,
}

impl<'a> Assembly<'a> {
    fn new(provider: CryptoProvider, previous: Option<&'a Snapshot>, now_unix_s: i64) -> Self {
        let previous: HashMap<&str, &Arc<HostnameRecord>> =
            previous.into_iter().flat_map(Snapshot::records).map(|record| (record.name.as_str(), record)).collect();
        let ca_sets = previous.values().filter_map(|record| record.client_auth.ca_set.as_ref());
        let ca_sets = ca_sets.map(|set| (set.digest, Arc::clone(set))).collect();
        Self {
            provider,
            previous,
            ids: None,
            ca_sets,
            ca_files: HashMap::new(),
            dated: HashSet::new(),
            origins: HashMap::new(),
            system_cas: None,
            readable_keys: HashSet::new(),
            now_unix_s,
            findings: Report::default(),
            failed: false,
        }
    }

    fn assemble(mut self, config: &Config, generation: u64) -> Result<Assembled, Report> {
        let mut records = Vec::new();
        for hostname in &config.hostnames {
            records.extend(self.hostname(hostname));
        }
        if self.failed {
            return Err(self.findings);
        }
        let snapshot = Arc::new(Snapshot::new(generation, records));
        Ok(Assembled { snapshot, warnings: self.findings.problems })
    }

    /// Something that makes a record unusable.
    fn fail(&mut self, place: &Place, text: String) {
        self.failed = true;
        self.findings.push(place.error(text));
    }

    /// Something worth knowing.
    fn find(&mut self, place: &Place, severity: Severity, text: String) {
        self.findings.push(Problem { place: place.clone(), text, severity });
    }

    /// Makes the records of one `[[hostname]]`, one for each of its names; none if something is wrong with it.
    fn hostname(&mut self, hostname: &Hostname) -> Vec<Arc<HostnameRecord>> {
        let Some((first, _)) = hostname.names.first() else { return Vec::new() };
        let certificates = self.certificates(hostname, first);
        let client_auth = self.client_auth(hostname, first);
        let rules = self.rules(hostname, first);
        let origin = self.origin(hostname);
        let (Some(certificates), Some(client_auth), Some(rules), Some(origin)) =
            (certificates, client_auth, rules, origin)
        else {
            return Vec::new();
        };
        let names = hostname.names.iter().enumerate();
        let records = names.filter_map(|(index, (name, place))| {
            let record = HostnameRecord {
                id: RecordId([0; 16]),
                name: name.clone(),
                is_default: hostname.is_default && index == 0,
                mode: hostname.mode,
                certificates: certificates.clone(),
                client_auth: client_auth.clone(),
                rules: rules.clone(),
                origin: Arc::clone(&origin),
                min_version: hostname.min_version,
                cipher_suites: hostname.cipher_suites.clone(),
                alpn: hostname.alpn.clone(),
                keep_unusual_headers: hostname.keep_unusual_headers,
                rewrites: hostname.rewrites.clone(),
                digest: [0; 32],
            };
            let digest = digest::of_record(&record, hostname.rules.iter().map(|rule| &rule.spec));
            self.settle(HostnameRecord { digest, ..record }, place)
        });
        records.collect()
    }

    /// Gives a record its identity: that of the previous record of its name, which it is if nothing changed.
    fn settle(&mut self, record: HostnameRecord, place: &Place) -> Option<Arc<HostnameRecord>> {
        if let Some(previous) = self.previous.get(record.name.as_str()) {
            if previous.digest == record.digest {
                return Some(Arc::clone(previous));
            }
            return Some(Arc::new(HostnameRecord { id: previous.id, ..record }));
        }
        if let Some(id) = self.ids.and_then(|ids| ids.get(record.name.as_str())) {
            return Some(Arc::new(HostnameRecord { id: *id, ..record }));
        }
        let mut id = [0; 16];
        if self.provider.secure_random.fill(&mut id).is_err() {
            self.fail(place, format!("{}: the system gave no random bytes for the record's identity", record.name));
            return None;
        }
        Some(Arc::new(HostnameRecord { id: RecordId(id), ..record }))
    }

    fn certificates(&mut self, hostname: &Hostname, name: &Name) -> Option<Vec<ServerCertificate>> {
        let mut certificates = Vec::with_capacity(hostname.certificates.len());
        for files in &hostname.certificates {
            match pem::read_certificate(&files.certificate, &files.private_key, &self.provider) {
                Ok(file) => {
                    if file.key_is_world_readable && self.readable_keys.insert(files.private_key.clone()) {
                        let text = format!(
                            "{name}: private_key {} can be read by every user of this machine; chmod 600, or 640 for a group",
                            files.private_key.display()
                        );
                        self.find(&files.key_place, Severity::Warning, text);
                    }
                    self.check_certificate(hostname, &files.place, &files.certificate, &file);
                    certificates.push(file.certificate);
                }
                Err(faults) => {
                    for fault in faults {
                        let place = if fault.of_key { &files.key_place } else { &files.place };
                        self.fail(place, format!("{name}: {}", fault.text));
                    }
                }
            }
        }
        (certificates.len() == hostname.certificates.len()).then_some(certificates)
    }

    /// Looks at the dates, the order of the chain and the names.
    fn check_certificate(&mut self, hostname: &Hostname, place: &Place, path: &Path, file: &CertificateFile) {
        let Some((first, _)) = hostname.names.first() else { return };
        let path = path.display();
        for (index, validity) in file.validities.iter().enumerate() {
            if let Some((severity, text)) = dates::of_certificate(*validity, self.now_unix_s) {
                let which = if index == 0 { String::new() } else { format!(" (number {} of its chain)", index + 1) };
                self.find(place, severity, format!("{first}: certificate {path}{which} {text}"));
            }
        }
        if let Some(index) = file.out_of_order {
            let text = format!(
                "{first}: certificate {path}: number {index} of the chain was not issued by number {}; write the leaf first, \
                 then each issuer",
                index + 1
            );
            self.find(place, Severity::Warning, text);
        }
        for (name, place) in &hostname.names {
            if !pem::covers(&file.certificate, name) {
                let names = if file.names.is_empty() { "no DNS name at all".to_owned() } else { file.names.join(", ") };
                let text = format!("{name}: certificate {path} does not cover this name; it is for {names}");
                self.find(place, Severity::Error, text);
            }
        }
    }

    fn client_auth(&mut self, hostname: &Hostname, name: &Name) -> Option<ClientAuth> {
        let auth = &hostname.client_auth;
        let ca_set = match auth.mode {
            ClientAuthMode::Off => None,
            ClientAuthMode::Request | ClientAuthMode::Require => Some(self.ca_set(hostname, name)?),
        };
        Some(ClientAuth {
            mode: auth.mode,
            ca_set,
            allow_expired_ca: auth.allow_expired_ca,
            verify_depth: auth.verify_depth,
            send_ca_names: auth.send_ca_names,
            headers: auth.headers,
        })
    }

    /// Reads the CAs of one hostname. A set without a CA is never made: it would be a misunderstanding, either way.
    fn ca_set(&mut self, hostname: &Hostname, name: &Name) -> Option<Arc<CaSet>> {
        let mut files = Vec::with_capacity(hostname.client_auth.ca.len());
        for (path, place) in &hostname.client_auth.ca {
            files.extend(self.ca_file(path, place, name));
        }
        if files.len() < hostname.client_auth.ca.len() {
            return None;
        }
        let mut cas: Vec<CaCertificate> = files.iter().flat_map(|file| &file.cas).cloned().collect();
        cas.sort_by_key(|ca| ca.digest);
        cas.dedup_by_key(|ca| ca.digest);
        if cas.is_empty() || cas.len() > CAS_MAX {
            self.fail(&hostname.place, format!("{name}: {} CAs; a hostname trusts 1 to {CAS_MAX}", cas.len()));
            return None;
        }
        let set = self.set_of(cas);
        self.check_ca_dates(hostname, name, &set, &files);
        Some(set)
    }

    /// The set of these CAs; one of the same CAs is the same.
    fn set_of(&mut self, mut cas: Vec<CaCertificate>) -> Arc<CaSet> {
        cas.sort_by_key(|ca| ca.digest);
        cas.dedup_by_key(|ca| ca.digest);
        let digest = digest::of_cas(cas.iter().map(|ca| &ca.digest));
        let set = self.ca_sets.entry(digest);
        Arc::clone(
            set.or_insert_with(|| Arc::new(CaSet { digest, cas: cas.iter().map(CaCertificate::to_ca).collect() })),
        )
    }

    /// A CA outside its own dates is no anchor (DECISIONS 8) unless the hostname says so. Told once for each set.
    fn check_ca_dates(&mut self, hostname: &Hostname, name: &Name, set: &CaSet, files: &[Arc<CaFile>]) {
        if hostname.client_auth.allow_expired_ca || !self.dated.insert(set.digest) {
            return;
        }
        let now = self.now_unix_s;
        let none_valid = !set.cas.iter().any(|ca| ca.not_before_unix_s <= now && now <= ca.not_after_unix_s);
        for ((path, place), file) in hostname.client_auth.ca.iter().zip(files) {
            for (index, ca) in file.cas.iter().enumerate() {
                let Some(text) = dates::of_ca(ca.validity, now) else { continue };
                let path = path.display();
                let (severity, effect) = match none_valid {
                    true => {
                        (Severity::Error, "and no other CA of this hostname is valid: no client certificate can pass")
                    }
                    false => (Severity::Warning, "clients it issued do not pass"),
                };
                let text = format!("{name}: ca {path}: certificate {} {text}; {effect}", index + 1);
                self.find(place, severity, text);
            }
        }
    }

    fn ca_file(&mut self, path: &Path, place: &Place, name: &Name) -> Option<Arc<CaFile>> {
        if let Some(known) = self.ca_files.get(path) {
            return known.clone();
        }
        let file = match pem::read_cas(path) {
            Ok(file) => {
                if file.holds_private_key {
                    let text =
                        format!("{name}: ca {} holds a private key, which does not belong there", path.display());
                    self.find(place, Severity::Warning, text);
                }
                Some(Arc::new(file))
            }
            Err(reasons) => {
                for reason in reasons {
                    self.fail(place, format!("{name}: ca {}: {reason}", path.display()));
                }
                None
            }
        };
        self.ca_files.insert(path.to_owned(), file.clone());
        file
    }

    /// Compiles the rules. `config::load` has done so too; a configuration made by other means has not been through it.
    fn rules(&mut self, hostname: &Hostname, name: &Name) -> Option<Rules> {
        match Rules::compile(hostname.rules.iter().map(|rule| rule.spec.clone()).collect()) {
            Ok(rules) => Some(rules),
            Err(error) => {
                let place = hostname.rules.get(error.rule_index).map_or(&hostname.place, |rule| &rule.place);
                self.fail(place, format!("{name}: {error}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
