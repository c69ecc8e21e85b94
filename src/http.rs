//! A gateway event → a request → the pipeline → an answer.
//!
//! The checks stand in the order of contract section 2: the first that fails answers.

use crate::auth::{ApiKey, AuthError, Authenticator, Caller, KeyStore};
use crate::batch::{Batch, BatchError, MAX_BODY_BYTES};
use crate::clock::{Clock, Timestamp};
use crate::config::RateLimit;
use crate::deadline::Deadline;
use crate::delivery::{Queue, TraceHeader};
use crate::error::Error;
use crate::gateway::{GatewayEvent, GatewayResponse, Header};
use crate::idempotency::{Claimant, IdempotencyKey, RecordKey, StateStore};
use crate::ingest::{Outcome, Pipeline, Request};
use crate::rate_limit::{RateLimiter, Tenant, Verdict, Window, WindowStore};
use crate::telemetry::{Completion, Facts, Telemetry};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::MultiGzDecoder;
use futures_util::FutureExt;
use lambda_http::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use lambda_http::http::{Method, StatusCode};
use lambda_runtime::LambdaEvent;
use serde::de::IgnoredAny;
use std::cell::RefCell;
use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

const ACCEPTED_BODY: &str = r#"{"data":{"accepted":true}}"#;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The function: everything one sandbox keeps between requests.
pub struct App<K, W, S, Q, C> {
    /// Lets callers in.
    pub auth: Authenticator<K>,
    /// Holds projects to their limits.
    pub limiter: RateLimiter<W>,
    /// Gets their events into the queue.
    pub pipeline: Pipeline<S, Q, C>,
    /// Says what happened.
    pub telemetry: Telemetry,
    /// What is left to do for the request just answered; at first nothing.
    pub answered: RefCell<Option<Answered>>,
}

/// A request whose answer is made.
pub struct Answered {
    result: Result<Outcome, Error>,
    facts: Facts,
}

impl<K: KeyStore, W: WindowStore, S: StateStore, Q: Queue, C: Clock> App<K, W, S, Q, C> {
    /// Answers one invocation. There is no outcome without an answer: a panic is one too.
    ///
    /// [`Self::finish`] must follow, once the answer is out and before the next invocation.
    pub async fn handle(&self, invocation: LambdaEvent<GatewayEvent>) -> GatewayResponse {
        let LambdaEvent { payload: event, context } = invocation;
        let begun = Instant::now();
        let start = self.pipeline.clock.now();
        let version = event.payload_version();
        let mut facts = Facts {
            request_id: event.request_id().unwrap_or(&context.request_id).to_owned(),
            trace_id: context.xray_trace_id.clone(),
            ..Facts::default()
        };
        let deadline = Deadline::new(start, Timestamp::from_millis(context.deadline));
        let result = AssertUnwindSafe(self.accept(event, &deadline, &mut facts)).catch_unwind().await;
        let result = result.unwrap_or_else(|_| Err(Error::Internal("panic".to_owned())));

        let Answer { status, mut headers, body } = Answer::new(&result);
        headers.insert(REQUEST_ID, header_value(&facts.request_id));
        facts.duration = begun.elapsed();
        self.answered.replace(Some(Answered { result, facts }));
        GatewayResponse::new(version, status, headers, body)
    }

    /// Does what no client need wait for: records what was accepted, and writes the line.
    pub async fn finish(&self) {
        let Some(Answered { result, mut facts }) = self.answered.take() else { return };
        if let Ok(Outcome::Accepted(unrecorded)) = &result {
            let begun = Instant::now();
            let completion = AssertUnwindSafe(self.pipeline.complete(unrecorded)).catch_unwind().await;
            facts.completion = Some(completion.unwrap_or(Completion::Failed));
            facts.complete_time = Some(begun.elapsed());
        }
        self.telemetry.write(facts, &result);
    }

