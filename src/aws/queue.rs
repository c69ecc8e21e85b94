//! [`Queue`] over SQS (docs/contract.md, "The queue message").

use super::json_string::push_json_string;
use super::{answer_by, calls, describe, user_agent};
use crate::clock::Timestamp;
use crate::delivery::{Queue, SendResult};
use crate::packing::{Envelope, Message};
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpRequest;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::error::{BuildError, ProvideErrorMetadata};
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    SendMessageBatchRequestEntry,
};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use tracing::warn;

/// Error codes of a call that would fail in the same way again.
const PERMANENT: [&str; 4] = [
    "InvalidMessageContents",
    "AWS.SimpleQueueService.BatchRequestTooLong",
    "BatchRequestTooLong",
    "InvalidParameterValue",
];

/// The events queue.
pub struct SqsQueue {
    client: Client,
    url: String,
}

impl SqsQueue {
    /// The queue with the URL `url`. The SDK must not retry calls here: a send whose acknowledgement was
    /// lost may have taken effect, and only the pipeline can decide whether to repeat it.
    #[must_use]
    pub fn new(sdk: &SdkConfig, url: String) -> Self {
        let mut config = aws_sdk_sqs::config::Builder::from(sdk).retry_config(RetryConfig::disabled());
        config.push_interceptor(calls::counter()).push_interceptor(user_agent::kept());
        Self { client: Client::from_conf(config.build()), url }
    }
}

impl SqsQueue {
    /// Opens a connection by making an empty call, which SQS refuses.
    pub(super) async fn connect(&self, by: Timestamp) {
        let call = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(Vec::new()));
        let _ = answer_by(by, Box::pin(call.send())).await;
    }
}

impl Queue for SqsQueue {
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, by: Timestamp) -> Vec<SendResult> {
        let Ok(empty_entries) = entries(envelope, &messages) else {
            return vec![SendResult::Permanent; messages.len()];
        };
        let messages = Arc::new(messages);
        let bodies = Arc::clone(&messages);
        let call = |entries| self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries));
        let fast = call(empty_entries).customize().map_request(move |request| fill_in(request, &bodies));
        let mut sent = answer_by(by, Box::pin(fast.send())).await;
        if let Some(Err(error)) = &sent
            && is_unexpected_serialization(error)
            && let Ok(empty_entries) = entries(envelope, &messages)
        {
            warn!("SendMessageBatch: unexpected serialization by the SDK; sending with its own serializer");
            sent = answer_by(by, Box::pin(call(with_bodies(empty_entries, &messages)).send())).await;
        }
        match sent {
            None => {
                warn!("SendMessageBatch: no response by the deadline");
                vec![SendResult::Unknown; messages.len()]
            }
            Some(Ok(output)) => results(&output, messages.len()),
            Some(Err(error)) => {
                warn!("{}", describe("SendMessageBatch", &error));
                let is_permanent = error.code().is_some_and(|code| PERMANENT.contains(&code));
                let is_from_sqs = error.as_service_error().is_some();
                let result = match (is_permanent, is_from_sqs) {
                    (true, _) => SendResult::Permanent,
                    (_, true) => SendResult::Retryable,
                    _ => SendResult::Unknown,
                };
                vec![result; messages.len()]
            }
        }
    }
}

/// Entries without bodies. [`fill_in`] adds the bodies.
fn entries(envelope: &Envelope, messages: &[Message]) -> Result<Vec<SendMessageBatchRequestEntry>, BuildError> {
    let attributes = attributes(envelope)?;
    let system_attributes = system_attributes(envelope)?;
    let entry = |(id, message): (usize, &Message)| {
        let fifo = message.fifo.as_ref();
        SendMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .message_body("")
            .set_message_attributes(Some(attributes.clone()))
            .set_message_system_attributes(system_attributes.clone())
            .message_group_id(fifo.map_or(envelope.tenant.project.as_str(), |fifo| &fifo.group_id))
            .set_message_deduplication_id(fifo.map(|fifo| fifo.deduplication_id.clone()))
            .build()
    };
    messages.iter().enumerate().map(entry).collect()
}

