//! CSV and TSV: each row becomes the text of one event.

use crate::csv_parser::{Cells, CsvParser, Dialect, MAX_COLUMNS, Row, skip_blank_lines};
use crate::input::InputReader;
use crate::mapping::{Column, Columns, Mapped, Mapping, Plan, Value, inner};
use crate::rejects::Problem;
use std::io;

/// The result of reading a row.
#[derive(Debug, PartialEq, Eq)]
pub enum CsvRow {
    /// The event's text is in the buffer. It has these problems, besides those that the service's rules find.
    Event(Vec<Problem>),
    /// The row does not satisfy the conditions.
    Skipped,
    /// The row cannot become an event, for this reason. Its text is in the buffer.
    Malformed(String),
    /// The row is longer than an event may be, and was skipped.
    TooLong,
    /// There are no more rows.
    End,
}

/// Reads a CSV file with a header.
pub struct CsvReader {
    parser: CsvParser,
    columns: usize,
    plan: Plan,
}

impl CsvReader {
    /// Reads the header. `Ok(Ok(None))` means that the file is empty.
    ///
    /// # Errors
    /// The inner error says what is wrong with the header.
    pub fn open(
        input: &mut InputReader,
        dialect: &Dialect,
        mapping: &Mapping,
    ) -> io::Result<Result<Option<Self>, String>> {
        skip_blank_lines(input)?;
        let mut parser = CsvParser::new(dialect, input.peek()?);
        match parser.read(input)? {
            Row::End => return Ok(Ok(None)),
            Row::TooLong => return Ok(Err(format!("the header has more than {MAX_COLUMNS} columns or is too long"))),
            Row::UnclosedQuote => return Ok(Err("the header has a quote that is never closed".to_owned())),
            Row::TextAfterQuote(byte) => return Ok(Err(format!("the header {}", text_after_quote(byte)))),
            Row::Cells => {}
        }
        let Some(cells) = parser.cells() else { return Ok(Err("the header is not UTF-8".to_owned())) };
        let names: Vec<_> = (0..parser.len()).map(|index| cells.get(index).unwrap_or_default().trim()).collect();
        let columns = names.len();
        Ok(Plan::new(mapping, Some(&names)).map(|plan| Some(Self { parser, columns, plan })))
    }

    /// Writes the next row as an event to `event`, and sets `line` to the number of the row's first line.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next_event(&mut self, input: &mut InputReader, event: &mut Vec<u8>, line: &mut u64) -> io::Result<CsvRow> {
        event.clear();
        skip_blank_lines(input)?;
        *line = input.position().line;
        let malformed = match self.parser.read(input)? {
            Row::End => return Ok(CsvRow::End),
            Row::TooLong => return Ok(CsvRow::TooLong),
            Row::UnclosedQuote => "has a quote that is never closed, so the rest of the file is one cell".to_owned(),
            Row::TextAfterQuote(byte) => text_after_quote(byte),
            Row::Cells => match self.parser.cells() {
                None => "is not UTF-8".to_owned(),
                Some(_) if self.parser.len() != self.columns => {
                    format!("has {} cells, but the header has {} columns", self.parser.len(), self.columns)
                }
                Some(cells) => {
                    return Ok(match self.plan.write(&cells, event) {
                        Mapped::Event(problems) => CsvRow::Event(problems),
                        Mapped::Skipped => CsvRow::Skipped,
                    });
                }
            },
        };
        event.extend_from_slice(self.parser.raw());
        Ok(CsvRow::Malformed(malformed))
    }
}

fn text_after_quote(byte: u8) -> String {
    let text = if byte.is_ascii_graphic() { format!("`{}`", byte as char) } else { format!("the byte {byte}") };
    format!(
        "has a quoted cell that is followed by {text} instead of a delimiter or a line end; if the file escapes quotes \
         with a backslash, pass --escape '\\'"
    )
}

impl Columns for Cells<'_> {
    fn get(&self, column: &Column) -> Option<Value<'_>> {
        let cell = Cells::get(self, column.index)?;
        if column.path.is_empty() {
            return Some(Value::Text(cell));
        }
        inner(serde_json::from_str(cell).ok()?, &column.path).and_then(Value::json)
    }

    /// The header has the names of all columns.
    fn unknown(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::column_types::ColumnTypes;

    fn mapping(types: &str) -> Mapping {
        Mapping { types: ColumnTypes::parse(types).unwrap(), ..Mapping::default() }
    }

    /// Each row's line, text, and problem.
    fn events(csv: &str, types: &str) -> Vec<(u64, String, Option<String>)> {
        let mut input = InputReader::of_text(csv.as_bytes());
        let mut reader =
            CsvReader::open(&mut input, &Dialect::default(), &mapping(types)).unwrap().unwrap().expect("a header");
        let (mut event, mut line, mut found) = (Vec::new(), 0, Vec::new());
        loop {
            let problem = match reader.next_event(&mut input, &mut event, &mut line).unwrap() {
                CsvRow::End => return found,
                CsvRow::Event(problems) => problems
                    .first()
                    .map(|problem| format!("{} {}", problem.field.as_deref().unwrap_or_default(), problem.reason)),
                CsvRow::Malformed(reason) => Some(reason),
                CsvRow::TooLong => Some("too long".to_owned()),
                CsvRow::Skipped => Some("skipped".to_owned()),
            };
            found.push((line, String::from_utf8(event.clone()).unwrap(), problem));
        }
    }

    fn header_error(csv: &str, types: &str) -> String {
        let mut input = InputReader::of_text(csv.as_bytes());
        CsvReader::open(&mut input, &Dialect::default(), &mapping(types)).unwrap().err().expect("an error")
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
    fn a_header_has_the_events_members_and_properties() {
        assert!(header_error("external_user_id,name,age,plan\n", "").contains("`age`, `plan`"));
        assert!(header_error("external_user_id,name,name\n", "").contains("twice"));
        assert!(header_error("name\n", "").contains("--map external_user_id=COLUMN"));
        assert!(header_error("external_user_id,name,properties.\n", "").contains("`properties.`"));
        assert!(header_error("external_user_id,name\n", "age=number").contains("not a property"));
        assert!(header_error("external_user_id,\"name\"x\n", "").contains("--escape"));
    }
}
