//! A gateway event → the checks, in the order of docs/contract.md ("Order of checks") → the pipeline
//! → a response.

use crate::auth::{AuthError, Authenticator, Caller, KeyStore};
use crate::body::{self, Encoding};
use crate::bulk::BulkResponse;
use crate::clock::{Clock, Timestamp};
use crate::deadline::Deadline;
use crate::delivery::Queue;
use crate::error::Error;
use crate::gateway::{GatewayEvent, GatewayResponse, Header};
use crate::idempotency::{Claimant, Fingerprint, RecordKey, StateStore};
use crate::ingest::{Completion, Ingested, Pipeline, Request, Success};
use crate::packing::TraceHeader;
use crate::rate_limit::{Admission, Charge, RateLimiter, Window, WindowStore};
use crate::telemetry::{Facts, Telemetry};
use contract::api_key::ApiKey;
use contract::batch::{Batch, BatchError, Bulk};
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::Tenant;
use futures_util::FutureExt;
use lambda_http::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use lambda_http::http::{Method, StatusCode};
use lambda_runtime::LambdaEvent;
use std::borrow::Cow;
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

        let (result, bulk) = match result {
            Ok(Answer { success, bulk }) => (Ok(success), bulk),
            Err(error) => (Err(error), None),
        };
        let Response { status, mut headers, body } = Response::new(&result, bulk);
        facts.status = status.as_u16();
        headers.insert(REQUEST_ID, header_value(&facts.request_id));
        if let Some(batch_id) = facts.findings.batch_id {
            headers.insert(BATCH_ID, header_value(&batch_id.to_string()));
        }
        facts.duration = started.elapsed();
        (GatewayResponse::new(version, status, headers, body.into_owned()), Unfinished { result, facts })
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

    async fn accept(&self, event: GatewayEvent, deadline: &Deadline, facts: &mut Facts) -> Result<Answer, Error> {
        let endpoint = Endpoint::of(&event)?;
        let caller = self.identify(&event, deadline, facts).await?;
        let encoding = Encoding::of(&event)?;
        let record_key = endpoint.record_key(&caller.tenant, &event)?;

        let started = Instant::now();
        let body = read(event, encoding, facts)?;
        let parsed = endpoint.parse(&body)?;
        let batch = parsed.batch();
        let events = batch.events().count();
        facts.events = Some(events);
        facts.decode_time = Some(started.elapsed());

        let arrived = self.pipeline.clock.now();
        let charge = self.admit(&caller, events, deadline, facts).await?;
        let fingerprint = Fingerprint::of(&body);
        let request = Request {
            tenant: &caller.tenant,
            record_key: &record_key.unwrap_or_else(|| RecordKey::of_bulk_body(&caller.tenant, &fingerprint)),
            claimant: &Claimant::new(arrived, fingerprint),
            batch,
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
        let success = ingested.result?;
        let bulk = parsed.bulk_response(&success);
        facts.rejected_events = bulk.as_ref().map(BulkResponse::rejected);
        Ok(Answer { bulk: bulk.map(|bulk| bulk.to_json()), success })
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

    /// Check 10: charges the valid events against the caller's rate limit. Returns `None` if there is no
    /// limit, no valid event, or the counter failed.
    async fn admit<'a>(
        &'a self,
        caller: &'a Caller,
        events: usize,
        deadline: &Deadline,
        facts: &mut Facts,
    ) -> Result<Option<Charge<'a, W>>, Error> {
        let Some((limit, counter)) = caller.rate_limit.as_ref().filter(|_| events > 0) else { return Ok(None) };
        let clock = &self.pipeline.clock;
        let started = Instant::now();
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
        Ok(Success::Replayed(_) | Success::NothingToQueue) | Err(Error::KeyReused | Error::InProgress { .. }) => false,
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
    Bulk,
    Event,
}

impl Endpoint {
    const PATHS: [(Self, &str); 3] =
        [(Self::Batch, "/api/v1/events/batch"), (Self::Bulk, "/api/v1/events/bulk"), (Self::Event, "/api/v1/events")];

