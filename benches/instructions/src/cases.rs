//! The measured cases.

use anyhow::{Context, Result, ensure};
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sqs::config::Credentials;
use aws_smithy_http_client::test_util::infallible_client_fn;
use aws_smithy_types::body::SdkBody;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::batch::Batch;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::auth::Authenticator;
use event_ingest::aws::{api_keys::ApiKeysTable, queue::SqsQueue, state_table::StateTable};
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::deadline::Deadline;
use event_ingest::delivery::{Queue, SendResult, Sender};
use event_ingest::gateway::GatewayEvent;
use event_ingest::http::App;
use event_ingest::idempotency::{BatchId, Delivered};
use event_ingest::ingest::Pipeline;
use event_ingest::packing::{Envelope, Message, Packing};
use event_ingest::rate_limit::RateLimiter;
use event_ingest::telemetry::{self, AwsCalls, Telemetry};
use lambda_runtime::{Context as LambdaContext, LambdaEvent};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shapes::{Outcome, PROJECT, Shape};
use std::num::NonZeroU16;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The default setting.
pub const EVENTS_PER_MESSAGE: NonZeroU16 = NonZeroU16::new(50).unwrap();
/// The default settings of an ordered queue.
const ORDERED_EVENTS_PER_MESSAGE: NonZeroU16 = NonZeroU16::new(1000).unwrap();
const LANES: NonZeroU16 = NonZeroU16::new(10).unwrap();
/// The queue.
pub const QUEUE_URL: &str = "https://sqs.us-east-1.amazonaws.com/123456789012/events";

/// A part of the function, run on a shape.
pub struct Case {
    part: &'static str,
    shape: Shape,
}

impl Case {
    /// All cases.
    pub fn all() -> Vec<Self> {
        let request = Shape::all().into_iter().filter(|shape| {
            shape.events_per_message.is_none() && !shape.ordered && shape.outcome != Outcome::PartlyAccepted
        });
        let request = request.map(|shape| Self { part: "request", shape });
        let parts = Shape::all().into_iter().filter(Shape::is_compared);
        let parts = ["bulk", "ordered", "parse", "pack"]
            .into_iter()
            .flat_map(|part| parts.clone().map(move |shape| Self { part, shape }));
        let init = Self { part: "init", shape: Shape::small("", 1, 0) };
        request.chain(parts).chain([init]).collect()
    }

    /// The case with this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::all().into_iter().find(|case| case.name() == name).with_context(|| format!("unknown case {name:?}"))
    }

    /// The name.
    pub fn name(&self) -> String {
        format!("{} {}", self.part, self.shape.name.replace(',', "")).trim_end().to_owned()
    }

    /// Runs the case twice. Only the second run is measured, because the first one also initializes.
    pub fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let standard = Packing::standard(EVENTS_PER_MESSAGE);
        let ordered = Packing { max_events_per_message: ORDERED_EVENTS_PER_MESSAGE, lanes: Some(LANES) };
        match self.part {
            "request" => self.run_request(&runtime, "batch", standard, 202),
            "bulk" => self.run_request(&runtime, "bulk", standard, 200),
            "ordered" => self.run_request(&runtime, "batch", ordered, 202),
            "init" => {
                run_init(&runtime);
                Ok(())
            }
            part => self.run_part(part, &runtime),
        }
    }

    fn run_request(&self, runtime: &Runtime, endpoint: &str, packing: Packing, success: u16) -> Result<()> {
        let batch = self.shape.batch()?;
        let request = |number| -> Result<Vec<u8>> {
            let text = String::from_utf8(batch.request(number).to_vec())?;
            Ok(text.replace("/api/v1/events/batch", &format!("/api/v1/events/{endpoint}")).into_bytes())
        };
        telemetry::init(&"info".parse()?);
        let app = app(runtime, Aws::new(&self.shape, &batch.body), packing);
        let handle = |payload: &[u8]| -> Result<Value> {
            let payload: GatewayEvent = serde_json::from_slice(payload)?;
            let invocation = LambdaEvent { payload, context: LambdaContext::default() };
            let response = runtime.block_on(async {
                let (response, unfinished) = app.handle(invocation).await;
                app.finish(unfinished).await;
                response
            });
            Ok(serde_json::to_value(response)?)
        };
        handle(&request(1)?)?;
        let payload = request(2)?;
        let response = measured(|| handle(&payload))?;
        let expected = if self.shape.outcome == Outcome::Invalid { 422 } else { success };
        ensure!(response["statusCode"] == expected, "the response is {response}");
        Ok(())
    }

    fn run_part(&self, part: &str, runtime: &Runtime) -> Result<()> {
        let batch = self.shape.batch()?;
        let parse = || Batch::parse(batch.body.as_bytes());
        let parsed = parse().map_err(|_| anyhow::anyhow!("the batch is invalid"))?;
        if part == "parse" {
            ensure!(measured(parse).is_ok());
            return Ok(());
        }
        let now = SystemClock.now();
        let tenant = Tenant { project: ProjectId::parse(PROJECT).context("an invalid project id")?, mode: Mode::Live };
        let envelope = Envelope::new(tenant, BatchId::new(now));
        let sender = Sender {
            queue: &AcknowledgeAll,
            clock: &SystemClock,
            deadline: &Deadline::new(now, Timestamp::from_millis(0)),
            envelope: &envelope,
            batch: &parsed,
            packing: Packing::standard(EVENTS_PER_MESSAGE),
        };
        let deliver = || runtime.block_on(sender.deliver(Delivered::none(self.shape.events)));
        deliver();
        let delivery = measured(deliver);
        ensure!(delivery.delivered.count() == self.shape.events);
        Ok(())
    }
}

