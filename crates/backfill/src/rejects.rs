//! The rejects file: one line per rejected event, with its position and the reasons.

use serde::Serialize;
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
    /// The event as written, if it is JSON. `jq -c .event` makes a file of events to fix and send.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
    /// The text, if it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
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
        let text = (event.is_none() && self.text.is_some()).then(|| String::from_utf8_lossy(text));
        let line = RejectsLine { file: &self.file, line: self.line, first, more, event, text };
        // Serializing strings, numbers and raw JSON cannot fail.
        lines.extend(serde_json::to_vec(&line).unwrap_or_default());
        lines.push(b'\n');
    }
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
        assert_eq!(line(Some(b"{\"a\xff"), 1), format!("{start},\"text\":\"{{\\\"a\u{fffd}\"}}\n"));
        assert_eq!(line(None, 2), format!("{start},\"more\":[{{{problem}}}]}}\n"));
    }
}
