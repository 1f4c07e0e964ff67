//! Origins spoken with over TLS: the CAs that may have issued their certificates, and our own certificate.

use std::path::Path;
use std::sync::Arc;

use super::pem::{self, CaCertificate};
use super::{Assembly, dates, digest};
use crate::config::{Hostname, OriginTlsFiles, Place, Severity};
use crate::registry::{Ca, CaSet, Origin, OriginTls, ServerCertificate};

/// What an origin's files say of whom it is verified by.
struct Trust {
    cas: Arc<CaSet>,
    pinned: Vec<Ca>,
}

impl Assembly<'_> {
    /// The origin of a hostname, with what its files hold. Made once, however many hostnames use it, so that they share it
    /// and its faults are told once.
    pub(super) fn origin(&mut self, hostname: &Hostname) -> Option<Arc<Origin>> {
        let Some(files) = &hostname.origin_tls else { return Some(Arc::clone(&hostname.origin)) };
        let name = &hostname.origin.name;
        if let Some(known) = self.origins.get(name) {
            return known.clone();
        }
        let tls = self.origin_tls(name, files);
        let origin = tls.map(|tls| Arc::new(Origin { tls: Some(Arc::new(tls)), ..Origin::clone(&hostname.origin) }));
        self.origins.insert(name.clone(), origin.clone());
        origin
    }

    fn origin_tls(&mut self, name: &str, files: &OriginTlsFiles) -> Option<OriginTls> {
        let trust = if files.ca.is_empty() { self.system_trust(name, files) } else { self.own_trust(name, files) };
        // Both are looked at, whatever comes of the first.
        let certificate = match &files.certificate {
            None => Some(None),
            Some(certificate) => self.origin_certificate(name, certificate).map(Some),
        };
        let (Trust { cas, pinned }, certificate) = (trust?, certificate?);
        let (server_name, min_version) = (files.server_name.clone(), files.min_version);
        let http2 = files.http2;
        let mut tls = OriginTls { cas, pinned, server_name, certificate, min_version, http2, digest: [0; 32] };
        tls.digest = digest::of_origin_tls(&tls);
        Some(tls)
    }

    /// The CAs of the system, read once for all origins.
    fn system_trust(&mut self, name: &str, files: &OriginTlsFiles) -> Option<Trust> {
        let known = self.system_cas.get_or_insert_with(|| {
            let found = rustls_native_certs::load_native_certs();
            // A store may hold anything; what is no CA vouches for nobody.
            let cas = found.certs.iter().filter_map(|der| pem::read_ca(der).ok()).collect();
            let why = found.errors.first().map(ToString::to_string);
            (cas, why)
        });
        let (cas, why) = (known.0.clone(), known.1.clone());
        if cas.is_empty() {
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            let text = format!(
                "origin {name}: this system has no CA certificates{why}; install ca-certificates, or name the CA in tls.ca"
            );
            self.fail(&files.place, text);
            return None;
        }
        Some(Trust { cas: self.set_of(cas), pinned: Vec::new() })
    }

    /// The certificates that the origin itself names.
    fn own_trust(&mut self, name: &str, files: &OriginTlsFiles) -> Option<Trust> {
        let mut found: Vec<(CaCertificate, bool)> = Vec::new();
        let mut whole = true;
        for (path, place) in &files.ca {
            match pem::read_trusted(path) {
                Ok(file) => {
                    if file.holds_private_key {
                        let text = format!(
                            "origin {name}: ca {} holds a private key, which does not belong there",
                            path.display()
                        );
                        self.find(place, Severity::Warning, text);
                    }
                    self.check_trusted_dates(name, path, place, &file.certificates);
                    found.extend(file.certificates);
                }
                Err(reasons) => {
                    whole = false;
                    for reason in reasons {
                        self.fail(place, format!("origin {name}: ca {}: {reason}", path.display()));
                    }
                }
            }
        }
        if !whole {
            return None;
        }
        if found.len() > super::CAS_MAX {
            let text =
                format!("origin {name}: {} certificates in ca; an origin has at most {}", found.len(), super::CAS_MAX);
            self.fail(&files.place, text);
            return None;
        }
        let mut pinned: Vec<&CaCertificate> = found.iter().map(|(certificate, _)| certificate).collect();
        pinned.sort_by_key(|certificate| certificate.digest);
        pinned.dedup_by_key(|certificate| certificate.digest);
        let pinned = pinned.into_iter().map(CaCertificate::to_ca).collect();
        let cas = found.into_iter().filter(|(_, is_ca)| *is_ca).map(|(certificate, _)| certificate).collect();
        Some(Trust { cas: self.set_of(cas), pinned })
    }

    /// A certificate outside its dates vouches for nobody (DECISIONS 8).
    fn check_trusted_dates(&mut self, name: &str, path: &Path, place: &Place, found: &[(CaCertificate, bool)]) {
        let texts: Vec<String> =
            found.iter().filter_map(|(certificate, _)| dates::of_ca(certificate.validity, self.now_unix_s)).collect();
        let severity = if texts.len() == found.len() { Severity::Error } else { Severity::Warning };
        for text in texts {
            let text = format!("origin {name}: ca {}: a certificate {text}; it vouches for nobody", path.display());
            self.find(place, severity, text);
        }
    }

    fn origin_certificate(&mut self, name: &str, files: &crate::config::CertificateFiles) -> Option<ServerCertificate> {
        match pem::read_certificate(&files.certificate, &files.private_key, &self.provider) {
            Ok(file) => {
                if file.key_is_world_readable && self.readable_keys.insert(files.private_key.clone()) {
                    let text = format!(
                        "origin {name}: private_key {} can be read by every user of this machine; chmod 600, or 640 for a group",
                        files.private_key.display()
                    );
                    self.find(&files.key_place, Severity::Warning, text);
                }
                let path = files.certificate.display();
                for (index, validity) in file.validities.iter().enumerate() {
                    if let Some((severity, text)) = dates::of_certificate(*validity, self.now_unix_s) {
                        let which =
                            if index == 0 { String::new() } else { format!(" (number {} of its chain)", index + 1) };
                        self.find(&files.place, severity, format!("origin {name}: certificate {path}{which} {text}"));
                    }
                }
                Some(file.certificate)
            }
            Err(faults) => {
                for fault in faults {
                    let place = if fault.of_key { &files.key_place } else { &files.place };
                    self.fail(place, format!("origin {name}: {}", fault.text));
                }
                None
            }
        }
    }
}
