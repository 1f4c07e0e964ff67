//! Which binary a hand-over starts: the one that stands now where this process's stood when it was started.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The program this process was started as.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// Without the program's name.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// Finds out. To be called at the start: later the working directory may have moved and the file been replaced.
    ///
    /// The name it was called by comes before /proc/self/exe, which follows symbolic links: whoever upgrades by pointing a
    /// link elsewhere means the link.
    pub fn current() -> Option<Self> {
        let mut arguments = env::args_os();
        let called = arguments.next().map(PathBuf::from);
        let path = called.and_then(|called| named(&called)).or_else(|| env::current_exe().ok().map(still_there))?;
        Some(Self { path, arguments: arguments.collect() })
    }
}

/// The absolute path of this name, if it is this very program.
fn named(called: &Path) -> Option<PathBuf> {
    let candidates: Vec<PathBuf> = if called.components().count() > 1 || called.is_absolute() {
        vec![env::current_dir().ok()?.join(called)]
    } else {
        env::split_paths(&env::var_os("PATH")?).filter(|dir| dir.is_absolute()).map(|dir| dir.join(called)).collect()
    };
    let running = fs::metadata("/proc/self/exe").ok()?;
    candidates
        .into_iter()
        .find(|path| fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (running.dev(), running.ino())))
}

/// The kernel marks the name of a file that was removed or replaced; what stands there now is the new one.
fn still_there(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(name) => name.into(),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_is_found_and_no_other() {
        let program = Program::current().unwrap();
        assert!(program.path.is_absolute(), "{}", program.path.display());
        assert_eq!(fs::canonicalize(&program.path).unwrap(), fs::canonicalize(env::current_exe().unwrap()).unwrap());
        assert_eq!(named(Path::new("/bin/sh")), None);
        assert_eq!(named(Path::new("sh")), None);
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("hostward");
        std::os::unix::fs::symlink(env::current_exe().unwrap(), &link).unwrap();
        assert_eq!(named(&link), Some(link), "a link is kept: it may point elsewhere next time");
    }

    #[test]
    fn a_replaced_file_is_named_as_before() {
        assert_eq!(still_there("/usr/bin/hostward (deleted)".into()), Path::new("/usr/bin/hostward"));
        assert_eq!(still_there("/usr/bin/hostward".into()), Path::new("/usr/bin/hostward"));
    }
}
