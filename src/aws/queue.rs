//! [`Queue`] over SQS (contract section 4).

use super::{answer_by, describe};
use crate::clock::Timestamp;
use crate::delivery::{Envelope, Fate, Message, Queue};
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::error::{BuildError, ProvideErrorMetadata};
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
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
        let config = aws_sdk_sqs::config::Builder::from(sdk).retry_config(RetryConfig::disabled()).build();
        Self { client: Client::from_conf(config), url }
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
    let entry = |(id, message): (usize, &Message)| {
        SendMessageBatchRequestEntry::builder()
            .id(id.to_string())
            .message_body(&message.body)
            .set_message_attributes(Some(attributes.clone()))
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
