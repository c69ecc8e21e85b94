//! Every way the command can end before its work is done.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Why the command stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command line or the environment is wrong; nothing was sent.
    Usage(String),
    /// It could not go on; what was accepted is remembered.
    Aborted(String),
}

impl Failure {
    /// As `--help` says.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Aborted(_) => 3,
        })
    }

    /// A file could not be read or written.
    pub fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        Self::Aborted(format!("cannot {doing} {}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Aborted(why) => f.write_str(why),
        }
    }
}
