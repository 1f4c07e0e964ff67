//! The admin socket's file: bound for its owner only, taken over when stale, removed at the end.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub struct OwnSocket(Option<PathBuf>);

impl OwnSocket {
    /// Owns the file of a socket that another process bound; `None` if there is none any more.
    pub fn adopt(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        found.file_type().is_socket().then(|| Self(Some(path.to_owned())))
    }

    /// Leaves the file to another process, which has adopted it.
    pub fn leave(&mut self) {
        self.0 = None;
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds the socket with mode 0600, its directory made 0700 when missing.
///
/// # Errors
/// One line with the cure: another instance answers there, something that is no socket has the name, or the system's
/// reason.
pub fn bind_socket(path: &Path) -> Result<(UnixListener, OwnSocket), String> {
    let fail = |error: io::Error| {
        format!("cannot open admin.socket {}: {error}; change admin.socket, or its directory's owner", path.display())
    };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(fail)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(format!(
                "admin.socket {} exists and is no socket; remove it or change the key",
                path.display()
            ));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(format!(
                "another hostward answers on admin.socket {}; stop it (hostward drain) or change the key",
                path.display()
            ));
        }
        Ok(_) => std::fs::remove_file(path).map_err(fail)?,
        Err(_) => {}
    }
    // Bound under a mask, so that there is no moment at which others may connect. Only start-up does this, while no
    // other thread makes files.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound.map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok((listener, OwnSocket(Some(path.to_owned()))))
}

#[cfg(test)]
mod tests {
    use super::{OwnSocket, bind_socket};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn owner_only_taken_over_when_stale_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let (listener, own) = bind_socket(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(bind_socket(&path).unwrap_err().contains("another hostward"));
        drop(listener);
        std::mem::forget(own);
        let (_listener, own) = bind_socket(&path).expect("nobody answers: stale");
        drop(own);
        assert!(!path.exists());
        assert!(OwnSocket::adopt(&path).is_none());
        let (_bound, mut own) = bind_socket(&path).unwrap();
        let adopted = OwnSocket::adopt(&path).unwrap();
        own.leave();
        drop(own);
        assert!(path.exists(), "it is another's now");
        drop(adopted);
        assert!(!path.exists());
        std::fs::write(&path, "text").unwrap();
        assert!(bind_socket(&path).unwrap_err().contains("no socket"));
        assert!(path.exists(), "a file that is not ours stays");
    }
}
