//! What is said of a request: one JSON line.
//!
//! Nothing secret or personal: no API key, no idempotency key, no event property, no user id.

use crate::auth::Mode;
use serde::Serialize;
use std::io::Write;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// What became known of one request on its way.
#[derive(Debug, Default, Serialize)]
pub struct Facts {
    /// The gateway's own request id.
    pub request_id: String,
    /// Of X-Ray.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Whose events these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Live or test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// First 8 and last 4 characters of the API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hint: Option<String>,
    /// The HTTP status answered.
    pub status: u16,
    /// The wire name of the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Of a 5xx, what lies behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// `accepted`, `replayed` or `rejected`.
    pub outcome: &'static str,
    /// Events in the batch.
    pub events: usize,
    /// Bytes of the body as it came.
    pub bytes_in: usize,
    /// Bytes of the body decoded.
    pub bytes_decoded: usize,
    /// Which claim of the key this was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// Events that an earlier attempt had delivered.
    pub resumed_events: usize,
    /// Messages SQS acknowledged.
    pub messages: usize,
    /// `SendMessageBatch` calls.
    pub send_calls: usize,
    /// Messages sent again.
    pub send_retries: usize,
    /// What became of the write that marks the batch accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<Completion>,
    /// Why the batch was not counted against the project's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limiter_failure: Option<String>,
    /// From the event to the answer.
    pub duration_ms: u64,
}

/// What became of the write that marks a delivered batch accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// The record says accepted.
    Written,
    /// Another request held the key by then; it will say so.
    LostClaim,
    /// The table took none of the tries: a retry of this batch may send it again.
    Failed,
}

impl Facts {
    /// Notes who calls.
    pub fn caller(&mut self, project: &str, mode: Mode, key_hint: &str) {
        self.project_id = Some(project.to_owned());
        self.mode = Some(mode.as_str());
        self.key_hint = Some(key_hint.to_owned());
    }

    /// Writes the request's line.
    pub fn log(&self, level: Level) {
        #[derive(Serialize)]
        struct Line<'a> {
            level: &'static str,
            message: &'static str,
            #[serde(flatten)]
            facts: &'a Facts,
        }
        // Neither shows in the answer: a batch in the queue but not marked so may be doubled by a
        // retry, and an uncounted one may exceed the limit.
        let hidden_failure = self.completion == Some(Completion::Failed) || self.limiter_failure.is_some();
        let level = if hidden_failure { level.min(Level::WARN) } else { level };
        let wanted = match level {
            Level::ERROR => tracing::enabled!(Level::ERROR),
            Level::WARN => tracing::enabled!(Level::WARN),
            _ => tracing::enabled!(Level::INFO),
        };
        if wanted {
            print_line(&Line { level: level.as_str(), message: "request", facts: self });
        }
    }
}

/// Writes one JSON object as one line on standard output, where Lambda takes logs from.
pub fn print_line(line: &impl Serialize) {
    let Ok(mut text) = serde_json::to_vec(line) else { return };
    text.push(b'\n');
    // Nobody is left to tell if standard output is gone.
    let _ = std::io::stdout().lock().write_all(&text);
}

/// Logs as JSON lines whatever `filter` lets through, of AWS's SDK no more than warnings: its
/// debug and trace lines hold request bodies.
pub fn init(filter: &Targets) {
    let sdk =
        ["aws_config", "aws_runtime", "aws_sdk_dynamodb", "aws_sdk_sqs", "aws_sigv4", "aws_smithy", "hyper", "h2"];
    let capped = filter.clone().with_targets(sdk.map(|target| (target, Level::WARN)));
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_ansi(false);
    // Fails only if a subscriber is set already, as in tests.
    let _ = tracing_subscriber::registry().with(lines.with_filter(capped)).try_init();
    std::panic::set_hook(Box::new(|panic| {
        // Where, but not what: a panic's own text may quote a client's data.
        let location = panic.location().map(ToString::to_string);
        print_line(&serde_json::json!({ "level": "ERROR", "message": "panic", "location": location }));
    }));
}

/// Writes why the function stops, even where no log level is known yet.
pub fn print_failure(error: &dyn std::error::Error) {
    print_line(&serde_json::json!({ "level": "ERROR", "message": error.to_string() }));
}
