//! The records of an input in any format, mapped to events and validated by the service's own rules.

use crate::csv::{CsvReader, CsvRow};
use crate::csv_parser::Dialect;
use crate::error::Error;
use crate::format::Format;
use crate::input::{InputReader, Source, read_error};
use crate::json::JsonReader;
use crate::mapping::{Mapped, Mapping, Members, Plan};
use crate::ndjson::{self, Line};
use crate::rejects::Problem;
use contract::batch::{Batch, BatchError};
use contract::event::Violation;
use contract::limits::MAX_EVENT_BYTES;
use serde::{Deserialize, Serialize};
use std::io;

/// The options that determine how the inputs become events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOptions {
    /// How a record becomes an event.
    #[serde(flatten)]
    pub mapping: Mapping,
    /// How CSV files are written.
    #[serde(flatten)]
    pub dialect: Dialect,
}

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
    /// A record that does not satisfy the conditions.
    Skipped,
    /// There are no more records.
    End,
}

/// Reads the records of an input.
pub struct RecordReader {
    format: FormatReader,
    /// How JSON becomes events; `None` if it is sent unchanged. CSV has its own.
    plan: Option<Plan>,
    /// The text of a record before it is mapped.
    source: Vec<u8>,
}

enum FormatReader {
    /// NDJSON, or the rows of a Parquet file.
    Lines,
    Json(JsonReader),
    /// `None` if the input is empty.
    Csv(Option<Box<CsvReader>>),
}

impl RecordReader {
    /// Reads the header of a CSV input.
    ///
    /// # Errors
    /// If the input cannot be read, or its header does not match the options.
    pub fn open(input: &mut InputReader, source: &Source, options: &ReadOptions) -> Result<Self, Error> {
        let usage = |reason| Error::Usage(format!("{}: {reason}", source.display_name()));
        let unreadable = |error: io::Error| read_error(&source.location, &error);
        let mapping = &options.mapping;
        let json_plan = || (!mapping.is_identity()).then(|| Plan::new(mapping, None)).transpose().map_err(usage);
        let (format, plan) = match source.format {
            Format::Ndjson => (FormatReader::Lines, json_plan()?),
            Format::Json => (FormatReader::Json(JsonReader::open(input).map_err(unreadable)?), json_plan()?),
            Format::Parquet => {
                let names: Vec<_> = source.parquet.iter().flat_map(|(names, _)| names).map(String::as_str).collect();
                (FormatReader::Lines, Some(Plan::new(mapping, Some(&names)).map_err(usage)?))
            }
            Format::Csv | Format::Tsv => {
                let mut dialect = options.dialect.clone();
                if source.format == Format::Tsv {
                    dialect.delimiter.get_or_insert(b'\t');
                }
                let csv = CsvReader::open(input, &dialect, mapping).map_err(unreadable)?.map_err(usage)?;
                (FormatReader::Csv(csv.map(Box::new)), None)
            }
        };
        Ok(Self { format, plan, source: Vec::new() })
    }

    /// Reads the next record into `text`, and sets `line` to the number of its first line.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next(&mut self, input: &mut InputReader, text: &mut Vec<u8>, line: &mut u64) -> io::Result<Record> {
        let buffer = if self.plan.is_some() { &mut self.source } else { &mut *text };
        let (read, what) = match &mut self.format {
            FormatReader::Lines => (ndjson::next_line(input, buffer, line)?, "line"),
            FormatReader::Json(json) => (json.next(input, buffer, line)?, "value"),
            FormatReader::Csv(None) => return Ok(Record::End),
            FormatReader::Csv(Some(csv)) => return Ok(csv_record(csv.next_event(input, text, line)?, text)),
        };
        Ok(match read {
            Line::End => Record::End,
            Line::TooLong(bytes) => {
                too_long(format!("the {what} has {bytes} bytes; an event has at most {MAX_EVENT_BYTES}"))
            }
            Line::Text => match &self.plan {
                None => validated(Vec::new(), text),
                Some(plan) => map_json(plan, &self.source, text),
            },
        })
    }
}

fn csv_record(row: CsvRow, text: &[u8]) -> Record {
    match row {
        CsvRow::Event(problems) => validated(problems, text),
        CsvRow::Skipped => Record::Skipped,
        CsvRow::Malformed(reason) => {
            let problem = Problem { field: None, code: "invalid_row".into(), reason };
            Record::Rejected { problems: vec![problem], has_text: true }
        }
        CsvRow::TooLong => too_long(format!(
            "the row has more than {MAX_EVENT_BYTES} bytes or far too many cells; is there an unclosed quote?"
        )),
        CsvRow::End => Record::End,
    }
}

fn map_json(plan: &Plan, source: &[u8], text: &mut Vec<u8>) -> Record {
    text.clear();
    let members = std::str::from_utf8(source).ok().and_then(Members::parse);
    let Some(members) = members else {
        // It is rejected as it is.
        text.extend_from_slice(source);
        return validated(Vec::new(), text);
    };
    if let Some(name) = members.duplicate() {
        let reason = format!("has the member `{name}` twice");
        text.extend_from_slice(source);
        let problem = Problem { field: None, code: "invalid_row".into(), reason };
        return Record::Rejected { problems: vec![problem], has_text: true };
    }
    match plan.write(&members, text) {
        Mapped::Event(problems) => validated(problems, text),
        Mapped::Skipped => Record::Skipped,
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
        Err(BatchError::Invalid(violations)) => {
            // A time that could not be converted breaks a rule of the service, too. One problem is enough.
            let is_known = |violation: &Violation| problems.iter().any(|problem| problem.field == violation.field());
            let new: Vec<_> = violations.into_iter().filter(|violation| !is_known(violation)).map(problem).collect();
            problems.extend(new);
        }
    }
    if problems.is_empty() { Record::Valid } else { Record::Rejected { problems, has_text: true } }
}

fn problem(violation: Violation) -> Problem {
    let field = violation.field();
    let mut reason = violation.message.into_owned();
    if violation.member == Some("timestamp") && reason.contains("RFC 3339") {
        reason.push_str("; if the input has other times, pass --timestamp-format");
    }
    Problem { field, code: "validation_failed".into(), reason }
}
