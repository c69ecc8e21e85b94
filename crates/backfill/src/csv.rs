//! CSV: each row becomes the text of one event.
//!
//! `csv-core` parses into buffers of this module, so that a row of any length uses bounded memory.

use crate::column_types::{ColumnType, ColumnTypes, PROPERTIES_PREFIX, REQUIRED_COLUMNS, TIMESTAMP_COLUMN};
use crate::input::InputReader;
use contract::limits::MAX_EVENT_BYTES;
use csv_core::{ReadRecordResult, Reader};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;

/// The most columns of a file. An event has at most 100 properties.
const MAX_COLUMNS: usize = 256;
/// The most bytes of all cells of a row. The row's JSON is longer than its cells.
const MAX_ROW_BYTES: usize = MAX_EVENT_BYTES;

/// The part of the event that a column becomes.
#[derive(Debug, PartialEq, Eq)]
enum Column {
    /// A member of the event.
    Member(&'static str),
    /// A property: its name as a JSON string, and its type if that is not string.
    Property(String, Option<ColumnType>),
}

/// The result of reading a row.
#[derive(Debug, PartialEq, Eq)]
pub enum CsvRow {
    /// The event's text is in the buffer. Contains the field and the reason if a cell does not have its
    /// column's type.
    Event(Option<(String, &'static str)>),
    /// The row cannot become an event, for this reason. Its cells are in the buffer.
    Malformed(String),
    /// The row is longer than an event may be, and was skipped.
    TooLong,
    /// There are no more rows.
    End,
}

/// Reads a CSV file with a header.
pub struct CsvReader {
    reader: Reader,
    columns: Vec<Column>,
    cells: Vec<u8>,
    ends: Vec<usize>,
}

impl CsvReader {
    /// Reads the header. `Ok(Ok(None))` means that the file is empty.
    ///
    /// # Errors
    /// The inner error says what is wrong with the header.
    pub fn open(input: &mut InputReader, types: &ColumnTypes) -> io::Result<Result<Option<Self>, String>> {
        let mut csv =
            Self { reader: Reader::new(), columns: Vec::new(), cells: vec![0; 4096], ends: vec![0; MAX_COLUMNS + 1] };
        skip_blank_lines(input)?;
        let cells = match csv.read_row(input)? {
            RawRow::End => return Ok(Ok(None)),
            RawRow::TooLong => {
                return Ok(Err(format!("the header has more than {MAX_COLUMNS} columns or is too long")));
            }
            RawRow::UnclosedQuote(_) => return Ok(Err("the header has a quote that is never closed".to_owned())),
            RawRow::Cells(cells) => cells,
        };
        let names: Result<Vec<_>, _> = csv.cells(cells).map(std::str::from_utf8).collect();
        let Ok(names) = names else { return Ok(Err("the header is not UTF-8".to_owned())) };
        Ok(columns(&names, types).map(|columns| Some(Self { columns, ..csv })))
    }

    /// Writes the next row as an event to `event`, and sets `line` to the number of the row's first line.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next_event(&mut self, input: &mut InputReader, event: &mut Vec<u8>, line: &mut u64) -> io::Result<CsvRow> {
        event.clear();
        skip_blank_lines(input)?;
        *line = input.position().line;
        let cells = match self.read_row(input)? {
            RawRow::End => return Ok(CsvRow::End),
            RawRow::TooLong => return Ok(CsvRow::TooLong),
            RawRow::UnclosedQuote(filled) => {
                event.extend_from_slice(&self.cells[..filled]);
                return Ok(CsvRow::Malformed(
                    "has a quote that is never closed, so the rest of the file is one cell".to_owned(),
                ));
            }
            RawRow::Cells(cells) => cells,
        };
        let texts: Result<Vec<_>, _> = self.cells(cells).map(std::str::from_utf8).collect();
        let Ok(texts) = texts else {
            event.extend_from_slice(&self.joined(cells));
            return Ok(CsvRow::Malformed("is not UTF-8".to_owned()));
        };
        if texts.len() != self.columns.len() {
            let reason = format!("has {} cells, but the header has {} columns", texts.len(), self.columns.len());
            event.extend_from_slice(&self.joined(cells));
            return Ok(CsvRow::Malformed(reason));
        }
        Ok(CsvRow::Event(write_event(&self.columns, &texts, event)))
    }

    fn read_row(&mut self, input: &mut InputReader) -> io::Result<RawRow> {
        let (mut filled, mut cells, mut too_long) = (0, 0, false);
        if input.peek()?.is_empty() {
            return Ok(RawRow::End);
        }
        loop {
            let available = input.peek()?;
            // The last row may lack a line break. Add one, which ends the row unless a quote is open.
            let at_end = available.is_empty();
            let available = if at_end { b"\n" } else { available };
            let (result, read, written, ended) =
                self.reader.read_record(available, &mut self.cells[filled..], &mut self.ends[cells..]);
            if !at_end {
                input.consume(read);
            }
            (filled, cells) = (filled + written, cells + ended);
            match result {
                ReadRecordResult::InputEmpty if at_end && too_long => return Ok(RawRow::TooLong),
                ReadRecordResult::InputEmpty if at_end => return Ok(RawRow::UnclosedQuote(filled)),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::End => return Ok(RawRow::End),
                ReadRecordResult::Record if too_long => return Ok(RawRow::TooLong),
                ReadRecordResult::Record => return Ok(RawRow::Cells(cells)),
                ReadRecordResult::OutputFull if self.cells.len() < MAX_ROW_BYTES => {
                    self.cells.resize((self.cells.len() * 2).min(MAX_ROW_BYTES), 0);
                }
                // Parse a row that is too long to its end, without keeping it.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (filled, cells, too_long) = (0, 0, true);
                }
            }
        }
    }

