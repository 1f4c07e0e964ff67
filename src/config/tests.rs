//! Whole files through [`load`]: what is read, and the exact line for everything that is not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::policy::rules::VerifySelector;
use crate::registry::{ClientAuthMode, Mode, OriginAddress, ProxyProtocol, TlsVersion};
use crate::tls::Provider;

/// A directory with these files; the first is the main one.
fn files(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    directory
}

fn load_files(list: &[(&str, &str)]) -> Result<Config, String> {
    let directory = files(list);
    let prefix = format!("{}/", directory.path().display());
    load(&directory.path().join(list[0].0)).map_err(|report| report.to_string().replace(&prefix, ""))
}

fn load_text(text: &str) -> Result<Config, String> {
    load_files(&[("hostward.toml", text)])
}

/// A hostname without faults, with more keys and tables after it.
fn hostname_with(rest: &str) -> String {
    format!("[[hostname]]\nname='a.example'\ncertificate='a.pem'\norigin='tcp://10.0.0.5:80'\nmode='tcp'\n{rest}")
}

/// The report on a file, without the file's name.
fn problems(text: &str) -> Vec<String> {
    match load_text(text) {
        Ok(config) => config.warnings.iter().map(|problem| problem.to_string()).map(|line| cut_file(&line)).collect(),
        Err(report) => report.lines().map(cut_file).collect(),
    }
}

fn cut_file(line: &str) -> String {
    line.split_once("hostward.toml:").map_or(line, |(_, rest)| rest).to_owned()
}

#[test]
fn everything_is_read() {
    let config = load_files(&[
        (
            "etc/hostward.toml",
            r#"
include = ["conf.d/*.toml"]
[server]
listen = ["0.0.0.0:8443", "[::1]:8443"]
workers = 2
cpus = "0-1,4"
state_dir = "state"
trusted_proxies = ["10.0.0.0/8", "::1"]
trace_sampling = 0.25
[admin]
socket = "/run/h.sock"
listen = "127.0.0.1:9090"
[tls]
provider = "ring"
min_version = "1.3"
groups = ["secp256r1", "X25519"]
cipher_suites = ["TLS_AES_256_GCM_SHA384"]
tickets = false
ticket_lifetime = "5m"
[limits]
connections_per_worker = 1_000
handshakes_per_worker = 0x10
handshake_timeout = "250ms"
drain_timeout = "1s"
tunnel_timeout = "2h"
header_timeout = "3s"
idle_timeout = "1m"
header_bytes = "16KiB"
headers = 64
body_bytes = "10MiB"
min_body_rate = "off"
http2_streams = 32
http2_window = "1MiB"
[cache]
tenants_per_worker = "64MiB"
misses_per_worker = 7
[log]
level = "debug"
[origin.app]
url = ["tcp://App.example:80", "unix:app.sock"]
connect_timeout = "100ms"
proxy_protocol = "v2"
"#,
        ),
        (
            "etc/conf.d/acme.toml",
            r#"
[[hostname]]
name = ["Pay.Acme.example.", "*.acme.example"]
certificate = ["rsa.pem", "/abs/ec.pem"]
private_key = ["rsa.key", "ec.key"]
origin = "app"
mode = "tcp"
default = true
min_version = "1.2"
cipher_suites = []
alpn = ["h2", "http/1.1"]
[hostname.client_auth]
mode = "request"
ca = "ca.pem"
verify_depth = 1
allow_expired_ca = true
send_ca_names = true
[[hostname.rule]]
source = ["10.0.0.0/8", "::1"]
verify = "SUCCESS"
allow = { common_name = "ops-*", serial = ["01", "02"] }
[[hostname.rule]]
deny = true
"#,
        ),
        ("etc/conf.d/.hidden.toml", "not toml"),
        (
            "etc/conf.d/b.toml",
            "[[hostname]]\nname='b.example'\ncertificate='b.pem'\norigin='tcp://10.0.0.5:80'\nmode='tcp'\n",
        ),
    ])
    .expect("a sound configuration");
    assert_eq!(config.files.len(), 3);
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.workers, Workers::Count(2));
    assert_eq!(config.server.cpus, Some(vec![0, 1, 4]));
    assert!(config.server.state_dir.ends_with("etc/state"));
    assert_eq!(config.server.trusted_proxies.len(), 2);
    assert_eq!(config.server.trace_sampling, Some(250_000));
    assert_eq!(config.admin.socket, Path::new("/run/h.sock"));
    assert_eq!(config.admin.listen, Some("127.0.0.1:9090".parse().expect("an address")));
    assert_eq!(config.tls.provider, Provider::Ring);
    assert_eq!(config.tls.groups, [Group::Secp256r1, Group::X25519]);
    assert!(!config.tls.tickets);
    assert_eq!(config.tls.ticket_lifetime, Duration::from_secs(300));
    assert_eq!(
        config.limits,
        Limits {
            connections_per_worker: 1000,
            handshakes_per_worker: 16,
            handshake_timeout: Duration::from_millis(250),
            drain_timeout: Duration::from_secs(1),
            tunnel_timeout: Duration::from_secs(7200),
            header_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(60),
            header_bytes: 16 << 10,
            headers: 64,
            body_bytes: Some(10 << 20),
            min_body_rate: None,
            http2_streams: 32,
            http2_window: 1 << 20,
        }
    );
    assert_eq!(config.cache, Cache { tenants_per_worker: 64 << 20, misses_per_worker: 7 });
    assert_eq!(config.log.level, LogLevel::Debug);

    let [acme, b] = &config.hostnames[..] else { panic!("two hostnames") };
    let names: Vec<&str> = acme.names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pay.acme.example", "*.acme.example"]);
    assert!(acme.place.file.ends_with("etc/conf.d/acme.toml"));
    assert_eq!((acme.place.line, acme.place.column), (2, 1));
    assert_eq!((acme.names[1].1.line, acme.names[1].1.column), (3, 30));
    assert!(acme.certificates[0].certificate.ends_with("etc/conf.d/rsa.pem"));
    assert!(acme.certificates[0].private_key.ends_with("etc/conf.d/rsa.key"));
    assert_eq!(acme.certificates[1].certificate, Path::new("/abs/ec.pem"));
    assert_eq!(acme.origin.name, "app");
    assert_eq!(acme.origin.proxy_protocol, ProxyProtocol::V2);
    assert_eq!(acme.origin.connect_timeout, Duration::from_millis(100));
    assert_eq!(acme.origin.addresses[0], OriginAddress::Tcp { host: "app.example".to_owned(), port: 80 });
    assert!(matches!(&acme.origin.addresses[1], OriginAddress::Unix(path) if path.ends_with("etc/app.sock")));
    assert_eq!(acme.mode, Mode::Tcp);
    assert!(acme.is_default);
    assert_eq!(acme.min_version, TlsVersion::V1_2);
    assert!(acme.cipher_suites.is_empty());
    assert_eq!(acme.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(acme.client_auth.mode, ClientAuthMode::Request);
    assert!(acme.client_auth.ca[0].0.ends_with("etc/conf.d/ca.pem"));
    assert_eq!((acme.client_auth.verify_depth, b.client_auth.verify_depth), (Some(1), None));
    assert!(acme.client_auth.allow_expired_ca && acme.client_auth.send_ca_names);
    assert_eq!(acme.rules[0].spec.verify, Some(VerifySelector::Success));
    assert_eq!(acme.rules[0].spec.source.len(), 2);
    assert_eq!(acme.rules[0].spec.allow.common_name, ["ops-*"]);
    assert_eq!(acme.rules[0].spec.allow.serial, ["01", "02"]);
    assert!(acme.rules[1].spec.deny);

    assert_eq!(b.min_version, TlsVersion::V1_3, "from [tls]");
    assert_eq!(b.cipher_suites, ["TLS_AES_256_GCM_SHA384"], "from [tls]");
    assert_eq!(b.certificates[0].certificate, b.certificates[0].private_key);
    assert_eq!(b.client_auth.mode, ClientAuthMode::Off);
    assert_eq!(config.warnings, []);
}

