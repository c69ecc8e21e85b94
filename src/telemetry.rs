//! What is said of a request: one line of JSON, which is its log line and its metrics at once.
//!
//! `CloudWatch` takes metrics out of a log line that declares them (embedded metric format), so
//! the line that a person reads and the numbers that alarms watch cannot disagree. Nothing in it
//! is secret or personal: no API key, no idempotency key, no event property, no user id.

use crate::auth::Mode;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ingest::Outcome;
use metrique::emf::Emf;
use metrique::emf::flags::NoMetric;
use metrique::unit::{Byte, Count, Millisecond};
use metrique::unit_of_work::metrics;
use metrique::writer::format::Format;
use metrique::{CloseValue, RootEntry};
use std::cell::RefCell;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
use tracing::Level;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::prelude::*;

/// The namespace of the metrics.
pub const NAMESPACE: &str = "EventIngest";

/// Every metric that a line may declare; alarms and dashboard name no others.
pub const METRICS: [&str; 20] = [
    "Accepted",
    "AuthTime",
    "BatchEvents",
    "BodyBytes",
    "ClaimTime",
    "CompleteTime",
    "CompletionFailures",
    "DecodeTime",
    "Duration",
    "EventsAccepted",
    "LimitTime",
    "LimiterFailures",
    "RateLimited",
    "Rejected",
    "Replayed",
    "RequestInProgress",
    "SendRetries",
    "SendTime",
    "ServerFaults",
    "TakeOvers",
];

/// What became known of one request on its way. Times are what each stage took, where it ran.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The gateway's own request id.
    pub request_id: String,
    /// The header of X-Ray, which joins this request to its trace.
    pub trace_id: Option<String>,
    /// Whose events these are.
    pub project_id: Option<String>,
    /// Live or test.
    pub mode: Option<Mode>,
    /// First 8 and last 4 characters of the API key.
    pub key_hint: Option<String>,
    /// Events in the batch, once it is known to be valid.
    pub events: Option<usize>,
    /// Bytes of the body as it came.
    pub bytes_in: Option<usize>,
    /// Bytes of the body decoded.
    pub bytes_decoded: Option<usize>,
    /// Which claim of the idempotency key this was.
    pub attempt: Option<u64>,
    /// When the batch first arrived, which for a resumed one was in an earlier request.
    pub first_arrival: Option<Timestamp>,
    /// Events that an earlier attempt had delivered.
    pub resumed_events: usize,
    /// Messages that SQS acknowledged.
    pub messages: usize,
    /// `SendMessageBatch` calls.
    pub send_calls: usize,
    /// Messages that were sent again.
    pub send_retries: usize,
    /// What became of the write that marks the batch accepted.
    pub completion: Option<Completion>,
    /// Why the batch was not counted against the project's limit.
    pub limiter_failure: Option<String>,
    /// From the invocation to its answer.
    pub duration: Duration,
    /// Identifying the caller.
    pub auth_time: Option<Duration>,
    /// Decoding and validating the body.
    pub decode_time: Option<Duration>,
    /// Counting the batch against the project's limit.
    pub limit_time: Option<Duration>,
    /// Claiming the idempotency key, waiting for a running twin included.
    pub claim_time: Option<Duration>,
    /// Sending to SQS.
    pub send_time: Option<Duration>,
    /// Marking the batch accepted, which is after the answer, or releasing it.
    pub complete_time: Option<Duration>,
}

/// What became of the write that marks a delivered batch accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The record says accepted.
    Written,
    /// Another request held the key by then; it will say so.
    LostClaim,
    /// The table took none of the tries: a retry of this batch may send it again.
    Failed,
}

impl Completion {
    fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::LostClaim => "lost_claim",
            Self::Failed => "failed",
        }
    }
}

/// Counts the calls of the AWS SDK.
#[derive(Debug, Default)]
pub struct AwsCalls {
    calls: AtomicU32,
    tries: AtomicU32,
}

/// One for the whole process, as a sandbox runs one request at a time.
pub static AWS_CALLS: AwsCalls = AwsCalls { calls: AtomicU32::new(0), tries: AtomicU32::new(0) };

