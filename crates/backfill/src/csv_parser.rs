//! Delimited text → cells.
//!
//! The crate `csv-core` accepts any text after a closing quote, and does not tell a quoted cell from an unquoted one,
//! so it can neither refuse a file that escapes quotes in another way nor recognize NULL.
//!
//! A row of any length uses bounded memory.

use crate::input::InputReader;
use crate::sniff;
use contract::limits::MAX_EVENT_BYTES;
use serde::{Deserialize, Serialize};
use std::io;

/// The maximum number of columns of a file. An event has at most 100 properties, but columns can be left out.
pub const MAX_COLUMNS: usize = 2048;
/// The maximum number of bytes of a row. The row's JSON is longer than its cells.
pub const MAX_ROW_BYTES: usize = MAX_EVENT_BYTES;

/// How a file separates and quotes its cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialect {
    /// The delimiter; `None` for the most frequent of the usual ones in the header.
    pub delimiter: Option<u8>,
    /// The quote; `None` if cells are not quoted.
    pub quote: Option<u8>,
    /// The character that escapes the next one. Without it, a quote in a quoted cell is written twice.
    pub escape: Option<u8>,
    /// The texts that mean NULL in a cell that is not quoted, besides an empty cell.
    pub nulls: Vec<String>,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { delimiter: None, quote: Some(b'"'), escape: None, nulls: vec!["NULL".to_owned(), "\\N".to_owned()] }
    }
}

/// The result of reading a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// The cells of a row.
    Cells,
    /// A quoted cell is followed by this byte instead of a delimiter or a line end.
    TextAfterQuote(u8),
    /// The input ends in a quoted cell.
    UnclosedQuote,
    /// The row has too many bytes or cells, and was skipped.
    TooLong,
    /// There are no more rows.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    CellStart,
    Unquoted,
    UnquotedEscape,
    Quoted,
    QuotedEscape,
    /// After a quote in a quoted cell.
    Quote,
    /// After text that follows a quote, up to the line end.
    Broken(u8),
}

/// The end of a cell in the parser's buffer.
#[derive(Clone, Copy, Debug)]
struct Cell {
    end: usize,
    /// Whether the cell was neither quoted nor escaped, so that it can be NULL.
    is_plain: bool,
}

/// The cells of a row.
#[derive(Clone, Copy)]
pub struct Cells<'a> {
    text: &'a str,
    parser: &'a CsvParser,
}

impl<'a> Cells<'a> {
    /// The text of a cell; `None` if it is empty or NULL, or the row has no such cell.
    pub fn get(&self, index: usize) -> Option<&'a str> {
        let cells = &self.parser.cells;
        let cell = cells.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| cells[before].end);
        let text = &self.text[start..cell.end];
        let is_null = text.is_empty() || (cell.is_plain && self.parser.nulls.iter().any(|null| null == text));
        (!is_null).then_some(text)
    }
}

/// Parses one row after another.
pub struct CsvParser {
    delimiter: u8,
    quote: Option<u8>,
    escape: Option<u8>,
    nulls: Vec<String>,
    text: Vec<u8>,
    cells: Vec<Cell>,
    raw: Vec<u8>,
    is_plain: bool,
}

impl CsvParser {
    /// A parser for `dialect`, for a file that begins with `head`.
    pub fn new(dialect: &Dialect, head: &[u8]) -> Self {
        let delimiter = dialect.delimiter.or_else(|| sniff::delimiter(head)).unwrap_or(b',');
        let Dialect { quote, escape, nulls, .. } = dialect.clone();
        // A quote that escapes itself is a quote that is written twice.
        let escape = escape.filter(|escape| Some(*escape) != quote);
        let (text, cells, raw) = (Vec::new(), Vec::new(), Vec::new());
        Self { delimiter, quote, escape, nulls, text, cells, raw, is_plain: true }
    }

