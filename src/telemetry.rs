//! The log: one line of JSON per request, which contains both the log entry and the metrics.
//!
//! `CloudWatch` reads metrics from log lines that declare them (embedded metric format), so the line
//! that people read always agrees with the metrics that alarms watch. The line contains no secrets and
//! no personal data: no API key, no idempotency key, no event property and no user id.

use crate::auth::Caller;
use crate::error::Error;
use crate::ingest::{Completion, Findings, Success};
use metrique::emf::Emf;
use metrique::emf::flags::NoMetric;
use metrique::unit_of_work::metrics;
use metrique::writer::format::Format;
use metrique::{CloseValue, RootEntry};
use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, SystemTime};
use tracing::Level;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::prelude::*;

/// The namespace of the metrics.
pub const NAMESPACE: &str = "EventIngest";

/// Every metric that a line can declare. Alarms and the dashboard use only these.
pub const METRICS: [&str; 23] = [
    "Accepted",
    "AuthTime",
    "BodyBytes",
    "ClaimTime",
    "CompleteTime",
    "CompletionFailures",
    "DecodeTime",
    "Duration",
    "EventsAccepted",
    "EventsRejected",
    "LimitTime",
    "LimiterFailures",
    "RateLimited",
    "RejectedBatches",
    "RejectedCallers",
    "RejectedRequests",
    "Replayed",
    "RequestInProgress",
    "ReusedKeys",
    "SendRetries",
    "SendTime",
    "ServerFaults",
    "TakeOvers",
];

/// The facts about one request. A duration is absent if its stage did not run.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The gateway's request id.
    pub request_id: String,
    /// The X-Ray header, which contains the id of the trace.
    pub trace_id: Option<String>,
    /// The caller, once it is authenticated.
    pub caller: Option<Caller>,
    /// The HTTP status of the response.
    pub status: u16,
    /// Valid events in the request, once they are known.
    pub events: Option<usize>,
    /// Rejected events of a bulk request that succeeded.
    pub rejected_events: Option<usize>,
    /// Bytes of the body as received.
    pub bytes_in: Option<usize>,
    /// Bytes of the decoded body.
    pub bytes_decoded: Option<usize>,
    /// Why the batch was not counted against its rate limit.
    pub limiter_failure: Option<String>,
    /// The pipeline's findings about the batch.
    pub findings: Findings,
    /// The result of the write that marks the batch accepted.
    pub completion: Option<Completion>,
    /// From the invocation to its response.
    pub duration: Duration,
    /// Authenticating the caller.
    pub auth_time: Option<Duration>,
    /// Decoding and validating the body.
    pub decode_time: Option<Duration>,
    /// Counting the batch against its rate limit.
    pub limit_time: Option<Duration>,
    /// Marking the batch accepted, after the response.
    pub complete_time: Option<Duration>,
}

/// The calls of the AWS SDK during one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsCalls {
    /// Operations.
    pub calls: u32,
    /// Retries of those operations.
    pub retries: u32,
}

/// The log line. Members with their usual value are left out, because operators pay for each byte. `story`
/// is for people, and is left out if the log filter excludes the line's level.
/// `numbers` contains the metrics, which are always written.
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
    version: String,
    request_id: String,
    batch_id: Option<String>,
    trace_id: Option<String>,
    project_id: Option<String>,
    mode: Option<&'static str>,
    key_hint: Option<String>,
    #[metrics(flags(NoMetric))]
    status: u64,
    code: Option<&'static str>,
    field: Option<String>,
    outcome: &'static str,
    cause: Option<String>,
    limiter_failure: Option<String>,
    #[metrics(flags(NoMetric))]
    bytes_in: Option<usize>,
    #[metrics(flags(NoMetric))]
    attempt: Option<u64>,
    #[metrics(flags(NoMetric))]
    resumed_events: Option<usize>,
    #[metrics(flags(NoMetric))]
    messages: usize,
    #[metrics(flags(NoMetric))]
    send_calls: usize,
    completion: Option<&'static str>,
    #[metrics(flags(NoMetric))]
    aws_calls: Option<u32>,
    #[metrics(flags(NoMetric))]
    aws_retries: Option<u32>,
}