/// The same entries with their bodies, for the SDK to serialize.
fn with_bodies(entries: Vec<SendMessageBatchRequestEntry>, messages: &[Message]) -> Vec<SendMessageBatchRequestEntry> {
    let with_body = |(mut entry, message): (SendMessageBatchRequestEntry, &Message)| {
        entry.message_body.clone_from(&message.body);
        entry
    };
    entries.into_iter().zip(messages).map(with_body).collect()
}

/// How the SDK serializes an empty body. The text cannot occur inside a string, where its quotes would
/// be escaped.
const NO_BODY: &[u8] = br#""MessageBody":"""#;

/// Inserts the messages' bodies into a request that the SDK has serialized but not signed.
///
/// The SDK's own serializer copies each body twice and escapes it byte by byte, which took two fifths of
/// the CPU time of a 5 MB batch (docs/performance.md).
///
/// # Errors
/// If the request does not have exactly one place per body, for example after a change in the SDK's
/// serializer.
fn fill_in(mut request: HttpRequest, messages: &[Message]) -> Result<HttpRequest, UnexpectedSerialization> {
    let frame = request.body().bytes().unwrap_or_default();
    if memchr::memmem::find_iter(frame, NO_BODY).count() != messages.len() {
        return Err(UnexpectedSerialization);
    }
    // Escapes add about a sixth to a message. A quarter avoids most reallocations.
    let room_for = |message: &Message| message.body.len() + message.body.len() / 4;
    let mut filled = Vec::with_capacity(frame.len() + messages.iter().map(room_for).sum::<usize>());
    let mut written = 0;
    for (at, message) in memchr::memmem::find_iter(frame, NO_BODY).zip(messages) {
        let value = at + NO_BODY.len() - r#""""#.len();
        filled.extend_from_slice(&frame[written..value]);
        push_json_string(&mut filled, &message.body);
        written = at + NO_BODY.len();
    }
    filled.extend_from_slice(&frame[written..]);
    request.headers_mut().insert("content-length", filled.len().to_string());
    *request.body_mut() = filled.into();
    Ok(request)
}

/// The SDK serialized the entries differently from what [`fill_in`] expects.
#[derive(Debug)]
struct UnexpectedSerialization;

impl fmt::Display for UnexpectedSerialization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the serialized request does not have one place per message body")
    }
}

impl Error for UnexpectedSerialization {}

/// Whether `error`, or one of its causes, is [`UnexpectedSerialization`].
fn is_unexpected_serialization(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(<dyn Error>::is::<UnexpectedSerialization>)
}

fn attributes(envelope: &Envelope) -> Result<HashMap<String, MessageAttributeValue>, BuildError> {
    let attribute = |(name, value): (&str, &str)| {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value).build()?;
        Ok((name.to_owned(), value))
    };
    envelope.attributes().into_iter().map(attribute).collect()
}

/// The system attributes. They do not count toward the size of a message.
fn system_attributes(
    envelope: &Envelope,
) -> Result<Option<HashMap<MessageSystemAttributeNameForSends, MessageSystemAttributeValue>>, BuildError> {
    let Some(trace) = &envelope.trace else { return Ok(None) };
    let value = MessageSystemAttributeValue::builder().data_type("String").string_value(trace.as_str()).build()?;
    Ok(Some(HashMap::from([(MessageSystemAttributeNameForSends::AwsTraceHeader, value)])))
}

