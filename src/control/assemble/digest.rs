//! Digests that tell whether two records, or two CA sets, are the same.
//!
//! Every field is framed by its length, so that no two records differ only in where one field ends and the next begins.
//! Digests are compared within one process and never stored, so their form may change from version to version.

use aws_lc_rs::digest::{Context, SHA256, digest};

use crate::policy::IdentitySets;
use crate::policy::rules::{AllowSpec, RuleSpec, VerifySelector};
use crate::registry::{ClientAuthMode, HostnameRecord, Mode, OriginAddress, Scheme, TlsVersion};

/// SHA-256 of bytes.
pub fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    fixed(digest(&SHA256, bytes).as_ref())
}

/// The digest of a CA set: over the digests of its CAs' DER, which come sorted and without duplicates.
pub fn of_cas<'a>(sorted: impl Iterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for digest in sorted {
        context.update(digest);
    }
    fixed(context.finish().as_ref())
}

/// The digest of a record: over everything but its id and the digest itself.
///
/// Rules count as they are written. The private key is left out: it belongs to the leaf's public key, which has been
/// checked, so another encoding of it serves alike, and no digest of a secret is kept where `Debug` shows it.
pub fn of_record<'a>(record: &HostnameRecord, rules: impl Iterator<Item = &'a RuleSpec>) -> [u8; 32] {
    let mut framed = Framed(Context::new(&SHA256));
    framed.text(record.name.as_str());
    framed.number(u64::from(record.is_default));
    framed.number(match record.mode {
        Mode::Tcp => 0,
        Mode::Http => 1,
    });
    framed.list(&record.certificates, |framed, certificate| {
        framed.list(&certificate.chain, |framed, der| framed.bytes(der))
    });
    framed.number(match record.client_auth.mode {
        ClientAuthMode::Off => 0,
        ClientAuthMode::Request => 1,
        ClientAuthMode::Require => 2,
    });
    framed.bytes(record.client_auth.ca_set.as_ref().map_or(&[], |set| &set.digest));
    framed.number(u64::from(record.client_auth.allow_expired_ca));
    framed.number(u64::from(record.client_auth.send_ca_names));
    let IdentitySets { client_cert, x_client_cert, xfcc, cf } = record.client_auth.headers;
    for set in [client_cert, x_client_cert, xfcc, cf, record.keep_unusual_headers] {
        framed.number(u64::from(set));
    }
    framed.list(&rules.collect::<Vec<_>>(), |framed, rule| framed.rule(rule));
    framed.text(&record.origin.name);
    framed.list(&record.origin.addresses, |framed, address| match address {
        OriginAddress::Tcp { host, port } => {
            framed.number(0);
            framed.text(host);
            framed.number(u64::from(*port));
        }
        OriginAddress::Unix(path) => {
            framed.number(1);
            framed.bytes(path.as_os_str().as_encoded_bytes());
        }
    });
    framed.number(match record.origin.scheme {
        Scheme::Any => 0,
        Scheme::Http => 1,
        Scheme::Tcp => 2,
    });
    for time in [record.origin.connect_timeout, record.origin.response_timeout] {
        framed.number(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
    framed.number(record.origin.idle_connections_max as u64);
    framed.number(u64::from(record.origin.share));
    framed.number(u64::from(record.origin.proxy_protocol));
    framed.number(match record.min_version {
        TlsVersion::V1_2 => 0,
        TlsVersion::V1_3 => 1,
    });
    framed.texts(&record.cipher_suites);
    framed.list(&record.alpn, |framed, protocol| framed.bytes(protocol));
    fixed(framed.0.finish().as_ref())
}

struct Framed(Context);

impl Framed {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            each(self, item);
        }
    }

    fn texts(&mut self, texts: &[String]) {
        self.list(texts, |framed, text| framed.text(text));
    }

    fn rule(&mut self, rule: &RuleSpec) {
        // Taken apart in full, so that a selector that is added later is not forgotten here.
        let RuleSpec { path, method, source, verify, allow, deny } = rule;
        self.list(path.as_slice(), |framed, path| framed.text(path));
        self.texts(method);
        self.list(source, |framed, network| framed.text(&network.to_string()));
        self.number(match verify {
            None => 0,
            Some(VerifySelector::Success) => 1,
            Some(VerifySelector::None) => 2,
            Some(VerifySelector::Failed) => 3,
        });
        let AllowSpec {
            common_name,
            organization,
            organizational_unit,
            san_dns,
            san_uri,
            san_email,
            issuer_common_name,
            serial,
            fingerprint_sha256,
        } = allow;
        for selector in [
            common_name,
            organization,
            organizational_unit,
            san_dns,
            san_uri,
            san_email,
            issuer_common_name,
            serial,
            fingerprint_sha256,
        ] {
            self.texts(selector);
        }
        self.number(u64::from(*deny));
    }
}

/// A SHA-256 as an array.
fn fixed(digest: &[u8]) -> [u8; 32] {
    let mut fixed = [0; 32];
    fixed.copy_from_slice(digest);
    fixed
}