    async fn accept(&self, event: GatewayEvent, deadline: &Deadline, facts: &mut Facts) -> Result<Outcome, Error> {
        let endpoint = Endpoint::of(&event)?;

        let key = event.header(Header::Authorization).and_then(ApiKey::from_header);
        let begun = Instant::now();
        let caller = self.auth.authenticate(key, &self.pipeline.clock, deadline.claim_by()).await;
        facts.auth_time = Some(begun.elapsed());
        let caller = caller?;
        facts.project_id = Some(caller.project.to_string());
        facts.mode = Some(caller.mode);
        facts.key_hint = Some(caller.key_hint.clone());

        let encoding = Encoding::of(&event)?;
        let key = event.header(Header::IdempotencyKey).ok_or(Error::IdempotencyKeyRequired)?;
        let key = IdempotencyKey::parse(key).ok_or(Error::IdempotencyKeyInvalid)?;
        let key = endpoint.record_key(&caller, key);

        let begun = Instant::now();
        let body = transported(event)?;
        facts.bytes_in = Some(body.len());
        let body = encoding.decode(body)?;
        facts.bytes_decoded = Some(body.len());
        let batch = endpoint.parse(&body)?;
        facts.events = Some(batch.events().len());
        facts.decode_time = Some(begun.elapsed());

        let tenant = Tenant { project: caller.project.clone(), mode: caller.mode };
        let events = batch.events().len();
        let arrived = self.pipeline.clock.now();
        let counted_in = self.admit(&tenant, caller.rate_limit, events, facts).await?;

        let request = Request {
            project: &caller.project,
            mode: caller.mode,
            key: &key,
            me: &Claimant::new(arrived, &body),
            batch: &batch,
            trace: facts.trace_id.as_deref().and_then(TraceHeader::parse),
            deadline,
        };
        let result = self.pipeline.ingest(&request, facts).await;
        if let Some(window) = counted_in
            && !stays_counted(&result, facts, window)
        {
            self.limiter.give_back(&tenant, window, events);
        }
        result
    }

    /// Row 10: counts the batch against the project's limit, if it has one; tells in which window.
    async fn admit(
        &self,
        tenant: &Tenant,
        limit: Option<RateLimit>,
        events: usize,
        facts: &mut Facts,
    ) -> Result<Option<Window>, Error> {
        let Some(limit) = limit else { return Ok(None) };
        let clock = &self.pipeline.clock;
        let begun = Instant::now();
        let verdict = self.limiter.admit(clock, tenant, limit, events).await;
        facts.limit_time = Some(begun.elapsed());
        match verdict {
            Verdict::Pass(window) => Ok(Some(window)),
            Verdict::PassUncounted(error) => {
                facts.limiter_failure = Some(Error::from(error).cause().unwrap_or_default().to_owned());
                Ok(None)
            }
            Verdict::Over { until } => Err(Error::RateLimited { wait: clock.now().until(until) }),
        }
    }
}

/// Whether what the limiter counted for a request in `window` stays counted. An attempt that broke
/// off keeps its count, and the one that resumes it in the same window is not counted again.
fn stays_counted(result: &Result<Outcome, Error>, facts: &Facts, window: Window) -> bool {
    match result {
        Ok(Outcome::Replayed) | Err(Error::KeyReused | Error::InProgress { .. }) => false,
        Ok(Outcome::Accepted(_)) => {
            facts.attempt == Some(1) || facts.first_arrival.is_none_or(|first| Window::at(first) != window)
        }
        Err(_) => true,
    }
}

/// What a request is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Batch,
    Single,
}

impl Endpoint {
    const PATHS: [(Self, &str); 2] = [(Self::Batch, "/api/v1/events/batch"), (Self::Single, "/api/v1/events")];

    /// Rows 1 and 2: the path, possibly behind a stage, and the method.
    fn of(event: &GatewayEvent) -> Result<Self, Error> {
        let known = Self::PATHS.into_iter().find(|(_, path)| event.path().strip_suffix(path).is_some_and(is_stage));
        let (endpoint, _) = known.ok_or(Error::NotFound)?;
        if event.method() == Method::POST.as_str() { Ok(endpoint) } else { Err(Error::MethodNotAllowed) }
    }

    fn record_key(self, caller: &Caller, key: IdempotencyKey<'_>) -> RecordKey {
        match self {
            Self::Batch => RecordKey::new(&caller.project, caller.mode, key),
            Self::Single => RecordKey::single(&caller.project, caller.mode, key),
        }
    }

    fn parse(self, body: &[u8]) -> Result<Batch<'_>, BatchError> {
        match self {
            Self::Batch => Batch::parse(body),
            Self::Single => Batch::parse_single(body),
        }
    }
}