#[test]
fn defaults_are_those_of_the_interface() {
    let config = load_text(&hostname_with("")).expect("a sound configuration");
    assert_eq!(config.server.listen.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0:443", "[::]:443"]);
    assert_eq!(config.server.workers, Workers::Auto);
    assert_eq!(config.server.state_dir, Path::new("/var/lib/hostward"));
    assert_eq!(config.admin, Admin { socket: "/run/hostward/admin.sock".into(), listen: None });
    assert_eq!(config.tls.groups, Group::ALL);
    assert_eq!(config.tls.ticket_lifetime, Duration::from_secs(12 * 3600));
    assert_eq!(config.limits.connections_per_worker, 100_000);
    assert_eq!(config.cache.tenants_per_worker, 256 << 20);
    assert_eq!(config.warnings, []);
    let ring = load_text(&format!("[tls]\nprovider='ring'\n{}", hostname_with(""))).expect("a sound configuration");
    assert_eq!(ring.tls.groups, [Group::X25519, Group::Secp256r1, Group::Secp384r1]);
}

#[test]
fn all_problems_come_at_once_and_in_order() {
    let report = problems(
        r#"[server]
listen = "nowhere"
workers = 0
[limits]
handshake_timeout = "0s"
head_timeout = "10s"
[[hostname]]
name = "a..example"
certificate = "a.pem"
origin = "ap"
mode = "tcp"
[hostname.clientauth]
mode = "require"
[origin.app]
url = "tcp://10.0.0.5"
"#,
    );
    assert_eq!(
        report,
        [
            "2:10: listen must be an IP address with a port, as in \"0.0.0.0:443\" or \"[::]:443\", not \"nowhere\"",
            "3:11: workers must be between 1 and 1024, not 0",
            "5:21: handshake_timeout must be between \"100ms\" and \"10m\", not \"0s\"",
            "6:1: unknown key \"head_timeout\" in [limits]; did you mean \"header_timeout\"?",
            "8:8: name is \"a..example\": a hostname must not have an empty label (two dots in a row, or one at the start)",
            "10:10: origin \"ap\" is not defined: there is no such [origin.NAME] table, and it is no URL; did you mean \"app\"?",
            "12:11: unknown key \"clientauth\" in [[hostname]]; did you mean \"client_auth\"?",
            "15:7: url is \"tcp://10.0.0.5\": the port is missing; write \"http://10.0.0.5:8080\", \"tcp://10.0.0.5:8080\" or \"unix:/run/app.sock\"",
        ]
    );
}

/// Each fault by itself: the text, and what its only line must hold.
#[test]
fn each_fault_has_its_line() {
    for (text, expected) in [
        ("servr = 1", "1:1: unknown key \"servr\" in the top level of the file; did you mean \"server\"?"),
        ("server = 1", "1:10: server must be a table, [server], not an integer"),
        ("[server]\nlisten = [\"127.0.0.1\"]", "2:11: listen must be an IP address with a port"),
        ("[server]\nlisten = []", "2:10: listen must not be an empty list"),
        ("[server]\nlisten = [\"[::]:1\", \"[::]:1\"]", "2:21: listen names [::]:1 twice"),
        ("[server]\nworkers = \"many\"", "2:11: workers must be \"auto\" or a number, not \"many\""),
        ("[server]\nworkers = 1.5", "2:11: workers must be a whole number, not a float"),
        ("[server]\ncpus = \"3-1\"", "2:8: cpus must list CPUs from 0 to 1023, each once"),
        ("[server]\nstate_dir = \"\"", "2:13: state_dir must be the path of a file, not \"\""),
        ("[admin]\nlisten = 9090", "2:10: listen must be a string, not an integer"),
        ("[admin]\ntoken_file = 'x'", "2:1: unknown key \"token_file\" in [admin]"),
        ("[tls]\nprovider = 'openssl'", "2:12: provider must be \"aws-lc-rs\" or \"ring\", not \"openssl\""),
        (
            "[tls]\nmin_version = '1.1'",
            "2:15: min_version must be \"1.2\" or \"1.3\", not \"1.1\"; did you mean \"1.2\"?",
        ),
        (
            "[tls]\ngroups = ['x25519']",
            "2:11: groups must be \"X25519MLKEM768\", \"X25519\", \"secp256r1\" or \"secp384r1\"",
        ),
        (
            "[tls]\nprovider='ring'\ngroups = ['X25519MLKEM768']",
            "3:11: groups names X25519MLKEM768, which provider \"ring\" does not have",
        ),
        ("[tls]\ngroups = ['X25519', 'X25519']", "2:21: groups names X25519 twice"),
        ("[tls]\ncipher_suites = ['TLS13_AES_128_GCM_SHA256']", "did you mean \"TLS_AES_128_GCM_SHA256\"?"),
        (
            "[tls]\nmin_version='1.3'\ncipher_suites = ['TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256']",
            "3:17: cipher_suites has no suite of TLS 1.3",
        ),
        ("[tls]\ntickets = 'yes'", "2:11: tickets must be true or false, not a string"),
        ("[tls]\nticket_lifetime = '8d'", "2:19: ticket_lifetime must be between \"1s\" and \"7d\", not \"8d\""),
        (
            "[limits]\ntunnel_timeout = 60",
            "2:18: tunnel_timeout must be a string with a unit, as in \"10s\", not an integer",
        ),
        (
            "[limits]\ntunnel_timeout = '60'",
            "2:18: tunnel_timeout is not a duration: \"60\"; write a whole number and a unit",
        ),
        (
            "[limits]\nconnections_per_worker = -1",
            "2:26: connections_per_worker must be between 1 and 10000000, not -1",
        ),
        ("[cache]\ntenants_per_worker = '256MB'", "2:22: tenants_per_worker is not a size: \"256MB\""),
        (
            "[cache]\ntenants_per_worker = '1KiB'",
            "2:22: tenants_per_worker must be between \"1MiB\" and \"1TiB\", not \"1KiB\"",
        ),
        ("[cache]\nmisses_per_worker = 0", "2:21: misses_per_worker must be between 1 and 16777216, not 0"),
        ("[log]\nlevel = 'warning'", "2:9: level must be \"error\", \"warn\", \"info\" or \"debug\", not \"warning\""),
        (
            "[log]\naccess = 'of'",
            "2:10: access must be \"off\", \"stdout\" or the path of a file, not \"of\"; did you mean \"off\"?",
        ),
        ("[log]\naccess = 'no/such/a.log'", "2:10: access is \"no/such/a.log\", and there is no directory "),
        ("[log]\naccess = '/dev/null'", "2:10: access is \"/dev/null\", which is no regular file"),
        ("[server]\nredirect = ['80']", "2:13: redirect must be an IP address with a port"),
        (
            "[server]\nlisten = ['[::]:80']\nredirect = ['[::]:80']",
            "3:13: redirect names [::]:80, which listen has already",
        ),
        ("[server]\nredirect = ['[::]:80']\nredirect_port = 0", "3:17: redirect_port must be between 1 and 65535"),
        ("[origin.app]", "1:1: [origin.app] needs the key \"url\""),
        ("origin = 'x'", "1:10: origin must be a table of tables, [origin.NAME], not a string"),
        ("[origin.'a b']\nurl='tcp://h:1'", "1:1: \"a b\" is not a name"),
        ("[origin.app]\nurl = ['tcp://h:1', 'tcp://H.:1']", "2:21: url names the same address twice"),
        ("[origin.app]\nurl = 'ftp://h:1'", "an origin's scheme is http, https, h2c, tcp or unix"),
        ("[origin.app]\nurl = ['http://h:1', 'tcp://h:2']", "2:22: url names another scheme than those before it"),
        ("[origin.app]\nurl = 'http://h:1'\nproxy_protocol = 'v2'", "3:18: proxy_protocol has no meaning for HTTP"),
        ("[origin.app]\nurl = 'http://h:1'\nresponse_timeout = '1ms'", "3:20: response_timeout must be between"),
        (
            "[origin.app]\nurl = 'http://h:1'\nidle_connections_per_worker = 5000",
            "3:31: idle_connections_per_worker must be between 0 and 4096, not 5000",
        ),
        ("[server]\ntrace_sampling = 1.5", "2:18: trace_sampling must be a number from 0.0 to 1.0"),
        ("[server]\ntrace_sampling = -1", "2:18: trace_sampling must be a number from 0.0 to 1.0"),
        ("[server]\ntrace_sampling = nan", "2:18: trace_sampling must be a number from 0.0 to 1.0"),
        ("[server]\ntrace_sampling = 'all'", "2:18: trace_sampling must be a number from 0.0 to 1.0, not a string"),
        ("[server]\ntrusted_proxies = ['here']", "2:20: trusted_proxies must be an address or a network"),
        ("[server]\nproxy_protocol_from = ['lb']", "2:24: proxy_protocol_from must be an address or a network"),
        ("[server]\nproxy_protocol_from = ['10.0.0.1/8']", "2:24: proxy_protocol_from is \"10.0.0.1/8\": bits are set"),
        ("[limits]\nheaders = 1000", "2:11: headers must be between 8 and 256, not 1000"),
        ("[limits]\nbody_bytes = 'no limit'", "2:14: body_bytes is not a size: \"no limit\""),
        (
            "[origin.app]\nurl = 'tcp://h:1'\nproxy_protocol = 'v3'",
            "3:18: proxy_protocol must be \"off\", \"v1\" or \"v2\", not \"v3\"",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\nbalance = 'random'",
            "3:11: balance is \"random\", which is no way to balance; write",
        ),
        ("[origin.app]\nurl = 'http://h:1'\nbalance = 7", "3:11: balance must be a word or a table; write"),
        (
            "[origin.app]\nurl = 'http://h:1'\nbalance = { hash = 'path' }",
            "3:20: hash must be \"client_address\", not \"path\"",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\nbalance = { hash_header = 'X Tenant' }",
            "3:27: hash_header is \"X Tenant\", which is no name of a header",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\nbalance = { hash = 'client_address', hash_header = 'X' }",
            "3:11: balance must have one key, hash or hash_header",
        ),
        (
            "[origin.app]\nurl = 'tcp://h:1'\nbalance = { hash_header = 'X-Tenant' }",
            "3:27: hash_header has no meaning for tcp://",
        ),
        ("[origin.app]\nurl = 'tcp://h:1'\neject_after = 3", "3:15: eject_after has no meaning for tcp://"),
        ("[origin.app]\nurl = 'http://h:1'\neject_after = 0", "3:15: eject_after must be between 1 and 1000"),
        ("[origin.app]\nurl = 'http://h:1'\n[origin.app.check]", "3:1: [origin.app.check] needs the key \"kind\""),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'icmp' }",
            "3:18: kind must be \"http\" or \"tcp\", not \"icmp\"",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'tcp', path = '/' }",
            "3:32: path has no meaning for kind = \"tcp\"",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'http', path = 'healthz' }",
            "3:33: path is \"healthz\", which is no path",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'http', host = 'a b' }",
            "3:33: host is \"a b\", which is no host",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'http', expect = 100 }",
            "3:35: expect must be between 200 and 599, not 100",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'http', interval = '1ms' }",
            "3:37: interval must be between",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\ncheck = { kind = 'http', unhealthy_after = 0 }",
            "3:44: unhealthy_after must be between 1 and 720",
        ),
        ("[origin.app]\nurl = 'http://h:1'\nrequest_timeout = '1ms'", "3:19: request_timeout must be between"),
        ("[origin.app]\nurl = 'http://h:1'\nretries = 9", "3:11: retries must be between 0 and 5, not 9"),
        (
            "[origin.app]\nurl = 'http://h:1'\nretries = 1\nretry_on_status = [503, 404]",
            "4:25: retry_on_status must be 502, 503 or 504, not 404",
        ),
        (
            "[origin.app]\nurl = 'http://h:1'\nretry_on_status = 503",
            "3:19: retry_on_status has no meaning without retries",
        ),
        ("[origin.app]\nurl = 'tcp://h:1'\nretries = 1", "3:11: retries has no meaning for tcp://"),
        ("[origin.app]\nurl = 'http://h:1'\nslow_start = '2h'", "3:14: slow_start must be between"),
        ("[origin.app]\nurl = 'tcp://h:1'\nshare = true", "3:9: share has no meaning for tcp://"),
        ("[hostname]\nname = 'a'", "1:1: hostname must be an array of tables, each begun by [[hostname]], not a table"),
        ("include = 'gone.toml'", "1:11: include gone.toml: cannot be opened: No such file"),
        ("include = '[a.toml'", "1:11: include is \"[a.toml\", which is not a pattern"),
    ] {
        let lines = problems(text);
        assert!(lines.len() == 1 && lines[0].contains(expected), "{text}\n expected {expected}\n got {lines:#?}");
    }
}

