//! The configuration of an edge, as values a case changes and a file the edge reads.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::World;
use super::http::HttpOrigin;
use super::origin::Origin;
use super::pki::{Authority, Identity};

/// What a hostname asks of its clients, in the words of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auth {
    Off,
    Request,
    Require,
}

impl Auth {
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Request => "request",
            Self::Require => "require",
        }
    }
}

/// One `[[hostname]]`.
#[derive(Clone)]
pub struct Host {
    pub names: Vec<String>,
    /// `tcp`, or `http`.
    pub mode: &'static str,
    pub certificates: Vec<Identity>,
    /// URLs of the origin.
    pub origin: Vec<String>,
    /// The origin is told who the client is, by the PROXY protocol.
    pub proxy_protocol: bool,
    pub auth: Auth,
    /// PEM, a file each.
    pub cas: Vec<String>,
    /// The bodies of `[[hostname.rule]]` tables.
    pub rules: Vec<String>,
    /// More lines of `[[hostname]]`.
    pub lines: Vec<String>,
    /// More lines of `[hostname.client_auth]`.
    pub auth_lines: Vec<String>,
    /// More lines of the origin's table.
    pub origin_lines: Vec<String>,
    /// Uses the origin's table of the host at this place instead of one of its own.
    pub origin_of_host: Option<usize>,
}

impl World {
    /// A hostname that asks for no certificate; the server certificate is made here.
    pub fn host(&self, name: &str, origin: &Origin) -> Host {
        self.host_at(name, &[origin.url()])
    }

    /// A hostname in HTTP mode.
    pub fn http_host(&self, name: &str, origin: &HttpOrigin) -> Host {
        self.host_at(name, &[&origin.url()]).http()
    }

    /// The same with an origin of several addresses.
    pub fn host_at(&self, name: &str, origin: &[&str]) -> Host {
        Host {
            names: vec![name.to_owned()],
            mode: "tcp",
            certificates: vec![self.servers.server(&[name]).issue()],
            origin: origin.iter().map(|url| (*url).to_owned()).collect(),
            proxy_protocol: false,
            auth: Auth::Off,
            cas: Vec::new(),
            rules: Vec::new(),
            lines: Vec::new(),
            auth_lines: Vec::new(),
            origin_lines: Vec::new(),
            origin_of_host: None,
        }
    }
}

impl Host {
    pub fn auth(mut self, mode: Auth, cas: &[&Authority]) -> Self {
        self.set_auth(mode, cas);
        self
    }

    pub fn request(self, cas: &[&Authority]) -> Self {
        self.auth(Auth::Request, cas)
    }

    pub fn require(self, cas: &[&Authority]) -> Self {
        self.auth(Auth::Require, cas)
    }

    /// Changes mode and CAs of a host that is already in place.
    pub fn set_auth(&mut self, mode: Auth, cas: &[&Authority]) {
        self.auth = mode;
        self.cas = cas.iter().map(|ca| ca.pem().to_owned()).collect();
    }

    /// Shares the origin's table of the host at this place of the settings.
    pub fn with_origin_of(mut self, index: usize) -> Self {
        self.origin_of_host = Some(index);
        self
    }

    /// Each request is judged and forwarded by itself.
    pub fn http(mut self) -> Self {
        self.mode = "http";
        self
    }

    pub fn auth_line(mut self, line: &str) -> Self {
        self.auth_lines.push(line.to_owned());
        self
    }

    /// The origin is told who the client is.
    pub fn with_proxy_header(mut self) -> Self {
        self.proxy_protocol = true;
        self
    }

    pub fn rule(mut self, body: &str) -> Self {
        self.rules.push(body.to_owned());
        self
    }

    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    pub fn origin_line(mut self, line: &str) -> Self {
        self.origin_lines.push(line.to_owned());
        self
    }

    fn write_origin(&self, index: usize, text: &mut String) -> Result<String, std::fmt::Error> {
        let scheme = format!("{}://", self.mode);
        let quoted: Vec<_> = self.origin.iter().map(|url| format!("{:?}", url.replace("tcp://", &scheme))).collect();
        writeln!(text, "[origin.o{index}]\nurl = [{}]", quoted.join(", "))?;
        if self.proxy_protocol {
            writeln!(text, "proxy_protocol = \"v2\"")?;
        }
        for line in &self.origin_lines {
            writeln!(text, "{line}")?;
        }
        Ok(format!("o{index}"))
    }

