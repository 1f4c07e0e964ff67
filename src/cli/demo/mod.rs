//! `hostward demo`: a working edge in one command.
//!
//! Its own PKI in a directory it prints, two customers who trust different CAs, an origin for each, and the real data
//! plane, run from a configuration file written there exactly as `hostward run` would. It prints lines to paste; with
//! `--once` it plays them itself over the real sockets and compares what it sees with what must be.

mod cases;
mod client;
mod lines;
mod origin;
mod pki;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::say;
use crate::control::admin::Ask;
use crate::control::{self, Failure, Options, Ready};

/// The two customers: hostname, name, and the file names' prefix.
const ACME: Customer = Customer { hostname: "pay.acme.test", name: "Acme", prefix: "acme" };
const GLOBEX: Customer = Customer { hostname: "api.globex.test", name: "Globex", prefix: "globex" };

/// One customer of the demo.
#[derive(Clone, Copy, Debug)]
struct Customer {
    hostname: &'static str,
    name: &'static str,
    prefix: &'static str,
}

impl Customer {
    /// The common name of its client.
    fn client_name(&self) -> String {
        format!("device-1.{}", self.prefix)
    }

    /// The subject of its client's certificate, as the edge tells it (RFC 4514).
    fn subject(&self) -> String {
        format!("CN={}", self.client_name())
    }
}

/// The arguments of `demo`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Where keys, certificates and the configuration go; made if missing. Default: a new directory under the system's
    /// temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Try everything itself, print what was expected and seen, and exit 0 only if all match.
    #[arg(long)]
    once: bool,
}

/// Runs the demo until Ctrl-C, or once.
pub fn demo(arguments: &Arguments) -> Result<(), Failure> {
    let dir = directory(arguments.dir.as_deref()).map_err(|error| cannot("make a directory for the demo", &error))?;
    let origins = origin::start(&[ACME, GLOBEX]).map_err(|error| cannot("start the demo's origins", &error))?;
    let pki = pki::Pki::generate().map_err(|error| Failure::System(format!("cannot make the demo's keys: {error}")))?;
    pki.write(&dir).map_err(|error| cannot("write the demo's keys", &error))?;
    let config = dir.join("hostward.toml");
    let level = if arguments.once { "warn" } else { "info" };
    std::fs::write(&config, configuration(&origins, level))
        .map_err(|error| cannot("write the configuration", &error))?;

    let result = if arguments.once { once(&config, pki) } else { until_interrupted(&config, &dir) };
    // A directory that was asked for stays; one that was made up has served its purpose once the demo has played itself.
    if arguments.once && arguments.dir.is_none() && result.is_ok() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    result
}

fn until_interrupted(config: &Path, dir: &Path) -> Result<(), Failure> {
    let dir = dir.to_owned();
    let on_ready = move |ready: Ready| {
        if let Some(address) = ready.listen.first() {
            say(lines::instructions(&dir, *address, ready.admin));
        }
    };
    control::run(Options { config: config.to_owned(), program: None, on_ready: Some(Box::new(on_ready)) })
}

fn once(config: &Path, pki: pki::Pki) -> Result<(), Failure> {
    let (sender, outcome) = mpsc::channel();
    let on_ready = move |ready: Ready| {
        let Some(address) = ready.listen.first().copied() else { return };
        let clients = move || {
            let _ = sender.send(cases::play(address, &pki));
            let (reply, _) = oneshot::channel();
            let _ = ready.asks.blocking_send(Ask::Drain(reply));
        };
        // Without its thread neither outcome nor drain would ever come.
        if std::thread::Builder::new().name("demo-clients".into()).spawn(clients).is_err() {
            std::process::abort();
        }
    };
    control::run(Options { config: config.to_owned(), program: None, on_ready: Some(Box::new(on_ready)) })?;
    let outcome =
        outcome.recv().map_err(|_| Failure::System("the demo was ended before its clients were done".into()))?;
    let played = outcome.map_err(Failure::System)?;
    say(cases::table(&played));
    let wrong = played.iter().filter(|case| !case.matches()).count();
    if wrong > 0 {
        return Err(Failure::System(format!("{wrong} of {} cases went otherwise than they must", played.len())));
    }
    say(format_args!("all {} cases as expected", played.len()));
    Ok(())
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    Failure::System(format!("cannot {what}: {error}; --dir names another place"))
}

/// The directory, absolute, for its owner only if it is made here.
fn directory(wanted: Option<&Path>) -> io::Result<PathBuf> {
    if let Some(dir) = wanted {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        return dir.canonicalize();
    }
    /// Names that may be taken, by demos that were killed with this process's id.
    const ATTEMPTS: u32 = 100;
    for attempt in 0..ATTEMPTS {
        let dir = std::env::temp_dir().join(format!("hostward-demo-{}-{attempt}", std::process::id()));
        // Not recursive: a directory that is there may belong to someone else.
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return dir.canonicalize(),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The configuration of the demo, as one would write it by hand.
fn configuration(origins: &[std::net::SocketAddr], level: &str) -> String {
    let mut text = format!(
        "# Written by `hostward demo`. Ports 0: the kernel chooses.\n\
         [server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"state\"\n\n\
         [admin]\nsocket = \"admin.sock\"\nlisten = \"127.0.0.1:0\"\n\n\
         [limits]\ndrain_timeout = \"2s\"\n\n\
         [log]\nlevel = \"{level}\"\n"
    );
    for (customer, origin) in [ACME, GLOBEX].iter().zip(origins) {
        let Customer { hostname, name, prefix } = customer;
        text.push_str(&format!(
            "\n# {name}: its own certificate, its own CA, its own origin.\n\
             [origin.{prefix}]\nurl = [\"http://{origin}\"]\n\n\
             [[hostname]]\nname = \"{hostname}\"\ncertificate = \"{prefix}-server.pem\"\n\
             private_key = \"{prefix}-server.key\"\norigin = \"{prefix}\"\n\n\
             [hostname.client_auth]\nmode = \"require\"\nca = [\"{prefix}-ca.pem\"]\n\
             headers = [\"x-client-cert\"]\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{configuration, directory, pki};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_demo_writes_a_configuration_that_passes_its_own_check() {
        let parent = tempfile::tempdir().unwrap();
        let dir = directory(Some(&parent.path().join("demo"))).unwrap();
        assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        pki::Pki::generate().unwrap().write(&dir).unwrap();
        assert_eq!(dir.join("acme-client.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let file = dir.join("hostward.toml");
        let origins = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        std::fs::write(&file, configuration(&origins, "info")).unwrap();
        let report = crate::control::assemble::check_full(&file);
        assert_eq!(report.problems, []);
    }
}