/// Creates the clients, as `main` does.
fn run_init(runtime: &Runtime) {
    measured(|| {
        let sdk = runtime.block_on(event_ingest::aws::sdk_config(true));
        let (state, keys) = (StateTable::new(&sdk, "state".to_owned()), ApiKeysTable::new(&sdk, "api-keys".to_owned()));
        (state, keys, SqsQueue::new(&sdk, QUEUE_URL.to_owned()))
    });
}

/// The function as it ships, with `aws` instead of AWS.
pub fn app(
    runtime: &Runtime,
    aws: Aws,
    packing: Packing,
) -> App<ApiKeysTable, StateTable, StateTable, SqsQueue, SystemClock> {
    let sdk = runtime.block_on(sdk_config(aws));
    let state_table = StateTable::new(&sdk, "state".to_owned());
    App {
        auth: Authenticator::new(ApiKeysTable::new(&sdk, "api-keys".to_owned()), None),
        limiter: RateLimiter::new(state_table.clone()),
        pipeline: Pipeline {
            store: state_table,
            queue: SqsQueue::new(&sdk, QUEUE_URL.to_owned()),
            clock: SystemClock,
            dedup_window: Duration::from_hours(24),
            packing,
        },
        telemetry: Telemetry::new(
            "event-ingest".to_owned(),
            "0.1.0".to_owned(),
            Box::new(std::io::sink()),
            AwsCalls::default,
        ),
    }
}

/// Callgrind counts only inside this function.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}

/// A queue that acknowledges every message.
pub struct AcknowledgeAll;

impl Queue for AcknowledgeAll {
    async fn send(&self, _: &Envelope, messages: Vec<Message>, _: Timestamp) -> Vec<SendResult> {
        vec![SendResult::Acknowledged; std::hint::black_box(messages).len()]
    }
}

/// The responses of AWS.
#[derive(Clone, Debug)]
pub struct Aws {
    get_item: String,
    put_item: (u16, String),
    send: String,
}

impl Aws {
    /// AWS that accepts everything.
    pub fn accepting() -> Self {
        Self::new(&Shape::small("", 500, 0), "")
    }

    fn new(shape: &Shape, body: &str) -> Self {
        let key = json!({ "Item": {
            "project_id": { "S": PROJECT }, "hint": { "S": "sk_live_…0000" }, "status": { "S": "active" },
        }});
        let record = json!({
            "__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException",
            "message": "The conditional request failed",
            "Item": {
                "pk": { "S": "idem#acme#live#key" },
                "state": { "S": "accepted" },
                "fingerprint": { "B": BASE64_STANDARD.encode(Sha256::digest(body)) },
                "batch_id": { "S": "01a207af-0ff7-7cc3-9d4e-0a1b2c3d4e5f" },
                "owner": { "S": "0123456789abcdef0123456789abcdef" },
                "attempt": { "N": "1" },
                "lease_until": { "N": "1795425247827" },
                "delivered": { "B": BASE64_STANDARD.encode(vec![0; shape.events.div_ceil(8)]) },
                "expires_at": { "N": "4102444800" },
            },
        });
        let replayed = shape.outcome == Outcome::Replayed;
        // More entries than any call has; the function looks up only those that it sent.
        let successful: Vec<Value> =
            (0..10).map(|id| json!({ "Id": id.to_string(), "MessageId": "m", "MD5OfMessageBody": "d" })).collect();
        Self {
            get_item: key.to_string(),
            put_item: if replayed { (400, record.to_string()) } else { (200, "{}".to_owned()) },
            send: json!({ "Successful": successful, "Failed": [] }).to_string(),
        }
    }

    fn respond(&self, request: &http::Request<SdkBody>) -> http::Response<SdkBody> {
        std::hint::black_box(request.body().bytes());
        let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
        let (status, body) = match target.rsplit('.').next() {
            Some("GetItem") => (200, self.get_item.as_str()),
            Some("PutItem") => (self.put_item.0, self.put_item.1.as_str()),
            Some("SendMessageBatch") => (200, self.send.as_str()),
            _ => (200, "{}"),
        };
        let mut response = http::Response::new(SdkBody::from(body));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
        response
    }
}

pub async fn sdk_config(aws: Aws) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region("us-east-1")
        .credentials_provider(Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "secret",
            Some("session".to_owned()),
            None,
            "fixed",
        ))
        .http_client(infallible_client_fn(move |request| aws.respond(&request)))
        .load()
        .await
}
