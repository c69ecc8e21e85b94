//! The target `readers`: a file in one of the formats of the backfill.

use super::expand::expand;
use contract::batch::{Batch, BatchError};
use contract::limits::MAX_EVENT_BYTES;
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use event_ingest_backfill::column_types::ColumnTypes;
use event_ingest_backfill::csv::{CsvReader, CsvRow};
use event_ingest_backfill::csv_parser::{CsvParser, Dialect, Row, skip_blank_lines};
use event_ingest_backfill::input::InputReader;
use event_ingest_backfill::json::JsonReader;
use event_ingest_backfill::mapping::{Mapped, Mapping, Members, Plan, Remaining};
use event_ingest_backfill::ndjson::{self, Line};
use event_ingest_backfill::position::Position;
use event_ingest_backfill::times::TimestampFormat;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::sync::Arc;

/// The most bytes of a file: enough for the limits of a record.
const MAX_EXPANDED: usize = 1_100_000;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Reads a file whole, in pieces, and from the position of one of its records. The records and their positions must be
/// the same, and agree with another reader of the format. A mapped record must be JSON.
///
/// # Panics
/// If a record differs, or is not JSON.
pub fn run(input: &[u8]) {
    let expanded = expand(input, MAX_EXPANDED);
    let [how, pieces, from, file @ ..] = &*expanded else { return };
    let file: Arc<[u8]> = file.into();
    let format = Format::of(*how);
    let whole = format.read(&file, None, None);

    let in_pieces = format.read(&file, Some(*pieces), None);
    assert_eq!(whole, in_pieces, "in pieces of {pieces}");
    let from = usize::from(*from) % whole.found.len().max(1);
    if let Some((position, ..)) = whole.found.get(from) {
        let rest = format.read(&file, None, Some(position));
        assert_eq!((&whole.found[from..], &whole.end), (&*rest.found, &rest.end), "from {position:?}");
    }
    match &format {
        Format::Ndjson(_) => assert_lines(&file, &whole),
        Format::Json => assert_values(&file, &whole),
        Format::Csv(dialect) => assert_cells(&file, dialect, &whole),
        Format::CsvEvents(..) => {}
    }
}

/// How a file is read.
enum Format {
    Ndjson(Option<Plan>),
    Json,
    Csv(Dialect),
    CsvEvents(Dialect, Mapping),
}

/// The records of a file.
#[derive(Debug, PartialEq, Eq)]
struct Records {
    /// The position before each record, the line that the reader reports, and the record.
    found: Vec<(Position, u64, Found)>,
    /// The error that ended the file, if any.
    end: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Text(Vec<u8>),
    Cells(Vec<Option<String>>),
    Bad(String),
}

impl Format {
    fn of(how: u8) -> Self {
        let bit = |bit: u8| how >> bit & 1 == 1;
        let dialect = Dialect {
            delimiter: bit(2).then_some(b';'),
            quote: if bit(3) { Some(b'\'') } else { Some(b'"') },
            escape: bit(4).then_some(b'\\'),
            ..Dialect::default()
        };
        let dialect = if bit(5) && bit(3) { Dialect { quote: None, ..dialect } } else { dialect };
        match how & 0b11 {
            0 => Self::Ndjson(
                (how >> 2 & 0b11 != 0)
                    .then(|| Plan::new(&mapping(how >> 2), None).expect("the mapping needs no column")),
            ),
            1 => Self::Json,
            2 => Self::Csv(dialect),
            _ => Self::CsvEvents(dialect, mapping(how >> 6)),
        }
    }

    /// Reads a file in pieces of this many bytes, from a position on.
    fn read(&self, file: &Arc<[u8]>, pieces: Option<u8>, from: Option<&Position>) -> Records {
        // A file is read in at most about 64 pieces.
        let pieces = pieces.map(|pieces| (1 + usize::from(pieces)).max(file.len() / 64));
        let pieces = Pieces { file: Arc::clone(file), at: 0, length: pieces, interrupts: false };
        let mut input = InputReader::of_stream(Box::new(pieces)).expect("memory can be read");
        let mut found = Vec::new();
        let end = self.read_all(&mut input, from, &mut found);
        let (records, end) = match end {
            Ok(()) => (found, None),
            Err(error) => (found, Some(error)),
        };
        let offset = usize::try_from(input.position().offset).expect("an offset in memory");
        assert_eq!(input.resume_point().sha256, hex::encode(Sha256::digest(&file[..offset])));
        Records { found: records, end }
    }

