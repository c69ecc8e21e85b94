//! JSON: an array of values, or values one after another, on any number of lines.
//!
//! A value of any length uses bounded memory. Line breaks between its parts become spaces.

use crate::input::InputReader;
use crate::ndjson::Line;
use contract::limits::MAX_EVENT_BYTES;
use std::io;

/// Reads the values of a JSON input.
pub struct JsonReader {
    is_array: bool,
    /// The position of the first value. Only there, no comma precedes a value.
    first: u64,
}

impl JsonReader {
    /// Reads up to the first value.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn open(input: &mut InputReader) -> io::Result<Self> {
        let is_array = skip_spaces(input)? == Some(b'[');
        if is_array {
            input.consume(1);
        }
        Ok(Self { is_array, first: input.position().offset })
    }

    /// Reads the next value into `buffer`, and sets `line` to the number of its first line.
    ///
    /// # Errors
    /// If the input cannot be read, or is not JSON outside its values, or ends too early.
    pub fn next(&mut self, input: &mut InputReader, buffer: &mut Vec<u8>, line: &mut u64) -> io::Result<Line> {
        buffer.clear();
        let mut is_first = input.position().offset == self.first;
        let mut next = skip_spaces(input)?;
        // Concatenated files have several arrays.
        while self.is_array && next == Some(b']') {
            input.consume(1);
            match skip_spaces(input)? {
                None => return Ok(Line::End),
                Some(b'[') => *self = Self::open(input)?,
                Some(_) => return Err(unexpected(input, "the array has ended, but text follows")),
            }
            is_first = true;
            next = skip_spaces(input)?;
        }
        if self.is_array {
            match next {
                None => return Err(cut_off(input)),
                Some(b',') if !is_first => {
                    input.consume(1);
                    next = skip_spaces(input)?;
                }
                Some(_) if is_first => {}
                Some(_) => return Err(unexpected(input, "a comma or `]` is missing")),
            }
        }
        *line = input.position().line;
        match next {
            None if self.is_array => Err(cut_off(input)),
            None => Ok(Line::End),
            Some(b',' | b']' | b'}' | b':') => Err(unexpected(input, "a value is missing")),
            Some(_) => read_value(input, buffer),
        }
    }
}

/// Reads a value up to its end, which is found by counting brackets. The caller validates it.
fn read_value(input: &mut InputReader, buffer: &mut Vec<u8>) -> io::Result<Line> {
    let (mut depth, mut in_string, mut escaped, mut length) = (0_usize, false, false, 0_u64);
    loop {
        let available = input.peek()?;
        if available.is_empty() {
            // A number or word at the top level ends with the input.
            return if depth > 0 || in_string { Err(cut_off(input)) } else { Ok(ended(buffer, length)) };
        }
        let (mut at, mut is_end) = (0, false);
        while at < available.len() && !is_end {
            let byte = available[at];
            if in_string {
                if escaped {
                    escaped = false;
                } else if byte == b'\\' {
                    escaped = true;
                } else if byte == b'"' {
                    in_string = false;
                    is_end = depth == 0;
                } else {
                    let rest = &available[at..];
                    at += memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                    continue;
                }
            } else {
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => {
                        depth -= 1;
                        is_end = depth == 0;
                    }
                    b',' | b'}' | b']' if depth == 0 => break,
                    _ if depth == 0 && byte.is_ascii_whitespace() => break,
                    _ => {}
                }
            }
            at += 1;
        }
        let is_scalar_end = !is_end && at < available.len();
        length += at as u64;
        // A value that is too long to be an event is not kept, to bound memory.
        if length <= MAX_EVENT_BYTES as u64 + 1 {
            buffer.extend_from_slice(&available[..at]);
        }
        input.consume(at);
        if is_end || is_scalar_end {
            return Ok(ended(buffer, length));
        }
    }
}

fn ended(buffer: &mut [u8], length: u64) -> Line {
    // JSON allows line breaks only outside strings. One inside a string stays, so that it is rejected.
    let mut in_string = false;
    let mut escaped = false;
    if memchr::memchr2(b'\n', b'\r', buffer).is_some() {
        for byte in &mut *buffer {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'\n' | b'\r' if !in_string => *byte = b' ',
                _ => {}
            }
        }
    }
    if length > MAX_EVENT_BYTES as u64 { Line::TooLong(length) } else { Line::Text }
}

