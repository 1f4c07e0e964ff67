//! Where the lines go, and what is left when a write fails half-way.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mode of a file that is made: its owner writes, its group (those who collect logs) reads. Whatever the umask.
const FILE_MODE: u32 = 0o640;

/// Where the access log goes, as it is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Off,
    Stdout,
    File(PathBuf),
}

/// An opened target.
pub struct Sink {
    out: Out,
    /// The last write ended in the middle of a line.
    torn: bool,
}

enum Out {
    Off,
    Stream(Box<dyn Write + Send>),
    File { path: PathBuf, file: File },
}

/// A write that failed.
#[derive(Debug)]
pub struct Failed {
    /// Lines that are lost; one that was written in part is among them.
    pub lines: u64,
    pub nothing_written: bool,
    pub error: io::Error,
}

impl Sink {
    /// Opens a target. A file is appended to, and made if it is missing.
    ///
    /// # Errors
    ///
    /// Those of open(2), and a path that leads to no regular file.
    pub fn open(target: &Target) -> io::Result<Self> {
        let out = match target {
            Target::Off => Out::Off,
            // Not std's own handle, whose buffer would hold back the end of a batch.
            Target::Stdout => Out::Stream(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))),
            Target::File(path) => Out::File { path: path.clone(), file: open(path)? },
        };
        Ok(Self { out, torn: false })
    }

    /// Writes into anything.
    #[cfg(test)]
    pub(super) fn stream(out: impl Write + Send + 'static) -> Self {
        Self { out: Out::Stream(Box::new(out)), torn: false }
    }

    /// Whether nothing is written.
    pub fn is_off(&self) -> bool {
        matches!(self.out, Out::Off)
    }

    /// The file's path, if it is a file.
    pub fn path(&self) -> Option<&Path> {
        match &self.out {
            Out::File { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Opens the same file again. On failure the old one stays in use.
    ///
    /// # Errors
    ///
    /// As [`Sink::open`].
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Out::File { path, file } = &mut self.out {
            *file = open(path)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Writes whole lines.
    ///
    /// # Errors
    ///
    /// `Failed`: what was not written is lost, and the next write begins on a line of its own.
    pub fn write(&mut self, lines: &[u8]) -> Result<(), Failed> {
        let out: &mut dyn Write = match &mut self.out {
            Out::Off => return Ok(()),
            Out::Stream(stream) => stream,
            Out::File { file, .. } => file,
        };
        let mut rest = lines;
        let result = loop {
            // The end of a line that was cut off by a full disk: without it the next line would be lost too.
            let part: &[u8] = if self.torn { b"\n" } else { rest };
            match out.write(part) {
                _ if part.is_empty() => break out.flush(),
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(_) if self.torn => self.torn = false,
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        result.map_err(|error| {
            let written = &lines[..lines.len() - rest.len()];
            self.torn |= written.last().is_some_and(|byte| *byte != b'\n');
            let lines = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
            Failed { lines, nothing_written: written.is_empty(), error }
        })
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK a FIFO nobody reads would hold us; on regular files it means nothing.
    options.append(true).mode(FILE_MODE).custom_flags(libc::O_NONBLOCK);
    let file = match options.clone().create_new(true).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
            file
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options.create(true).open(path)?,
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}