impl AwsCalls {
    /// An operation begins.
    pub fn begin(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// One of its tries begins.
    pub fn begin_try(&self) {
        self.tries.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls, and tries beyond the first, since this was last asked.
    pub(crate) fn take(&self) -> (u32, u32) {
        let calls = self.calls.swap(0, Ordering::Relaxed);
        (calls, self.tries.swap(0, Ordering::Relaxed).saturating_sub(calls))
    }
}

/// The line. What is in it beside metrics is for people, and left out above level `info`.
#[metrics(emf::dimension_sets = [["FunctionName"]])]
struct Line {
    #[metrics(timestamp)]
    timestamp: SystemTime,
    #[metrics(name = "FunctionName")]
    function_name: String,
    #[metrics(flatten)]
    story: Option<Story>,
    #[metrics(flatten)]
    numbers: Numbers,
}

#[metrics(subfield_owned, rename_all = "snake_case")]
struct Story {
    level: &'static str,
    message: &'static str,
    request_id: String,
    trace_id: Option<String>,
    project_id: Option<String>,
    mode: Option<&'static str>,
    key_hint: Option<String>,
    #[metrics(flags(NoMetric))]
    status: u64,
    code: Option<&'static str>,
    outcome: &'static str,
    cause: Option<String>,
    limiter_failure: Option<String>,
    #[metrics(flags(NoMetric))]
    bytes_in: Option<usize>,
    #[metrics(flags(NoMetric))]
    attempt: Option<u64>,
    #[metrics(flags(NoMetric))]
    resumed_events: usize,
    #[metrics(flags(NoMetric))]
    messages: usize,
    #[metrics(flags(NoMetric))]
    send_calls: usize,
    completion: Option<&'static str>,
    #[metrics(flags(NoMetric))]
    aws_calls: u32,
    #[metrics(flags(NoMetric))]
    aws_retries: u32,
}

#[metrics(subfield_owned, rename_all = "PascalCase")]
#[derive(Default)]
struct Numbers {
    #[metrics(unit = Count)]
    accepted: Option<u64>,
    #[metrics(unit = Count)]
    replayed: Option<u64>,
    #[metrics(unit = Count)]
    rejected: Option<u64>,
    #[metrics(unit = Count)]
    rate_limited: Option<u64>,
    #[metrics(unit = Count)]
    request_in_progress: Option<u64>,
    #[metrics(unit = Count)]
    server_faults: Option<u64>,
    #[metrics(unit = Count)]
    events_accepted: Option<usize>,
    #[metrics(unit = Count)]
    batch_events: Option<usize>,
    #[metrics(unit = Byte)]
    body_bytes: Option<usize>,
    #[metrics(unit = Millisecond)]
    duration: Duration,
    #[metrics(unit = Millisecond)]
    auth_time: Option<Duration>,
    #[metrics(unit = Millisecond)]
    decode_time: Option<Duration>,
    #[metrics(unit = Millisecond)]
    limit_time: Option<Duration>,
    #[metrics(unit = Millisecond)]
    claim_time: Option<Duration>,
    #[metrics(unit = Millisecond)]
    send_time: Option<Duration>,
    #[metrics(unit = Millisecond)]
    complete_time: Option<Duration>,
    #[metrics(unit = Count)]
    send_retries: Option<usize>,
    #[metrics(unit = Count)]
    take_overs: Option<u64>,
    #[metrics(unit = Count)]
    completion_failures: Option<u64>,
    #[metrics(unit = Count)]
    limiter_failures: Option<u64>,
}

/// Writes the lines of one sandbox.
pub struct Telemetry {
    function_name: String,
    out: RefCell<(Emf, Box<dyn Write>)>,
}

impl Telemetry {
    /// Writes to `out`, which in Lambda is standard output.
    #[must_use]
    pub fn new(function_name: String, out: Box<dyn Write>) -> Self {
        let emf = Emf::no_validations(NAMESPACE.to_owned(), vec![vec![]]);
        Self { function_name, out: RefCell::new((emf, out)) }
    }

    /// Writes the line of a request.
    pub fn write(&self, facts: Facts, result: &Result<Outcome, Error>) {
        let numbers = numbers(&facts, result);
        let level = level(&facts, result);
        let (aws_calls, aws_retries) = AWS_CALLS.take();
        let story = is_enabled(level).then(|| story(level, facts, result, aws_calls, aws_retries));
        let line = Line { timestamp: SystemTime::now(), function_name: self.function_name.clone(), story, numbers };
        let (emf, out) = &mut *self.out.borrow_mut();
        // Nobody is left to tell if standard output is gone.
        let _ = emf.format(&RootEntry::new(line.close()), out);
        let _ = out.flush();
    }
}

/// Neither of two failures shows in the answer: a batch that is in the queue but not marked so
/// may be doubled by a retry, and an uncounted one may exceed its project's limit.
fn level(facts: &Facts, result: &Result<Outcome, Error>) -> Level {
    let hidden_failure = facts.completion == Some(Completion::Failed) || facts.limiter_failure.is_some();
    let level = result.as_ref().err().map_or(Level::INFO, |error| error.row().level);
    if hidden_failure { level.min(Level::WARN) } else { level }
}

fn is_enabled(level: Level) -> bool {
    match level {
        Level::ERROR => tracing::enabled!(Level::ERROR),
        Level::WARN => tracing::enabled!(Level::WARN),
        _ => tracing::enabled!(Level::INFO),
    }
}

fn story(level: Level, facts: Facts, result: &Result<Outcome, Error>, aws_calls: u32, aws_retries: u32) -> Story {
    let row = result.as_ref().err().map(Error::row);
    Story {
        level: level.as_str(),
        message: "request",
        outcome: outcome(&facts, result),
        request_id: facts.request_id,
        trace_id: facts.trace_id,
        project_id: facts.project_id,
        mode: facts.mode.map(Mode::as_str),
        key_hint: facts.key_hint,
        status: row.as_ref().map_or(202, |row| row.status.as_u16()).into(),
        code: row.map(|row| row.code),
        cause: result.as_ref().err().and_then(Error::cause).map(ToOwned::to_owned),
        limiter_failure: facts.limiter_failure,
        bytes_in: facts.bytes_in,
        attempt: facts.attempt,
        resumed_events: facts.resumed_events,
        messages: facts.messages,
        send_calls: facts.send_calls,
        completion: facts.completion.map(Completion::as_str),
        aws_calls,
        aws_retries,
    }
}

fn outcome(facts: &Facts, result: &Result<Outcome, Error>) -> &'static str {
    match result {
        Ok(Outcome::Replayed) => "replayed",
        Ok(Outcome::Accepted(_)) if facts.resumed_events > 0 => "resumed",
        Ok(Outcome::Accepted(_)) if facts.attempt > Some(1) => "taken_over",
        Ok(Outcome::Accepted(_)) => "accepted",
        Err(Error::RateLimited { .. }) => "rate_limited",
        Err(Error::InProgress { .. }) => "in_progress",
        Err(error) if error.row().status.is_server_error() => "failed",
        Err(_) => "rejected",
    }
}

fn numbers(facts: &Facts, result: &Result<Outcome, Error>) -> Numbers {
    let one_if = |condition: bool| condition.then_some(1);
    let server_fault = result.as_ref().is_err_and(|error| error.row().status.is_server_error());
    let in_progress = matches!(result, Err(Error::InProgress { .. }));
    let rate_limited = matches!(result, Err(Error::RateLimited { .. }));
    let accepted = matches!(result, Ok(Outcome::Accepted(_)));
    Numbers {
        accepted: one_if(accepted),
        replayed: one_if(matches!(result, Ok(Outcome::Replayed))),
        rejected: one_if(result.is_err() && !server_fault && !rate_limited),
        rate_limited: one_if(rate_limited),
        request_in_progress: one_if(in_progress),
        server_faults: one_if(server_fault && !in_progress),
        events_accepted: facts.events.filter(|_| accepted),
        batch_events: facts.events,
        body_bytes: facts.bytes_decoded,
        duration: facts.duration,
        auth_time: facts.auth_time,
        decode_time: facts.decode_time,
        limit_time: facts.limit_time,
        claim_time: facts.claim_time,
        send_time: facts.send_time,
        complete_time: facts.complete_time,
        send_retries: Some(facts.send_retries).filter(|retries| *retries > 0),
        take_overs: one_if(facts.attempt > Some(1)),
        completion_failures: one_if(facts.completion == Some(Completion::Failed)),
        limiter_failures: one_if(facts.limiter_failure.is_some()),
    }
}

/// Writes one JSON object as one line on standard output, where Lambda takes logs from.
fn print_line(line: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes why the function stops, even where no log level is known yet.
pub fn print_failure(error: &dyn std::error::Error) {
    print_line(&serde_json::json!({ "level": "ERROR", "message": error.to_string() }));
}

/// Logs as JSON lines whatever `filter` lets through, but of other crates no more than warnings:
/// the debug and trace lines of the SDK and of Lambda's runtime hold request bodies.
pub fn init(filter: &Targets) {
    let ours_or_grave = filter_fn(|line| line.target().starts_with("event_ingest") || *line.level() <= Level::WARN);
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_ansi(false);
    let lines = lines.with_filter(filter.clone().and(ours_or_grave));
    // Fails only if a subscriber is set already, as in tests.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// Logs a panic as one JSON line.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        // Where, but not what: a panic's own text may quote a client's data.
        let location = panic.location().map(ToString::to_string);
        print_line(&serde_json::json!({ "level": "ERROR", "message": "panic", "location": location }));
    }));
}