    fn write(&self, index: usize, directory: &Path, text: &mut String) -> std::fmt::Result {
        let origin = match &self.origin_of_host {
            Some(other) => format!("o{other}"),
            None => self.write_origin(index, text)?,
        };
        writeln!(text, "[[hostname]]\nname = {:?}\nmode = {:?}\norigin = \"{origin}\"", self.names, self.mode)?;
        let (mut certificates, mut keys) = (Vec::new(), Vec::new());
        for (number, identity) in self.certificates.iter().enumerate() {
            certificates.push(store(directory, &format!("h{index}-{number}.pem"), &identity.chain_pem));
            keys.push(store(directory, &format!("h{index}-{number}.key"), &identity.key_pem));
        }
        writeln!(text, "certificate = {certificates:?}\nprivate_key = {keys:?}")?;
        for line in &self.lines {
            writeln!(text, "{line}")?;
        }

        if self.auth != Auth::Off {
            let cas: Vec<_> = self
                .cas
                .iter()
                .enumerate()
                .map(|(number, pem)| store(directory, &format!("h{index}-ca{number}.pem"), pem))
                .collect();
            writeln!(text, "[hostname.client_auth]\nmode = {:?}\nca = {cas:?}", self.auth.word())?;
            for line in &self.auth_lines {
                writeln!(text, "{line}")?;
            }
        }
        for rule in &self.rules {
            writeln!(text, "[[hostname.rule]]\n{rule}")?;
        }
        Ok(())
    }
}

/// Everything in the file.
#[derive(Clone)]
pub struct Settings {
    pub hosts: Vec<Host>,
    /// `server.listen`.
    pub listen: Vec<String>,
    pub workers: usize,
    /// More lines of `[server]`.
    pub server: Vec<String>,
    pub tls: Vec<String>,
    pub limits: Vec<String>,
    pub cache: Vec<String>,
    pub log: Vec<String>,
    /// Lines before the first table.
    pub top: Vec<String>,
}

impl Settings {
    /// Two workers on ports the kernel chooses, and no hostnames.
    pub fn new() -> Self {
        Self {
            hosts: Vec::new(),
            listen: vec!["127.0.0.1:0".into()],
            workers: 2,
            server: vec![],
            tls: vec![],
            limits: vec![],
            cache: vec![],
            log: vec![],
            top: vec![],
        }
    }

    pub fn host(mut self, host: Host) -> Self {
        self.hosts.push(host);
        self
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    pub fn tls(mut self, line: &str) -> Self {
        self.tls.push(line.to_owned());
        self
    }

    pub fn limit(mut self, line: &str) -> Self {
        self.limits.push(line.to_owned());
        self
    }

    pub fn log(mut self, line: &str) -> Self {
        self.log.push(line.to_owned());
        self
    }

    pub fn server(mut self, line: &str) -> Self {
        self.server.push(line.to_owned());
        self
    }

    /// The host of this name, to be changed.
    #[track_caller]
    pub fn named(&mut self, name: &str) -> &mut Host {
        let host = self.hosts.iter_mut().find(|host| host.names.iter().any(|other| other == name));
        host.unwrap_or_else(|| panic!("no host {name} in the settings"))
    }

    pub fn remove(&mut self, name: &str) {
        self.hosts.retain(|host| !host.names.iter().any(|other| other == name));
    }

    /// Writes the file and everything it names into the directory; returns the file's path.
    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join("hostward.toml");
        fs::write(&path, self.text(directory).expect("writing to a string")).expect("a file");
        path
    }

    fn text(&self, directory: &Path) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        for line in &self.top {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "[server]\nlisten = {:?}\nworkers = {}", self.listen, self.workers)?;
        writeln!(text, "state_dir = {:?}", directory.join("state"))?;
        for line in &self.server {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "[admin]\nsocket = {:?}\nlisten = \"127.0.0.1:0\"", directory.join("admin.sock"))?;
        for (table, lines) in [("tls", &self.tls), ("limits", &self.limits), ("cache", &self.cache), ("log", &self.log)]
        {
            writeln!(text, "[{table}]\n{}", lines.join("\n"))?;
        }
        for (index, host) in self.hosts.iter().enumerate() {
            host.write(index, directory, &mut text)?;
        }
        Ok(text)
    }
}

/// Writes a file beside the configuration; returns its name, which is how the configuration refers to it.
fn store(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, content).expect("a file");
    // Keys are among them, and `check` warns of those that everybody can read.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
    name.to_owned()
}
