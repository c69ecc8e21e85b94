//! The formats of input files.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One event in JSON per line
    Ndjson,
    /// An array of events in JSON, or events one after another, on any number of lines
    Json,
    /// Delimited text with a header
    Csv,
    /// CSV whose delimiter is a tab
    Tsv,
    /// A Parquet file
    Parquet,
}
