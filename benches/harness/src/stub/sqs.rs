//! A stub of SQS: `SendMessage` and `SendMessageBatch` with AWS's limits, the digests that SDKs check,
//! and the billed requests.

use super::{Reply, Usage};
use anyhow::{Context, Result};
use md5::{Digest, Md5};
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

/// The most bytes in a message, and in all messages of a call together (AWS quota).
const MAX_BYTES: usize = 1_048_576;
/// The most messages in a call (AWS quota).
const MAX_ENTRIES: usize = 10;
/// The most attributes in a message (AWS quota).
const MAX_ATTRIBUTES: usize = 10;
/// The bytes of one billed request.
const BILLED_CHUNK: usize = 65_536;

/// A message that SQS accepted.
#[derive(Debug)]
pub struct Message {
    /// The body.
    pub body: String,
    /// Names and values of the attributes.
    pub attributes: BTreeMap<String, String>,
    /// The tenant, for fair queues; the lane in an ordered queue.
    pub group: Option<String>,
    /// The id by which an ordered queue recognizes a second copy.
    pub deduplication_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<'a> {
    #[serde(borrow)]
    entries: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(default)]
    id: String,
    #[serde(borrow)]
    message_body: Cow<'a, str>,
    #[serde(default)]
    message_attributes: BTreeMap<String, Attribute>,
    message_group_id: Option<String>,
    message_deduplication_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    data_type: String,
    string_value: String,
}