#[test]
fn each_fault_of_a_hostname_has_its_line() {
    for (rest, expected) in [
        ("private_key = ['a.key', 'b.key']", "6:15: private_key names 2 files and certificate names one file"),
        (
            "private_key = '-----BEGIN PRIVATE KEY-----'",
            "6:15: private_key must be the path of a file, not its content",
        ),
        (
            "min_version = '1.3'\ncipher_suites = ['TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256']",
            "7:17: cipher_suites has no suite of TLS 1.3",
        ),
        ("alpn = ['']", "6:9: alpn must be protocol names of 1 to 255 bytes"),
        ("alpn = ['h2', 'h2']", "6:15: alpn names \"h2\" twice"),
        ("client_auth = 'require'", "6:15: client_auth must be a table, [hostname.client_auth], not a string"),
        ("[hostname.client_auth]\nca = 'x'", "6:1: [hostname.client_auth] needs the key \"mode\""),
        ("[hostname.client_auth]\nmode = 'require'", "6:1: [hostname.client_auth] needs the key \"ca\""),
        ("[hostname.client_auth]\nmode = 'request'\nca = []", "8:6: ca must not be an empty list"),
        ("[hostname.client_auth]\nmode = 'off'\nca = 'x'", "8:6: ca is given, but mode is \"off\""),
        (
            "[hostname.client_auth]\nmode = 'off'\nverify_depth = 1",
            "8:16: verify_depth has no meaning with mode = \"off\"",
        ),
        (
            "[hostname.client_auth]\nmode = 'require'\nca = 'x'\nverify_depth = 5",
            "9:16: verify_depth must be between 0 and 4, not 5",
        ),
        (
            "[hostname.client_auth]\nmode = 'off'\nsend_ca_names = true",
            "8:17: send_ca_names has no meaning with mode = \"off\"",
        ),
        (
            "[hostname.client_auth]\nmode = 'require'\nca = 'x'\ncrl = 'y'",
            "9:1: unknown key \"crl\" in [hostname.client_auth]",
        ),
        ("[[hostname.rule]]\nsource = '10.0.0.0/8'", "6:1: [[hostname.rule]] needs \"allow\" or \"deny = true\""),
        ("[[hostname.rule]]\npath = '/x'\ndeny = true", "7:8: path cannot choose a rule with mode = \"tcp\""),
        ("[[hostname.rule]]\nmethod = 'GET'\ndeny = true", "7:10: method cannot choose a rule with mode = \"tcp\""),
        (
            "[[hostname.rule]]\nsource = '10.0.0.5/8'\ndeny = true",
            "7:10: source is \"10.0.0.5/8\": bits are set beyond the prefix; write \"10.0.0.0/8\" or \"10.0.0.5\"",
        ),
        ("[[hostname.rule]]\nsource = 'here'\ndeny = true", "7:10: source must be an address or a network"),
        (
            "[[hostname.rule]]\nverify = 'success'\ndeny = true",
            "7:10: verify must be \"SUCCESS\", \"NONE\" or \"FAILED\", not \"success\"; did you mean \"SUCCESS\"?",
        ),
        ("[[hostname.rule]]\ndeny = false", "7:8: deny must be true, or be left out"),
        ("[[hostname.rule]]\ndeny = true\nallow = {}", "7:8: deny and allow cannot stand in one rule"),
        ("[[hostname.rule]]\nallow = { cn = 'x' }", "7:11: unknown key \"cn\" in allow"),
        ("[[hostname.rule]]\ndeny = true\n[[hostname.rule]]\ndeny = true", "8:1: "),
        (
            "[[hostname.rule]]\nverify = 'SUCCESS'\ndeny = true",
            "7:10: warning: verify can never match: client_auth is off",
        ),
        ("[[hostname.rule]]\nallow = { common_name = 'x' }", "7:9: warning: allow can never hold: client_auth is off"),
        ("[[hostname.rule]]\nallow = { serial = 'xyz' }\n[hostname.client_auth]\nmode='require'\nca='x'", "6:1: "),
        (
            "[[hostname]]\nname='b'\ncertificate='b'\norigin='tcp://h:1'\nmode='passthrough'",
            "10:6: mode = \"passthrough\" is not built yet",
        ),
        (
            "[[hostname]]\nname='b'\ncertificate='b'\norigin='tcp://h:1'",
            "9:8: origin \"tcp://h:1\" is tcp://, and mode is \"http\"; write \"http://h:1\"",
        ),
        (
            "[[hostname]]\nname='b'\ncertificate='b'\norigin='http://h:1'\nmode='tcp'",
            "9:8: origin \"http://h:1\" is http://, and mode is \"tcp\"; write \"tcp://h:1\"",
        ),
        (
            "[[hostname]]\nname='b'\ncertificate='b'\norigin='http://h:1'\nalpn=['h3']",
            "10:7: alpn names \"h3\", which mode = \"http\" does not speak",
        ),
        ("keep_unusual_headers = true", "6:24: keep_unusual_headers has no meaning with mode = \"tcp\""),
        (
            "[hostname.client_auth]\nmode = 'request'\nca = 'x'\nheaders = ['cf']",
            "9:11: headers has no meaning with mode = \"tcp\"",
        ),
        (
            "[[hostname]]\nname='b'\ncertificate='b'\norigin='http://h:1'\n[hostname.client_auth]\nmode='request'\nca='x'\n\
             headers=['x-client']",
            "13:10: headers must be \"client-cert\", \"x-client-cert\", \"xfcc\", \"cf\" or \"ingress\", not \"x-client\"",
        ),
        (
            "[[hostname]]\nname=['b', 'A.example.']\ncertificate='b'\norigin='tcp://h:1'\nmode='tcp'",
            "7:12: name \"a.example\" is taken already, at ",
        ),
        (
            "default=true\n[[hostname]]\nname='b'\ncertificate='b'\norigin='tcp://h:1'\nmode='tcp'\ndefault=true",
            "12:9: default = true stands at ",
        ),
    ] {
        let lines = problems(&hostname_with(rest));
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{rest}\n expected {expected}\n got {lines:#?}");
    }
}

/// What may be changed in heads on their way, and the line of what may not.
#[test]
fn rewrites_leave_framing_identities_and_hosts_alone() {
    let hostname = |rest: &str| {
        format!("[[hostname]]\nname='a.example'\ncertificate='a.pem'\norigin='http://10.0.0.5:80'\n{rest}")
    };
    let config = load_text(&hostname(
        "host_header='app.internal:8080'\nstrip_prefix='/api/v1'\nadd_headers={X-Env='prod'}\nremove_headers=['Cookie']\n\
         response_headers={Strict-Transport-Security='max-age=31536000'}\nremove_response_headers=['Server','X-Request-Id']",
    ));
    let config = config.expect("a sound configuration");
    let rewrites = config.hostnames[0].rewrites.as_deref().expect("changes");
    assert_eq!(rewrites.host.as_deref(), Some("app.internal:8080"));
    assert_eq!(rewrites.strip_prefix.as_deref(), Some("/api/v1"));
    assert_eq!(rewrites.request.added(), [("X-Env".into(), "prod".into())]);
    assert_eq!(rewrites.request.removed().collect::<Vec<_>>(), ["cookie"]);
    assert_eq!(rewrites.response.removed().collect::<Vec<_>>(), ["server", "x-request-id"]);
    assert!(load_text(&hostname("remove_headers=[]")).expect("sound").hostnames[0].rewrites.is_none());

    for (rest, expected) in [
        ("host_header = 'http://app'", "5:15: host_header must be a hostname or address, with a port"),
        ("host_header = 'a b'", "5:15: host_header must be a hostname or address"),
        ("host_header = ''", "5:15: host_header must be a hostname or address"),
        ("strip_prefix = 'api'", "5:16: strip_prefix must be a path of letters"),
        (
            "strip_prefix = '/api/'",
            "5:16: strip_prefix must not end with a slash, and \"/\" alone strips nothing: write \"/api\"",
        ),
        ("strip_prefix = '/'", "5:16: strip_prefix must not end with a slash"),
        ("strip_prefix = '/a/../b'", "5:16: strip_prefix must be a path"),
        ("strip_prefix = '/a//b'", "5:16: strip_prefix must be a path"),
        ("strip_prefix = '/a%20b'", "5:16: strip_prefix must be a path"),
        ("strip_prefix = '/a?b'", "5:16: strip_prefix must be a path"),
        (
            "add_headers = { Host = 'x' }",
            "5:24: Host cannot be put in: for the Host of the origin there is host_header",
        ),
        ("add_headers = { Content-Length = '5' }", "5:34: Content-Length cannot be put in: it belongs to the framing"),
        (
            "add_headers = { transfer-encoding = 'x' }",
            "5:37: transfer-encoding cannot be put in: it belongs to the fram",
        ),
        ("add_headers = { Trailer = 'x' }", "5:27: Trailer cannot be put in: it belongs to the framing"),
        ("add_headers = { Connection = 'x' }", "5:30: Connection cannot be put in: it is about one connection"),
        ("add_headers = { TE = 'x' }", "5:22: TE cannot be put in: it is about one connection"),
        ("add_headers = { Upgrade = 'x' }", "5:27: Upgrade cannot be put in: it is about one connection"),
        (
            "add_headers = { ssl-client-verify = 'SUCCESS' }",
            "5:37: ssl-client-verify cannot be put in: who the client is",
        ),
        ("add_headers = { X-Client-Cert-Foo = 'x' }", "5:37: X-Client-Cert-Foo cannot be put in: who the client is"),
        (
            "add_headers = { X-Forwarded-For = 'x' }",
            "5:35: X-Forwarded-For cannot be put in: Hostward writes it itself",
        ),
        ("add_headers = { traceparent = 'x' }", "5:31: traceparent cannot be put in: Hostward writes it itself"),
        ("add_headers = { X_Env = 'x' }", "5:25: X_Env cannot be put in: a name here has letters, digits and hyphens"),
        ("add_headers = { 'X Env' = 'x' }", "5:27: \"X Env\" cannot be put in: a name here has letters"),
        ("add_headers = { \"X-Env\\r\\nY\" = 'x' }", "5:32: \"X-Env\\u{d}\\u{a}Y\" cannot be put in: a name here has"),
        ("add_headers = { X-Env = \"a\\r\\nb\" }", "5:25: X-Env must be printable ASCII in one line"),
        (
            "add_headers = { X-Env = ' a' }",
            "5:25: X-Env must be printable ASCII in one line, without spaces at its ends",
        ),
        ("add_headers = { X-Env = 'ü' }", "5:25: X-Env must be printable ASCII"),
        ("add_headers = { X-Env = '' }", "5:25: X-Env must not be empty"),
        ("add_headers = { X-Env = 'a', x-env = 'b' }", "5:38: x-env stands twice"),
        (
            "remove_headers = ['Client-Cert']",
            "5:19: remove_headers names \"Client-Cert\", which cannot be taken out: who",
        ),
        (
            "remove_headers = ['Content-Length']",
            "5:19: remove_headers names \"Content-Length\", which cannot be taken out",
        ),
        (
            "add_headers = { X-Env = 'a' }\nremove_headers = ['x-ENV']",
            "6:19: remove_headers names \"x-ENV\", which is put in too",
        ),
        ("response_headers = { Set-Cookie = 'a=b' }", "5:35: Set-Cookie cannot be put in: it would take the place"),
        ("response_headers = { Transfer-Encoding = 'x' }", "5:42: Transfer-Encoding cannot be put in: it belongs"),
        (
            "remove_response_headers = ['Connection']",
            "5:28: remove_response_headers names \"Connection\", which cannot",
        ),
        ("mode = 'tcp'\nstrip_prefix = '/api'", "6:16: strip_prefix has no meaning with mode = \"tcp\""),
        ("mode = 'tcp'\nadd_headers = { A = 'b' }", "6:15: add_headers has no meaning with mode = \"tcp\""),
    ] {
        let lines = problems(&hostname(rest));
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{rest}\n expected {expected}\n got {lines:#?}");
    }
    let many: Vec<String> = (0..33).map(|number| format!("X-{number} = 'a'")).collect();
    let lines = problems(&hostname(&format!("add_headers = {{ {} }}", many.join(", "))));
    assert!(lines[0].contains("add_headers and its counterpart name 33 headers; at most 32"), "{lines:?}");
}

#[test]
fn warnings_do_not_refuse() {
    for (text, expected) in [
        ("[server]\nworkers = 3\ncpus = '0'\n", "2:11: warning: workers is 3, but cpus names 1"),
        ("[server]\nproxy_protocol_from = ['::/0']\n", "2:24: warning: proxy_protocol_from is every address"),
        ("[admin]\nlisten = '0.0.0.0:9090'\n", "2:10: warning: listen is not a loopback address"),
        (
            "[limits]\nconnections_per_worker = 10\nhandshakes_per_worker = 11\n",
            "3:25: warning: handshakes_per_worker is more",
        ),
        ("[origin.idle]\nurl = 'tcp://h:1'\n", "1:1: warning: no hostname uses [origin.idle]"),
    ] {
        let config = load_text(&format!("{text}{}", hostname_with(""))).expect("warnings only");
        let lines: Vec<String> = config.warnings.iter().map(|problem| cut_file(&problem.to_string())).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{expected}: {lines:?}");
    }
    let shared = "[[hostname]]\nname='b.example'\ncertificate='b.pem'\norigin='http://10.0.0.5:80'\n";
    let config = load_text(&hostname_with(shared)).expect("warnings only");
    let lines: Vec<String> = config.warnings.iter().map(|problem| cut_file(&problem.to_string())).collect();
    let expected = "1:1: warning: mode = \"tcp\" forwards requests unseen to an HTTP origin that serves b.example too";
    assert!(lines.len() == 1 && lines[0].starts_with(expected), "{lines:?}");
    let empty = load_text("").expect("warnings only");
    assert!(empty.warnings[0].text.contains("every client will be refused"));
}

#[test]
fn duplicates_across_files_name_both_places() {
    let report = load_files(&[
        (
            "hostward.toml",
            &format!(
                "include='b.toml'\n[log]\nlevel='info'\n[origin.o]\nurl='tcp://h:1'\n{}",
                hostname_with("default=true\n")
            ),
        ),
        ("b.toml", &format!("[log]\n[origin.o]\nurl='tcp://h:2'\n{}", hostname_with("default=true\n"))),
    ])
    .expect_err("duplicates");
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines.len(), 4, "{report}");
    assert_eq!(lines[0], "b.toml:1:1: [log] stands at hostward.toml:2 already; it may stand in one file only");
    assert_eq!(lines[1], "b.toml:2:1: o is defined twice: [origin.o] stands at hostward.toml:4 already");
    assert_eq!(lines[2], "b.toml:5:6: name \"a.example\" is taken already, at hostward.toml:7; each name stands once");
    assert!(lines[3].starts_with("b.toml:9:9: default = true stands at hostward.toml:11 already"), "{report}");
}

#[test]
fn includes_end() {
    let loops = load_files(&[("a.toml", "include='b.toml'"), ("b.toml", "include='a.toml'")]).expect_err("a loop");
    assert_eq!(loops, "b.toml:1:9: include a.toml: is read already, as a.toml; include each file once");
    let own = load_files(&[("a.toml", "include='*.toml'")]).expect_err("itself");
    assert!(own.contains("is read already"), "{own}");
    let chain: Vec<(String, String)> =
        (0..=6).map(|n| (format!("{n}.toml"), format!("include='{}.toml'", n + 1))).collect();
    let chain: Vec<(&str, &str)> = chain.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let deep = load_files(&chain).expect_err("too deep");
    assert!(deep.starts_with("4.toml:1:9: include is nested too deeply"), "{deep}");
}

#[test]
fn a_pattern_is_not_taken_from_the_directory() {
    let directory = files(&[("[x]*/hostward.toml", "include='c/**/*.toml'"), ("[x]*/c/d/e.toml", &hostname_with(""))]);
    let config = load(&directory.path().join("[x]*/hostward.toml")).expect("a sound configuration");
    assert_eq!(config.hostnames.len(), 1);
    assert!(config.hostnames[0].certificates[0].certificate.ends_with("[x]*/c/d/a.pem"));
}

#[test]
fn syntax_errors_are_reported_alone_and_without_the_text() {
    let report = load_files(&[
        ("hostward.toml", "include='b.toml'\n[[hostname]]\nname='a'\ncertificate='a'\norigin='app'\nmode='tcp'\n"),
        ("b.toml", "[origin.app]\nurl == 'tcp://h:1'\nprivate = -----BEGIN SECRET\nx = \"open\n[server]\nnope=1\n"),
    ])
    .expect_err("syntax errors");
    assert!(report.lines().count() >= 3, "{report}");
    assert!(report.lines().all(|line| line.starts_with("b.toml:") && line.contains(": not TOML: ")), "{report}");
    assert!(!report.contains("SECRET") && !report.contains("nope") && !report.contains("not defined"), "{report}");
}

#[test]
fn what_is_no_file_of_text_is_said_plainly() {
    let directory = files(&[("a.toml", "")]);
    let report = load(directory.path()).expect_err("a directory");
    assert!(report.to_string().contains("cannot be read"), "{report}");
    let report = load(&directory.path().join("none.toml")).expect_err("no file");
    assert!(
        report.to_string().ends_with("none.toml: cannot be opened: No such file or directory (os error 2)"),
        "{report}"
    );
    fs::write(directory.path().join("a.toml"), b"a = '\xff'").expect("a file");
    let report = load(&directory.path().join("a.toml")).expect_err("no text");
    assert!(report.to_string().contains("is not UTF-8 text: the byte at offset 5"), "{report}");
}

proptest! {
    /// No text at all panics, and what is refused says why.
    #[test]
    fn any_text_is_survived(text in "((\\[\\[?|)(server|hostname|origin\\.a|tls|include|name|allow|\\PC{0,6})(\\]\\]?| = |\n|\\.|'|\"|\\{|\\}|,|1s|\\[)){0,24}") {
        if let Err(report) = load_text(&text) {
            prop_assert!(!report.is_empty());
            prop_assert!(report.lines().all(|line| line.starts_with("hostward.toml:")), "{}", report);
        }
    }

    /// A private key that ends up as the value of any key is not shown.
    #[test]
    fn a_pasted_key_is_never_shown(table in 0..ROOT.len(), list: bool) {
        let (table, keys) = ROOT[table];
        let pem = "\"\"\"-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\"\"\"";
        let value = if list { format!("[{pem}]") } else { pem.to_owned() };
        let text: String = keys.iter().map(|key| format!("{key} = {value}\n")).collect();
        let report = problems(&format!("{table}\n{text}")).join("\n");
        prop_assert!(!report.contains("SECRET"), "{}", report);
        prop_assert!(report.lines().count() > 0);
    }
}

/// Tables and their keys, for [`a_pasted_key_is_never_shown`].
const ROOT: [(&str, &[&str]); 11] = [
    ("", schema::ROOT_KEYS),
    ("[server]", schema::settings::SERVER_KEYS),
    ("[admin]", schema::settings::ADMIN_KEYS),
    ("", &["'-----BEGIN SECRET'", "origin.'-----BEGIN SECRET'"]),
    ("[tls]", schema::tls::TLS_KEYS),
    ("[origin.app]", schema::origin::ORIGIN_KEYS),
    ("[origin.app]\n[origin.app.check]", schema::check::CHECK_KEYS),
    ("[[hostname]]", schema::hostname::HOSTNAME_KEYS),
    ("[[hostname]]\n[hostname.client_auth]", schema::hostname::CLIENT_AUTH_KEYS),
    ("[[hostname]]\n[[hostname.rule]]", schema::rule::RULE_KEYS),
    ("[[hostname]]\n[[hostname.rule]]\n[hostname.rule.allow]", schema::rule::ALLOW_KEYS),
];

/// The sample that is shipped: accepted as it is, complete, and true where it says that a value is the default.
#[test]
fn the_sample_is_accepted_and_complete() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/hostward.toml");
    let config = load(&path).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(config.warnings, []);
    assert_eq!(config.server, Server::default());
    assert_eq!(config.tls, Tls::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.cache, Cache::default());
    assert_eq!(config.log, Log::default());
    assert_eq!(config.admin.socket, Admin::default().socket);
    let [acme, globex, _mail] = &config.hostnames[..] else { panic!("three hostnames") };
    assert_eq!(acme.rules.len(), 2);
    assert_eq!((acme.client_auth.mode, globex.client_auth.mode), (ClientAuthMode::Require, ClientAuthMode::Request));
    let text = fs::read_to_string(path).expect("the sample");
    for (table, keys) in ROOT.iter().filter(|(_, keys)| !keys.iter().any(|key| key.contains('-'))) {
        for key in *keys {
            assert!(text.contains(key), "the sample does not show {key} of {table}");
        }
    }
}
