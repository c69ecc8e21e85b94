//! Positions in the inputs.

use serde::{Deserialize, Serialize};

/// A position between two records of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The index of the input, counted from 0.
    pub file: usize,
    /// The number of bytes of that input before this position.
    pub offset: u64,
    /// The line that begins here, counted from 1; 0 if nothing was read.
    pub line: u64,
}

/// A position from which a run can resume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePoint {
    /// The position.
    #[serde(flatten)]
    pub position: Position,
    /// The SHA-256 of every byte of every input before the position, in hex; empty if nothing was read.
    pub sha256: String,
}
