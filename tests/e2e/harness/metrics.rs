//! Reads the edge's metrics as a Prometheus server would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The bound on one request to the admin address.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One GET request; returns the status code and the body.
pub fn get(admin: SocketAddr, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect_timeout(&admin, TIMEOUT).expect("the admin address accepts");
    socket.set_read_timeout(Some(TIMEOUT)).expect("a time limit");
    socket.set_write_timeout(Some(TIMEOUT)).expect("a time limit");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("the admin address reads");
    let mut response = String::new();
    socket.read_to_string(&mut response).expect("the admin address answers in text");
    let (head, body) = response.split_once("\r\n\r\n").expect("a response head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let body =
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { dechunk(body) } else { body.to_owned() };
    (status, body)
}

/// The sum of all samples of this name that have these labels, others whatever they are:
/// `hostward_handshakes_total{result="ok",version="1.3"}`. Zero if there are none.
pub fn sum(text: &str, query: &str) -> f64 {
    let (name, wanted) = split(query);
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(sample, _)| {
            let (other, labels) = split(sample);
            other == name && wanted.iter().all(|label| labels.contains(label))
        })
        .map(|(sample, value)| value.parse::<f64>().unwrap_or_else(|_| panic!("{sample} has the value {value:?}")))
        .sum()
}

/// A sample's name and its labels. No label value here has a comma in it.
fn split(sample: &str) -> (&str, Vec<&str>) {
    match sample.split_once('{') {
        Some((name, labels)) => {
            (name, labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect())
        }
        None => (sample, Vec::new()),
    }
}

fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        if size == 0 {
            break;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}