    /// The number of cells of the last row.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// The cells of the last row; `None` if one of them is not UTF-8.
    pub fn cells(&self) -> Option<Cells<'_>> {
        let text = std::str::from_utf8(&self.text).ok()?;
        let is_whole = self.cells.iter().all(|cell| text.is_char_boundary(cell.end));
        is_whole.then_some(Cells { text, parser: self })
    }

    /// The last row as written, without its line end; empty if it was too long.
    pub fn raw(&self) -> &[u8] {
        let end = self.raw.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
        end.map_or(&[], |end| &self.raw[..=end])
    }

    /// Reads a row. The input must not begin with a blank line.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn read(&mut self, input: &mut InputReader) -> io::Result<Row> {
        self.text.clear();
        self.cells.clear();
        self.raw.clear();
        self.is_plain = true;
        let (mut state, mut is_too_long, mut is_empty) = (State::CellStart, false, true);
        loop {
            let available = input.peek()?;
            if available.is_empty() {
                return Ok(match state {
                    State::CellStart if is_empty => Row::End,
                    _ if is_too_long => Row::TooLong,
                    State::Quoted | State::QuotedEscape => Row::UnclosedQuote,
                    State::Broken(byte) => Row::TextAfterQuote(byte),
                    _ => {
                        self.end_cell();
                        Row::Cells
                    }
                });
            }
            is_empty = false;
            let (read, is_end) = self.parse(available, &mut state);
            self.raw.extend_from_slice(&available[..read]);
            input.consume(read);
            if self.raw.len() > MAX_ROW_BYTES || self.cells.len() > MAX_COLUMNS {
                // Parse the row to its end, without keeping it.
                is_too_long = true;
                self.text.clear();
                self.cells.clear();
                self.raw.clear();
            }
            if is_end {
                return Ok(match state {
                    _ if is_too_long => Row::TooLong,
                    State::Broken(byte) => Row::TextAfterQuote(byte),
                    _ => Row::Cells,
                });
            }
        }
    }

    /// Parses up to the end of the row. Returns the number of bytes read, and whether the row has ended.
    fn parse(&mut self, bytes: &[u8], state: &mut State) -> (usize, bool) {
        // The row can exceed its limits by no more than this, before the caller looks at them.
        let bytes = &bytes[..bytes.len().min(MAX_ROW_BYTES)];
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match *state {
                State::CellStart if Some(byte) == self.quote => {
                    self.is_plain = false;
                    *state = State::Quoted;
                }
                State::CellStart | State::Unquoted => {
                    let rest = &bytes[at - 1..];
                    let plain = match self.escape {
                        None => memchr::memchr3(self.delimiter, b'\n', b'\r', rest),
                        Some(escape) => rest.iter().position(|byte| {
                            *byte == self.delimiter || *byte == escape || matches!(byte, b'\n' | b'\r')
                        }),
                    };
                    let plain = plain.unwrap_or(rest.len());
                    self.text.extend_from_slice(&rest[..plain]);
                    at += plain;
                    *state = State::Unquoted;
                    match rest.get(plain) {
                        Some(byte) if *byte == self.delimiter => {
                            self.end_cell();
                            *state = State::CellStart;
                        }
                        Some(b'\n' | b'\r') => {
                            self.end_cell();
                            return (at, true);
                        }
                        Some(_) => *state = State::UnquotedEscape,
                        None => at -= 1,
                    }
                }
                State::UnquotedEscape => {
                    self.unescape(byte);
                    *state = State::Unquoted;
                }
                State::Quoted => {
                    let rest = &bytes[at - 1..];
                    let quote = self.quote.unwrap_or(b'"');
                    let plain = memchr::memchr2(quote, self.escape.unwrap_or(quote), rest).unwrap_or(rest.len());
                    self.text.extend_from_slice(&rest[..plain]);
                    at += plain;
                    match rest.get(plain) {
                        Some(byte) if *byte == quote => *state = State::Quote,
                        Some(_) => *state = State::QuotedEscape,
                        None => at -= 1,
                    }
                }
                State::QuotedEscape => {
                    let is_special = Some(byte) == self.quote
                        || Some(byte) == self.escape
                        || byte == self.delimiter
                        || matches!(byte, b'\n' | b'\r');
                    if !is_special {
                        // PostgreSQL escapes only quotes and escapes in quoted cells.
                        self.text.extend(self.escape);
                    }
                    self.text.push(byte);
                    *state = State::Quoted;
                }
                State::Quote if Some(byte) == self.quote && self.escape.is_none() => {
                    self.text.push(byte);
                    *state = State::Quoted;
                }
                State::Quote if byte == self.delimiter => {
                    self.end_cell();
                    *state = State::CellStart;
                }
                State::Quote if matches!(byte, b'\n' | b'\r') => {
                    self.end_cell();
                    return (at, true);
                }
                State::Quote => *state = State::Broken(byte),
                State::Broken(_) if matches!(byte, b'\n' | b'\r') => return (at, true),
                State::Broken(_) => {}
            }
        }
        (at, false)
    }

    fn end_cell(&mut self) {
        self.cells.push(Cell { end: self.text.len(), is_plain: self.is_plain });
        self.is_plain = true;
    }

    /// The text formats of `PostgreSQL` and `MySQL` write control characters as a backslash and a letter.
    fn unescape(&mut self, byte: u8) {
        let control = match byte {
            _ if self.escape != Some(b'\\') => None,
            b'0' => Some(0),
            b'b' => Some(8),
            b't' => Some(b'\t'),
            b'n' => Some(b'\n'),
            b'v' => Some(11),
            b'f' => Some(12),
            b'r' => Some(b'\r'),
            b'N' => {
                // Not an escape, but a part of the usual spelling of NULL.
                return self.text.extend(b"\\N");
            }
            _ => None,
        };
        self.text.push(control.unwrap_or(byte));
        self.is_plain = false;
    }
}

