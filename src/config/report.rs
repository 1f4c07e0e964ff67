//! What is wrong with a configuration, and where: for people at a terminal, and for the log of a refused reload.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A place in a configuration file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The file, as it was named: on the command line, or by the pattern that includes it.
    pub file: Arc<Path>,
    /// Counted from 1; 0 when the problem is with the file as a whole.
    pub line: u32,
    /// Counted from 1 in characters; 0 when the problem is with the file as a whole.
    pub column: u32,
}

impl Place {
    /// A file as a whole.
    pub fn of_file(file: &Path) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }

    /// An error here.
    pub fn error(&self, text: impl Into<String>) -> Problem {
        Problem { place: self.clone(), text: text.into(), severity: Severity::Error }
    }

    /// A warning here.
    pub fn warning(&self, text: impl Into<String>) -> Problem {
        Problem { place: self.clone(), text: text.into(), severity: Severity::Warning }
    }

    /// `file:line`, to point at this place from the message of another.
    pub fn line_reference(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 { write!(f, ":{}:{}", self.line, self.column) } else { Ok(()) }
    }
}

/// Whether a problem stops the configuration from being used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Worth knowing; the configuration is used. `check` prints it and succeeds.
    Warning,
    /// The configuration is refused.
    Error,
}

/// One thing that is wrong, with what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is wrong, and what to write instead. One line; holds no secret.
    pub text: String,
    /// Whether it stops the configuration from being used.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    /// `file:line:column: text`, without the `hostward: ` that the command line puts before each line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, "{}: {severity}{}", self.place, self.text)
    }
}

/// Everything that is wrong with a configuration, in the order in which a reader of the files meets it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Errors and warnings.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether anything stops the configuration from being used.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Adds one problem.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Sorts by file in the order given, then by line and column. Problems of one place keep their order; files that are
    /// not listed come last.
    pub(crate) fn sort(&mut self, files: &[Arc<Path>]) {
        let rank = |place: &Place| files.iter().position(|file| *file == place.file).unwrap_or(files.len());
        self.problems.sort_by_cached_key(|problem| {
            (rank(&problem.place), problem.place.file.clone(), problem.place.line, problem.place.column)
        });
    }
}

impl fmt::Display for Report {
    /// One problem a line, as [`Problem`] shows it, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_its_place() {
        let place = Place { file: Path::new("a.toml").into(), line: 41, column: 9 };
        assert_eq!(place.error("wrong").to_string(), "a.toml:41:9: wrong");
        assert_eq!(place.warning("odd").to_string(), "a.toml:41:9: warning: odd");
        assert_eq!(Place::of_file(Path::new("a.toml")).error("no such file").to_string(), "a.toml: no such file");
    }

    #[test]
    fn a_report_follows_the_files() {
        let at = |file: &str, line, column| Place { file: Path::new(file).into(), line, column };
        let mut report = Report::default();
        report.push(at("b.toml", 1, 1).error("4"));
        report.push(at("a.toml", 7, 2).error("6"));
        report.push(at("z.toml", 7, 1).warning("5"));
        report.push(at("z.toml", 2, 9).error("3"));
        report.push(at("z.toml", 2, 3).error("1"));
        report.push(at("z.toml", 2, 3).error("2"));
        report.sort(&[Path::new("z.toml").into(), Path::new("b.toml").into()]);
        let order: Vec<&str> = report.problems.iter().map(|problem| problem.text.as_str()).collect();
        assert_eq!(order, ["1", "2", "3", "5", "4", "6"]);
        assert_eq!(report.to_string().lines().count(), 6);
        assert!(report.has_errors());
        report.problems.retain(|problem| problem.severity == Severity::Warning);
        assert!(!report.has_errors());
    }
}
