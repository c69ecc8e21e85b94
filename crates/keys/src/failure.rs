//! The reasons why a command fails, and their exit codes.

use crate::table::TableError;
use std::io;
use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// A new key was stored but could not be printed.
    #[error("cannot write to standard output: {error}. The new key {hint}, which nobody has received, {outcome}")]
    KeyNotPrinted { error: io::Error, hint: String, outcome: String },
    /// The command line or the environment is invalid.
    #[error("{0}")]
    Usage(String),
    #[error("no such key; `event-ingest-keys list` shows all keys")]
    NoSuchKey,
    /// Contains a table of the matching keys.
    #[error("several keys match; pass the --hint of one of them:\n\n{0}")]
    SeveralKeys(String),
    /// The selected key, or an existing key, does not allow the command.
    #[error("{0}")]
    Conflict(String),
    /// The user did not answer yes.
    #[error("not confirmed; nothing was changed")]
    NotConfirmed,
    #[error("cannot ask for confirmation without a terminal: pass --yes to proceed without asking")]
    NoTerminal,
}

impl Failure {
    /// The exit code that `--help` documents.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Table(TableError::NoRegion) => 2,
            Self::Table(_) | Self::Output(_) | Self::KeyNotPrinted { .. } => 1,
            Self::NoSuchKey | Self::SeveralKeys(_) | Self::Conflict(_) => 3,
            Self::NotConfirmed | Self::NoTerminal => 4,
        })
    }
}
