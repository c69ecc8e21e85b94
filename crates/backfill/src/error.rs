//! The errors that end a run.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Why the command stopped. Its message is the text for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The command line, the environment, an input or the checkpoint is wrong.
    #[error("{0}")]
    Usage(String),
    /// An input could not be read. If this happens before anything is sent, the input is wrong; afterwards, the run is
    /// aborted.
    #[error("{0}")]
    Input(String),
    /// The run could not continue. The checkpoint records what was accepted.
    #[error("{0}")]
    Aborted(String),
}

/// A failure to read the stored input. Unlike a decompressor's error, its message needs no explanation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

impl Unreadable {
    /// Whether `error` is such a failure.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().and_then(|cause| cause.downcast_ref::<Self>()).is_some()
    }
}

/// An error and its causes, from the outermost to the innermost.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

impl Error {
    /// The exit code that `--help` documents, if the run sent nothing.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Input(_) => 2,
            Self::Aborted(_) => 3,
        })
    }

    /// A file operation failed; `action` is a verb such as "write".
    pub fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::Aborted(format!("cannot {action} {}: {error}", path.display()))
    }
}