/// The result of each entry. An entry that the response does not mention is unknown.
fn results(output: &SendMessageBatchOutput, count: usize) -> Vec<SendResult> {
    let mut results = vec![SendResult::Unknown; count];
    let mut set = |id: &str, result| {
        if let Some(slot) = id.parse().ok().and_then(|index: usize| results.get_mut(index)) {
            *slot = result;
        }
    };
    for entry in output.successful() {
        set(entry.id(), SendResult::Acknowledged);
    }
    for entry in output.failed() {
        warn!(code = entry.code(), "SendMessageBatch: an entry failed");
        set(entry.id(), if entry.sender_fault() { SendResult::Permanent } else { SendResult::Retryable });
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idempotency::BatchId;
    use crate::packing::TraceHeader;
    use contract::tenant::{Mode, ProjectId, Tenant};

    fn message(body: &str) -> Message {
        Message { body: body.to_owned(), fifo: None }
    }

    fn messages(count: usize) -> Vec<Message> {
        vec![message(""); count]
    }

    /// The local AWS drops the system attributes of a batch, so a test can check only the request.
    #[test]
    fn the_trace_of_the_request_is_sent_to_consumers() {
        let header = "Root=1-5e988e0a-3f2b1c4d5e6f708192a3b4c5;Parent=53995c3f42cd8ad8;Sampled=1";
        let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
        let envelope = Envelope::new(tenant, BatchId::new(Timestamp::from_millis(0)));
        let trace_of = |envelope: &Envelope| {
            let sent = entries(envelope, &messages(1)).unwrap();
            let attributes = sent[0].message_system_attributes()?;
            attributes[&MessageSystemAttributeNameForSends::AwsTraceHeader].string_value().map(ToOwned::to_owned)
        };
        assert_eq!(trace_of(&envelope), None);
        assert_eq!(trace_of(&envelope.traced(TraceHeader::parse(header))).as_deref(), Some(header));
        for refused in ["", "Root=\u{1}", "1-5e988e0a", &format!("Root={}", "x".repeat(256))] {
            assert_eq!(TraceHeader::parse(refused), None);
        }
    }

    /// Runs the SDK's serializer on two entries, without a server, and returns the result of `fill_in`.
    async fn serialized(sent: Vec<Message>) -> Result<String, String> {
        let config = aws_sdk_sqs::config::Builder::new()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new("us-east-1"))
            .credentials_provider(aws_sdk_sqs::config::Credentials::new("test", "test", None, None, "tests"))
            .build();
        let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
        let envelope = Envelope::new(tenant, BatchId::new(Timestamp::from_millis(0)));
        let call = Client::from_conf(config).send_message_batch().queue_url("http://127.0.0.1:1/events");
        let (sender, receiver) = std::sync::mpsc::channel();
        let call =
            call.set_entries(Some(entries(&envelope, &messages(2)).unwrap())).customize().map_request(move |request| {
                let filled = fill_in(request, &sent).map_err(|error| error.to_string());
                let text = filled.map(|request| String::from_utf8(request.body().bytes().unwrap().to_vec()).unwrap());
                sender.send(text).unwrap();
                // The request must not be sent.
                Err::<HttpRequest, _>(UnexpectedSerialization)
            });
        let sent = call.send().await;
        assert!(is_unexpected_serialization(&sent.unwrap_err()));
        receiver.recv().unwrap()
    }

    #[tokio::test]
    async fn bodies_are_inserted_into_the_serialization_of_the_sdk() {
        let bodies = ["a \"quoted\" body", r#"{"MessageBody":""}"#];
        let text = serialized(bodies.map(message).to_vec()).await.unwrap();
        let request: serde_json::Value = serde_json::from_str(&text).unwrap();
        let entries = request["Entries"].as_array().unwrap();
        assert_eq!(entries.iter().map(|entry| entry["MessageBody"].as_str().unwrap()).collect::<Vec<_>>(), bodies);
        assert!(entries.iter().all(|entry| entry["MessageAttributes"]["mode"]["StringValue"] == "live"));
    }

    /// A call that failed for any other reason must not be repeated here.
    #[test]
    fn other_errors_are_not_an_unexpected_serialization() {
        assert!(is_unexpected_serialization(&UnexpectedSerialization));
        assert!(!is_unexpected_serialization(&fmt::Error));
    }

    #[test]
    fn the_serializer_of_the_sdk_gets_each_entry_with_its_body() {
        let tenant = Tenant { project: ProjectId::parse("acme").unwrap(), mode: Mode::Live };
        let envelope = Envelope::new(tenant, BatchId::new(Timestamp::from_millis(0)));
        let messages = ["first", "second"].map(message);
        let entries = with_bodies(entries(&envelope, &messages).unwrap(), &messages);
        let bodies: Vec<_> = entries.iter().map(|entry| (entry.id(), entry.message_body())).collect();
        assert_eq!(bodies, [("0", "first"), ("1", "second")]);
    }

    #[tokio::test]
    async fn a_serialization_with_another_number_of_places_is_not_sent() {
        for count in [1, 3] {
            let error = serialized(messages(count)).await.unwrap_err();
            assert!(error.contains("one place per message body"), "{error}");
        }
    }
}
