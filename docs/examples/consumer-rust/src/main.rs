//! The consumer of `docs/examples/consumer.py` in Rust. It adds up quantities per project, mode, day, and event name, and
//! adds each event once. It reads the same environment variables and writes the same items.

use aws_config::{BehaviorVersion, retry::RetryConfig, timeout::TimeoutConfig};
use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue::{self, B, M, N, S};
use aws_sdk_sqs::types::MessageAttributeValue;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

/// A message can take this long if calls to AWS are slow.
const RESERVE: Duration = Duration::from_secs(10);

struct Consumer {
    dynamodb: aws_sdk_dynamodb::Client,
    sqs: aws_sdk_sqs::Client,
    results_table: String,
    parked_queue: String,
}

/// A queue message.
#[derive(Clone, Deserialize, Serialize)]
struct Message<'a> {
    schema: String,
    batch_id: String,
    project_id: String,
    mode: String,
    received_at: String,
    #[serde(borrow)]
    events: Vec<Entry<'a>>,
}

/// An event and its id. `RawValue` keeps the bytes that the client sent.
#[derive(Clone, Deserialize, Serialize)]
struct Entry<'a> {
    id: String,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// What an event adds to the results.
struct Quantity {
    name: String,
    quantity: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let second = Duration::from_secs(1);
    let timeouts = TimeoutConfig::builder().connect_timeout(second).operation_attempt_timeout(second).build();
    let sdk = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(2))
        .load()
        .await;
    let consumer = &Consumer {
        dynamodb: aws_sdk_dynamodb::Client::new(&sdk),
        sqs: aws_sdk_sqs::Client::new(&sdk),
        results_table: std::env::var("RESULTS_TABLE")?,
        parked_queue: std::env::var("PARKED_QUEUE")?,
    };
    Box::pin(lambda_runtime::run(service_fn(|event| consumer.handle(event)))).await
}

impl Consumer {
    /// Consumes messages. Returns the ones that SQS must deliver again; Lambda deletes the others.
    async fn handle(&self, event: LambdaEvent<SqsEvent>) -> Result<SqsBatchResponse, Error> {
        let deadline = event.context.deadline();
        let mut response = SqsBatchResponse::default();
        let mut failed_groups = HashSet::new();
        for record in event.payload.records {
            let id = record.message_id.clone().ok_or("a record has no messageId")?;
            let is_ordered = record.event_source_arn.as_deref().is_some_and(is_fifo);
            let group = if is_ordered { group_of(&record).to_owned() } else { id.clone() };
            let is_late = deadline.duration_since(SystemTime::now()).unwrap_or_default() < RESERVE;
            let result = if is_late || failed_groups.contains(&group) {
                Err("an earlier message of the group failed, or too little time is left".into())
            } else {
                Box::pin(self.consume(&record)).await
            };
            if let Err(error) = result {
                log_failure(&id, &error);
                failed_groups.insert(group);
                let mut failure = BatchItemFailure::default();
                failure.item_identifier = id;
                response.batch_item_failures.push(failure);
            }
        }
        Ok(response)
    }

    /// Adds the events of a message to the results, and parks the ones that can never be processed.
    async fn consume(&self, record: &SqsMessage) -> Result<(), Error> {
        let message: Message = serde_json::from_str(record.body.as_deref().unwrap_or_default())?;
        if message.schema != "event-batch/1" {
            return Err(format!("unknown schema {}", message.schema).into());
        }
        let (mut quantities, mut poison) = (Vec::new(), Vec::new());
        for entry in &message.events {
            let index: usize = entry.id.rsplit('-').next().unwrap_or_default().parse()?;
            match evaluate(entry.event) {
                Ok(quantity) => quantities.push((index, quantity)),
                // `evaluate` does no I/O, so it would fail again.
                Err(error) => poison.push((entry, error)),
            }
        }
        self.add_once(&message, &quantities).await?;
        for (entry, reason) in poison {
            self.park(record, &message, entry, reason).await?;
        }
        Ok(())
    }