/// The metrics. Times are in milliseconds. The line declares no units, because the declarations would make up
/// a quarter of it.
#[metrics(subfield_owned, rename_all = "PascalCase")]
#[derive(Default)]
struct Numbers {
    accepted: Option<u64>,
    replayed: Option<u64>,
    rejected_callers: Option<u64>,
    rejected_requests: Option<u64>,
    rejected_batches: Option<u64>,
    reused_keys: Option<u64>,
    rate_limited: Option<u64>,
    request_in_progress: Option<u64>,
    server_faults: Option<u64>,
    events_accepted: Option<usize>,
    events_rejected: Option<usize>,
    body_bytes: Option<usize>,
    duration: f64,
    auth_time: Option<f64>,
    decode_time: Option<f64>,
    limit_time: Option<f64>,
    claim_time: Option<f64>,
    send_time: Option<f64>,
    complete_time: Option<f64>,
    send_retries: Option<usize>,
    take_overs: Option<u64>,
    completion_failures: Option<u64>,
    limiter_failures: Option<u64>,
}

/// Writes the log lines of one sandbox.
pub struct Telemetry {
    function_name: String,
    version: String,
    aws_calls: fn() -> AwsCalls,
    out: RefCell<(Emf, Box<dyn Write>)>,
}

impl Telemetry {
    /// Creates a writer to `out`, which is standard output on Lambda. `version` is that of the deployed
    /// code. `aws_calls` returns the calls since its last call.
    #[must_use]
    pub fn new(function_name: String, version: String, out: Box<dyn Write>, aws_calls: fn() -> AwsCalls) -> Self {
        let emf = Emf::no_validations(NAMESPACE.to_owned(), vec![vec![]]);
        Self { function_name, version, aws_calls, out: RefCell::new((emf, out)) }
    }

    /// Writes the line of a request.
    pub fn write(&self, facts: Facts, result: &Result<Success, Error>) {
        let numbers = numbers(&facts, result);
        let level = level(&facts, result);
        let aws_calls = (self.aws_calls)();
        let story = is_enabled(level).then(|| story(level, facts, result, self.version.clone(), aws_calls));
        let line = Line { timestamp: SystemTime::now(), function_name: self.function_name.clone(), story, numbers };
        let (emf, out) = &mut *self.out.borrow_mut();
        // If standard output is closed, the error cannot be reported anywhere.
        let _ = emf.format(&RootEntry::new(line.close()), out);
        let _ = out.flush();
    }
}

/// The level of a request's line. Two failures do not show in the response and raise it to `warn`: a
/// retry may duplicate a batch that is queued but not marked accepted, and an uncounted batch may
/// exceed its rate limit.
fn level(facts: &Facts, result: &Result<Success, Error>) -> Level {
    let hidden_failure = facts.completion == Some(Completion::Failed) || facts.limiter_failure.is_some();
    let level = result.as_ref().err().map_or(Level::INFO, Error::level);
    if hidden_failure { level.min(Level::WARN) } else { level }
}

fn is_enabled(level: Level) -> bool {
    match level {
        Level::ERROR => tracing::enabled!(Level::ERROR),
        Level::WARN => tracing::enabled!(Level::WARN),
        _ => tracing::enabled!(Level::INFO),
    }
}

fn story(level: Level, facts: Facts, result: &Result<Success, Error>, version: String, aws_calls: AwsCalls) -> Story {
    let error = result.as_ref().err();
    let caller = facts.caller.as_ref();
    Story {
        level: level.as_str(),
        message: "request",
        version,
        outcome: outcome(&facts, result),
        request_id: facts.request_id,
        batch_id: facts.findings.batch_id.map(|id| id.to_string()),
        trace_id: facts.trace_id.as_deref().and_then(sampled_trace).map(ToOwned::to_owned),
        project_id: caller.map(|caller| caller.tenant.project.to_string()),
        mode: caller.map(|caller| caller.tenant.mode.as_str()),
        key_hint: caller.map(|caller| caller.key_hint.clone()),
        status: facts.status.into(),
        code: error.map(|error| error.code().as_str()),
        field: error.and_then(Error::first_field),
        cause: error.and_then(Error::cause).map(ToOwned::to_owned),
        limiter_failure: facts.limiter_failure,
        bytes_in: facts.bytes_in.filter(|_| facts.bytes_in != facts.bytes_decoded),
        attempt: facts.findings.attempt.filter(|attempt| *attempt > 1),
        resumed_events: Some(facts.findings.resumed_events).filter(|events| *events > 0),
        messages: facts.findings.messages,
        send_calls: facts.findings.send_calls,
        completion: facts.completion.and_then(completion),
        aws_calls: Some(aws_calls.calls).filter(|_| aws_calls.retries > 0),
        aws_retries: Some(aws_calls.retries).filter(|retries| *retries > 0),
    }
}

fn completion(completion: Completion) -> Option<&'static str> {
    match completion {
        Completion::Written => None,
        Completion::LostClaim => Some("lost_claim"),
        Completion::Failed => Some("failed"),
    }
}