/// Skips blank lines, so that the current line is the one on which the next row begins.
///
/// # Errors
/// If the input cannot be read.
pub fn skip_blank_lines(input: &mut InputReader) -> io::Result<()> {
    loop {
        let available = input.peek()?;
        let blank = available.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank == 0 {
            return Ok(());
        }
        input.consume(blank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(dialect: &Dialect, text: &[u8]) -> Vec<FoundRow> {
        let mut input = InputReader::of_text(text);
        let mut parser = CsvParser::new(dialect, text);
        let mut rows = Vec::new();
        loop {
            skip_blank_lines(&mut input).unwrap();
            let cell = |parser: &CsvParser, index| parser.cells().unwrap().get(index).map(str::to_owned);
            match parser.read(&mut input).unwrap() {
                Row::End => return rows,
                Row::Cells => rows.push(Ok((0..parser.len()).map(|index| cell(&parser, index)).collect())),
                other => rows.push(Err(other)),
            }
        }
    }

    type FoundRow = Result<Vec<Option<String>>, Row>;

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with rows that are errors")]
    fn cells<const N: usize>(cells: [&str; N]) -> FoundRow {
        Ok(cells.map(|cell| (cell != "-").then(|| cell.to_owned())).to_vec())
    }

    #[test]
    fn quotes_are_doubled_and_nothing_may_follow_one() {
        let default = Dialect::default();
        let text = b"a,\"b\"\"c\",\"d\ne\"\r\n\r\n,\"\",NULL\n\"NULL\",\\N,\"\\N\"\n\"a\"b,\"c\nd\" ,e\nf\"g,\"h\",";
        let expected = [
            cells(["a", "b\"c", "d\ne"]),
            cells(["-", "-", "-"]),
            cells(["NULL", "-", "\\N"]),
            Err(Row::TextAfterQuote(b'b')),
            cells(["d\" ", "e"]),
            cells(["f\"g", "h", "-"]),
        ];
        assert_eq!(rows(&default, text), expected);
        assert_eq!(rows(&default, b"a,\"b"), [Err(Row::UnclosedQuote)]);
        assert_eq!(rows(&default, b"a,\"b\"c"), [Err(Row::TextAfterQuote(b'c'))]);
    }

    #[test]
    fn an_escape_follows_the_rules_of_databases() {
        let escaped = Dialect { escape: Some(b'\\'), ..Dialect::default() };
        let text = b"\"say \\\"hi\\\"\",\"\\\\\",\"a\\nb\"\n\\N,a\\\nb,\\\\N\n\"a\"\"b\",c,d\n";
        let expected =
            [cells(["say \"hi\"", "\\", "a\\nb"]), cells(["-", "a\nb", "\\N"]), Err(Row::TextAfterQuote(b'"'))];
        assert_eq!(rows(&escaped, text), expected);
        let text_format = Dialect { delimiter: Some(b'\t'), quote: None, ..escaped };
        let text = b"a\\tb\t\"c\\n\"\t\\\\N\n\\N\tx\t\\\t\n";
        assert_eq!(rows(&text_format, text), [cells(["a\tb", "\"c\n\"", "\\N"]), cells(["-", "x", "\t"])]);
        let other =
            Dialect { delimiter: Some(b'|'), quote: Some(b'\''), nulls: vec!["-".to_owned()], ..Dialect::default() };
        let expected = ["a'b", "\"", "NULL", "", "-"].map(|cell| (!cell.is_empty()).then(|| cell.to_owned()));
        assert_eq!(rows(&other, b"'a''b'|\"|NULL|-|'-'\n"), [Ok(expected.to_vec())]);
    }

    #[test]
    fn rows_that_are_too_long_or_too_wide_are_skipped() {
        let long = "x".repeat(3 * MAX_ROW_BYTES);
        let wide = ",".repeat(10 * MAX_COLUMNS);
        let text = format!("a,{long}\nb,{wide}\nc,d\n\"e\"e{long}\nf,g\nh,\"open {long}\ni\n");
        let expected = [
            Err(Row::TooLong),
            Err(Row::TooLong),
            cells(["c", "d"]),
            Err(Row::TooLong),
            cells(["f", "g"]),
            Err(Row::TooLong),
        ];
        assert_eq!(rows(&Dialect::default(), text.as_bytes()), expected);
    }

    proptest! {
        #[test]
        fn any_cells_survive_being_written(
            table in proptest::collection::vec(proptest::collection::vec("[a,\"\\\\N\n\r\t|é ]{0,6}", 1..5), 1..6),
        ) {
            for (dialect, quote) in [
                (Dialect { delimiter: Some(b','), ..Dialect::default() }, "\"\""),
                (Dialect { delimiter: Some(b','), escape: Some(b'\\'), ..Dialect::default() }, "\\\""),
            ] {
                let write = |cell: &String| {
                    let cell = if dialect.escape.is_some() { cell.replace('\\', "\\\\") } else { cell.clone() };
                    format!("\"{}\"", cell.replace('"', quote))
                };
                let text: String = table.iter().map(|row| row.iter().map(write).collect::<Vec<_>>().join(",") + "\r\n").collect();
                let expected: Vec<_> = table
                    .iter()
                    .map(|row| Ok(row.iter().map(|cell| (!cell.is_empty()).then(|| cell.clone())).collect()))
                    .collect();
                prop_assert_eq!(rows(&dialect, text.as_bytes()), expected);
            }
        }
    }
}