    fn read_all(
        &self,
        input: &mut InputReader,
        from: Option<&Position>,
        found: &mut Vec<(Position, u64, Found)>,
    ) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let mut reader = match self {
            Self::Ndjson(plan) => AnyReader::Ndjson(plan.as_ref()),
            Self::Json => AnyReader::Json(JsonReader::open(input).map_err(text)?),
            Self::Csv(dialect) => AnyReader::Csv(CsvParser::new(dialect, input.peek().map_err(text)?)),
            Self::CsvEvents(dialect, mapping) => match CsvReader::open(input, dialect, mapping).map_err(text)?? {
                Some(reader) => AnyReader::CsvEvents(Box::new(reader)),
                None => return Ok(()),
            },
        };
        if let Some(from) = from {
            input.skip_to(from.offset).map_err(text)?;
            assert_eq!(input.position(), from);
        }
        let mut buffer = Vec::new();
        loop {
            let (before, mut line) = (input.position().clone(), 0);
            let Some(record) = reader.next(input, &mut buffer, &mut line).map_err(text)? else { return Ok(()) };
            assert!(input.position().offset > before.offset, "a record without a byte");
            found.push((before, line, record));
        }
    }
}

enum AnyReader<'a> {
    Ndjson(Option<&'a Plan>),
    Json(JsonReader),
    Csv(CsvParser),
    CsvEvents(Box<CsvReader>),
}

impl AnyReader<'_> {
    fn next(&mut self, input: &mut InputReader, buffer: &mut Vec<u8>, line: &mut u64) -> io::Result<Option<Found>> {
        let read = match self {
            Self::Ndjson(_) => ndjson::next_line(input, buffer, line)?,
            Self::Json(reader) => reader.next(input, buffer, line)?,
            Self::Csv(parser) => {
                skip_blank_lines(input)?;
                *line = input.position().line;
                return Ok(match parser.read(input)? {
                    Row::End => None,
                    Row::Cells => Some(match parser.cells() {
                        None => Found::Bad("not UTF-8".to_owned()),
                        Some(cells) => {
                            Found::Cells((0..parser.len()).map(|index| cells.get(index).map(str::to_owned)).collect())
                        }
                    }),
                    bad => Some(Found::Bad(format!("{bad:?}"))),
                });
            }
            Self::CsvEvents(reader) => {
                return Ok(Some(match reader.next_event(input, buffer, line)? {
                    CsvRow::End => return Ok(None),
                    CsvRow::Event(_) => {
                        assert_json(buffer);
                        Found::Text(buffer.clone())
                    }
                    other => Found::Bad(format!("{other:?}")),
                }));
            }
        };
        Ok(match read {
            Line::End => None,
            Line::TooLong(bytes) => Some(Found::Bad(format!("{bytes} bytes"))),
            Line::Text => {
                if let Self::Ndjson(Some(plan)) = self {
                    assert_mapped(plan, buffer);
                }
                Some(Found::Text(buffer.clone()))
            }
        })
    }
}

fn mapping(which: u8) -> Mapping {
    let types = |text: &str| ColumnTypes::parse(text).expect("types");
    let properties = || Mapping { remaining: Remaining::Properties, ..Mapping::default() };
    match which & 0b11 {
        0 => properties(),
        1 => Mapping { types: types("a=number,b=boolean,c=json,d=string"), ..properties() },
        2 => Mapping {
            columns: [("name".to_owned(), vec!["a.b".to_owned(), "name".to_owned()])].into(),
            constants: [("external_user_id".to_owned(), "\"u".to_owned())].into(),
            ..properties()
        },
        _ => Mapping {
            timestamp_format: Some(TimestampFormat::EpochMilliseconds),
            time_zone: Some("Europe/Berlin".to_owned()),
            types: types("a=json"),
            remaining: Remaining::Drop,
            ..Mapping::default()
        },
    }
}

/// Asserts that a JSON object is mapped to JSON.
fn assert_mapped(plan: &Plan, line: &[u8]) {
    let Some(members) = std::str::from_utf8(line).ok().and_then(Members::parse) else { return };
    if members.duplicate().is_none() {
        let mut event = Vec::new();
        if let Mapped::Event(_) = plan.write(&members, &mut event) {
            assert_json(&event);
        }
    }
}

fn assert_json(event: &[u8]) {
    let parsed = Batch::parse_single(event);
    let is_json = !matches!(parsed, Err(BatchError::Malformed(_)));
    assert!(is_json, "{parsed:?}: {}", String::from_utf8_lossy(event));
}