    fn cells(&self, cells: usize) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends[..cells]).map(|(start, &end)| &self.cells[start..end])
    }

    fn joined(&self, cells: usize) -> Vec<u8> {
        self.cells(cells).collect::<Vec<_>>().join(&b","[..])
    }
}

enum RawRow {
    /// The number of cells.
    Cells(usize),
    /// The input ended inside a quote. Contains the number of bytes in all cells.
    UnclosedQuote(usize),
    TooLong,
    End,
}

/// Skips blank lines, so that the current line is the one on which the next row begins.
fn skip_blank_lines(input: &mut InputReader) -> io::Result<()> {
    loop {
        let available = input.peek()?;
        let blank = available.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank == 0 {
            return Ok(());
        }
        input.consume(blank);
    }
}

fn columns(names: &[&str], types: &ColumnTypes) -> Result<Vec<Column>, String> {
    let mut seen = BTreeSet::new();
    let mut columns = Vec::with_capacity(names.len());
    let mut untyped = types.by_property().clone();
    for name in names.iter().map(|name| name.trim()) {
        let member = REQUIRED_COLUMNS.into_iter().chain([TIMESTAMP_COLUMN]).find(|member| *member == name);
        columns.push(match (member, name.strip_prefix(PROPERTIES_PREFIX)) {
            (Some(member), _) => Column::Member(member),
            (None, Some(property)) if !property.is_empty() => {
                Column::Property(json_string(property), untyped.remove(property))
            }
            _ => {
                return Err(format!(
                    "the column `{name}` is not one of external_user_id, name, timestamp, properties.…; rename it to \
                     `properties.{name}`, or remove it"
                ));
            }
        });
        if !seen.insert(name) {
            return Err(format!("the column `{name}` occurs twice"));
        }
    }
    if let Some(missing) = REQUIRED_COLUMNS.into_iter().find(|required| !seen.contains(required)) {
        return Err(format!("the header has no column `{missing}`"));
    }
    if let Some(name) = untyped.keys().next() {
        return Err(format!("--types names `properties.{name}`, which is not a column"));
    }
    Ok(columns)
}

/// Writes the event, and returns the first cell that does not have its column's type. Such cells are
/// written as strings.
fn write_event(columns: &[Column], cells: &[&str], event: &mut Vec<u8>) -> Option<(String, &'static str)> {
    let mut mistyped = None;
    let mut members: Vec<String> = Vec::new();
    let mut properties: Vec<String> = Vec::new();
    // Skip empty cells: databases export NULL as an empty cell.
    for (column, cell) in columns.iter().zip(cells).filter(|(_, cell)| !cell.is_empty()) {
        match column {
            Column::Member(member) => members.push(format!("\"{member}\":{}", json_string(cell))),
            Column::Property(name, kind) => {
                let value = json_value(*kind, cell).unwrap_or_else(|reason| {
                    mistyped.get_or_insert_with(|| {
                        let property: String = serde_json::from_str(name).unwrap_or_default();
                        (format!("{PROPERTIES_PREFIX}{property}"), reason)
                    });
                    json_string(cell).into()
                });
                properties.push(format!("{name}:{value}"));
            }
        }
    }
    if !properties.is_empty() {
        members.push(format!("\"properties\":{{{}}}", properties.join(",")));
    }
    event.extend_from_slice(format!("{{{}}}", members.join(",")).as_bytes());
    mistyped
}

fn json_value(kind: Option<ColumnType>, cell: &str) -> Result<Cow<'_, str>, &'static str> {
    match kind {
        None => Ok(json_string(cell).into()),
        Some(ColumnType::Number) => {
            let number = cell.trim();
            let starts_as_number = number.starts_with(|first: char| first == '-' || first.is_ascii_digit());
            let is_number = starts_as_number && serde_json::from_str::<&RawValue>(number).is_ok();
            if is_number { Ok(number.into()) } else { Err("must be a number such as 42, -1.5 or 6e23") }
        }
        // The spellings in which databases export booleans.
        Some(ColumnType::Boolean) => match cell.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Ok("true".into()),
            "false" | "f" | "0" => Ok("false".into()),
            _ => Err("must be true, t, 1, false, f or 0"),
        },
    }
}

