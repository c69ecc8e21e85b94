//! A gateway event → the checks, in the order of docs/contract.md ("Order of checks") → the pipeline
//! → a response.

use crate::auth::{AuthError, Authenticator, Caller, KeyStore};
use crate::body::{self, Encoding};
use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::delivery::{Queue, TraceHeader};
use crate::error::Error;
use crate::gateway::{GatewayEvent, GatewayResponse, Header};
use crate::idempotency::{Claimant, RecordKey, StateStore};
use crate::ingest::{Completion, Ingested, Pipeline, Request, Success};
use crate::rate_limit::{Admission, Charge, RateLimiter, Window, WindowStore};
use crate::telemetry::{Facts, Telemetry};
use contract::api_key::ApiKey;
use contract::batch::{Batch, BatchError};
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::Tenant;
use futures_util::FutureExt;
use lambda_http::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use lambda_http::http::{Method, StatusCode};
use lambda_runtime::LambdaEvent;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

const ACCEPTED_BODY: &str = r#"{"data":{"accepted":true}}"#;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const BATCH_ID: HeaderName = HeaderName::from_static("x-batch-id");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The function. Between requests it keeps only caches and clients.
pub struct App<K, W, S, Q, C> {
    /// Authenticates callers.
    pub auth: Authenticator<K>,
    /// Enforces rate limits.
    pub limiter: RateLimiter<W>,
    /// Puts batches into the queue.
    pub pipeline: Pipeline<S, Q, C>,
    /// Writes the log line of each request.
    pub telemetry: Telemetry,
}

/// The work that is left after the response: the completion of an accepted batch, and the log line.
#[must_use = "pass it to `App::finish` after the response is sent and before the next invocation"]
pub struct Unfinished {
    result: Result<Success, Error>,
    facts: Facts,
}

impl<K: KeyStore, W: WindowStore, S: StateStore, Q: Queue, C: Clock> App<K, W, S, Q, C> {
    /// Handles one invocation. It always returns a response: a panic becomes a 500.
    pub async fn handle(&self, invocation: LambdaEvent<GatewayEvent>) -> (GatewayResponse, Unfinished) {
        let LambdaEvent { payload: event, context } = invocation;
        let started = Instant::now();
        let version = event.payload_version();
        let mut facts = Facts {
            request_id: event.request_id().unwrap_or(&context.request_id).to_owned(),
            trace_id: context.xray_trace_id.clone(),
            ..Facts::default()
        };
        let deadline = Deadline::new(self.pipeline.clock.now(), Timestamp::from_millis(context.deadline));
        let result = AssertUnwindSafe(self.accept(event, &deadline, &mut facts)).catch_unwind().await;
        let result = result.unwrap_or_else(|_| Err(Error::Internal("panic".to_owned())));

        let Response { status, mut headers, body } = Response::new(&result);
        headers.insert(REQUEST_ID, header_value(&facts.request_id));
        if let Some(batch_id) = facts.findings.batch_id {
            headers.insert(BATCH_ID, header_value(&batch_id.to_string()));
        }
        facts.duration = started.elapsed();
        (GatewayResponse::new(version, status, headers, body), Unfinished { result, facts })
    }

    /// Completes the record of an accepted batch and writes the log line. The client waits for neither.
    pub async fn finish(&self, Unfinished { result, mut facts }: Unfinished) {
        if let Ok(Success::Accepted(pending)) = &result {
            let started = Instant::now();
            let completion = AssertUnwindSafe(self.pipeline.complete(pending)).catch_unwind().await;
            facts.completion = Some(completion.unwrap_or(Completion::Failed));
            facts.complete_time = Some(started.elapsed());
        }
        self.telemetry.write(facts, &result);
    }

    async fn accept(&self, event: GatewayEvent, deadline: &Deadline, facts: &mut Facts) -> Result<Success, Error> {
        let endpoint = Endpoint::of(&event)?;
        let caller = self.identify(&event, deadline, facts).await?;
        let encoding = Encoding::of(&event)?;
        let record_key = endpoint.record_key(&caller.tenant, idempotency_key(&event)?);

        let started = Instant::now();
        let body = read(event, encoding, facts)?;
        let batch = endpoint.parse(&body)?;
        facts.events = Some(batch.events().len());
        facts.decode_time = Some(started.elapsed());

        let arrived = self.pipeline.clock.now();
        let charge = self.admit(&caller, &batch, deadline, facts).await?;
        let request = Request {
            tenant: &caller.tenant,
            record_key: &record_key,
            claimant: &Claimant::new(arrived, &body),
            batch: &batch,
            trace: facts.trace_id.as_deref().and_then(TraceHeader::parse),
            deadline,
        };
        let ingested = self.pipeline.ingest(&request).await;
        match charge {
            Some(charge) if counts_in(charge.window(), &ingested) => charge.keep(),
            Some(charge) => charge.refund(),
            None => {}
        }
        facts.findings = ingested.findings;
        ingested.result
    }

    /// Checks 3 and 4: the caller.
    async fn identify(&self, event: &GatewayEvent, deadline: &Deadline, facts: &mut Facts) -> Result<Caller, Error> {
        let api_key = event.header(Header::Authorization).and_then(ApiKey::from_header);
        let started = Instant::now();
        let caller = self.auth.authenticate(api_key, &self.pipeline.clock, deadline.claim_by()).await;
        facts.auth_time = Some(started.elapsed());
        let caller = caller?;
        facts.caller = Some(caller.clone());
        Ok(caller)
    }

