use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Connection, Entry, Log, Origin, PATH_BYTES_MAX, Request, Sink, Stamped, Target, format};
use crate::policy::{Identity, Refusal, Verdict};
use crate::telemetry::log::{self, Level};

const BOUND: Duration = Duration::from_secs(10);

fn connection() -> Connection {
    Connection {
        worker: 1,
        hostname: Some("pay.acme.test".into()),
        record: "*.acme.test".into(),
        tls_version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256".into(),
        resumed: false,
        client: Some("[::ffff:192.0.2.7]:4711".parse().unwrap()),
        via: None,
        unique_id: None,
        verdict: Verdict::Success,
        leaf: Some(b"leaf".as_slice().into()),
        text: OnceLock::new(),
    }
}

fn tunnel(connection: &Arc<Connection>, number: u64) -> Entry {
    Entry {
        connection: Arc::clone(connection),
        protocol: "tcp",
        request: None,
        bytes_in: number,
        bytes_out: 0,
        duration: Duration::from_micros(1500),
        origin: None,
        end: Some("clean"),
    }
}

fn identify(der: &[u8]) -> Option<Identity> {
    let subject = format!("CN={}", String::from_utf8_lossy(der));
    Some(Identity { subject, serial: "0a".into(), fingerprint_sha256: [0xfe; 32], ..Identity::default() })
}

fn formatted(entry: Entry, dropped: u64) -> Value {
    let mut out = Vec::new();
    format::line(&Stamped { at: SystemTime::UNIX_EPOCH, entry }, identify, dropped, &mut out);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(!out.contains(&b'\n'));
    serde_json::from_slice(&out).unwrap()
}

