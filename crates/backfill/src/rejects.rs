//! The rejects file: one line per rejected event, with its position and the reasons.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// An event that was rejected, by this command or by the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedEvent {
    /// The input, as named on the command line.
    pub file: String,
    /// The line on which the event begins, counted from 1.
    pub line: u64,
    /// Why it was rejected: at least one problem.
    pub problems: Vec<Problem>,
    /// The event's text, or the text found in its place; `None` if that is too long.
    pub text: Option<Vec<u8>>,
}

/// One reason for a rejection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The member at fault, such as `external_user_id`; `None` means the whole event.
    pub field: Option<String>,
    /// The service's error code, such as `validation_failed`, or one of this command's own.
    pub code: Cow<'static, str>,
    /// The rule that is broken.
    pub reason: String,
}

/// A line of the rejects file.
#[derive(Serialize)]
struct RejectsLine<'a> {
    file: &'a str,
    line: u64,
    #[serde(flatten)]
    first: &'a Problem,
    #[serde(skip_serializing_if = "<[Problem]>::is_empty")]
    more: &'a [Problem],
    /// The event as written, if it is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
    /// The text, if it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    /// The bytes of the text in hexadecimal, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    text_hex: Option<String>,
}

/// A rejected event, read from a rejects file.
#[derive(Debug, PartialEq, Eq)]
pub struct Original {
    /// Where it was, such as `events.ndjson:17`.
    pub place: String,
    /// Its text; `None` if that was too long to be kept.
    pub text: Option<Vec<u8>>,
}

/// Reads a line of the rejects file.
///
/// # Errors
/// The message says why the line is not one of a rejects file.
pub fn original(line: &[u8]) -> Result<Original, String> {
    #[derive(Deserialize)]
    struct Rejected<'a> {
        file: Cow<'a, str>,
        line: u64,
        #[serde(borrow, default, deserialize_with = "present")]
        event: Option<&'a RawValue>,
        text: Option<Cow<'a, str>>,
        text_hex: Option<Cow<'a, str>>,
    }
    /// An `Option` would treat the event `null` as absent.
    fn present<'de: 'a, 'a, D: Deserializer<'de>>(event: D) -> Result<Option<&'a RawValue>, D::Error> {
        <&RawValue>::deserialize(event).map(Some)
    }
    let Rejected { file, line, event, text, text_hex } =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let from_hex = text_hex.map(|hex| hex::decode(hex.as_ref()).map_err(|error| error.to_string())).transpose()?;
    let event = event.map(|event| event.get().as_bytes().to_vec());
    let text = event.or(from_hex).or(text.map(|text| text.into_owned().into_bytes()));
    Ok(Original { place: format!("{file}:{line}"), text })
}

impl fmt::Display for RejectedEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let problems = self.problems.iter().map(|problem| match &problem.field {
            Some(field) => format!("{field} {}", problem.reason),
            None => problem.reason.clone(),
        });
        let problems = problems.collect::<Vec<_>>().join("; ").replace(char::is_control, "\u{fffd}");
        write!(formatter, "{}:{}: {problems}", self.file, self.line)
    }
}

impl RejectedEvent {
    /// The approximate size in memory, in bytes.
    pub fn size(&self) -> usize {
        let problems: usize = self.problems.iter().map(|problem| 100 + problem.reason.len()).sum();
        100 + self.file.len() + problems + self.text.as_ref().map_or(0, Vec::len)
    }

    /// Appends the event's line to `lines`.
    pub fn write_to(&self, lines: &mut Vec<u8>) {
        let Some((first, more)) = self.problems.split_first() else { return };
        let text = self.text.as_deref().unwrap_or_default();
        let event: Option<&RawValue> = serde_json::from_slice(text).ok();
        let one_line = event.and_then(on_one_line);
        let event = one_line.as_deref().or(event);
        let is_text = event.is_none() && self.text.is_some();
        let text_hex = (is_text && std::str::from_utf8(text).is_err()).then(|| hex::encode(text));
        let text = is_text.then(|| String::from_utf8_lossy(text));
        let line = RejectsLine { file: &self.file, line: self.line, first, more, event, text, text_hex };
        // Serializing strings, numbers and raw JSON cannot fail.
        lines.extend(serde_json::to_vec(&line).unwrap_or_default());
        lines.push(b'\n');
    }
}

/// An event of several lines on one line; `None` if it is on one line already. Line breaks in JSON are only between
/// tokens, where a space means the same.
fn on_one_line(event: &RawValue) -> Option<Box<RawValue>> {
    event.get().contains(['\n', '\r']).then(|| RawValue::from_string(event.get().replace(['\n', '\r'], " ")).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: Option<&[u8]>, problems: usize) -> String {
        let problem =
            Problem { field: Some("name".to_owned()), code: "validation_failed".into(), reason: "bad".to_owned() };
        let problems = vec![problem; problems];
        let mut lines = Vec::new();
        RejectedEvent { file: "f".to_owned(), line: 7, problems, text: text.map(<[u8]>::to_vec) }.write_to(&mut lines);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn the_text_of_an_event_is_kept_byte_for_byte() {
        let problem = r#""field":"name","code":"validation_failed","reason":"bad""#;
        let event = r#"{"name": 1.10,  "name":2}"#;
        let start = format!(r#"{{"file":"f","line":7,{problem}"#);
        assert_eq!(line(Some(event.as_bytes()), 1), format!("{start},\"event\":{event}}}\n"));
        let not_utf8 = format!("{start},\"text\":\"{{\\\"a\u{fffd}\",\"text_hex\":\"7b2261ff\"}}\n");
        assert_eq!(line(Some(b"{\"a\xff"), 1), not_utf8);
        assert_eq!(line(None, 2), format!("{start},\"more\":[{{{problem}}}]}}\n"));
    }

    #[test]
    fn the_original_text_is_read_back_byte_for_byte() {
        for text in [
            &b"{\"a\":1e400,  \"b\":12345678901234567483, \"c\":42.50}"[..],
            b"{\"a\":\"\\ud83d\"}",
            b"not json",
            b"\"\xff\"",
            b"{\"a\xff",
            b"a,\"b\nc\"",
            b"",
            b"null",
        ] {
            let original = original(line(Some(text), 1).as_bytes()).unwrap();
            assert_eq!(original.place, "f:7");
            assert_eq!(original.text.as_deref(), Some(text), "{}", String::from_utf8_lossy(text));
        }
        assert_eq!(original(line(None, 1).as_bytes()).unwrap().text, None);
        assert!(original(b"{\"name\":\"n\"}").is_err() && original(b"x").is_err());
        let lines = line(Some(b"{\n  \"a\": 1\r\n}"), 1);
        assert_eq!(lines.lines().count(), 1);
        assert_eq!(original(lines.as_bytes()).unwrap().text.unwrap(), b"{   \"a\": 1  }");
    }
}
