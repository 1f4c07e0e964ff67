//! What the edge writes to its standard error: JSON lines, kept in order.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// Everything written so far, shared with the thread that reads.
#[derive(Clone, Default)]
pub struct Events {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Events {
    /// Reads to the end in a thread of its own.
    pub fn read(input: impl Read + Send + 'static) -> Self {
        let events = Self::default();
        let lines = Arc::clone(&events.lines);
        std::thread::Builder::new()
            .name("stderr".into())
            .spawn(move || {
                for line in BufReader::new(input).lines() {
                    let Ok(line) = line else { break };
                    lines.lock().expect("no test panics while holding this").push(line);
                }
            })
            .expect("a thread");
        events
    }

    /// Every line, as it was written.
    pub fn text(&self) -> String {
        self.lines.lock().expect("no test panics while holding this").join("\n")
    }

    /// The events of one of these names, in order.
    pub fn named(&self, names: &[&str]) -> Vec<Value> {
        let lines = self.lines.lock().expect("no test panics while holding this");
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| event["event"].as_str().is_some_and(|name| names.contains(&name)))
            .collect()
    }

    /// A line that says the program broke: a panic or an abort.
    pub fn crash(&self) -> Option<String> {
        let lines = self.lines.lock().expect("no test panics while holding this");
        lines.iter().find(|line| line.contains("panicked at") || line.contains("memory allocation of")).cloned()
    }
}
