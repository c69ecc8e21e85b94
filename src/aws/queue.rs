//! [`Queue`] over SQS (contract section 4).

use super::{answer_by, describe};
use crate::clock::Timestamp;
use crate::delivery::{Envelope, Fate, Message, Queue};
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
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
        let _ = answer_by(by, call.send()).await;
    }
}

impl Queue for SqsQueue {
    async fn send(&self, envelope: &Envelope, messages: &[Message], by: Timestamp) -> Vec<Fate> {
        let Ok(entries) = entries(envelope, messages) else {
            return vec![Fate::Rejected; messages.len()];
        };
        let call = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries));
        match answer_by(by, call.send()).await {
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

fn entries(envelope: &Envelope, messages: &[Message]) -> Result<Vec<SendMessageBatchRequestEntry>, BuildError> {
    let attributes = attributes(envelope)?;
    let system_attributes = system_attributes(envelope)?;
    let entry = |(id, message): (usize, &Message)| {
        SendMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .message_body(&message.body)
            .set_message_attributes(Some(attributes.clone()))
            .set_message_system_attributes(system_attributes.clone())
            .message_group_id(envelope.project.as_str())
            .build()
    };
    messages.iter().enumerate().map(entry).collect()
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
        let message = Message { body: "{}".to_owned() };
        let trace_of = |envelope: &Envelope| {
            let sent = entries(envelope, std::slice::from_ref(&message)).unwrap();
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