    /// Adds the events to the item of their batch. The same write records their indexes in the bitmap `seen`.
    async fn add_once(&self, message: &Message<'_>, quantities: &[(usize, Quantity)]) -> Result<(), Error> {
        let Message { project_id, mode, batch_id, .. } = message;
        let day = message.received_at.get(..10).ok_or("received_at has no date")?;
        // The last digit of the batch id is random and spreads the batches of a project over 16 partition keys.
        let shard = batch_id.chars().next_back().ok_or("batch_id is empty")?;
        let key = [("pk", format!("{project_id}#{mode}#{day}#{shard}")), ("batch_id", batch_id.clone())];
        let key: HashMap<_, _> = key.map(|(name, value)| (name.to_owned(), S(value))).into();
        loop {
            let get = self.dynamodb.get_item().table_name(&self.results_table).set_key(Some(key.clone()));
            let item = get.consistent_read(true).send().await?.item.unwrap_or_default();
            let before = match item.get("seen") {
                Some(B(seen)) => seen.as_ref().to_vec(),
                _ => vec![0],
            };
            let (mut seen, mut totals) = (before.clone(), totals_of(&item)?);
            for (index, Quantity { name, quantity }) in quantities {
                seen.resize(seen.len().max(index / 8 + 1), 0);
                let bit = 1 << (index % 8);
                if seen[index / 8] & bit == 0 {
                    seen[index / 8] |= bit;
                    *totals.entry(name.clone()).or_default() += quantity;
                }
            }
            if seen == before {
                return Ok(());
            }
            let totals = totals.into_iter().map(|(name, total)| (name, N(total.to_string()))).collect();
            let put = self.dynamodb.put_item().table_name(&self.results_table).set_item(Some(key.clone()));
            let put = put.item("seen", B(Blob::new(seen))).item("totals", M(totals));
            let put = put.condition_expression("attribute_not_exists(pk) OR seen = :before");
            match put.expression_attribute_values(":before", B(Blob::new(before))).send().await {
                // Another message of the batch was added meanwhile.
                Err(error)
                    if error.as_service_error().is_some_and(PutItemError::is_conditional_check_failed_exception) =>
                {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..100))).await;
                }
                result => return Ok(result.map(|_| ())?),
            }
        }
    }

    /// Sends a message with one event to the queue of parked events. The message can be moved back later.
    async fn park(
        &self,
        record: &SqsMessage,
        message: &Message<'_>,
        entry: &Entry<'_>,
        reason: &str,
    ) -> Result<(), Error> {
        let Message { schema, project_id, mode, .. } = message;
        let attributes = [("schema", schema.as_str()), ("project_id", project_id), ("mode", mode), ("reason", reason)];
        let mut send = self.sqs.send_message().queue_url(&self.parked_queue).message_group_id(group_of(record));
        for (name, text) in attributes {
            let value = MessageAttributeValue::builder().data_type("String").string_value(text).build()?;
            send = send.message_attributes(name, value);
        }
        if is_fifo(&self.parked_queue) {
            let message_id = record.message_id.as_deref().unwrap_or_default();
            send = send.message_deduplication_id(format!("{message_id}.{}", entry.id));
        }
        let alone = Message { events: vec![entry.clone()], ..message.clone() };
        send.message_body(serde_json::to_string(&alone)?).send().await?;
        Ok(())
    }
}

/// Returns what an event adds to the results, or why it can never be processed. Replace this with your own rules.
fn evaluate(event: &RawValue) -> Result<Quantity, &'static str> {
    let event: serde_json::Value = serde_json::from_str(event.get()).map_err(|_| "the event is not JSON")?;
    let name = event["name"].as_str().ok_or("name must be a string")?;
    let quantity = match event.pointer("/properties/quantity") {
        None => 1,
        Some(quantity) => quantity
            .as_u64()
            .filter(|quantity| *quantity <= 1_000_000)
            .ok_or("properties.quantity must be a whole number from 0 to 1,000,000")?,
    };
    // Keeps items small.
    let is_long = name.chars().count() > 64;
    let name = if is_long { format!("sha256:{}", hex::encode(Sha256::digest(name))) } else { name.to_owned() };
    Ok(Quantity { name, quantity })
}

fn totals_of(item: &HashMap<String, AttributeValue>) -> Result<HashMap<String, u64>, Error> {
    let Some(M(totals)) = item.get("totals") else { return Ok(HashMap::new()) };
    let totals = totals.iter().map(|(name, total)| match total {
        N(total) => Ok((name.clone(), total.parse()?)),
        _ => Err("a total is not a number".into()),
    });
    totals.collect()
}

fn is_fifo(queue: &str) -> bool {
    queue.rsplit_once('.').is_some_and(|(_, suffix)| suffix == "fifo")
}

fn group_of(record: &SqsMessage) -> &str {
    record.attributes.get("MessageGroupId").map_or("", String::as_str)
}

#[expect(clippy::print_stdout, reason = "standard output is the log of a Lambda function")]
fn log_failure(message_id: &str, error: &Error) {
    println!("{}", serde_json::json!({ "level": "ERROR", "message": format!("{error:?}"), "messageId": message_id }));
}
