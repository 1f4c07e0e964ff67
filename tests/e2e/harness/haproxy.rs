//! HAProxy, in front of an edge or behind it. It inherits a listener that the kernel has chosen a port for, so that no port
//! can be lost to another test.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use tempfile::TempDir;

use super::process;

/// A running HAProxy.
pub struct Haproxy {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Haproxy {
    /// Starts with this configuration, in which `LISTENER` stands for what a `bind` line names and `HOME` for a directory
    /// with these files. `None`, and a loud line, where HAProxy is not installed.
    pub fn start(config: &str, files: &[(&str, &str)]) -> Option<Self> {
        let program = process::tool("haproxy")?;
        let directory = tempfile::Builder::new().prefix("hostward-haproxy-").tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        fcntl_setfd(&listener, FdFlags::empty()).expect("a flag of this descriptor");
        for (name, content) in files {
            fs::write(directory.path().join(name), content).expect("a file");
        }
        let config = config
            .replace("LISTENER", &format!("fd@{}", listener.as_raw_fd()))
            .replace("HOME", directory.path().to_str().expect("UTF-8"));
        let path = directory.path().join("haproxy.cfg");
        let timeouts = "timeout client 20s\n timeout server 20s\n timeout connect 10s\n timeout check 5s";
        fs::write(&path, format!("defaults\n {timeouts}\n{config}\n")).expect("a file");
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("HAProxy starts");
        // The listener listens already: whoever connects before HAProxy is up waits for it.
        Some(Self { child, address, _directory: directory })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
