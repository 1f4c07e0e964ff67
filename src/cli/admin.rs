//! `hostward reload | drain | status`: what is said to a running process over its admin socket.

use std::path::{Path, PathBuf};

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::{complain, say};
use crate::config;
use crate::control::Failure;
use crate::control::admin::client;

/// Where the admin socket is when nothing names one: the default of `admin.socket`.
const SOCKET: &str = "/run/hostward/admin.sock";

/// Which running process.
#[derive(clap::Args, Debug)]
pub struct Target {
    /// The configuration file it was started with; its admin.socket is used.
    #[arg(short = 'c', long = "config", value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// Its admin socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// The arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct StatusArguments {
    #[command(flatten)]
    target: Target,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Target {
    fn socket(&self) -> Result<PathBuf, Failure> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => match config::load(file) {
                Ok(config) => Ok(config.admin.socket),
                Err(faults) => named_in(file).ok_or_else(|| faults.into()),
            },
            (None, None) => Ok(SOCKET.into()),
        }
    }

    /// Asks, and returns the answer; an answer that is no JSON is as good as none.
    fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, Value), Failure> {
        let socket = self.socket()?;
        let (status, body) = client::request(&socket, method, path).map_err(|error| {
            Failure::System(format!(
                "no answer on {}: {error}; is hostward running, and is this its admin.socket? (-c FILE or --socket PATH)",
                socket.display()
            ))
        })?;
        match serde_json::from_slice(&body) {
            Ok(value) => Ok((status, value)),
            Err(_) => Err(Failure::System(format!(
                "{} answered {status}: {}",
                socket.display(),
                String::from_utf8_lossy(&body).trim()
            ))),
        }
    }
}

/// The socket a configuration names that has faults elsewhere: a half-edited file is just when one wants to look and to
/// drain, and whether it can be served is for the running process to say.
fn named_in(file: &Path) -> Option<PathBuf> {
    let table = std::fs::read_to_string(file).ok()?.parse::<toml::Table>().ok()?;
    let socket = table.get("admin")?.get("socket")?.as_str()?;
    Some(file.parent().unwrap_or(Path::new("")).join(socket))
}

fn lines(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Reloads; fails with the problems, which changed nothing.
pub fn reload(target: &Target) -> Result<(), Failure> {
    let (status, answer) = target.ask(Method::POST, "/reload")?;
    if status != StatusCode::OK {
        let problems = lines(&answer, "problems");
        return Err(Failure::Input(if problems.is_empty() { vec![answer.to_string()] } else { problems }));
    }
    lines(&answer, "warnings").iter().for_each(|warning| complain(warning));
    say(format_args!("reloaded: generation {}", answer["generation"]));
    Ok(())
}

/// Starts a drain; does not wait for its end.
pub fn drain(target: &Target) -> Result<(), Failure> {
    match target.ask(Method::POST, "/drain")? {
        (StatusCode::ACCEPTED, _) => {
            say("draining");
            Ok(())
        }
        (status, answer) => Err(Failure::System(format!("drain was answered {status}: {answer}"))),
    }
}

/// Shows the status.
pub fn status(arguments: &StatusArguments) -> Result<(), Failure> {
    let (_, status) = arguments.target.ask(Method::GET, "/status")?;
    if arguments.json {
        say(&status);
    } else {
        describe(&status, 0).iter().for_each(say);
    }
    Ok(())
}

/// One line a value: the keys of the JSON, aligned, lists inline, lists of tables one line each.
fn describe(value: &Value, indent: usize) -> Vec<String> {
    let inline = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let mut out = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let pad = " ".repeat(indent);
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                out.push(format!("{pad}{key}:"));
                for item in items {
                    let fields = item.as_object().into_iter().flatten();
                    let fields: Vec<_> = fields.map(|(key, value)| format!("{key} {}", inline(value))).collect();
                    out.push(format!("{pad}  {}", fields.join(", ")));
                }
            }
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(inline).collect();
                out.push(format!("{pad}{key:<20} {}", items.join(", ")));
            }
            Value::Object(fields) if fields.is_empty() => out.push(format!("{pad}{key:<20} -")),
            Value::Object(_) => {
                out.push(format!("{pad}{key}:"));
                out.extend(describe(value, indent + 2));
            }
            other => out.push(format!("{pad}{key:<20} {}", inline(other))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Target, describe};
    use crate::control::Failure;
    use serde_json::json;

    #[test]
    fn a_status_reads_as_lines() {
        let status = json!({
            "admin": null, "failing": {}, "listen": ["127.0.0.1:1", "[::1]:1"], "last_reload": { "ok": false },
            "workers": [{ "worker": 0, "connections_open": 2 }],
        });
        let text = describe(&status, 0).join("\n");
        let expected = "admin                -\nfailing              -\nlast_reload:\n  ok                   false\n\
                        listen               127.0.0.1:1, [::1]:1\nworkers:\n  connections_open 2, worker 0";
        assert_eq!(text, expected);
    }

    #[test]
    fn nobody_there_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target { config: None, socket: Some(dir.path().join("none.sock")) };
        let Err(Failure::System(line)) = super::drain(&target) else { panic!("no failure") };
        assert!(line.contains("is hostward running"), "{line}");
    }
}
