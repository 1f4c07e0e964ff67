//! Real files, made for each test, through [`assemble_at`].

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384,
};
use tempfile::TempDir;
use time::OffsetDateTime;

use super::*;

/// 2026-01-01T00:00:00Z; certificates of the tests are valid for the years 2025 and 2026.
const NOW: i64 = 1_767_225_600;
const DAY_S: i64 = 86_400;
const YEAR_S: i64 = 365 * DAY_S;

struct Files(TempDir);

impl Files {
    /// Two CAs, and a certificate for a.example and *.a.example with its key.
    fn new() -> Self {
        let files = Self(tempfile::tempdir().expect("a temporary directory"));
        files.ca("ca1.pem", "CA 1");
        files.ca("ca2.pem", "CA 2");
        files.server("a", &["a.example", "*.a.example"]);
        files
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("a file");
        // As keys should be: the umask of whoever runs the tests has no say.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).expect("a file")
    }

    fn ca(&self, file: &str, name: &str) {
        self.ca_with(file, name, |_| {});
    }

    fn ca_with(&self, file: &str, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = params(&[], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        self.write(file, &params.self_signed(&key).expect("a certificate").pem());
    }

    fn server(&self, stem: &str, names: &[&str]) {
        self.server_with(stem, names, |_| {});
    }

    /// Writes STEM.pem and STEM.key.
    fn server_with(&self, stem: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(names, stem);
        change(&mut params);
        self.write(&format!("{stem}.pem"), &params.self_signed(&key).expect("a certificate").pem());
        self.write(&format!("{stem}.key"), &key.serialize_pem());
    }

    fn config(&self, text: &str) -> Config {
        self.write("hostward.toml", text);
        config::load(&self.0.path().join("hostward.toml")).expect("a sound configuration")
    }

    fn assemble(&self, text: &str, previous: Option<&Snapshot>) -> Result<Assembled, String> {
        let result =
            assemble_at(&self.config(text), previous, previous.map_or(1, |previous| previous.generation + 1), NOW);
        result.map_err(|report| self.cut(&report.to_string()))
    }

    fn good(&self, text: &str) -> Assembled {
        self.assemble(text, None).expect("usable files")
    }

    /// The findings of files that can be used.
    fn findings(&self, text: &str) -> Vec<String> {
        self.good(text).warnings.iter().map(|problem| self.cut(&problem.to_string())).collect()
    }

    /// The reasons of files that cannot be used.
    fn errors(&self, text: &str) -> Vec<String> {
        self.assemble(text, None).expect_err("unusable files").lines().map(str::to_owned).collect()
    }

    fn cut(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn at(unix_s: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_s).expect("a time")
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = at(NOW - YEAR_S);
    params.not_after = at(NOW + YEAR_S);
    params
}

fn hostname(name: &str, certificate: &str, rest: &str) -> String {
    format!(
        "[[hostname]]\nname='{name}'\ncertificate='{certificate}.pem'\nprivate_key='{certificate}.key'\n\
         origin='tcp://h:1'\nmode='tcp'\n{rest}\n"
    )
}

fn require(ca: &str) -> String {
    format!("[hostname.client_auth]\nmode='require'\nca=[{ca}]")
}

fn record<'a>(assembled: &'a Assembled, name: &str) -> &'a Arc<HostnameRecord> {
    assembled.snapshot.records().find(|record| record.name.as_str() == name).expect("a record")
}

#[test]
fn a_hostname_becomes_a_record_for_each_name() {
    let files = Files::new();
    let assembled = files.good(
        "[[hostname]]\nname=['a.example', '*.a.example']\ncertificate='a.pem'\nprivate_key='a.key'\norigin='tcp://H:1'\n\
         mode='tcp'\ndefault=true\nalpn=['h2']\n[hostname.client_auth]\nmode='request'\nca=['ca2.pem', 'ca1.pem']\n\
         send_ca_names=true\n[[hostname.rule]]\nverify='SUCCESS'\nallow={}\n",
    );
    assert_eq!(assembled.warnings, []);
    assert_eq!((assembled.snapshot.generation, assembled.snapshot.len()), (1, 2));
    let (exact, wildcard) = (record(&assembled, "a.example"), record(&assembled, "*.a.example"));
    assert_ne!(exact.id, wildcard.id);
    assert_ne!(exact.digest, wildcard.digest);
    assert!(exact.is_default && !wildcard.is_default, "one record is the default");
    assert_eq!(exact.certificates[0].chain.len(), 1);
    assert_eq!(exact.certificates[0].not_after_unix_s, NOW + YEAR_S);
    assert_eq!(exact.alpn, [b"h2".to_vec()]);
    assert!(exact.client_auth.send_ca_names && !exact.client_auth.allow_expired_ca);
    assert!(!exact.rules.is_empty());
    let set = exact.client_auth.ca_set.as_ref().expect("a CA set");
    assert_eq!(set.cas.len(), 2);
    let digests: Vec<[u8; 32]> = set.cas.iter().map(|ca| digest::of_bytes(&ca.der)).collect();
    assert!(digests.is_sorted());
    assert_eq!(set.digest, digest::of_cas(digests.iter()));
    assert_eq!(set.cas[0].not_after_unix_s, NOW + YEAR_S);
}

