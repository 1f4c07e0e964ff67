//! The admin server against real sockets, with a control loop that answers from a script.

use std::path::PathBuf;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;

use super::{Ask, CONNECTIONS_MAX, Listener, serve};
use crate::control::admin::{Reloaded, client};

const BOUND: Duration = Duration::from_secs(20);

/// Answers every ask; the first reload works, later ones do not; ready until the drain.
async fn control(mut asks: mpsc::Receiver<Ask>) {
    let (mut reloads, mut draining) = (0, false);
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Metrics(reply) => drop(reply.send("# HELP a_total A.\n".into())),
            Ask::Ready(reply) => drop(reply.send(if draining { Err("draining".into()) } else { Ok(()) })),
            Ask::Status(reply) => drop(reply.send(json!({ "state": "serving" }))),
            Ask::Reload(reply) => {
                reloads += 1;
                let good = Reloaded { generation: 2, warnings: vec!["careful".into()] };
                let bad = vec!["a.toml:1:2: bad".to_owned()];
                drop(reply.send(if reloads == 1 { Ok(good) } else { Err(bad) }));
            }
            Ask::Drain(reply) => {
                draining = true;
                let _ = reply.send(());
            }
        }
    }
}

struct Server {
    tcp: std::net::SocketAddr,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(control(receiver));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    tokio::spawn(serve(Listener::Unix(UnixListener::bind(&socket).unwrap()), sender.clone()));
    tokio::spawn(serve(Listener::Tcp(tcp), sender));
    Server { tcp: address, socket, _dir: dir }
}

/// One request over TCP as bytes; the whole answer.
async fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.tcp).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(server: &Server, path: &str) -> String {
    raw(server, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
}

async fn over_socket(server: &Server, method: Method, path: &'static str) -> (StatusCode, String) {
    let socket = server.socket.clone();
    let request = tokio::task::spawn_blocking(move || client::request(&socket, method, path));
    let (status, body) = tokio::time::timeout(BOUND, request).await.unwrap().unwrap().unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn what_is_read_over_tcp() {
    let server = server().await;
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get(&server, "/readyz").await.ends_with("ready\n"));
    let metrics = get(&server, "/metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.ends_with("# HELP a_total A.\n"), "{metrics}");
    assert!(get(&server, "/status").await.ends_with("{\"state\":\"serving\"}\n"));
    assert!(get(&server, "/else").await.starts_with("HTTP/1.1 404 "));
    assert!(get(&server, "/reload").await.starts_with("HTTP/1.1 405 "));
}

#[tokio::test]
async fn commands_are_taken_on_the_socket_only() {
    let server = server().await;
    for path in ["/reload", "/drain"] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        assert!(raw(&server, &request).await.starts_with("HTTP/1.1 403 "), "{path}");
    }
    assert_eq!(over_socket(&server, Method::GET, "/readyz").await.0, StatusCode::OK);
    let (status, body) = over_socket(&server, Method::POST, "/reload").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "{\"generation\":2,\"warnings\":[\"careful\"]}\n"));
    let (status, body) = over_socket(&server, Method::POST, "/reload").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body, "{\"problems\":[\"a.toml:1:2: bad\"]}\n");
    assert_eq!(over_socket(&server, Method::POST, "/drain").await.0, StatusCode::ACCEPTED);
    let (status, body) = over_socket(&server, Method::GET, "/readyz").await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not ready: draining\n"));
    assert_eq!(over_socket(&server, Method::POST, "/metrics").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn bodies_are_ignored_up_to_a_bound() {
    let server = server().await;
    let request = |length: u64| format!("GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    assert!(raw(&server, &request(1 << 40)).await.starts_with("HTTP/1.1 413 "));
    let small = format!("{}{}", request(3).replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"), "abc");
    assert!(raw(&server, &small).await.starts_with("HTTP/1.1 200 "));
    let long = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 17));
    assert!(!raw(&server, &long).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_the_others_served() {
    let server = server().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(server.tcp).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // Answered, so that the server holds it before the next one comes.
        assert_ne!(tokio::time::timeout(BOUND, stream.read(&mut [0; 512])).await.unwrap().unwrap(), 0);
        held.push(stream);
    }
    let answer = get(&server, "/healthz").await;
    assert_eq!(answer, "");
    drop(held);
    let mut answer = String::new();
    for _ in 0..200 {
        answer = get(&server, "/healthz").await;
        if !answer.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
