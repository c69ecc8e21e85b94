//! The function over ports in memory, and the checks that every response must pass.

use super::messages::MAX_EVENTS_PER_MESSAGE;
use super::meter::Bound;
use super::ports::{Calls, Keys, Log, MemoryQueue, StillClock, Table, Windows, block_on};
use super::{KIB, MIB};
use event_ingest::auth::Authenticator;
use event_ingest::gateway::GatewayEvent;
use event_ingest::http::App;
use event_ingest::ingest::Pipeline;
use event_ingest::packing::Packing;
use event_ingest::rate_limit::RateLimiter;
use event_ingest::telemetry::{AwsCalls, Telemetry};
use lambda_runtime::{Context, LambdaEvent};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

/// The function with its tables, queue and log.
pub struct Function {
    app: App<Keys, Windows, Table, MemoryQueue, StillClock>,
    log: Log,
    calls: Rc<RefCell<Calls>>,
}

impl Function {
    /// Creates the function with empty tables and an empty queue.
    pub fn new() -> Self {
        let log = Log::default();
        let calls = Rc::<RefCell<Calls>>::default();
        let app = App {
            auth: Authenticator::new(Keys::new(&calls), None),
            limiter: RateLimiter::new(Windows::new(&calls)),
            pipeline: Pipeline {
                store: Table::new(&calls),
                queue: MemoryQueue::new(&calls),
                clock: StillClock::default(),
                dedup_window: Duration::from_hours(24),
                packing: Packing::standard(MAX_EVENTS_PER_MESSAGE),
            },
            telemetry: Telemetry::new("fuzz".to_owned(), "0".to_owned(), Box::new(log.clone()), AwsCalls::default),
        };
        Self { app, log, calls }
    }

    /// The most that decoding a payload may allocate.
    pub fn decoding(payload_bytes: usize) -> Bound {
        Bound {
            count: KIB + payload_bytes / 2,
            bytes: 64 * KIB + 8 * payload_bytes,
            peak: 64 * KIB + 4 * payload_bytes,
        }
    }

    /// The most that an invocation may allocate. `bytes` are those of the payload and of the decoded body.
    pub fn handling(bytes: usize) -> Bound {
        // A bulk response describes each of at most 1,000 invalid events, which can be as short as `{},`.
        let described = (bytes / 3).min(1000);
        Bound {
            count: 4 * KIB + bytes / 2 + 20 * described,
            bytes: 512 * KIB + 24 * bytes + 3 * KIB * described,
            peak: 256 * KIB + 8 * bytes + 2 * KIB * described,
        }
    }

    /// Runs one invocation and checks its response.
    pub fn invoke(&self, event: GatewayEvent) -> Response {
        let response = block_on(async {
            let (response, unfinished) = self.app.handle(LambdaEvent::new(event, Context::default())).await;
            self.app.finish(unfinished).await;
            response
        });
        Response::checked(&serde_json::to_value(response).expect("a response is JSON"))
    }

    /// The calls so far.
    pub fn calls(&self) -> Calls {
        *self.calls.borrow()
    }

    /// The log since the last call.
    pub fn log(&self) -> Vec<u8> {
        self.log.take()
    }

    /// The queue.
    pub fn queue(&self) -> &MemoryQueue {
        &self.app.pipeline.queue
    }

    /// The number of idempotency records.
    pub fn records(&self) -> usize {
        self.app.pipeline.store.records()
    }

    /// The most events in one message.
    pub fn max_events_per_message(&self) -> NonZeroU16 {
        self.app.pipeline.packing.max_events_per_message
    }
}

/// A response that passed the checks that do not depend on the request.
pub struct Response {
    /// The status.
    pub status: u16,
    /// Whether it has the header `Idempotency-Replayed: true`.
    pub replayed: bool,
    /// The body.
    pub body: Value,
}

impl Response {
    fn checked(response: &Value) -> Self {
        let header = |name: &str| response["headers"][name].as_str();
        let text = response["body"].as_str().expect("a body");
        let body: Value = serde_json::from_str(text).expect("a JSON body");
        assert!(text.len() < MIB, "a response of {} bytes", text.len());
        assert_eq!(response["isBase64Encoded"], false);
        assert_eq!(header("content-type"), Some("application/json"));
        assert!(header("x-request-id").is_some());

        let status = response["statusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status");
        assert_eq!(header("allow"), (status == 405).then_some("POST"));
        assert_eq!(header("www-authenticate"), (status == 401).then_some("Bearer"));
        match status {
            200 => {
                let (data, received) = (&body["data"], body["meta"]["received"].as_u64());
                assert_eq!(data["accepted"].as_u64().zip(data["rejected"].as_u64()).map(|(a, r)| a + r), received);
                let errors = data["errors"].as_array().expect("errors");
                assert!(errors.iter().all(|error| error["code"] == "validation" && error["message"].is_string()));
            }
            202 => assert_eq!(body, json!({ "data": { "accepted": true } })),
            _ => {
                let errors = body["errors"].as_array().expect("errors");
                assert!((1..=100).contains(&errors.len()) && text.len() < 64 * KIB);
                assert!(errors.iter().all(|error| error["code"] == errors[0]["code"] && error["message"].is_string()));
            }
        }
        Self { status, replayed: header("idempotency-replayed") == Some("true"), body }
    }
}
