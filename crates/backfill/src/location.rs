//! Where an input is.

use crate::s3::Object;
use std::fmt;
use std::path::{Path, PathBuf};

/// The place of an input. It is displayed as on the command line.
#[derive(Clone)]
pub enum Location {
    /// Standard input.
    Stdin,
    /// A file or a device on this machine.
    File(PathBuf),
    /// An object in Amazon S3.
    Object(Object),
}

impl Location {
    /// The path of a file; `None` for standard input and objects.
    pub fn path(&self) -> Option<&Path> {
        if let Self::File(path) = self { Some(path) } else { None }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => path.display().fmt(f),
            Self::Object(object) => f.write_str(object.url()),
        }
    }
}
