//! `hostward explain`: would this client get in, and exactly why or why not.

use std::net::IpAddr;
use std::path::PathBuf;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ConfigFile, say};
use crate::config;
use crate::control::Failure;
use crate::control::explain::{self, Client};

/// The arguments of `explain`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit codes: 0 it would be let in, 4 it would be refused, 1 the configuration or the question is \
                        wrong, 2 the usage is wrong."
)]
pub struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The name the client asks for.
    #[arg(long, value_name = "NAME")]
    host: String,
    /// The certificates it sends: PEM, leaf first. That it holds the key is taken for granted.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The path it asks for, for rules that look at it.
    #[arg(long, value_name = "PATH", value_parser = path)]
    path: Option<String>,
    /// The method it asks with; GET if only a path is given.
    #[arg(long, value_name = "METHOD", requires = "path")]
    method: Option<String>,
    /// Its address, for rules that look at it.
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// When: as in 2026-12-24T18:00:00Z. Default: now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<OffsetDateTime>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn path(text: &str) -> Result<String, String> {
    let path = text.split(['?', '#']).next().unwrap_or_default();
    if path.starts_with('/') { Ok(path.to_owned()) } else { Err("a path begins with a slash".into()) }
}

fn time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "write it as in 2026-12-24T18:00:00Z".into())
}

/// Answers; `true`: the client would be let in.
pub fn explain(arguments: &Arguments) -> Result<bool, Failure> {
    let config = config::load(&arguments.file.config)?;
    let chain = match &arguments.cert {
        Some(path) => explain::read_chain(path).map_err(|problem| Failure::Input(vec![problem]))?,
        None => Vec::new(),
    };
    let client = Client {
        host: arguments.host.clone(),
        chain,
        source: arguments.source,
        method: arguments.path.as_ref().map(|_| arguments.method.clone().unwrap_or_else(|| "GET".into())),
        path: arguments.path.clone(),
    };
    let now = arguments.at.unwrap_or_else(OffsetDateTime::now_utc);
    let answer = explain::explain(&config, &client, now.unix_timestamp())?;
    if arguments.json {
        say(answer.json());
    } else {
        for (label, text) in answer.lines() {
            say(format_args!("{label:<12} {}", printable(&text)));
        }
    }
    Ok(answer.refusal.is_none())
}

/// Text that may come from a certificate, for a terminal: what is invisible or reorders is escaped.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{path, printable, time};

    #[test]
    fn arguments_are_read() {
        assert_eq!(path("/a?b"), Ok("/a".into()));
        assert!(path("a").is_err());
        assert_eq!(time("2026-12-24T18:00:00Z").map(|time| time.unix_timestamp()), Ok(1_798_135_200));
        assert!(time("tomorrow").is_err());
        assert_eq!(printable("a\u{1b}[2J\u{202e}ü"), "a\\u{1b}[2J\\u{202e}ü");
    }
}