    /// Checks 1 and 2: the path, which may have a prefix, and the method.
    fn of(event: &GatewayEvent) -> Result<Self, Error> {
        let known = Self::PATHS.into_iter().find(|(_, path)| event.path().strip_suffix(path).is_some_and(is_prefix));
        let (endpoint, _) = known.ok_or(Error::NotFound)?;
        if event.method() == Method::POST.as_str() { Ok(endpoint) } else { Err(Error::MethodNotAllowed) }
    }

    /// Check 6: the key of the idempotency record. Returns `None` for a bulk request without an idempotency
    /// key, because its record key depends on the body.
    fn record_key(self, tenant: &Tenant, event: &GatewayEvent) -> Result<Option<RecordKey>, Error> {
        let key = match event.header(Header::IdempotencyKey) {
            Some(text) => IdempotencyKey::parse(text).ok_or(Error::IdempotencyKeyInvalid)?,
            None if self == Self::Bulk => return Ok(None),
            None => return Err(Error::IdempotencyKeyRequired),
        };
        Ok(Some(match self {
            Self::Batch => RecordKey::of_batch(tenant, key),
            Self::Bulk => RecordKey::of_bulk(tenant, key),
            Self::Event => RecordKey::of_event(tenant, key),
        }))
    }

    /// Checks 8 and 9: the body's syntax and rules.
    fn parse(self, body: &[u8]) -> Result<Parsed<'_>, Error> {
        let invalid = |error| match (self, error) {
            (_, BatchError::Malformed(what)) => Error::MalformedJson(what),
            (Self::Bulk, BatchError::Invalid(violations)) => Error::InvalidBulk(violations),
            (_, BatchError::Invalid(violations)) => Error::ValidationFailed(violations),
        };
        match self {
            Self::Batch => Batch::parse(body).map(Parsed::AllOrNothing),
            Self::Bulk => Bulk::parse(body).map(Parsed::Bulk),
            Self::Event => Batch::parse_single(body).map(Parsed::AllOrNothing),
        }
        .map_err(invalid)
    }
}

/// A body that passed check 9.
enum Parsed<'body> {
    /// The events of a batch, or a single event.
    AllOrNothing(Batch<'body>),
    /// The events of a bulk request, some of which may be invalid.
    Bulk(Bulk<'body>),
}

impl<'body> Parsed<'body> {
    fn batch(&self) -> &Batch<'body> {
        match self {
            Self::AllOrNothing(batch) | Self::Bulk(Bulk { batch, .. }) => batch,
        }
    }

    fn bulk_response(&self, success: &Success) -> Option<BulkResponse<'_>> {
        match self {
            Self::AllOrNothing(_) => None,
            Self::Bulk(bulk) => Some(BulkResponse::new(bulk, &success.delivered())),
        }
    }
}

/// Whether `prefix` is empty or consists of whole segments: a stage, or the base path of a custom
/// domain, which may have several segments. API Gateway passes on both as part of the path.
fn is_prefix(prefix: &str) -> bool {
    prefix.is_empty() || prefix.strip_prefix('/').is_some_and(|path| path.split('/').all(|segment| !segment.is_empty()))
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

/// A successful result and the body of its response.
struct Answer {
    success: Success,
    /// The body of the response if this is a bulk request.
    bulk: Option<String>,
}

struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Cow<'static, str>,
}

impl Response {
    fn new(result: &Result<Success, Error>, bulk: Option<String>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match result {
            Ok(success) => {
                if matches!(success, Success::Replayed(_)) {
                    headers.insert(REPLAYED, HeaderValue::from_static("true"));
                }
                match bulk {
                    None => Self { status: StatusCode::ACCEPTED, headers, body: ACCEPTED_BODY.into() },
                    Some(body) => Self { status: StatusCode::OK, headers, body: body.into() },
                }
            }
            Err(error) => {
                if let Some((name, value)) = error.header() {
                    headers.insert(HeaderName::from_static(name), header_value(&value));
                }
                let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Self { status, headers, body: error.body().into() }
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
    use crate::idempotency::Delivered;
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
        assert!(!counts(None, None, Ok(Success::Replayed(Delivered::none(1)))));
        assert!(!counts(None, None, Err(Error::KeyReused)));
    }
}
