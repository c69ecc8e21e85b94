//! [`Queue`] over SQS (contract section 4).

use super::{answer_by, describe};
use crate::clock::Timestamp;
use crate::delivery::{Envelope, Fate, Message, Queue};
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
use tracing::warn;

/// Codes of a whole call that would fail the same way again.
const REJECTED: [&str; 4] = [
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
    /// The SDK repeats nothing here: a send whose acknowledgement was lost may have landed, and
    /// only the pipeline can weigh that.
    #[must_use]
    pub fn new(sdk: &SdkConfig, url: String) -> Self {
        let config = aws_sdk_sqs::config::Builder::from(sdk)
            .retry_config(RetryConfig::disabled())
            .interceptor(super::CallCounter)
            .build();
        Self { client: Client::from_conf(config), url }
    }
}

impl SqsQueue {
    /// Makes a call that SQS refuses for being empty, for the connection that it opens.
    pub(super) async fn connect(&self, by: Timestamp) {
        let call = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(Vec::new()));
        let _ = answer_by(by, Box::pin(call.send())).await;
    }
}

impl Queue for SqsQueue {
    async fn send(&self, envelope: &Envelope, messages: &[Message], by: Timestamp) -> Vec<Fate> {
        let Ok(entries) = entries(envelope, messages.len()) else {
            return vec![Fate::Rejected; messages.len()];
        };
        let bodies = json_strings(messages);
        let call = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries));
        let call = call.customize().mutate_request(move |request| fill_in(request, &bodies));
        match answer_by(by, Box::pin(call.send())).await {
            None => {
                warn!("SendMessageBatch: given up at the deadline");
                vec![Fate::Unknown; messages.len()]
            }
            Some(Ok(output)) => fates(&output, messages.len()),
            Some(Err(error)) => {
                warn!("{}", describe("SendMessageBatch", &error));
                let rejected = error.code().is_some_and(|code| REJECTED.contains(&code));
                let refused = error.as_service_error().is_some();
                let fate = match (rejected, refused) {
                    (true, _) => Fate::Rejected,
                    (_, true) => Fate::Refused,
                    _ => Fate::Unknown,
                };
                vec![fate; messages.len()]
            }
        }
    }
}

/// Entries without their bodies, which [`fill_in`] adds.
fn entries(envelope: &Envelope, count: usize) -> Result<Vec<SendMessageBatchRequestEntry>, BuildError> {
    let attributes = attributes(envelope)?;
    let system_attributes = system_attributes(envelope)?;
    let entry = |id: usize| {
        SendMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .message_body("")
            .set_message_attributes(Some(attributes.clone()))
            .set_message_system_attributes(system_attributes.clone())
            .message_group_id(envelope.project.as_str())
            .build()
    };
    (0..count).map(entry).collect()
}

/// How the SDK writes an entry without a body. Inside of a string its quotes would be escaped.
const NO_BODY: &[u8] = br#""MessageBody":"""#;

/// Each body as a JSON string.
fn json_strings(messages: &[Message]) -> Vec<Vec<u8>> {
    let json_string = |message: &Message| {
        let mut json = Vec::with_capacity(message.body.len() + message.body.len() / 4);
        // Writing to a vector cannot fail.
        let _ = serde_json::to_writer(&mut json, &message.body);
        json
    };
    messages.iter().map(json_string).collect()
}

/// Puts the bodies into a request that the SDK has written and not yet signed.
///
/// The SDK's own way is to copy each body twice and to escape it byte by byte, which was two fifths of
/// what 5 MB cost (docs/performance.md). A body that found no place would be sent empty, which SQS refuses.
fn fill_in(request: &mut HttpRequest, bodies: &[Vec<u8>]) {
    let frame = request.body().bytes().unwrap_or_default();
    let mut filled = Vec::with_capacity(frame.len() + bodies.iter().map(Vec::len).sum::<usize>());
    let mut written = 0;
    for (at, body) in memchr::memmem::find_iter(frame, NO_BODY).zip(bodies) {
        let value = at + NO_BODY.len() - r#""""#.len();
        filled.extend_from_slice(&frame[written..value]);
        filled.extend_from_slice(body);
        written = at + NO_BODY.len();
    }
    filled.extend_from_slice(&frame[written..]);
    request.headers_mut().insert("content-length", filled.len().to_string());
    *request.body_mut() = filled.into();
}

fn attributes(envelope: &Envelope) -> Result<HashMap<String, MessageAttributeValue>, BuildError> {
    let attribute = |(name, value): (&str, &str)| {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value).build()?;
        Ok((name.to_owned(), value))
    };
    envelope.attributes().into_iter().map(attribute).collect()
}

/// These do not count towards a message's size.
fn system_attributes(
    envelope: &Envelope,
) -> Result<Option<HashMap<MessageSystemAttributeNameForSends, MessageSystemAttributeValue>>, BuildError> {
    let Some(trace) = &envelope.trace else { return Ok(None) };
    let value = MessageSystemAttributeValue::builder().data_type("String").string_value(trace.as_str()).build()?;
    Ok(Some(HashMap::from([(MessageSystemAttributeNameForSends::AwsTraceHeader, value)])))
}

/// Reads the answer entry by entry; one that it does not mention has an unknown fate.
fn fates(output: &SendMessageBatchOutput, count: usize) -> Vec<Fate> {
    let mut fates = vec![Fate::Unknown; count];
    let mut set = |id: &str, fate| {
        if let Some(slot) = id.parse().ok().and_then(|index: usize| fates.get_mut(index)) {
            *slot = fate;
        }
    };
    for entry in output.successful() {
        set(entry.id(), Fate::Acknowledged);
    }
    for entry in output.failed() {
        warn!(code = entry.code(), "SendMessageBatch: an entry failed");
        set(entry.id(), if entry.sender_fault() { Fate::Rejected } else { Fate::Refused });
    }
    fates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Mode, ProjectId};
    use crate::delivery::TraceHeader;
    use crate::idempotency::BatchId;

    /// The local AWS drops the system attributes of a batch, so this is as far as a test sees them.
    #[test]
    fn a_consumers_trace_joins_the_requests() {
        let header = "Root=1-5e988e0a-3f2b1c4d5e6f708192a3b4c5;Parent=53995c3f42cd8ad8;Sampled=1";
        let project = ProjectId::parse("acme").unwrap();
        let envelope = Envelope::new(project, Mode::Live, BatchId::new(Timestamp::from_millis(0)));
        let trace_of = |envelope: &Envelope| {
            let sent = entries(envelope, 1).unwrap();
            let attributes = sent[0].message_system_attributes()?;
            attributes[&MessageSystemAttributeNameForSends::AwsTraceHeader].string_value().map(ToOwned::to_owned)
        };
        assert_eq!(trace_of(&envelope), None);
        assert_eq!(trace_of(&envelope.traced(TraceHeader::parse(header))).as_deref(), Some(header));
        for refused in ["", "Root=\u{1}", "1-5e988e0a", &format!("Root={}", "x".repeat(256))] {
            assert_eq!(TraceHeader::parse(refused), None);
        }
    }
}
