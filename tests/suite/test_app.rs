//! The function, run in this process, with its own tables and queue on the local AWS.

use crate::gateway_event::GatewayEventBuilder;
use crate::message_schema;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName, QueueAttributeName};
use event_ingest::auth::Authenticator;
use event_ingest::aws::{api_keys::ApiKeysTable, calls, queue::SqsQueue, state_table::StateTable};
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::gateway::GatewayEvent;
use event_ingest::http::{App, Unfinished};
use event_ingest::ingest::Pipeline;
use event_ingest::packing::Packing;
use event_ingest::rate_limit::RateLimiter;
use event_ingest::telemetry::{self, AwsCalls, Telemetry};
use lambda_runtime::{Context, LambdaEvent};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;
use test_support::local_aws;
use test_support::tables::{self, Item};

/// A live API key. [`TestApp::start`] stores it for the project `acme`.
pub const KEY: &str = "sk_live_0123456789abcdefghijklmnopqrstuvwxyzABCD";
pub const PROJECT: &str = "acme";
/// The trace header of every invocation in these tests.
pub const TRACE: &str = "Root=1-5e988e0a-3f2b1c4d5e6f708192a3b4c5;Parent=53995c3f42cd8ad8;Sampled=1";

/// The system clock, which a test can advance or stop.
#[derive(Clone, Default)]
pub struct TestClock {
    ahead: Rc<Cell<Duration>>,
    stopped: Rc<Cell<Option<Timestamp>>>,
}

impl TestClock {
    pub fn advance(&self, by: Duration) {
        self.ahead.set(self.ahead.get() + by);
    }

    /// Stops the clock at a time that is later than the end of the test.
    pub fn stop_at(&self, time: Timestamp) {
        self.stopped.set(Some(time));
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.stopped.get().unwrap_or_else(|| SystemClock.now()) + self.ahead.get()
    }

    async fn sleep(&self, duration: Duration) {
        SystemClock.sleep(duration).await;
    }

    fn jitter(&self, ceiling: Duration) -> Duration {
        SystemClock.jitter(ceiling)
    }
}

/// A clock that only a sleep advances.
pub struct StillClock(pub Cell<Timestamp>);

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        self.0.get()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.set(self.0.get() + duration);
    }

    fn jitter(&self, ceiling: Duration) -> Duration {
        ceiling
    }
}

/// The tables and the queue of one test.
#[derive(Clone)]
pub struct Resources {
    pub sdk: SdkConfig,
    pub state_table: String,
    pub api_keys_table: String,
    pub queue_url: String,
}

impl Resources {
    /// Creates the tables and a standard queue.
    pub async fn create() -> Self {
        Self::with_queue("", &[]).await
    }

    /// Creates the tables and an ordered queue, which drops duplicates within each message group.
    pub async fn ordered() -> Self {
        let attributes = [
            (QueueAttributeName::FifoQueue, "true"),
            (QueueAttributeName::DeduplicationScope, "messageGroup"),
            (QueueAttributeName::FifoThroughputLimit, "perMessageGroupId"),
        ];
        Self::with_queue(".fifo", &attributes).await
    }

    async fn with_queue(suffix: &str, attributes: &[(QueueAttributeName, &str)]) -> Self {
        let sdk = local_aws::sdk().await;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let state_table = format!("state-{id}");
        let api_keys_table = format!("api-keys-{id}");
        tables::create_table(&sdk, &state_table, "pk").await;
        tables::create_api_keys_table(&sdk, &api_keys_table).await;
        let mut queue = aws_sdk_sqs::Client::new(&sdk)
            .create_queue()
            .queue_name(format!("events-{id}{suffix}"))
            .attributes(QueueAttributeName::MaximumMessageSize, "1048576");
        for (name, value) in attributes {
            queue = queue.attributes(name.clone(), *value);
        }
        let queue = queue.send().await.expect("the queue is created");
        let queue_url = queue.queue_url.expect("a queue URL");
        Self { sdk, state_table, api_keys_table, queue_url }
    }

    /// Stores an API key of `project`. `more` adds to or replaces the usual attributes.
    pub async fn put_key(&self, key: &str, project: &str, more: &[(&str, AttributeValue)]) {
        tables::put_api_key(&self.sdk, &self.api_keys_table, key, project, more).await;
    }