/// A file that is read in pieces of a fixed length, or whole. Between pieces, a read is interrupted.
struct Pieces {
    file: Arc<[u8]>,
    at: usize,
    length: Option<usize>,
    interrupts: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.file[self.at..];
        let Some(length) = self.length else {
            let read = (&*rest).read(buffer)?;
            self.at += read;
            return Ok(read);
        };
        self.interrupts = !self.interrupts;
        if self.interrupts {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = (&rest[..rest.len().min(length)]).read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

fn without_mark(file: &[u8]) -> &[u8] {
    file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(file)
}

/// Asserts that the lines are those between line feeds.
fn assert_lines(file: &[u8], records: &Records) {
    assert_eq!(records.end, None);
    let lines = without_mark(file).split(|byte| *byte == b'\n').zip(1_u64..);
    let mut lines = lines.filter(|(line, _)| !line.trim_ascii().is_empty());
    for (_, number, record) in &records.found {
        let (line, expected) = lines.next().expect("a line that is not blank");
        assert_eq!(*number, expected);
        match record {
            Found::Text(text) => assert_eq!(text, line.trim_ascii()),
            _ => assert!(line.len() > MAX_EVENT_BYTES),
        }
    }
    // A line that is too long can be blank.
    assert!(lines.next().is_none(), "a line is missing");
}

/// Asserts that the values are those that other readers find, if they accept the file as JSON.
fn assert_values(file: &[u8], records: &Records) {
    let Ok(text) = std::str::from_utf8(without_mark(file)) else { return };
    let values = if text.trim_ascii_start().starts_with('[') {
        serde_json::from_str::<Vec<&RawValue>>(text).ok()
    } else {
        values_of(text)
    };
    let Some(values) = values else { return };
    assert_eq!((records.found.len(), &records.end), (values.len(), &None));
    for ((_, _, record), value) in records.found.iter().zip(values) {
        let value = value.get();
        match record {
            Found::Text(text) => assert_eq!(*text, value.replace(['\n', '\r'], " ").as_bytes()),
            _ => assert!(value.len() > MAX_EVENT_BYTES),
        }
    }
}

/// The consecutive values; `None` if a number or word is not followed by a space, because the backfill takes the text
/// up to the space as one value, and rejects it.
fn values_of(text: &str) -> Option<Vec<&RawValue>> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let mut values = Vec::new();
    while let Some(value) = stream.next() {
        let value = value.ok()?;
        let has_end = value.get().starts_with(['"', '[', '{']);
        let next = text.as_bytes().get(stream.byte_offset());
        if !has_end && next.is_some_and(|byte| !byte.is_ascii_whitespace()) {
            return None;
        }
        values.push(value);
    }
    Some(values)
}

/// Asserts that the cells are those that `csv-core` finds, which accepts more files.
fn assert_cells(file: &[u8], dialect: &Dialect, records: &Records) {
    let is_bad = |(_, _, record): &(Position, u64, Found)| matches!(record, Found::Bad(_));
    let (None, Some(delimiter), false) = (dialect.escape, dialect.delimiter, records.found.iter().any(is_bad)) else {
        return;
    };
    let mut builder = ReaderBuilder::new();
    builder.delimiter(delimiter).quote(dialect.quote.unwrap_or(b'"')).quoting(dialect.quote.is_some());
    let mut reader: Reader = builder.build();
    let (mut rest, mut output, mut ends) = (file, vec![0; file.len() + 1], vec![0; file.len() + 2]);
    let mut rows = records.found.iter();
    let (mut written, mut cells) = (0, 0);
    loop {
        let (result, read, more_written, more_cells) =
            reader.read_record(rest, &mut output[written..], &mut ends[cells..]);
        (rest, written, cells) = (&rest[read..], written + more_written, cells + more_cells);
        match result {
            ReadRecordResult::InputEmpty => {}
            ReadRecordResult::Record => {
                let (_, _, row) = rows.next().expect("csv-core has another row");
                let Found::Cells(row) = row else { panic!("{row:?}") };
                assert_eq!(row.len(), cells, "cells of {row:?}");
                let mut start = 0;
                for (cell, end) in row.iter().zip(&ends) {
                    let text = &output[start..*end];
                    let is_null = text.is_empty() || dialect.nulls.iter().any(|null| null.as_bytes() == text);
                    assert!(cell.as_ref().map_or(is_null, |cell| cell.as_bytes() == text), "{cell:?} in {row:?}");
                    start = *end;
                }
                (written, cells) = (0, 0);
            }
            ReadRecordResult::End => break,
            ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => panic!("{result:?}"),
        }
    }
    assert!(rows.next().is_none(), "csv-core has fewer rows");
}
