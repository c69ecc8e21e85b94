//! `event-ingest-backfill rejects FILE`: prints the events of a rejects file, to be corrected and sent.

use crate::error::Error;
use crate::rejects::original;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write, stdin};
use std::path::Path;

/// The events of a rejects file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// The places of events that were too long to be kept, such as `events.ndjson:17`.
    pub without_text: Vec<String>,
}

/// Prints the text of each event in the rejects file at `path` to `output`, one per line.
///
/// # Errors
/// If the file cannot be read or is not a rejects file, or the output cannot be written.
pub fn run(path: &Path, output: impl Write) -> Result<Printed, Error> {
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(stdin())
    } else {
        Box::new(File::open(path).map_err(|error| Error::Input(format!("cannot read {}: {error}", path.display())))?)
    };
    let usage = |number: u64, reason: &dyn std::fmt::Display| {
        Error::Usage(format!("{}:{number}: not a line of a rejects file: {reason}", path.display()))
    };
    let written = |error| Error::Aborted(format!("cannot write to standard output: {error}"));
    let (mut input, mut output) = (BufReader::new(input), BufWriter::new(output));
    let (mut printed, mut line) = (Printed::default(), Vec::new());
    for number in 1_u64.. {
        line.clear();
        let read = input.read_until(b'\n', &mut line);
        if read.map_err(|error| Error::Input(format!("cannot read {}: {error}", path.display())))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let original = original(&line).map_err(|reason| usage(number, &reason))?;
        match original.text {
            Some(text) => output.write_all(&text).and_then(|()| output.write_all(b"\n")).map_err(written)?,
            None => printed.without_text.push(original.place),
        }
    }
    output.flush().map_err(written)?;
    Ok(printed)
}
