//! CSV: a row → the text of an event.
//!
//! `csv-core` parses; the memory is ours, so that a row of any length takes only so much of it.

use crate::input::Tracked;
use csv_core::{ReadRecordResult, Reader};
use contract::limits::MAX_EVENT_BYTES;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The most columns of a table: an event has at most 100 properties.
const MAX_COLUMNS: usize = 256;
/// The most bytes of a row's cells together. JSON of a row is longer than its cells.
const MAX_ROW_BYTES: usize = MAX_EVENT_BYTES;

const PROPERTIES: &str = "properties.";
const REQUIRED: [&str; 2] = ["external_user_id", "name"];
const TIMESTAMP: &str = "timestamp";

/// What the cells of a column become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// A JSON number with the cell's own digits.
    Number,
    /// `true` or `false`.
    Boolean,
}

/// Columns that are no strings, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ColumnTypes(BTreeMap<String, ColumnType>);

impl ColumnTypes {
    /// Reads `properties.age=number,vip=boolean`; `properties.` may be left out.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut types = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (column, kind) = part.split_once('=').ok_or_else(|| format!("`{part}` is not COLUMN=TYPE"))?;
            let kind = match kind {
                "string" => None,
                "number" => Some(ColumnType::Number),
                "boolean" => Some(ColumnType::Boolean),
                _ => return Err(format!("`{kind}` is not one of string, number, boolean")),
            };
            let name = column.strip_prefix(PROPERTIES).unwrap_or(column);
            if name.is_empty() || (name == column && (REQUIRED.contains(&name) || name == TIMESTAMP)) {
                return Err(format!("`{column}` is always a string"));
            }
            if let Some(kind) = kind {
                types.insert(name.to_owned(), kind);
            }
        }
        Ok(Self(types))
    }
}

/// What a column is.
#[derive(Debug, PartialEq, Eq)]
enum Column {
    /// A member of the event.
    Member(&'static str),
    /// A property: its name as a JSON string, and its type if that is no string.
    Property(String, Option<ColumnType>),
}

/// What the next row is.
#[derive(Debug, PartialEq, Eq)]
pub enum Row {
    /// The event's text is in the buffer. What is wrong with it so far: field and reason.
    Event(Option<(Option<String>, String)>),
    /// No event can be made of it; its cells are in the buffer.
    Broken(String),
    /// Longer than any event may be; it was passed over.
    TooLong,
    /// There is none.
    End,
}

/// A table being read.
pub struct Table {
    reader: Reader,
    columns: Vec<Column>,
    cells: Vec<u8>,
    ends: Vec<usize>,
}

impl Table {
    /// Reads the header.
    ///
    /// # Errors
    /// In words, where it is not one of ours. `Ok(None)` is a table without even a header.
    pub fn open(input: &mut Tracked, types: &ColumnTypes) -> io::Result<Result<Option<Self>, String>> {
        let mut table =
            Self { reader: Reader::new(), columns: Vec::new(), cells: vec![0; 4096], ends: vec![0; MAX_COLUMNS + 1] };
        skip_line_ends(input)?;
        let cells = match table.record(input)? {
            Record::End => return Ok(Ok(None)),
            Record::TooLong => {
                return Ok(Err(format!("the header has more than {MAX_COLUMNS} columns or is too long")));
            }
            Record::Unclosed(_) => return Ok(Err("the header opens a quote that nothing closes".to_owned())),
            Record::Cells(cells) => cells,
        };
        let names: Result<Vec<_>, _> = table.split(cells).map(std::str::from_utf8).collect();
        let Ok(names) = names else { return Ok(Err("the header is not UTF-8".to_owned())) };
        Ok(columns(&names, types).map(|columns| Some(Self { columns, ..table })))
    }