    /// Check 10: charges the batch against the caller's rate limit. Returns `None` if there is no limit
    /// or the counter failed.
    async fn admit<'a>(
        &'a self,
        caller: &'a Caller,
        batch: &Batch<'_>,
        deadline: &Deadline,
        facts: &mut Facts,
    ) -> Result<Option<Charge<'a, W>>, Error> {
        let Some((limit, counter)) = &caller.rate_limit else { return Ok(None) };
        let clock = &self.pipeline.clock;
        let started = Instant::now();
        let events = batch.events().len();
        let admission = self.limiter.admit(clock, counter, *limit, events, deadline.claim_by()).await;
        facts.limit_time = Some(started.elapsed());
        match admission {
            Admission::Admitted(charge) => Ok(Some(charge)),
            Admission::Uncounted(error) => {
                facts.limiter_failure = Some(Error::from(error).cause().unwrap_or_default().to_owned());
                Ok(None)
            }
            Admission::Refused { until } => Err(Error::RateLimited { wait: clock.now().until(until) }),
        }
    }
}

/// Whether a batch that was charged in `window` counts against the limit of that window.
///
/// The first attempt counts, even if it fails. Further attempts in the window of the first one do not.
fn counts_in(window: Window, ingested: &Ingested) -> bool {
    match &ingested.result {
        Ok(Success::Replayed) | Err(Error::KeyReused | Error::InProgress { .. }) => false,
        Ok(Success::Accepted(_)) | Err(_) => {
            let findings = &ingested.findings;
            findings.attempt == Some(1) || findings.first_arrival.is_none_or(|first| Window::at(first) != window)
        }
    }
}

/// The resource that a request addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Batch,
    Event,
}

impl Endpoint {
    const PATHS: [(Self, &str); 2] = [(Self::Batch, "/api/v1/events/batch"), (Self::Event, "/api/v1/events")];

    /// Checks 1 and 2: the path, which may have a prefix, and the method.
    fn of(event: &GatewayEvent) -> Result<Self, Error> {
        let known = Self::PATHS.into_iter().find(|(_, path)| event.path().strip_suffix(path).is_some_and(is_prefix));
        let (endpoint, _) = known.ok_or(Error::NotFound)?;
        if event.method() == Method::POST.as_str() { Ok(endpoint) } else { Err(Error::MethodNotAllowed) }
    }

    fn record_key(self, tenant: &Tenant, key: IdempotencyKey<'_>) -> RecordKey {
        match self {
            Self::Batch => RecordKey::of_batch(tenant, key),
            Self::Event => RecordKey::of_event(tenant, key),
        }
    }

    /// Checks 8 and 9: the body's syntax and rules.
    fn parse(self, body: &[u8]) -> Result<Batch<'_>, BatchError> {
        match self {
            Self::Batch => Batch::parse(body),
            Self::Event => Batch::parse_single(body),
        }
    }
}

/// Whether `prefix` is empty or consists of whole segments: a stage, or the base path of a custom
/// domain, which may have several segments. API Gateway passes on both as part of the path.
fn is_prefix(prefix: &str) -> bool {
    prefix.is_empty() || prefix.strip_prefix('/').is_some_and(|path| path.split('/').all(|segment| !segment.is_empty()))
}

/// Check 6: the idempotency key.
fn idempotency_key(event: &GatewayEvent) -> Result<IdempotencyKey<'_>, Error> {
    let key = event.header(Header::IdempotencyKey).ok_or(Error::IdempotencyKeyRequired)?;
    IdempotencyKey::parse(key).ok_or(Error::IdempotencyKeyInvalid)
}

/// Checks 7 and 8: the decoded body.
fn read(event: GatewayEvent, encoding: Encoding, facts: &mut Facts) -> Result<Vec<u8>, Error> {
    let received = body::received(event)?;
    facts.bytes_in = Some(received.len());
    let decoded = encoding.decode(received)?;
    facts.bytes_decoded = Some(decoded.len());
    Ok(decoded)
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Unauthenticated => Self::AuthRequired,
            AuthError::Forbidden => Self::Forbidden,
            AuthError::Store(error) => error.into(),
        }
    }
}

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Malformed(what) => Self::MalformedJson(what),
            BatchError::Invalid(violations) => Self::ValidationFailed(violations),
        }
    }
}

struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Response {
    fn new(result: &Result<Success, Error>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match result {
            Ok(success) => {
                if matches!(success, Success::Replayed) {
                    headers.insert(REPLAYED, HeaderValue::from_static("true"));
                }
                Self { status: StatusCode::ACCEPTED, headers, body: ACCEPTED_BODY.to_owned() }
            }
            Err(error) => {
                if let Some((name, value)) = error.header() {
                    headers.insert(HeaderName::from_static(name), header_value(&value));
                }
                let status = StatusCode::from_u16(error.code().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Self { status, headers, body: error.body() }
            }
        }
    }
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::Findings;

    #[test]
    fn the_attempts_at_one_batch_count_once_in_a_window() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let earlier = Timestamp::from_millis(now.millis() - 10_000);
        let counts = |attempt, first_arrival, result| {
            let findings = Findings { attempt, first_arrival, ..Findings::default() };
            counts_in(Window::at(now), &Ingested { result, findings })
        };
        let failed = || Err(Error::Unavailable(String::new()));
        assert!(counts(Some(1), Some(now), failed()), "the first attempt counts, even if it fails");
        assert!(!counts(Some(2), Some(now), failed()), "a further attempt does not");
        assert!(counts(Some(2), Some(earlier), failed()), "but it counts in the next window");
        assert!(counts(None, None, failed()), "an attempt without a claim counts");
        assert!(!counts(None, None, Ok(Success::Replayed)));
        assert!(!counts(None, None, Err(Error::KeyReused)));
    }
}
