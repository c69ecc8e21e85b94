//! NDJSON: one event per line. The bytes of a line are sent unchanged.

use crate::input::InputReader;
use contract::limits::MAX_EVENT_BYTES;
use std::io;

/// The result of reading a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// The line is in the buffer.
    Text,
    /// The line has this many bytes, more than an event may have, and was skipped.
    TooLong(u64),
    /// There are no more lines.
    End,
}

/// Reads the next line that is not blank into `buffer`, trimmed, and sets `line` to its number.
///
/// # Errors
/// If the input cannot be read.
pub fn next_line(input: &mut InputReader, buffer: &mut Vec<u8>, line: &mut u64) -> io::Result<Line> {
    loop {
        *line = input.position().line;
        buffer.clear();
        let mut length = 0;
        let mut ended = false;
        while !ended {
            let available = input.peek()?;
            if available.is_empty() {
                break;
            }
            let newline = memchr::memchr(b'\n', available);
            let part = newline.unwrap_or(available.len());
            length += part as u64;
            // A line that is too long to be an event is not kept, to bound memory.
            if length <= MAX_EVENT_BYTES as u64 + 1 {
                buffer.extend_from_slice(&available[..part]);
            }
            ended = newline.is_some();
            input.consume(part + usize::from(ended));
        }
        if length > buffer.len() as u64 {
            return Ok(Line::TooLong(length));
        }
        trim(buffer);
        if !buffer.is_empty() {
            return Ok(if buffer.len() > MAX_EVENT_BYTES { Line::TooLong(length) } else { Line::Text });
        }
        if !ended {
            return Ok(Line::End);
        }
    }
}

fn trim(buffer: &mut Vec<u8>) {
    buffer.truncate(buffer.trim_ascii_end().len());
    let start = buffer.len() - buffer.trim_ascii_start().len();
    buffer.drain(..start);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<String, u64>)> {
        let mut input = InputReader::of_text(text);
        let (mut buffer, mut line, mut found) = (Vec::new(), 0, Vec::new());
        loop {
            match next_line(&mut input, &mut buffer, &mut line).unwrap() {
                Line::Text => found.push((line, Ok(String::from_utf8(buffer.clone()).unwrap()))),
                Line::TooLong(length) => {
                    assert!(buffer.capacity() < 4 * MAX_EVENT_BYTES);
                    found.push((line, Err(length)));
                }
                Line::End => return found,
            }
        }
    }

    #[test]
    fn blank_lines_are_counted_but_skipped() {
        let ok = |line, text: &str| (line, Ok(text.to_owned()));
        assert_eq!(lines(b"\n \n{a}\r\n\n\t{b} \n{c}"), [ok(3, "{a}"), ok(5, "{b}"), ok(6, "{c}")]);
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"\n\r\n "), []);
    }

    #[test]
    fn a_line_longer_than_an_event_is_skipped_and_not_kept_in_memory() {
        let mut text = vec![b'x'; 64 * MAX_EVENT_BYTES];
        text.extend_from_slice(b"\nnext\n");
        text.extend(vec![b'y'; MAX_EVENT_BYTES]);
        text.extend_from_slice(b"\r\n");
        text.extend(vec![b'z'; MAX_EVENT_BYTES + 1]);
        let found = lines(&text);
        assert_eq!(found[0], (1, Err(64 * MAX_EVENT_BYTES as u64)));
        assert_eq!(found[1], (2, Ok("next".to_owned())));
        assert!(matches!(&found[2], (3, Ok(text)) if text.len() == MAX_EVENT_BYTES));
        assert_eq!(found[3], (4, Err(MAX_EVENT_BYTES as u64 + 1)));
    }
}