    /// Makes an event's text of the next row. `line` becomes the number of its first line.
    ///
    /// # Errors
    /// Where the input cannot be read.
    pub fn next_event(&mut self, input: &mut Tracked, event: &mut Vec<u8>, line: &mut u64) -> io::Result<Row> {
        event.clear();
        skip_line_ends(input)?;
        *line = input.place().line;
        let cells = match self.record(input)? {
            Record::End => return Ok(Row::End),
            Record::TooLong => return Ok(Row::TooLong),
            Record::Unclosed(filled) => {
                event.extend_from_slice(&self.cells[..filled]);
                return Ok(Row::Broken(
                    "opens a quote that nothing closes, so that all up to the end of the file is one cell".to_owned(),
                ));
            }
            Record::Cells(cells) => cells,
        };
        let texts: Result<Vec<_>, _> = self.split(cells).map(std::str::from_utf8).collect();
        let Ok(texts) = texts else {
            event.extend_from_slice(&self.joined(cells));
            return Ok(Row::Broken("is not UTF-8".to_owned()));
        };
        if texts.len() != self.columns.len() {
            let why = format!("has {} cells, where the header has {} columns", texts.len(), self.columns.len());
            event.extend_from_slice(&self.joined(cells));
            return Ok(Row::Broken(why));
        }
        Ok(Row::Event(write_event(&self.columns, &texts, event)))
    }

    fn record(&mut self, input: &mut Tracked) -> io::Result<Record> {
        let (mut filled, mut cells, mut too_long) = (0, 0, false);
        if input.peek()?.is_empty() {
            return Ok(Record::End);
        }
        loop {
            let available = input.peek()?;
            // A last row may lack its line end. One of ours ends it, unless it stands within a quote.
            let ended_here = available.is_empty();
            let available = if ended_here { b"\n" } else { available };
            let (result, read, written, ended) =
                self.reader.read_record(available, &mut self.cells[filled..], &mut self.ends[cells..]);
            if !ended_here {
                input.take(read);
            }
            (filled, cells) = (filled + written, cells + ended);
            match result {
                ReadRecordResult::InputEmpty if ended_here && too_long => return Ok(Record::TooLong),
                ReadRecordResult::InputEmpty if ended_here => return Ok(Record::Unclosed(filled)),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::End => return Ok(Record::End),
                ReadRecordResult::Record if too_long => return Ok(Record::TooLong),
                ReadRecordResult::Record => return Ok(Record::Cells(cells)),
                ReadRecordResult::OutputFull if self.cells.len() < MAX_ROW_BYTES => {
                    self.cells.resize((self.cells.len() * 2).min(MAX_ROW_BYTES), 0);
                }
                // What is too much is parsed to its end and forgotten.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (filled, cells, too_long) = (0, 0, true);
                }
            }
        }
    }

    fn split(&self, cells: usize) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends[..cells]).map(|(start, &end)| &self.cells[start..end])
    }

    fn joined(&self, cells: usize) -> Vec<u8> {
        self.split(cells).collect::<Vec<_>>().join(&b","[..])
    }
}

enum Record {
    Cells(usize),
    /// The input ended within a quote, after so many bytes of cells.
    Unclosed(usize),
    TooLong,
    End,
}

/// Passes over blank lines, so that a row's line is the one it begins on.
fn skip_line_ends(input: &mut Tracked) -> io::Result<()> {
    loop {
        let available = input.peek()?;
        let blank = available.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank == 0 {
            return Ok(());
        }
        input.take(blank);
    }
}

fn columns(names: &[&str], types: &ColumnTypes) -> Result<Vec<Column>, String> {
    let mut seen = BTreeSet::new();
    let mut columns = Vec::with_capacity(names.len());
    let mut untyped = types.0.clone();
    for name in names.iter().map(|name| name.trim()) {
        let member = REQUIRED.into_iter().chain([TIMESTAMP]).find(|member| *member == name);
        columns.push(match (member, name.strip_prefix(PROPERTIES)) {
            (Some(member), _) => Column::Member(member),
            (None, Some(property)) if !property.is_empty() => {
                Column::Property(json_string(property), untyped.remove(property))
            }
            _ => {
                return Err(format!(
                    "the column `{name}` is none of external_user_id, name, timestamp, properties.…; rename it to \
                     `properties.{name}`, or leave it out"
                ));
            }
        });
        if !seen.insert(name) {
            return Err(format!("the column `{name}` is there twice"));
        }
    }
    if let Some(missing) = REQUIRED.into_iter().find(|required| !seen.contains(required)) {
        return Err(format!("the header has no column `{missing}`"));
    }
    if let Some(name) = untyped.keys().next() {
        return Err(format!("--types names `properties.{name}`, which is no column"));
    }
    Ok(columns)
}

