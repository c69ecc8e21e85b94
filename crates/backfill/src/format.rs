//! The formats of input files.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One event in JSON per line.
    Ndjson,
    /// Comma-separated values with a header.
    Csv,
}