fn outcome(facts: &Facts, result: &Result<Success, Error>) -> &'static str {
    match result {
        Ok(Success::Replayed(_)) => "replayed",
        Ok(Success::NothingToQueue) => "nothing_queued",
        Ok(Success::Accepted(_)) if facts.findings.resumed_events > 0 => "resumed",
        Ok(Success::Accepted(_)) if facts.findings.attempt > Some(1) => "taken_over",
        Ok(Success::Accepted(_)) => "accepted",
        Err(Error::RateLimited { .. }) => "rate_limited",
        Err(Error::InProgress { .. }) => "in_progress",
        Err(error) if error.code().is_server_error() => "failed",
        Err(_) => "rejected",
    }
}

fn numbers(facts: &Facts, result: &Result<Success, Error>) -> Numbers {
    let findings = &facts.findings;
    let one_if = |condition: bool| condition.then_some(1);
    let server_fault = result.as_ref().is_err_and(|error| error.code().is_server_error());
    let in_progress = matches!(result, Err(Error::InProgress { .. }));
    let rate_limited = matches!(result, Err(Error::RateLimited { .. }));
    let accepted = matches!(result, Ok(Success::Accepted(_)));
    let replayed = matches!(result, Ok(Success::Replayed(_)));
    Numbers {
        accepted: one_if(accepted),
        replayed: one_if(replayed),
        rejected_callers: one_if(matches!(result, Err(Error::AuthRequired | Error::Forbidden))),
        rejected_requests: one_if(result.as_ref().is_err_and(is_malformed_request)),
        rejected_batches: one_if(matches!(result, Err(Error::ValidationFailed(_) | Error::InvalidBulk(_)))),
        reused_keys: one_if(matches!(result, Err(Error::KeyReused))),
        rate_limited: one_if(rate_limited),
        request_in_progress: one_if(in_progress),
        server_faults: one_if(server_fault && !in_progress),
        events_accepted: facts.events.filter(|_| accepted),
        events_rejected: facts.rejected_events.filter(|rejected| *rejected > 0 && !replayed),
        body_bytes: facts.bytes_decoded,
        duration: milliseconds(facts.duration),
        auth_time: facts.auth_time.map(milliseconds),
        decode_time: facts.decode_time.map(milliseconds),
        limit_time: facts.limit_time.map(milliseconds),
        claim_time: findings.claim_time.map(milliseconds),
        send_time: findings.send_time.map(milliseconds),
        complete_time: facts.complete_time.or(findings.release_time).map(milliseconds),
        send_retries: Some(findings.send_retries).filter(|retries| *retries > 0),
        take_overs: one_if(findings.attempt > Some(1)),
        completion_failures: one_if(facts.completion == Some(Completion::Failed)),
        limiter_failures: one_if(facts.limiter_failure.is_some()),
    }
}

/// Milliseconds with one decimal.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// The id of the trace, or `None` if X-Ray does not record the trace.
fn sampled_trace(header: &str) -> Option<&str> {
    let root = header.split(';').find_map(|part| part.strip_prefix("Root="));
    root.filter(|_| header.contains("Sampled=1"))
}

/// Whether the request is rejected because of its path, method, headers, size or syntax, before its
/// events are validated.
fn is_malformed_request(error: &Error) -> bool {
    let is_about_events = matches!(
        error,
        Error::ValidationFailed(_) | Error::InvalidBulk(_) | Error::KeyReused | Error::RateLimited { .. }
    );
    let is_about_caller = matches!(error, Error::AuthRequired | Error::Forbidden);
    !error.code().is_server_error() && !is_about_events && !is_about_caller
}

/// Writes one JSON object as one line on standard output, which Lambda collects as the log.
fn print_line(line: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Logs why the function stops. It works before the log level is known.
pub fn print_failure(error: &dyn std::error::Error) {
    print_line(&serde_json::json!({ "level": "ERROR", "message": error.to_string() }));
}

/// Starts logging as JSON lines, filtered by `filter`. Other crates log only warnings and errors, because
/// the debug and trace lines of the SDK and of Lambda's runtime contain request bodies.
pub fn init(filter: &Targets) {
    let ours_or_severe = filter_fn(|line| line.target().starts_with("event_ingest") || *line.level() <= Level::WARN);
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_ansi(false);
    let lines = lines.with_filter(filter.clone().and(ours_or_severe));
    // Fails only if a subscriber is set already, as in tests.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// Logs a panic as one JSON line.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        // The location, but not the message, because the message may quote a client's data.
        let location = panic.location().map(ToString::to_string);
        print_line(&serde_json::json!({ "level": "ERROR", "message": "panic", "location": location }));
    }));
}