/// Writes the event, the faulty cells as strings. Returns the first fault.
fn write_event(columns: &[Column], cells: &[&str], event: &mut Vec<u8>) -> Option<(Option<String>, String)> {
    let mut fault = None;
    let mut members: Vec<String> = Vec::new();
    let mut properties: Vec<String> = Vec::new();
    // An empty cell is no value: databases export NULL so.
    for (column, cell) in columns.iter().zip(cells).filter(|(_, cell)| !cell.is_empty()) {
        match column {
            Column::Member(member) => members.push(format!("\"{member}\":{}", json_string(cell))),
            Column::Property(name, kind) => {
                let value = typed(*kind, cell).unwrap_or_else(|reason| {
                    fault.get_or_insert_with(|| {
                        let property: String = serde_json::from_str(name).unwrap_or_default();
                        (Some(format!("{PROPERTIES}{property}")), reason.to_owned())
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
    fault
}

fn typed(kind: Option<ColumnType>, cell: &str) -> Result<Cow<'_, str>, &'static str> {
    match kind {
        None => Ok(json_string(cell).into()),
        Some(ColumnType::Number) => {
            let number = cell.trim();
            let looks_so = number.starts_with(|first: char| first == '-' || first.is_ascii_digit());
            let is_number = looks_so && serde_json::from_str::<&RawValue>(number).is_ok();
            if is_number { Ok(number.into()) } else { Err("must be a number such as 42, -1.5 or 6e23") }
        }
        // As databases export them.
        Some(ColumnType::Boolean) => match cell.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Ok("true".into()),
            "false" | "f" | "0" => Ok("false".into()),
            _ => Err("must be true, t, 1, false, f or 0"),
        },
    }
}

fn json_string(text: &str) -> String {
    // A string always makes JSON.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(csv: &str, types: &str) -> Vec<(u64, String, Option<String>)> {
        let mut input = Tracked::of_text(csv.as_bytes());
        let types = ColumnTypes::parse(types).unwrap();
        let mut table = Table::open(&mut input, &types).unwrap().unwrap().unwrap();
        let (mut event, mut line, mut found) = (Vec::new(), 0, Vec::new());
        loop {
            let fault = match table.next_event(&mut input, &mut event, &mut line).unwrap() {
                Row::Event(fault) => fault.map(|(field, reason)| format!("{} {reason}", field.unwrap_or_default())),
                Row::Broken(why) => Some(why),
                Row::TooLong => Some("too long".to_owned()),
                Row::End => return found,
            };
            found.push((line, String::from_utf8_lossy(&event).into_owned(), fault));
        }
    }

    fn header_error(csv: &str, types: &str) -> String {
        let types = ColumnTypes::parse(types).unwrap();
        Table::open(&mut Tracked::of_text(csv.as_bytes()), &types).unwrap().err().expect("an error")
    }

    #[test]
    fn a_row_is_an_event() {
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
    fn faulty_rows_are_told_and_do_not_end_the_table() {
        let csv = "external_user_id,name,properties.age\nu1,n,old\nu2,n\nu3,n,1,2\nu4,n,4\n";
        let found = events(csv, "age=number");
        let faults: Vec<_> = found.iter().map(|(line, _, fault)| (*line, fault.as_deref().unwrap_or("-"))).collect();
        let expected = [
            (2, "properties.age must be a number such as 42, -1.5 or 6e23"),
            (3, "has 2 cells, where the header has 3 columns"),
            (4, "has 4 cells, where the header has 3 columns"),
            (5, "-"),
        ];
        assert_eq!(faults, expected);
        assert_eq!(found[0].1, r#"{"external_user_id":"u1","name":"n","properties":{"age":"old"}}"#);
        assert_eq!(found[1].1, "u2,n");
    }

    #[test]
    fn a_row_of_any_length_or_width_takes_only_so_much_memory() {
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
        let number = |cell| typed(Some(ColumnType::Number), cell).ok().map(Cow::into_owned);
        assert_eq!(number(" 0.10 "), Some("0.10".to_owned()));
        for bad in ["01", "1.", "+1", "NaN", "1,5", "0x10", "true", "\"1\"", "1 2", "-"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_header_must_be_one_of_ours() {
        assert!(header_error("external_user_id,name,age\n", "").contains("`properties.age`"));
        assert!(header_error("external_user_id,name,name\n", "").contains("twice"));
        assert!(header_error("name\n", "").contains("external_user_id"));
        assert!(header_error("external_user_id,name,properties.\n", "").contains("`properties.`"));
        assert!(header_error("external_user_id,name\n", "age=number").contains("no column"));
        assert!(ColumnTypes::parse("name=number").is_err());
        assert!(ColumnTypes::parse("a").is_err());
    }
}