#[test]
fn one_set_of_cas_is_one_object() {
    let files = Files::new();
    files.server("b", &["b.example"]);
    files.write("both.pem", &format!("{}{}{}", files.read("ca1.pem"), files.read("ca2.pem"), files.read("ca1.pem")));
    let text = hostname("a.example", "a", &require("'ca1.pem', 'ca2.pem'"))
        + &hostname("b.example", "b", &require("'both.pem'"));
    let first = files.good(&text);
    let set = |assembled: &Assembled, name: &str| record(assembled, name).client_auth.ca_set.clone().expect("a CA set");
    assert!(Arc::ptr_eq(&set(&first, "a.example"), &set(&first, "b.example")), "whatever the files");
    // A record that changed otherwise keeps the object of the set, so that workers keep its verifier.
    let second = files.assemble(&text.replace("tcp://h:1", "tcp://h:2"), Some(&first.snapshot)).expect("usable files");
    assert!(!Arc::ptr_eq(record(&first, "a.example"), record(&second, "a.example")));
    assert!(Arc::ptr_eq(&set(&first, "a.example"), &set(&second, "a.example")));
}

#[test]
fn what_did_not_change_is_the_same_record() {
    let files = Files::new();
    files.server("b", &["b.example"]);
    let a = hostname("a.example", "a", &require("'ca1.pem'"));
    let b = hostname("b.example", "b", "");
    let first = files.good(&(a.clone() + &b));
    let again = files.assemble(&(b.clone() + &a), Some(&first.snapshot)).expect("usable files");
    assert_eq!(again.snapshot.generation, 2);
    for name in ["a.example", "b.example"] {
        assert!(Arc::ptr_eq(record(&first, name), record(&again, name)), "{name}");
    }
    // Every key makes another record, with the same identity; the neighbour stays.
    for changed in [
        a.replace("ca1", "ca2"),
        a.replace("'require'", "'request'"),
        a.replace("tcp://h:1", "tcp://h:2"),
        a.replace("tcp://h:1", "unix:/h"),
        a.replace("mode='tcp'\n", "mode='tcp'\nalpn=['h2']\n"),
        a.replace("mode='tcp'\n", "mode='tcp'\nmin_version='1.3'\n"),
        a.replace("mode='tcp'\n", "mode='tcp'\ndefault=true\n"),
        a.replace("mode='tcp'\n", "mode='tcp'\ncipher_suites=['TLS_AES_128_GCM_SHA256']\n"),
        a.replace("ca=", "allow_expired_ca=true\nca="),
        a.replace("ca=", "send_ca_names=true\nca="),
        format!("{a}[[hostname.rule]]\ndeny=true\n"),
        format!("{a}[[hostname.rule]]\nallow={{}}\n"),
        format!("{a}[[hostname.rule]]\nallow={{serial='01'}}\n"),
        format!("{a}[[hostname.rule]]\nverify='NONE'\nallow={{}}\n"),
        format!("{a}[[hostname.rule]]\nsource='::1'\nallow={{}}\n"),
    ] {
        let next = files.assemble(&(changed.clone() + &b), Some(&first.snapshot)).expect("usable files");
        let (before, after) = (record(&first, "a.example"), record(&next, "a.example"));
        assert!(!Arc::ptr_eq(before, after), "{changed}");
        assert_eq!(before.id, after.id, "{changed}");
        assert!(Arc::ptr_eq(record(&first, "b.example"), record(&next, "b.example")), "{changed}");
    }
    // A new certificate in the same file is a change, too.
    files.server("a", &["a.example"]);
    let next = files.assemble(&(a.clone() + &b), Some(&first.snapshot)).expect("usable files");
    assert!(!Arc::ptr_eq(record(&first, "a.example"), record(&next, "a.example")));
    // A hostname that was gone in between is another one.
    let without = files.assemble(&b, Some(&next.snapshot)).expect("usable files");
    let back = files.assemble(&(a + &b), Some(&without.snapshot)).expect("usable files");
    assert_ne!(record(&first, "a.example").id, record(&back, "a.example").id);
}

