//! The control loop with real workers, asked as the admin server asks it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::Failure;
use super::admin::{Ask, ReloadResult};
use super::serve::Ended;
use super::{Options, assemble, start};
use crate::config;
use crate::telemetry::log::{Level, Log};

const BOUND: Duration = Duration::from_secs(20);

/// A running control plane over a directory with one certificate.
struct Edge {
    asks: mpsc::Sender<Ask>,
    listen: SocketAddr,
    file: PathBuf,
    ended: tokio::task::JoinHandle<Result<Ended, Failure>>,
    dir: tempfile::TempDir,
}

fn configuration(names: &[&str]) -> String {
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\nstate_dir = \"state\"\n\
                  [admin]\nsocket = \"admin.sock\"\n[limits]\ndrain_timeout = \"1s\"\n";
    let hostname = |name: &&str| {
        format!(
            "[[hostname]]\nname = \"{name}\"\ncertificate = \"a.pem\"\nprivate_key = \"a.key\"\n\
             origin = \"tcp://127.0.0.1:9\"\nmode = \"tcp\"\n"
        )
    };
    server.to_owned() + &names.iter().map(hostname).collect::<String>()
}

fn write_certificate(dir: &Path) {
    let names = ["a.test", "b.test"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(dir.join("a.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("a.key"), made.signing_key.serialize_pem()).unwrap();
}

impl Edge {
    async fn start(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path());
        let file = dir.path().join("hostward.toml");
        std::fs::write(&file, configuration(names)).unwrap();
        let config = config::load(&file).unwrap();
        let assembled = assemble::assemble(&config, None, start::FIRST_GENERATION).unwrap();
        let log = Log::start(Level::Error).unwrap();
        let (sender, ready) = std::sync::mpsc::channel();
        let on_ready = Box::new(move |ready| sender.send(ready).unwrap());
        let options = Options { config: file.clone(), program: None, on_ready: Some(on_ready) };
        let Ok(control) = start::start(options, config, assembled, None, None, log.handle()).await else {
            panic!("the control plane did not start");
        };
        let ended = tokio::spawn(control.serve());
        let ready = ready.try_recv().unwrap();
        Self { asks: ready.asks, listen: ready.listen[0], file, ended, dir }
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> T {
        let (sender, receiver) = oneshot::channel();
        self.asks.send(question(sender)).await.unwrap();
        tokio::time::timeout(BOUND, receiver).await.unwrap().unwrap()
    }

    async fn reload(&self) -> ReloadResult {
        self.ask(Ask::Reload).await
    }

    async fn status(&self) -> Value {
        self.ask(Ask::Status).await
    }

    async fn end(self) {
        self.ask(Ask::Drain).await;
        tokio::time::timeout(BOUND, self.ended).await.unwrap().unwrap().unwrap();
        assert!(!self.dir.path().join("admin.sock").exists(), "the socket's file is removed");
        assert!(TcpStream::connect(self.listen).await.is_err(), "the listeners are closed");
    }
}

#[tokio::test]
async fn a_reload_reaches_every_worker_and_a_bad_file_changes_nothing() {
    let edge = Edge::start(&["a.test"]).await;
    assert_eq!(edge.ask(Ask::Ready).await, Ok(()));

    edge.write(&configuration(&["a.test", "b.test"]));
    assert_eq!(edge.reload().await.unwrap().generation, 2);
    let status = edge.status().await;
    assert_eq!(status["hostnames"], 2);
    for worker in status["workers"].as_array().unwrap() {
        assert_eq!(worker["generation"], 2);
    }

    edge.write(&configuration(&["a.test"]).replace("mode =", "mod ="));
    let problems = edge.reload().await.unwrap_err();
    assert!(problems[0].contains("hostward.toml:"), "{problems:?}");
    edge.write(&configuration(&["a.test"]).replace("workers = 2", "workers = 1"));
    let problems = edge.reload().await.unwrap_err();
    assert!(problems[0].contains("server.workers changed"), "{problems:?}");
    let status = edge.status().await;
    assert_eq!(status["generation"], 2);
    assert_eq!(status["hostnames"], 2);
    assert_eq!(status["last_reload"]["ok"], false);

    let metrics = edge.ask(Ask::Metrics).await;
    for line in [
        "hostward_config_reload_total{result=\"ok\"} 1",
        "hostward_config_reload_total{result=\"failed\"} 2",
        "hostward_config_last_reload_success 0",
        "hostward_registry_generation 2",
        "hostward_registry_hostnames 2",
        "hostward_worker_generation{worker=\"1\"} 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in:\n{metrics}");
    }
    assert!(
        metrics.lines().any(|line| line.starts_with("hostward_worker_turn_seconds_count ") && !line.ends_with(" 0"))
    );
    edge.end().await;
}

#[tokio::test]
async fn reloads_asked_for_together_are_all_answered() {
    let edge = Edge::start(&["a.test"]).await;
    let results = tokio::join!(edge.reload(), edge.reload(), edge.reload(), edge.reload());
    let generations = [results.0, results.1, results.2, results.3].map(|result| result.unwrap().generation);
    // The first began before the others were asked for; those may rely on one that began later, and share it.
    assert_eq!(generations, [2, 3, 3, 3]);
    edge.end().await;
}

#[tokio::test]
async fn a_drain_waits_for_open_connections_until_its_deadline() {
    let edge = Edge::start(&["a.test"]).await;
    let client = TcpStream::connect(edge.listen).await.unwrap();
    let open = async {
        while edge.status().await["connections_open"] == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, open).await.unwrap();
    edge.ask(Ask::Drain).await;
    assert_eq!(edge.ask(Ask::Ready).await, Err("draining".into()));
    assert!(edge.reload().await.is_err());
    let started = std::time::Instant::now();
    let ended = tokio::time::timeout(BOUND, edge.ended).await.unwrap().unwrap().unwrap();
    assert_eq!(ended.cut, 1);
    let waited = started.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_secs(4), "{waited:?}");
    drop(client);
}
