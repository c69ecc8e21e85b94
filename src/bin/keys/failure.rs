//! Every way the command can end badly.

use crate::choice::Unclear;
use event_ingest::aws::key_admin::AdminError;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// Why the command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// AWS did not do it.
    Aws(AdminError),
    /// The result could not be written; what became of it.
    Output(io::Error, &'static str),
    /// The command line or the environment is wrong.
    Usage(String),
    /// Not one key is meant.
    Unclear(Unclear),
    /// The key that is meant does not allow it.
    Conflict(String),
    /// The question was not answered with yes.
    Declined,
    /// There is nobody to ask.
    NoTerminal,
}

impl Failure {
    /// As `--help` says.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Aws(AdminError::NoRegion) => 2,
            Self::Aws(_) | Self::Output(..) => 1,
            Self::Unclear(_) | Self::Conflict(_) => 3,
            Self::Declined | Self::NoTerminal => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws(error) => error.fmt(f),
            Self::Output(error, became) => write!(f, "standard output could not be written ({error}){became}"),
            Self::Usage(why) | Self::Conflict(why) => f.write_str(why),
            Self::Unclear(unclear) => unclear.fmt(f),
            Self::Declined => f.write_str("not confirmed; nothing was changed"),
            Self::NoTerminal => f.write_str("there is no terminal to ask on: give --yes to do it unasked"),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        Self::Aws(error)
    }
}

impl From<Unclear> for Failure {
    fn from(unclear: Unclear) -> Self {
        Self::Unclear(unclear)
    }
}