/// Executes one call. Returns the response and the messages that are now in the queue.
pub fn call(operation: &str, body: &[u8], usage: &mut Usage) -> Result<(Reply, Vec<Message>)> {
    let unreadable = || format!("cannot read a {operation}");
    let (entries, is_batch) = match operation {
        "SendMessageBatch" => (serde_json::from_slice::<Batch<'_>>(body).with_context(unreadable)?.entries, true),
        "SendMessage" => (vec![serde_json::from_slice::<Entry<'_>>(body).with_context(unreadable)?], false),
        other => anyhow::bail!("the stub does not support {other}"),
    };
    usage.send_calls += 1;
    let bytes: usize = entries.iter().map(Entry::bytes).sum();
    usage.billed_chunks += bytes.div_ceil(BILLED_CHUNK).max(1);
    usage.message_bytes += bytes;
    if let Some((code, message)) = refusal(&entries, is_batch, bytes) {
        let error = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message });
        return Ok((Reply::error(&error), Vec::new()));
    }
    usage.messages += entries.len();
    let results: Vec<Value> = entries.iter().map(Entry::result).collect();
    let response = if is_batch { json!({ "Successful": results, "Failed": [] }) } else { results[0].clone() };
    Ok((Reply::ok(&response), entries.into_iter().map(Entry::into_message).collect()))
}

/// AWS's limits, in the order in which AWS checks them.
fn refusal(entries: &[Entry<'_>], is_batch: bool, bytes: usize) -> Option<(&'static str, &'static str)> {
    let mut ids = HashSet::new();
    if entries.is_empty() {
        Some(("EmptyBatchRequest", "There should be at least one SendMessageBatchRequestEntry in the request."))
    } else if entries.len() > MAX_ENTRIES {
        Some(("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10."))
    } else if is_batch && !entries.iter().all(|entry| is_entry_id(&entry.id)) {
        Some((
            "InvalidBatchEntryId",
            "A batch entry id can only contain alphanumeric characters, hyphens and underscores.",
        ))
    } else if !entries.iter().all(|entry| ids.insert(&entry.id)) {
        Some(("BatchEntryIdsNotDistinct", "Two or more batch entries in the request have the same Id."))
    } else if bytes > MAX_BYTES {
        Some(("BatchRequestTooLong", "Batch requests cannot be longer than 1048576 bytes."))
    } else if entries.iter().any(|entry| entry.message_body.is_empty()) {
        Some(("MissingParameter", "The request must contain the parameter MessageBody."))
    } else if entries.iter().any(|entry| entry.message_attributes.len() > MAX_ATTRIBUTES) {
        Some(("InvalidParameterValue", "Number of message attributes exceeds the allowed maximum [10]."))
    } else if !entries.iter().all(|entry| entry.message_body.chars().all(is_allowed)) {
        Some(("InvalidMessageContents", "Invalid characters found."))
    } else {
        None
    }
}

fn is_entry_id(id: &str) -> bool {
    (1..=80).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn is_allowed(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

impl Entry<'_> {
    /// The size that SQS counts: the body, and the name, type and value of each attribute.
    fn bytes(&self) -> usize {
        let attributes = self.message_attributes.iter();
        let attributes = attributes.map(|(name, value)| name.len() + value.data_type.len() + value.string_value.len());
        self.message_body.len() + attributes.sum::<usize>()
    }

    fn result(&self) -> Value {
        let mut result = json!({
            "MessageId": format!("{:032x}", fastrand::u128(..)),
            "MD5OfMessageBody": hex::encode(Md5::digest(self.message_body.as_bytes())),
        });
        if self.message_deduplication_id.is_some() {
            result["SequenceNumber"] = Value::from(format!("{:020}", fastrand::u64(..)));
        }
        if !self.id.is_empty() {
            result["Id"] = Value::from(self.id.as_str());
        }
        if !self.message_attributes.is_empty() {
            result["MD5OfMessageAttributes"] = Value::from(self.attributes_digest());
        }
        result
    }

    /// The digest that AWS documents: the attributes by name; name, type and value each after its length;
    /// and a 1 for "string" before the value.
    fn attributes_digest(&self) -> String {
        let mut digest = Md5::new();
        for (name, value) in &self.message_attributes {
            add_with_length(&mut digest, name);
            add_with_length(&mut digest, &value.data_type);
            digest.update([1]);
            add_with_length(&mut digest, &value.string_value);
        }
        hex::encode(digest.finalize())
    }

    fn into_message(self) -> Message {
        let attributes = self.message_attributes.into_iter().map(|(name, value)| (name, value.string_value)).collect();
        Message {
            body: self.message_body.into_owned(),
            attributes,
            group: self.message_group_id,
            deduplication_id: self.message_deduplication_id,
        }
    }
}

fn add_with_length(digest: &mut Md5, text: &str) {
    digest.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    digest.update(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(entries: &Value) -> (Value, usize, Usage) {
        let mut usage = Usage::default();
        let body = json!({ "QueueUrl": "http://localhost/1/events", "Entries": entries }).to_string();
        let (reply, messages) = call("SendMessageBatch", body.as_bytes(), &mut usage).unwrap();
        (serde_json::from_slice(&reply.body).unwrap(), messages.len(), usage)
    }

    #[test]
    fn a_batch_is_accepted_with_the_digests_that_sdks_check() {
        let attributes = json!({ "schema": { "DataType": "String", "StringValue": "event-batch/1" } });
        let (reply, accepted, usage) =
            send(&json!([{ "Id": "0", "MessageBody": "hello", "MessageAttributes": attributes }]));
        assert_eq!(reply["Successful"][0]["MD5OfMessageBody"], "5d41402abc4b2a76b9719d911017c592");
        assert_eq!((accepted, usage.billed_chunks), (1, 1));
    }

    #[test]
    fn the_limits_are_those_of_sqs() {
        let entry = |id: usize, body: &str| json!({ "Id": id.to_string(), "MessageBody": body });
        let code = |entries: Vec<Value>| send(&Value::from(entries)).0["__type"].to_string();
        assert!(code(vec![]).contains("EmptyBatchRequest"));
        assert!(code((0..11).map(|id| entry(id, "x")).collect()).contains("TooManyEntries"));
        assert!(code(vec![entry(0, "x"), entry(0, "x")]).contains("NotDistinct"));
        assert!(code(vec![entry(0, &"x".repeat(MAX_BYTES + 1))]).contains("TooLong"));
        assert!(code(vec![entry(0, "\u{FFFE}")]).contains("InvalidMessageContents"));
        let (_, accepted, usage) = send(&Value::from(vec![entry(0, &"x".repeat(MAX_BYTES))]));
        assert_eq!((accepted, usage.billed_chunks), (1, 16));
    }
}