    /// The idempotency record of a key of the project `acme` in live mode.
    pub async fn record(&self, idempotency_key: &str) -> Option<Item> {
        self.state_item(&format!("idem#{PROJECT}#live#{idempotency_key}")).await
    }

    pub async fn state_item(&self, pk: &str) -> Option<Item> {
        let pk = AttributeValue::S(pk.to_owned());
        let dynamodb = aws_sdk_dynamodb::Client::new(&self.sdk);
        let found = dynamodb.get_item().table_name(&self.state_table).key("pk", pk).consistent_read(true).send().await;
        found.expect("the state table responds").item
    }

    pub async fn put_state_item(&self, pk: &str, name: &str, value: AttributeValue) {
        let pk = AttributeValue::S(pk.to_owned());
        let dynamodb = aws_sdk_dynamodb::Client::new(&self.sdk);
        let put = dynamodb.put_item().table_name(&self.state_table).item("pk", pk).item(name, value).send().await;
        put.expect("the item is put");
    }

    pub async fn update_state_item(&self, pk: &str, name: &str, value: AttributeValue) {
        let pk = AttributeValue::S(pk.to_owned());
        let update = aws_sdk_dynamodb::Client::new(&self.sdk).update_item().table_name(&self.state_table).key("pk", pk);
        let update = update.update_expression("SET #name = :value").expression_attribute_names("#name", name);
        update.expression_attribute_values(":value", value).send().await.expect("the item is updated");
    }

    /// Changes the record of an accepted batch to that of an owner that died before the completion.
    pub async fn undo_completion(&self, idempotency_key: &str) {
        let pk = AttributeValue::S(format!("idem#{PROJECT}#live#{idempotency_key}"));
        let update = aws_sdk_dynamodb::Client::new(&self.sdk).update_item().table_name(&self.state_table).key("pk", pk);
        let update = update.update_expression("SET #state = :in_progress, lease_until = :zero, delivered = :none");
        let update = update.expression_attribute_names("#state", "state");
        let update = update.expression_attribute_values(":in_progress", AttributeValue::S("in_progress".to_owned()));
        let update = update.expression_attribute_values(":none", AttributeValue::B(Blob::new([0])));
        let updated = update.expression_attribute_values(":zero", AttributeValue::N("0".to_owned())).send().await;
        updated.expect("the record is updated");
    }

    pub async fn count_records(&self) -> usize {
        let dynamodb = aws_sdk_dynamodb::Client::new(&self.sdk);
        let scan = dynamodb.scan().table_name(&self.state_table).consistent_read(true).send().await;
        scan.expect("the state table responds").items().len()
    }

    /// Receives and deletes all messages of the queue.
    pub async fn drain_unchecked(&self) -> Vec<Message> {
        let sqs = aws_sdk_sqs::Client::new(&self.sdk);
        let mut drained = Vec::new();
        loop {
            let received = sqs
                .receive_message()
                .queue_url(&self.queue_url)
                .max_number_of_messages(10)
                .message_attribute_names("All")
                .message_system_attribute_names(MessageSystemAttributeName::All)
                .send()
                .await
                .expect("the queue responds");
            let messages = received.messages.unwrap_or_default();
            if messages.is_empty() {
                return drained;
            }
            for message in messages {
                let handle = message.receipt_handle.clone().expect("a handle");
                sqs.delete_message().queue_url(&self.queue_url).receipt_handle(handle).send().await.expect("deleted");
                drained.push(message);
            }
        }
    }

    /// Receives and deletes all messages of the queue, and checks each against the schema.
    pub async fn drain(&self) -> Vec<Message> {
        let drained = self.drain_unchecked().await;
        for message in &drained {
            message_schema::check(message.body().expect("a body"));
        }
        drained
    }

    /// Receives and deletes all messages of the queue. Returns the id of each event and the event.
    pub async fn drain_events(&self) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        for message in self.drain().await {
            let body: Value = serde_json::from_str(message.body().expect("a body")).expect("JSON");
            for event in body["events"].as_array().expect("events") {
                events.push((event["id"].as_str().expect("an id").to_owned(), event["event"].clone()));
            }
        }
        events
    }
}

/// The log lines of a function.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<u8>>>);