/// Skips white space. Returns the next byte, which stays unread.
fn skip_spaces(input: &mut InputReader) -> io::Result<Option<u8>> {
    loop {
        let available = input.peek()?;
        let spaces = available.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let next = available.get(spaces).copied();
        let is_end = available.is_empty();
        input.consume(spaces);
        if next.is_some() || is_end {
            return Ok(next);
        }
    }
}

fn cut_off(input: &InputReader) -> io::Error {
    let line = input.position().line;
    io::Error::new(io::ErrorKind::InvalidData, format!("it ends inside JSON, on line {line}; was it cut off?"))
}

fn unexpected(input: &InputReader, what: &str) -> io::Error {
    let line = input.position().line;
    io::Error::new(io::ErrorKind::InvalidData, format!("it is not JSON: {what}, on line {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value's line and text, or the length of one that is too long.
    type FoundValue = (u64, Result<String, u64>);

    /// All values, and the error at the end.
    fn values(text: &str) -> (Vec<FoundValue>, String) {
        let mut input = InputReader::of_text(text.as_bytes());
        let mut reader = JsonReader::open(&mut input).unwrap();
        let (mut buffer, mut line, mut found) = (Vec::new(), 0, Vec::new());
        loop {
            match reader.next(&mut input, &mut buffer, &mut line) {
                Ok(Line::Text) => found.push((line, Ok(String::from_utf8(buffer.clone()).unwrap()))),
                Ok(Line::TooLong(length)) => {
                    assert!(buffer.capacity() < 4 * MAX_EVENT_BYTES);
                    found.push((line, Err(length)));
                }
                Ok(Line::End) => return (found, String::new()),
                Err(error) => return (found, error.to_string()),
            }
        }
    }

    fn ok(line: u64, text: &str) -> FoundValue {
        (line, Ok(text.to_owned()))
    }

    #[test]
    fn an_array_has_values_with_commas_between_them() {
        let text = "[ {\"a\":\"]},\\\"[{\"} \n,[1,{\n}]\n\n,\n7 ,\"x\"\n]\t[{}]\n";
        let expected = vec![ok(1, "{\"a\":\"]},\\\"[{\"}"), ok(2, "[1,{ }]"), ok(6, "7"), ok(6, "\"x\""), ok(7, "{}")];
        assert_eq!(values(text), (expected, String::new()));
        assert_eq!(values(" [ ] "), (vec![], String::new()));
    }

    #[test]
    fn any_number_of_arrays_may_follow_one_another() {
        let (found, error) = values(&format!("{}[1]", "[]".repeat(100_000)));
        assert_eq!((found, error.as_str()), (vec![ok(1, "1")], ""));
    }

    #[test]
    fn values_may_follow_one_another() {
        let (found, error) = values("{\n \"a\": \"x\ny\"\n}{}\n\n7 {\"b\":1}");
        assert_eq!(
            (found, error.as_str()),
            (vec![ok(1, "{  \"a\": \"x\ny\" }"), ok(4, "{}"), ok(6, "7"), ok(6, "{\"b\":1}")], "")
        );
        assert_eq!(values(""), (vec![], String::new()));
    }

    #[test]
    fn text_between_values_and_a_missing_end_are_errors() {
        for (text, count, reason) in [
            ("[{},{}", 2, "cut off"),
            ("[{},", 1, "cut off"),
            ("[", 0, "cut off"),
            ("[{\"a\":\"", 0, "cut off"),
            ("{\"a\":{}", 0, "cut off"),
            ("[{}{}]", 1, "comma"),
            ("[{},]", 1, "value is missing"),
            ("[,{}]", 0, "value is missing"),
            ("[{}] x", 1, "text follows"),
            ("{}\n,{}", 1, "value is missing"),
        ] {
            let (found, error) = values(text);
            assert!(found.len() == count && error.contains(reason), "{text}: {found:?} {error}");
        }
    }

    #[test]
    fn a_value_longer_than_an_event_is_skipped_and_not_kept_in_memory() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(64 * MAX_EVENT_BYTES));
        let (found, _) = values(&format!("[{long},{{}}]"));
        assert_eq!(found, [(1, Err(long.len() as u64)), ok(1, "{}")]);
    }
}