/// Whether what stands before a path is nothing or one segment.
fn is_stage(prefix: &str) -> bool {
    prefix.is_empty() || prefix.strip_prefix('/').is_some_and(|stage| !stage.is_empty() && !stage.contains('/'))
}

/// How the body is encoded beyond what the gateway does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    /// Row 5: content type and encoding.
    fn of(event: &GatewayEvent) -> Result<Self, Error> {
        let encoding = match event.header(Header::ContentEncoding) {
            None => Self::Identity,
            Some(value) if value.eq_ignore_ascii_case("identity") => Self::Identity,
            Some(value) if value.eq_ignore_ascii_case("gzip") => Self::Gzip,
            Some(_) => {
                return Err(Error::UnsupportedMediaType("Content-Encoding must be absent, identity or gzip"));
            }
        };
        let media_type = event.header(Header::ContentType).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let is = |name: &str| media_type.eq_ignore_ascii_case(name);
        match encoding {
            _ if is("application/json") => Ok(encoding),
            Self::Gzip if is("application/gzip") || is("application/octet-stream") => Ok(encoding),
            Self::Gzip => Err(Error::UnsupportedMediaType(
                "Content-Type must be application/json, application/gzip or application/octet-stream",
            )),
            Self::Identity => Err(Error::UnsupportedMediaType("Content-Type must be application/json")),
        }
    }

    /// Rows 7 and 8: the body's bytes as the client meant them.
    fn decode(self, body: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self {
            Self::Identity => Ok(body),
            Self::Gzip if body.starts_with(&GZIP_MAGIC) => gunzip(&body),
            // A gateway in between decompressed it and left the header.
            Self::Gzip if body.trim_ascii_start().starts_with(b"{") || is_json(&body) => Ok(body),
            Self::Gzip if body.first() == GZIP_MAGIC.first() => Err(Error::MalformedEncoding(
                "the gzip body was garbled on its way: API Gateway takes a body of a JSON content type for text; \
                 send it as Content-Type: application/gzip",
            )),
            Self::Gzip => Err(Error::MalformedEncoding(
                "the body is not gzip; compress it, or leave out the header Content-Encoding",
            )),
        }
    }
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

/// Decompresses at most [`MAX_BODY_BYTES`].
fn gunzip(body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut decoded = Vec::new();
    let limit = MAX_BODY_BYTES as u64 + 1;
    match MultiGzDecoder::new(body).take(limit).read_to_end(&mut decoded) {
        Ok(_) if decoded.len() > MAX_BODY_BYTES => Err(Error::PayloadTooLarge(
            "the body is larger than 5 MB (5,242,880 bytes) when decompressed; send fewer events a batch",
        )),
        Ok(_) => Ok(decoded),
        Err(_) => Err(Error::MalformedEncoding("the gzip body is damaged or cut short; compress it and send it again")),
    }
}

/// Row 7 and the gateway's part of row 8: the bytes that the client sent.
fn transported(event: GatewayEvent) -> Result<Vec<u8>, Error> {
    let body = event.body.unwrap_or_default();
    let bytes = if event.is_base64_encoded {
        BASE64_STANDARD
            .decode(body)
            .map_err(|_| Error::MalformedEncoding("the gateway marked the body as base64, which it is not"))?
    } else {
        body.into_bytes()
    };
    if bytes.len() > MAX_BODY_BYTES {
        return Err(Error::PayloadTooLarge(
            "the body is larger than 5 MB (5,242,880 bytes); send fewer events a batch",
        ));
    }
    Ok(bytes)
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
            BatchError::Invalid(faults) => Self::ValidationFailed(faults),
        }
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn new(result: &Result<Outcome, Error>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match result {
            Ok(outcome) => {
                if matches!(outcome, Outcome::Replayed) {
                    headers.insert(REPLAYED, HeaderValue::from_static("true"));
                }
                let body = ACCEPTED_BODY.to_owned();
                Self { status: StatusCode::ACCEPTED, headers, body }
            }
            Err(error) => {
                let row = error.row();
                if let Some((name, value)) = &row.header {
                    headers.insert(HeaderName::from_static(name), header_value(value));
                }
                let body = error.body(&row);
                Self { status: row.status, headers, body }
            }
        }
    }
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