impl Log {
    /// Removes and returns the lines. Each is a JSON object.
    pub fn take(&self) -> Vec<Value> {
        self.take_text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

impl Log {
    /// Removes and returns the lines as they were written.
    pub fn take_text(&self) -> String {
        String::from_utf8(self.0.take()).expect("UTF-8")
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The function, its clock, its log, and its AWS resources.
pub struct TestApp {
    pub aws: Resources,
    pub clock: TestClock,
    pub log: Log,
    pub app: App<ApiKeysTable, StateTable, StateTable, SqsQueue, TestClock>,
}

impl TestApp {
    /// Creates a function with the default configuration, and stores [`KEY`].
    pub async fn start() -> Self {
        let aws = Resources::create().await;
        aws.put_key(KEY, PROJECT, &[]).await;
        Self::over(aws, 50)
    }

    /// Creates a function that uses existing resources.
    pub fn over(aws: Resources, max_events_per_message: u16) -> Self {
        let clock = TestClock::default();
        let log = Log::default();
        telemetry::init(&"info".parse().expect("a filter"));
        let state_table = StateTable::new(&aws.sdk, aws.state_table.clone());
        let app = App {
            auth: Authenticator::new(ApiKeysTable::new(&aws.sdk, aws.api_keys_table.clone()), None),
            limiter: RateLimiter::new(state_table.clone()),
            pipeline: Pipeline {
                store: state_table,
                queue: SqsQueue::new(&aws.sdk, aws.queue_url.clone()),
                clock: clock.clone(),
                dedup_window: Duration::from_hours(24),
                packing: Packing::standard(NonZeroU16::new(max_events_per_message).expect("not zero")),
            },
            telemetry: Telemetry::new(
                "the-function".to_owned(),
                "1.2.3+4d5e".to_owned(),
                Box::new(log.clone()),
                aws_calls,
            ),
        };
        Self { aws, clock, log, app }
    }

    pub async fn send(&self, event: &GatewayEventBuilder) -> Response {
        self.send_raw(&event.build()).await
    }

    /// Invokes the function with a gateway event, as the Lambda runtime does.
    pub async fn send_raw(&self, event: &Value) -> Response {
        let (response, unfinished) = self.respond(event).await;
        self.app.finish(unfinished).await;
        response
    }

    /// Invokes the function, and returns before it writes the record.
    pub async fn respond(&self, event: &Value) -> (Response, Unfinished) {
        let payload: GatewayEvent = serde_json::from_str(&event.to_string()).expect("an event");
        let mut context = Context::default();
        context.deadline = self.clock.now().millis() + 4000;
        "lambda-request-id".clone_into(&mut context.request_id);
        context.xray_trace_id = Some(TRACE.to_owned());
        let (response, unfinished) = self.app.handle(LambdaEvent::new(payload, context)).await;
        (Response::from_gateway(&serde_json::to_value(response).expect("JSON")), unfinished)
    }
}

fn aws_calls() -> AwsCalls {
    let (calls, retries) = calls::take();
    AwsCalls { calls, retries }
}

/// A response, as the gateway reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub status: u64,
    pub headers: HashMap<String, String>,
    pub body: Value,
}

impl Response {
    pub fn from_gateway(response: &Value) -> Self {
        assert_eq!(response["isBase64Encoded"], false);
        let headers = response["headers"].as_object().expect("headers").iter();
        Self {
            status: response["statusCode"].as_u64().expect("a status"),
            headers: headers.map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned())).collect(),
            body: serde_json::from_str(response["body"].as_str().expect("a body")).expect("JSON"),
        }
    }

    /// The code of the first error, or `accepted`.
    pub fn code(&self) -> &str {
        self.body["errors"][0]["code"].as_str().unwrap_or("accepted")
    }

    /// The message of the first error.
    pub fn message(&self) -> &str {
        self.body["errors"][0]["message"].as_str().expect("a message")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The `field` of each error, in order. An absent field is an empty string.
    pub fn fields(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().expect("errors");
        errors.iter().map(|error| error["field"].as_str().unwrap_or("")).collect()
    }

    #[track_caller]
    pub fn assert_accepted(&self) {
        assert_eq!(self.status, 202, "{self:?}");
        assert_eq!(self.body, serde_json::json!({"data": {"accepted": true}}));
        assert!(self.headers.contains_key("x-request-id"));
    }

    #[track_caller]
    pub fn assert_error(&self, status: u64, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{self:?}");
        assert!(self.headers.contains_key("x-request-id"));
    }
}