#[test]
fn an_origin_that_changes_under_its_name_changes_the_record() {
    let files = Files::new();
    let text = |url: &str, rest: &str| {
        format!("[origin.o]\nurl='{url}'\n{rest}\n{}", hostname("a.example", "a", "").replace("tcp://h:1", "o"))
    };
    let first = files.good(&text("tcp://h:1", ""));
    for changed in
        [text("tcp://h:2", ""), text("tcp://h:1", "proxy_protocol='v2'"), text("tcp://h:1", "connect_timeout='1s'")]
    {
        let next = files.assemble(&changed, Some(&first.snapshot)).expect("usable files");
        assert!(!Arc::ptr_eq(record(&first, "a.example"), record(&next, "a.example")), "{changed}");
    }
}

#[test]
fn every_encoding_of_a_key_is_read() {
    let files = Files::new();
    let openssl = |args: &[&str]| {
        let output = std::process::Command::new("openssl").args(args).current_dir(files.0.path()).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "rsa8.key",
        "-out",
        "rsa8.pem",
        "-days",
        "9999",
        "-subj",
        "/CN=a",
        "-addext",
        "subjectAltName=DNS:a.example",
    ]);
    openssl(&["rsa", "-in", "rsa8.key", "-traditional", "-out", "rsa1.key"]);
    fs::copy(files.0.path().join("rsa8.pem"), files.0.path().join("rsa1.pem")).expect("a file");
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-out", "sec1.key"]);
    openssl(&[
        "req",
        "-x509",
        "-key",
        "sec1.key",
        "-out",
        "sec1.pem",
        "-days",
        "9999",
        "-subj",
        "/CN=a",
        "-addext",
        "subjectAltName=DNS:a.example",
    ]);
    for (stem, label) in [("rsa8", "BEGIN PRIVATE"), ("rsa1", "BEGIN RSA PRIVATE"), ("sec1", "BEGIN EC PRIVATE")] {
        assert!(files.read(&format!("{stem}.key")).contains(label), "{stem}");
        for provider in ["aws-lc-rs", "ring"] {
            files.good(&format!("[tls]\nprovider='{provider}'\n{}", hostname("a.example", stem, "")));
        }
    }
    openssl(&["rsa", "-in", "rsa8.key", "-aes128", "-passout", "pass:x", "-out", "enc8.key"]);
    openssl(&["rsa", "-in", "rsa8.key", "-traditional", "-aes128", "-passout", "pass:x", "-out", "enc1.key"]);
    for stem in ["enc8", "enc1"] {
        fs::copy(files.0.path().join("rsa8.pem"), files.0.path().join(format!("{stem}.pem"))).expect("a file");
        let errors = files.errors(&hostname("a.example", stem, ""));
        assert_eq!(
            errors,
            [format!(
                "hostward.toml:4:13: a.example: private_key {stem}.key: {}",
                "the private key is encrypted; decrypt it first, as with openssl pkey -in FILE -out NEW"
            )]
        );
    }
    // Several kinds at once, and a key in the certificate's own file.
    files.write("one.pem", &format!("{}{}", files.read("sec1.key"), files.read("sec1.pem")));
    let several = files.good(
        "[[hostname]]\nname='a.example'\ncertificate=['one.pem', 'rsa1.pem']\nprivate_key=['one.pem', 'rsa1.key']\n\
         origin='tcp://h:1'\nmode='tcp'\n",
    );
    assert_eq!(record(&several, "a.example").certificates.len(), 2);
    files.good("[[hostname]]\nname='a.example'\ncertificate='one.pem'\norigin='tcp://h:1'\nmode='tcp'\n");
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_reason() {
    let files = Files::new();
    files.server("b", &["a.example"]);
    files.write("empty.pem", "");
    files.write("cut.pem", files.read("a.pem").split("-----END").next().unwrap_or_default());
    files.write("bad64.pem", &files.read("a.pem").replacen("MII", "!!!", 1));
    files.write("notder.pem", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    files.write("two.key", &format!("{}{}", files.read("a.key"), files.read("b.key")));
    files.write("badkey.key", "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n");
    for (certificate, key, expected) in [
        ("a.pem", "b.key", "private_key b.key does not belong to certificate a.pem (public keys differ)"),
        ("gone.pem", "a.key", "certificate gone.pem: cannot be opened: No such file or directory (os error 2)"),
        ("a.pem", "gone.key", "private_key gone.key: cannot be opened: No such file or directory (os error 2)"),
        (
            "empty.pem",
            "a.key",
            "certificate empty.pem: holds no PEM certificate (-----BEGIN ...); a DER file must be converted first, as with openssl -inform DER",
        ),
        (
            "cut.pem",
            "a.key",
            "certificate cut.pem: PEM section 1 does not end (its END line is missing, or differs from its BEGIN line)",
        ),
        ("bad64.pem", "a.key", "certificate bad64.pem: PEM section 1 is not base64"),
        ("notder.pem", "a.key", "certificate notder.pem: number 1 is not an X.509 certificate"),
        (
            "a.pem",
            "two.key",
            "private_key two.key: holds 2 private keys; leave the one that belongs to the certificate",
        ),
        (
            "a.pem",
            "badkey.key",
            "private_key badkey.key: the provider cannot use this key; RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384 and Ed25519 can be used",
        ),
        (
            "a.pem",
            "ca1.pem",
            "private_key ca1.pem: holds no PEM private key (-----BEGIN ...); a DER file must be converted first, as with openssl -inform DER",
        ),
    ] {
        let text = hostname("a.example", "a", "").replace("a.pem", certificate).replace("a.key", key);
        let line = if expected.starts_with("private_key") { 4 } else { 3 };
        assert_eq!(files.errors(&text), [format!("hostward.toml:{line}:13: a.example: {expected}")]);
    }
}

#[test]
fn a_ca_that_is_none_spoils_its_file() {
    let files = Files::new();
    files.ca_with("sign.pem", "no certificates", |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    files.write("mixed.pem", &format!("{}{}{}", files.read("ca1.pem"), files.read("a.pem"), files.read("sign.pem")));
    files.write("empty.pem", "nothing here");
    let errors = files.errors(&hostname("a.example", "a", &require("'ca1.pem', 'mixed.pem', 'empty.pem'")));
    assert_eq!(
        errors,
        [
            "hostward.toml:9:16: a.example: ca mixed.pem: certificate 2 is not a CA (basicConstraints CA:TRUE is missing); \
             name the CA that issued the clients' certificates",
            "hostward.toml:9:16: a.example: ca mixed.pem: certificate 3 is not a CA (its keyUsage does not allow keyCertSign)",
            "hostward.toml:9:29: a.example: ca empty.pem: holds no PEM certificate (-----BEGIN ...); a DER file must be \
             converted first, as with openssl -inform DER",
        ]
    );
}

#[test]
fn all_hostnames_are_looked_at_and_a_shared_fault_is_told_once() {
    let files = Files::new();
    let text = hostname("a.example", "a", &require("'gone.pem'"))
        + &hostname("b.a.example", "b", "")
        + &hostname("c.a.example", "a", &require("'gone.pem'"));
    let errors = files.errors(&text);
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(errors[0].contains("a.example: ca gone.pem: cannot be opened"));
    assert!(errors[1].contains("b.a.example: certificate b.pem: cannot be opened"));
    assert!(errors[2].contains("b.a.example: private_key b.key: cannot be opened"));
}

#[test]
fn dates_and_names_are_found_and_do_not_stop() {
    let files = Files::new();
    files.server_with("old", &["a.example"], |params| params.not_after = at(NOW - DAY_S));
    files.server_with("new", &["a.example"], |params| params.not_before = at(NOW + DAY_S));
    files.server_with("soon", &["a.example"], |params| params.not_after = at(NOW + 3 * DAY_S));
    for (name, certificate, expected) in [
        (
            "a.example",
            "old",
            vec!["3:13: a.example: certificate old.pem expired on 2025-12-31T00:00:00Z; clients will refuse it"],
        ),
        (
            "a.example",
            "new",
            vec![
                "3:13: a.example: certificate new.pem is not valid before 2026-01-02T00:00:00Z; clients will refuse it",
            ],
        ),
        (
            "a.example",
            "soon",
            vec!["3:13: warning: a.example: certificate soon.pem expires in 3 days, on 2026-01-04T00:00:00Z"],
        ),
        (
            "b.example",
            "a",
            vec!["2:6: b.example: certificate a.pem does not cover this name; it is for a.example, *.a.example"],
        ),
        ("x.a.example", "a", vec![]),
        ("*.a.example", "a", vec![]),
        (
            "x.x.a.example",
            "a",
            vec!["2:6: x.x.a.example: certificate a.pem does not cover this name; it is for a.example, *.a.example"],
        ),
        (
            "*.x.a.example",
            "a",
            vec!["2:6: *.x.a.example: certificate a.pem does not cover this name; it is for a.example, *.a.example"],
        ),
    ] {
        let expected: Vec<String> = expected.iter().map(|line| format!("hostward.toml:{line}")).collect();
        assert_eq!(files.findings(&hostname(name, certificate, "")), expected);
    }
    let found = files.good(&hostname("b.example", "old", "")).warnings;
    assert!(found.iter().all(|problem| problem.severity == Severity::Error), "check --full fails on these");
}

#[test]
fn the_common_name_covers_nothing() {
    let files = Files::new();
    files.server_with("cn", &[], |params| params.distinguished_name.push(DnType::CommonName, "a.example"));
    let findings = files.findings(&hostname("a.example", "cn", ""));
    assert_eq!(
        findings,
        ["hostward.toml:2:6: a.example: certificate cn.pem does not cover this name; it is for no DNS name at all"]
    );
}

#[test]
fn chains_are_looked_at_as_a_whole() {
    let files = Files::new();
    let issuer = |name: &str, not_after| {
        let mut params = params(&[], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = at(not_after);
        CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key"))
            .expect("a CA")
    };
    let (old, other) = (issuer("Old", NOW - DAY_S), issuer("Other", NOW + YEAR_S));
    let key = KeyPair::generate().expect("a key");
    let leaf = params(&["a.example"], "leaf").signed_by(&key, &old).expect("a certificate");
    files.write("chain.key", &key.serialize_pem());
    files.write("chain.pem", &format!("{}{}", leaf.pem(), old.pem()));
    let findings = files.findings(&hostname("a.example", "chain", ""));
    assert_eq!(findings.len(), 1);
    assert!(findings[0].contains("certificate chain.pem (number 2 of its chain) expired on"), "{findings:?}");
    let assembled = files.good(&hostname("a.example", "chain", ""));
    assert_eq!(record(&assembled, "a.example").certificates[0].not_after_unix_s, NOW - DAY_S, "the earliest counts");
    files.write("chain.pem", &format!("{}{}", leaf.pem(), other.pem()));
    let findings = files.findings(&hostname("a.example", "chain", ""));
    assert!(findings[0].contains("number 1 of the chain was not issued by number 2"), "{findings:?}");
    files.write("chain.pem", &leaf.pem().repeat(17));
    assert!(
        files.errors(&hostname("a.example", "chain", ""))[0].contains("holds 17 certificates; a chain has at most 16")
    );
}

#[test]
fn a_ca_outside_its_dates_is_told_once() {
    let files = Files::new();
    files.ca_with("old.pem", "Old", |params| params.not_after = at(NOW - DAY_S));
    let both = hostname("a.example", "a", &require("'old.pem', 'ca1.pem'"))
        + &hostname("b.a.example", "a", &require("'ca1.pem', 'old.pem'"));
    assert_eq!(
        files.findings(&both),
        [
            "hostward.toml:9:5: warning: a.example: ca old.pem: certificate 1 expired on 2025-12-31T00:00:00Z; clients it issued do not pass"
        ]
    );
    assert_eq!(
        files.findings(&hostname("a.example", "a", &require("'old.pem'"))),
        [
            "hostward.toml:9:5: a.example: ca old.pem: certificate 1 expired on 2025-12-31T00:00:00Z; and no other CA of this \
          hostname is valid: no client certificate can pass"
        ]
    );
    assert_eq!(files.findings(&hostname("a.example", "a", &require("'old.pem'\n]\nallow_expired_ca=true #"))), [""; 0]);
    files.write("ca1.pem", &format!("{}{}", files.read("ca1.pem"), files.read("a.key")));
    let findings = files.findings(&hostname("a.example", "a", &require("'ca1.pem'")));
    assert_eq!(
        findings,
        ["hostward.toml:9:5: warning: a.example: ca ca1.pem holds a private key, which does not belong there"]
    );
}

#[test]
fn nothing_of_a_key_is_shown() {
    let files = Files::new();
    let secret = files.read("a.key").lines().nth(1).expect("base64").to_owned();
    let debug = format!("{:?}", files.good(&hostname("a.example", "a", "")));
    assert!(!debug.contains(&secret[..16]));
    assert!(debug.contains("a.example"));
    // A key whose BEGIN line runs on with the key itself: the PEM parser would repeat the line.
    for broken in [
        format!("-----BEGIN {secret}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{secret}"),
        format!("-----BEGIN PRIVATE KEY-----\n{secret}!\n-----END PRIVATE KEY-----\n"),
    ] {
        files.write("a.key", &broken);
        let errors = files.errors(&hostname("a.example", "a", "")).join("\n");
        assert!(errors.contains("private_key a.key: ") && !errors.contains(&secret[..16]), "{errors}");
    }
}

#[test]
fn check_full_reports_everything_and_fails_where_it_must() {
    let files = Files::new();
    let main = files.0.path().join("hostward.toml");
    // The clock is the system's here, so the certificate's dates are relative to it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    files.server_with("live", &["a.example"], |params| {
        params.not_before = at(now - DAY_S);
        params.not_after = at(now + 3 * DAY_S);
    });
    files.write("hostward.toml", &format!("[origin.idle]\nurl='tcp://h:1'\n{}", hostname("a.example", "live", "")));
    let report = check_full(&main);
    assert!(!report.has_errors(), "{report}");
    assert_eq!(report.problems.len(), 2, "{report}");
    files.write("hostward.toml", &hostname("b.example", "live", ""));
    assert!(check_full(&main).has_errors());
    files.write("hostward.toml", &hostname("a.example", "gone", ""));
    assert!(check_full(&main).has_errors());
    files.write("hostward.toml", "nonsense = 1");
    assert!(check_full(&main).has_errors());
}

#[test]
fn every_bad_record_is_told_at_once_and_where_its_fault_is() {
    let files = Files::new();
    let text = hostname("a.example", "gone", "")
        + &hostname("b.example", "a", "").replace("a.key", "other.key")
        + &hostname("c.example", "a", &require("'none.pem'"));
    let errors = files.errors(&text);
    for expected in [
        "hostward.toml:3:13: a.example: certificate gone.pem: cannot be opened",
        "hostward.toml:4:13: a.example: private_key gone.key: cannot be opened",
        "b.example: private_key other.key: cannot be opened",
        "c.example: ca none.pem: cannot be opened",
    ] {
        assert!(errors.iter().any(|line| line.contains(expected)), "{expected} is not in {errors:#?}");
    }
    let others = errors.iter().filter(|line| !line.contains("cannot be opened"));
    assert!(others.clone().all(|line| line.contains("does not cover this name")), "{errors:#?}");
    assert_eq!(errors.len() - others.count(), 4, "{errors:#?}");
}

#[test]
fn swapped_files_and_keys_that_everybody_can_read_are_told() {
    let files = Files::new();
    files.write("s.pem", &files.read("a.key"));
    files.write("s.key", &files.read("a.pem"));
    let errors = files.errors(&hostname("a.example", "s", ""));
    assert_eq!(
        errors,
        [
            "hostward.toml:3:13: a.example: certificate s.pem holds a private key and private_key s.key a certificate: swap the two"
        ]
    );
    fs::set_permissions(files.0.path().join("a.key"), fs::Permissions::from_mode(0o644)).expect("its mode");
    let findings = files.findings(&(hostname("a.example", "a", "") + &hostname("b.a.example", "a", "")));
    assert_eq!(
        findings,
        [
            "hostward.toml:4:13: warning: a.example: private_key a.key can be read by every user of this machine; chmod 600, or 640 for a group"
        ]
    );
}

#[test]
fn files_are_opened_though_keys_are_at_fault_and_nothing_is_told_twice() {
    let files = Files::new();
    let main = files.0.path().join("hostward.toml");
    let text = "nonsense = 1\n".to_owned()
        + &hostname(
            "a.example",
            "gone",
            "[hostname.client_auth]\nmode='rquire'\n[[hostname.rule]]\nverify='SUCCESS'\nallow={}",
        )
        + &hostname("b.example", "missing", "").replace("tcp://h:1", "nowhere")
        + &hostname("c.example:443", "a", "");
    files.write("hostward.toml", &text);
    let report = check_full(&main).to_string();
    for expected in ["nonsense", "gone.pem: cannot be opened", "rquire", "without a port", "missing.pem", "nowhere"] {
        assert!(report.contains(expected), "{expected} is not in\n{report}");
    }
    assert!(!report.contains("client_auth is off"), "{report}");
}