fn json_string(text: &str) -> String {
    // Serializing a string cannot fail.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(csv: &str, types: &str) -> Vec<(u64, String, Option<String>)> {
        let mut input = InputReader::of_text(csv.as_bytes());
        let types = ColumnTypes::parse(types).unwrap();
        let mut csv = CsvReader::open(&mut input, &types).unwrap().unwrap().unwrap();
        let (mut event, mut line, mut found) = (Vec::new(), 0, Vec::new());
        loop {
            let problem = match csv.next_event(&mut input, &mut event, &mut line).unwrap() {
                CsvRow::Event(mistyped) => mistyped.map(|(field, reason)| format!("{field} {reason}")),
                CsvRow::Malformed(reason) => Some(reason),
                CsvRow::TooLong => Some("too long".to_owned()),
                CsvRow::End => return found,
            };
            found.push((line, String::from_utf8_lossy(&event).into_owned(), problem));
        }
    }

    fn header_error(csv: &str, types: &str) -> String {
        let types = ColumnTypes::parse(types).unwrap();
        CsvReader::open(&mut InputReader::of_text(csv.as_bytes()), &types).unwrap().err().expect("an error")
    }

    #[test]
    fn a_row_becomes_an_event() {
        let csv = "external_user_id,name,timestamp,properties.plan,properties.age,properties.vip\r\n\
                   u1,signed up,2026-11-23T09:14:03Z,\"a \"\"b\"\", c\",42.50,T\r\n\
                   \r\n\
                   u2,n,,,,\n\
                   u3,\"two\nlines\",,,-1e3,0\n\
                   u4,n,,,,\n";
        let found = events(csv, "properties.age=number,vip=boolean");
        let expected = [
            (
                2,
                r#"{"external_user_id":"u1","name":"signed up","timestamp":"2026-11-23T09:14:03Z","properties":{"plan":"a \"b\", c","age":42.50,"vip":true}}"#,
            ),
            (4, r#"{"external_user_id":"u2","name":"n"}"#),
            (5, r#"{"external_user_id":"u3","name":"two\nlines","properties":{"age":-1e3,"vip":false}}"#),
            (7, r#"{"external_user_id":"u4","name":"n"}"#),
        ];
        assert_eq!(found, expected.map(|(line, event)| (line, event.to_owned(), None)));
    }

    #[test]
    fn a_bad_row_is_reported_and_reading_continues() {
        let csv = "external_user_id,name,properties.age\nu1,n,old\nu2,n\nu3,n,1,2\nu4,n,4\n";
        let found = events(csv, "age=number");
        let problems: Vec<_> =
            found.iter().map(|(line, _, problem)| (*line, problem.as_deref().unwrap_or("-"))).collect();
        let expected = [
            (2, "properties.age must be a number such as 42, -1.5 or 6e23"),
            (3, "has 2 cells, but the header has 3 columns"),
            (4, "has 4 cells, but the header has 3 columns"),
            (5, "-"),
        ];
        assert_eq!(problems, expected);
        assert_eq!(found[0].1, r#"{"external_user_id":"u1","name":"n","properties":{"age":"old"}}"#);
        assert_eq!(found[1].1, "u2,n");
    }

    #[test]
    fn rows_that_are_too_long_or_too_wide_are_skipped() {
        let long = "x".repeat(3 * MAX_ROW_BYTES);
        let wide = ",".repeat(10 * MAX_COLUMNS);
        let csv = format!("external_user_id,name\nu1,{long}\nu2,{wide}\nu3,n\nu4,\"open {long}\nu5,n\n");
        let found = events(&csv, "");
        assert_eq!(found[0].2.as_deref(), Some("too long"));
        assert_eq!(found[1].2.as_deref(), Some("too long"));
        assert_eq!(found[2], (4, r#"{"external_user_id":"u3","name":"n"}"#.to_owned(), None));
        assert_eq!((found[3].0, found[3].2.as_deref(), found.len()), (5, Some("too long"), 4));
    }

    #[test]
    fn only_numbers_are_numbers() {
        let number = |cell| json_value(Some(ColumnType::Number), cell).ok().map(Cow::into_owned);
        assert_eq!(number(" 0.10 "), Some("0.10".to_owned()));
        for bad in ["01", "1.", "+1", "NaN", "1,5", "0x10", "true", "\"1\"", "1 2", "-"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_header_has_the_events_members_and_properties() {
        assert!(header_error("external_user_id,name,age\n", "").contains("`properties.age`"));
        assert!(header_error("external_user_id,name,name\n", "").contains("twice"));
        assert!(header_error("name\n", "").contains("external_user_id"));
        assert!(header_error("external_user_id,name,properties.\n", "").contains("`properties.`"));
        assert!(header_error("external_user_id,name\n", "age=number").contains("not a column"));
    }
}
