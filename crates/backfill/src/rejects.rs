//! Events that are not sent: each a line of the rejects file, with place, field and reason.

use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// One event that was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The input it stands in, as on the command line.
    pub file: String,
    /// The line it begins on, counted from 1.
    pub line: u64,
    /// What is wrong with it: at least one fault.
    pub faults: Vec<Fault>,
    /// The event, or what stands where it should be; `None` where that is too long.
    pub text: Option<Vec<u8>>,
}

/// One rule that an event breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The member at fault, such as `external_user_id`; `None` is the whole event.
    pub field: Option<String>,
    /// The service's code, such as `validation_failed`.
    pub code: Cow<'static, str>,
    /// Which rule.
    pub reason: String,
}

/// A line of the file.
#[derive(Serialize)]
struct Entry<'a> {
    file: &'a str,
    line: u64,
    #[serde(flatten)]
    first: &'a Fault,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    more: &'a [Fault],
    /// The event as it was, if that is JSON: `jq -c .event` makes a file to send again.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
    /// What is no JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
}

impl Reject {
    /// About how many bytes it takes in memory.
    pub fn size(&self) -> usize {
        let faults: usize = self.faults.iter().map(|fault| 100 + fault.reason.len()).sum();
        100 + self.file.len() + faults + self.text.as_ref().map_or(0, Vec::len)
    }

    /// Appends its line.
    pub fn write_to(&self, file: &mut Vec<u8>) {
        let Some((first, more)) = self.faults.split_first() else { return };
        let text = self.text.as_deref().unwrap_or_default();
        let event: Option<&RawValue> = serde_json::from_slice(text).ok();
        let text = (event.is_none() && self.text.is_some()).then(|| String::from_utf8_lossy(text));
        let entry = Entry { file: &self.file, line: self.line, first, more, event, text };
        // Strings, numbers and JSON always make JSON.
        file.extend(serde_json::to_vec(&entry).unwrap_or_default());
        file.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: Option<&[u8]>, faults: usize) -> String {
        let fault =
            Fault { field: Some("name".to_owned()), code: "validation_failed".into(), reason: "bad".to_owned() };
        let faults = vec![fault; faults];
        let mut file = Vec::new();
        Reject { file: "f".to_owned(), line: 7, faults, text: text.map(<[u8]>::to_vec) }.write_to(&mut file);
        String::from_utf8(file).unwrap()
    }

    #[test]
    fn an_event_keeps_its_text() {
        let fault = r#""field":"name","code":"validation_failed","reason":"bad""#;
        let event = r#"{"name": 1.10,  "name":2}"#;
        let start = format!(r#"{{"file":"f","line":7,{fault}"#);
        assert_eq!(line(Some(event.as_bytes()), 1), format!("{start},\"event\":{event}}}\n"));
        assert_eq!(line(Some(b"{\"a\xff"), 1), format!("{start},\"text\":\"{{\\\"a\u{fffd}\"}}\n"));
        assert_eq!(line(None, 2), format!("{start},\"more\":[{{{fault}}}]}}\n"));
    }
}