fn events() -> log::Log {
    log::Log::start_with(Level::Error, 64, Box::new(io::sink())).unwrap()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_request_tells_everything() {
    let mut request = Request::new(b"GET", b"/a?token=secret", b"Pay.Acme.test:443", b"id-1");
    request.status = 502;
    request.retried = true;
    request.proxy_error = Some("connection_refused");
    let entry = Entry {
        connection: Arc::new(connection()),
        protocol: "http/1.1",
        request: Some(request),
        bytes_in: 1,
        bytes_out: 2,
        duration: Duration::from_micros(1500),
        origin: Some(Origin {
            name: "app".into(),
            address: Some("10.0.0.5:80".parse().unwrap()),
            connect: Some(Duration::from_micros(7)),
            response: Some(Duration::from_micros(8)),
        }),
        end: None,
    };
    let expected = json!({
        "time": "1970-01-01T00:00:00.000Z", "protocol": "http/1.1", "worker": 1, "hostname": "pay.acme.test",
        "record": "*.acme.test", "tls": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256", "resumed": false,
        "client_address": "192.0.2.7", "client_port": 4711, "verdict": "SUCCESS", "client_subject": "CN=leaf",
        "client_serial": "0a", "client_fingerprint": "fe".repeat(32), "method": "GET", "path": "/a",
        "authority": "Pay.Acme.test:443", "status": 502, "request_id": "id-1", "bytes_in": 1, "bytes_out": 2,
        "duration_us": 1500, "origin": "app", "origin_address": "10.0.0.5:80", "origin_connect_us": 7, "origin_us": 8,
        "retried": true, "proxy_error": "connection_refused", "dropped": 3,
    });
    assert_eq!(formatted(entry, 3), expected);
}

#[test]
fn what_does_not_apply_is_left_out() {
    let plain = Connection {
        hostname: None,
        client: None,
        leaf: None,
        verdict: Verdict::Failed(Refusal::Expired),
        ..connection()
    };
    let expected = json!({
        "time": "1970-01-01T00:00:00.000Z", "protocol": "tcp", "worker": 1, "record": "*.acme.test", "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256", "resumed": false, "verdict": "FAILED:expired", "bytes_in": 4,
        "bytes_out": 0, "duration_us": 1500, "end": "clean",
    });
    assert_eq!(formatted(tunnel(&Arc::new(plain), 4), 0), expected);
}

proptest! {
    /// Whatever a client sends stays inside its field: one line, JSON, and the same text again where it was text.
    #[test]
    fn clients_text_cannot_leave_its_field(
        method in prop::collection::vec(any::<u8>(), 0..40),
        target in prop_oneof![prop::collection::vec(any::<u8>(), 0..60), "\\PC{0,40}[\"\\\\\n\r\u{2028}]*".prop_map(String::into_bytes)],
        authority in "(\\PC|[\"\\\\\n\r\u{0}\u{7f}]){0,40}",
        subject in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let connection = Connection { leaf: Some(subject.as_slice().into()), ..connection() };
        let mut entry = tunnel(&Arc::new(connection), 0);
        entry.request = Some(Request::new(&method, &target, authority.as_bytes(), b""));
        let value = formatted(entry, 0);
        let keys: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        prop_assert_eq!(keys.len(), 21, "{:?}", keys);
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let path = target.split(|byte| *byte == b'?' || *byte == b'#').next().unwrap();
        prop_assert_eq!(value["path"].as_str().unwrap(), lossy(path));
        prop_assert_eq!(value["authority"].as_str().unwrap(), authority);
        prop_assert_eq!(value["client_subject"].as_str().unwrap(), format!("CN={}", lossy(&subject)));
    }

    /// The four parts of a request come apart where they were put together, and none is longer than it may be.
    #[test]
    fn requests_are_bounded(lengths in prop::array::uniform4(0usize..3000)) {
        let [method, path, authority, id] = [b'm', b'p', b'a', b'i'].map(|byte| vec![byte; 3000]);
        let texts = [&method[..lengths[0]], &path[..lengths[1]], &authority[..lengths[2]], &id[..lengths[3]]];
        let request = Request::new(texts[0], texts[1], texts[2], texts[3]);
        for (part, text) in request.parts().iter().zip(texts) {
            prop_assert!(part.len() <= PATH_BYTES_MAX && text.starts_with(part));
            prop_assert!(part.len() == text.len() || part.len() >= 32);
        }
    }
}

/// A stream that can be held shut, and that fails after some bytes.
#[derive(Clone, Default)]
struct Disk(Arc<(Mutex<DiskState>, Condvar)>);

#[derive(Default)]
struct DiskState {
    bytes: Vec<u8>,
    held: bool,
    waiting: bool,
    full_at: Option<usize>,
}

impl Disk {
    fn change(&self, change: impl FnOnce(&mut DiskState)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn lines(&self) -> Vec<Result<Value, serde_json::Error>> {
        let state = self.0.0.lock().unwrap();
        std::str::from_utf8(&state.bytes).unwrap().lines().map(serde_json::from_str).collect()
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().unwrap();
        state.waiting = state.held;
        self.0.1.notify_all();
        let (mut state, _) = self.0.1.wait_timeout_while(state, BOUND, |state| state.held).unwrap();
        let room = state.full_at.map_or(bytes.len(), |full_at| full_at - state.bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = room.min(bytes.len());
        state.bytes.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_queue_drops_counts_and_tells() {
    let (disk, events) = (Disk::default(), events());
    disk.change(|state| state.held = true);
    let log = Log::start_with(Sink::stream(disk.clone()), events.handle(), identify, 8).unwrap();
    let (writer, connection) = (log.writer(), Arc::new(connection()));
    assert!(writer.enabled());
    writer.log(tunnel(&connection, 0));
    wait_until("the thread writes", || disk.0.0.lock().unwrap().waiting);
    (1..=1000).for_each(|number| writer.log(tunnel(&connection, number)));
    assert_eq!(log.counts().dropped, 1000 - 8);
    disk.change(|state| state.held = false);
    wait_until("there is room again", || disk.lines().len() == 9);
    writer.log(tunnel(&connection, 2000));
    drop(log);
    let lines: Vec<Value> = disk.lines().into_iter().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 10);
    let told: u64 = lines.iter().filter_map(|line| line.get("dropped")?.as_u64()).sum();
    assert_eq!(told, 1000 - 8);
    assert_eq!(writer.queue.dropped.load(Ordering::Relaxed), 1000 - 8);
}

#[test]
fn a_full_disk_is_counted_and_tears_no_later_line() {
    let (disk, events) = (Disk::default(), events());
    disk.change(|state| state.full_at = Some(100));
    let log = Log::start_with(Sink::stream(disk.clone()), events.handle(), identify, 64).unwrap();
    let (writer, connection) = (log.writer(), Arc::new(connection()));
    (0..3).for_each(|number| writer.log(tunnel(&connection, number)));
    wait_until("the disk is full", || log.counts().dropped == 3);
    assert!(log.counts().write_errors >= 1);
    disk.change(|state| state.full_at = None);
    writer.log(tunnel(&connection, 9));
    drop(log);
    let lines = disk.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].is_err(), "cut off by the full disk");
    let last = lines[1].as_ref().unwrap();
    assert_eq!((&last["bytes_in"], &last["dropped"]), (&json!(9), &json!(3)));
}

#[test]
fn a_file_is_made_for_its_group_and_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = Log::start(Sink::open(&Target::File(path.clone())).unwrap(), events().handle(), identify).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    let (writer, connection) = (log.writer(), Arc::new(connection()));
    let count = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    writer.log(tunnel(&connection, 0));
    wait_until("a line", || count(&path) == 1);
    let rotated = directory.path().join("access.log.1");
    std::fs::rename(&path, &rotated).unwrap();
    writer.log(tunnel(&connection, 1));
    wait_until("the old file goes on", || count(&rotated) == 2);
    log.reopen();
    wait_until("reopened", || log.counts().reopened == 1);
    writer.log(tunnel(&connection, 2));
    wait_until("the new file", || count(&path) == 1);

    // What cannot be opened leaves the old one in use.
    std::fs::rename(&path, directory.path().join("access.log.2")).unwrap();
    std::fs::create_dir(&path).unwrap();
    log.reopen();
    wait_until("not reopened", || log.counts().reopen_failed == 1);
    writer.log(tunnel(&connection, 3));
    drop(log);
    assert_eq!(count(&directory.path().join("access.log.2")), 2);
}

#[test]
fn another_target_begins_where_the_old_one_ends() {
    let (first, second) = (Disk::default(), Disk::default());
    let log = Log::start(Sink::open(&Target::Off).unwrap(), events().handle(), identify).unwrap();
    let (writer, connection) = (log.writer(), Arc::new(connection()));
    assert!(!writer.enabled());
    log.set(Sink::stream(first.clone()));
    assert!(writer.enabled());
    wait_until("the first takes over", || {
        writer.log(tunnel(&connection, 1));
        !first.lines().is_empty()
    });
    log.set(Sink::stream(second.clone()));
    wait_until("the second takes over", || {
        writer.log(tunnel(&connection, 2));
        !second.lines().is_empty()
    });
    drop(log);
    assert!(second.lines().iter().all(|line| line.as_ref().unwrap()["bytes_in"] == 2));
}

#[test]
fn only_regular_files_are_opened() {
    let error = Sink::open(&Target::File("/dev/null".into())).err().unwrap();
    assert!(error.to_string().contains("no regular file"), "{error}");
    assert!(Sink::open(&Target::File("/no/such/directory/a.log".into())).is_err());
}
