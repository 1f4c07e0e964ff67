//! nginx as an origin: plain HTTP on a Unix-domain socket, so that no port can be lost to another test.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use socket2::{Domain, Type};
use tempfile::TempDir;

use super::{SOON, process, wait};

/// The body of `/`.
pub const BODY: &str = "hello from nginx\n";

/// Bytes of `/big`.
pub const BIG_BYTES: u64 = 8 << 20;

/// A running nginx.
pub struct Nginx {
    child: Child,
    directory: TempDir,
    /// Keeps a port for it.
    _port: Option<socket2::Socket>,
}

impl Nginx {
    /// `None`, and a loud line, where nginx is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with("", "location /sink { return 200; }")
    }

    /// The same with more directives: of `http`, and of the server that the edge reaches. `HOME` stands for the
    /// directory, whose files [`Self::read`] reads.
    pub fn start_with(http: &str, server: &str) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("hostward-nginx-").tempdir().expect("a directory");
        Self::start_in(directory, http, server, None)
    }

    /// The same, and over TCP too: with `listen` as parameters of that socket (`ssl`), in a directory that may have files
    /// already. Returns where it listens. nginx cannot be given a port by the kernel and say which: one is reserved by a
    /// socket that shares it and does not listen.
    pub fn start_tcp(directory: TempDir, listen: &str, server: &str) -> Option<(Self, SocketAddr)> {
        let port = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        port.set_reuse_port(true).expect("an option");
        port.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = port.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        let server = format!("listen {address} reuseport {listen}; {server}");
        Self::start_in(directory, "", &server, Some(port)).map(|nginx| (nginx, address))
    }

    fn start_in(directory: TempDir, http: &str, server: &str, port: Option<socket2::Socket>) -> Option<Self> {
        let program = process::tool("nginx")?;
        let root = directory.path().join("root");
        fs::create_dir(&root).expect("a directory");
        fs::write(root.join("index.html"), BODY).expect("a file");
        let big = fs::File::create(root.join("big")).expect("a file");
        big.set_len(BIG_BYTES).expect("a sparse file");
        let config = directory.path().join("nginx.conf");
        let home = directory.path().display().to_string();
        let (http, server) = (http.replace("HOME", &home), server.replace("HOME", &home));
        // One process in the foreground that keeps everything in its directory; its worker keeps the tests' user, who
        // may be root and own the directory.
        let text = format!(
            "daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;
             events {{ worker_connections 1024; }}
             http {{
                 access_log off; keepalive_requests 1000000; client_max_body_size 0;
                 client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
                 uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
                 {http}
                 server {{ listen unix:{home}/http.sock; root {home}/root; {server} }}
             }}"
        );
        fs::write(&config, text).expect("a file");
        let child = Command::new(program)
            .arg("-e")
            .arg(directory.path().join("error.log"))
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        let nginx = Self { child, directory, _port: port };
        wait::until("nginx listens", SOON, || std::os::unix::net::UnixStream::connect(nginx.socket()).is_ok());
        Some(nginx)
    }

    pub fn url(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Major, minor and patch number.
    pub fn version(&self) -> (u32, u32, u32) {
        let program = process::tool("nginx").expect("it runs");
        let finished = process::run(Command::new(program).arg("-v"), SOON);
        let output = finished.output();
        let numbers = output.split('/').nth(1).unwrap_or_default().split(|c: char| !c.is_ascii_digit());
        let numbers: Vec<u32> = numbers.filter_map(|number| number.parse().ok()).collect();
        let [major, minor, patch, ..] = numbers[..] else { panic!("no version: {output}") };
        (major, minor, patch)
    }

    /// What it wrote into a file of its directory so far.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("http.sock")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
