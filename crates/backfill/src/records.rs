//! The records of an input in either format, validated by the service's own rules.

use crate::column_types::ColumnTypes;
use crate::csv::{CsvReader, CsvRow};
use crate::error::Error;
use crate::format::Format;
use crate::input::{InputReader, Source, read_error};
use crate::ndjson::{self, Line};
use crate::rejects::Problem;
use contract::batch::{Batch, BatchError};
use contract::event::Violation;
use contract::limits::MAX_EVENT_BYTES;
use std::io;

/// The result of reading a record.
pub enum Record {
    /// A valid event. Its text is in the buffer.
    Valid,
    /// A record that is not a valid event.
    Rejected {
        /// At least one problem.
        problems: Vec<Problem>,
        /// Whether the buffer has the record's text.
        has_text: bool,
    },
    /// There are no more records.
    End,
}

/// Reads the records of an input.
pub enum RecordReader {
    /// An NDJSON input.
    Ndjson,
    /// A CSV input; `None` if it is empty.
    Csv(Option<Box<CsvReader>>),
}

impl RecordReader {
    /// Reads the header of a CSV input.
    ///
    /// # Errors
    /// If the input cannot be read or its header is not valid.
    pub fn open(input: &mut InputReader, source: &Source, types: &ColumnTypes) -> Result<Self, Error> {
        if source.format == Format::Ndjson {
            return Ok(Self::Ndjson);
        }
        let csv = CsvReader::open(input, types).map_err(|error| read_error(source, &error))?;
        let csv = csv.map_err(|reason| Error::Usage(format!("{}: {reason}", source.display_name())))?;
        Ok(Self::Csv(csv.map(Box::new)))
    }

    /// Reads the next record into `text`, and sets `line` to the number of its first line.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next(&mut self, input: &mut InputReader, text: &mut Vec<u8>, line: &mut u64) -> io::Result<Record> {
        match self {
            Self::Ndjson => Ok(match ndjson::next_line(input, text, line)? {
                Line::Text => validated(Vec::new(), text),
                Line::TooLong(bytes) => {
                    too_long(format!("the line has {bytes} bytes; an event has at most {MAX_EVENT_BYTES}"))
                }
                Line::End => Record::End,
            }),
            Self::Csv(None) => Ok(Record::End),
            Self::Csv(Some(csv)) => Ok(match csv.next_event(input, text, line)? {
                CsvRow::Event(mistyped) => {
                    let problem = mistyped.map(|(field, reason)| Problem {
                        field: Some(field),
                        code: "invalid_cell".into(),
                        reason: reason.to_owned(),
                    });
                    validated(problem.into_iter().collect(), text)
                }
                CsvRow::Malformed(reason) => {
                    let problem = Problem { field: None, code: "invalid_row".into(), reason };
                    Record::Rejected { problems: vec![problem], has_text: true }
                }
                CsvRow::TooLong => too_long(format!(
                    "the row has more than {MAX_EVENT_BYTES} bytes or far too many cells; is there an unclosed quote?"
                )),
                CsvRow::End => Record::End,
            }),
        }
    }
}

fn too_long(reason: String) -> Record {
    let problem = Problem { field: None, code: "too_long".into(), reason };
    Record::Rejected { problems: vec![problem], has_text: false }
}

fn validated(mut problems: Vec<Problem>, text: &[u8]) -> Record {
    match Batch::parse_single(text) {
        Ok(_) => {}
        Err(BatchError::Malformed(message)) => {
            // serde_json counts lines from the start of the event, which has only one line.
            let reason = message.replace(" at line 1 column", " at column");
            problems.push(Problem { field: None, code: "malformed_json".into(), reason });
        }
        Err(BatchError::Invalid(violations)) => problems.extend(violations.into_iter().map(problem)),
    }
    if problems.is_empty() { Record::Valid } else { Record::Rejected { problems, has_text: true } }
}

fn problem(violation: Violation) -> Problem {
    Problem { field: violation.field(), code: "validation_failed".into(), reason: violation.message.into_owned() }
}
