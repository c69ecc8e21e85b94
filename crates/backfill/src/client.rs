//! Sends one request and interprets the answer (docs/contract.md, "Responses").

use crate::target::Target;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::http::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use std::time::Duration;

/// The longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of an answer. The service's longest answer, with 100 violations, has about 20 KB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// The longest `Retry-After` that is respected. The service itself asks for seconds.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// The meaning of an answer, or of a missing answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every event is in the queue.
    Accepted,
    /// The service rejected the batch because of these violations.
    Invalid(Vec<ApiError>),
    /// The body is too large for the service or for a gateway in front of it.
    TooLarge,
    /// A retryable failure after which fewer requests must be sent: the reason, and `Retry-After` if present.
    Throttled(String, Option<Duration>),
    /// A retryable failure.
    Retryable(String),
    /// A permanent failure.
    Permanent(String),
}

/// An entry of `errors` in an answer.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct ApiError {
    /// A place such as `events[3].name`.
    pub field: Option<String>,
    /// The error code.
    #[serde(default)]
    pub code: String,
    /// The text for people.
    #[serde(default)]
    pub message: String,
}

impl ApiError {
    /// The index of the event and its member, if `field` names an event.
    pub fn event_and_member(&self) -> Option<(usize, Option<&str>)> {
        let (index, member) = self.field.as_deref()?.strip_prefix("events[")?.split_once(']')?;
        let member = if member.is_empty() { None } else { Some(member.strip_prefix('.')?) };
        Some((index.parse().ok()?, member))
    }
}

/// Sends requests.
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    api_key: String,
    timeout: Duration,
}

impl Client {
    /// Makes a client for `target`. `host` replaces the `Host` header.
    ///
    /// # Errors
    /// If `host` is not a header value, or the system's root certificates cannot be read.
    pub fn new(target: &Target, api_key: &str, host: Option<&str>, timeout: Duration) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {api_key}"))
            .map_err(|_| "the API key is not a header value".to_owned())?;
        authorization.set_sensitive(true);
        headers.insert(AUTHORIZATION, authorization);
        // API Gateway treats other types as text, which corrupts compressed bodies.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let agent = concat!("event-ingest-backfill/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(host) = host {
            headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| "--host is not a host name".to_owned())?);
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| format!("cannot read the system's root certificates: {error}"))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { http, uri: target.uri().clone(), headers, api_key: api_key.to_owned(), timeout })
    }

    /// Sends a compressed body once.
    pub async fn send(&self, idempotency_key: &HeaderValue, body: Bytes) -> Answer {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert("idempotency-key", idempotency_key.clone());
        let answer = async {
            let (head, body) = self.http.request(request).await.map_err(|error| connection_error(&error))?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| format!("the answer was cut off: {error}"))?.to_bytes();
            // A proxy may echo the request, and parts of the answer are printed.
            let body = String::from_utf8_lossy(&body).replace(&self.api_key, "[API key]");
            Ok(interpret(head.status, &head.headers, body.as_bytes()))
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => Answer::Retryable(reason),
            Err(_) => Answer::Retryable(format!("no answer within {}", humantime::format_duration(self.timeout))),
        }
    }
}

/// Describes an error by its innermost cause, such as "Connection refused".
fn connection_error(error: &hyper_util::client::legacy::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if error.is_connect() { format!("cannot connect: {cause}") } else { format!("no answer: {cause}") }
}

fn interpret(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Accepted {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        accepted: bool,
    }
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<ApiError>,
    }
    if status == StatusCode::ACCEPTED && serde_json::from_slice(body).is_ok_and(|answer: Accepted| answer.data.accepted)
    {
        return Answer::Accepted;
    }
    let errors = serde_json::from_slice(body).map_or(Vec::new(), |answer: Errors| answer.errors);
    let reason = errors.first().map_or_else(
        || format!("{status}"),
        |error| format!("{} {}: {}", status.as_u16(), printable(&error.code), printable(&error.message)),
    );
    let has_code = |code: &str| errors.first().is_some_and(|error| error.code == code);
    match status.as_u16() {
        429 | 503 => Answer::Throttled(reason, retry_after(headers)),
        408 | 500.. => Answer::Retryable(reason),
        413 => Answer::TooLarge,
        422 if has_code("validation_failed") => Answer::Invalid(errors),
        422 if has_code("idempotency_key_reuse") => Answer::Permanent(format!(
            "{reason}. A batch from the same position was sent with other content within the last 24 hours. Has the \
             input changed?"
        )),
        401 => Answer::Permanent(format!("{reason}. Is this the right API key for this service?")),
        404 | 405 | 200..=399 => Answer::Permanent(format!("{reason}. Are --url and --host right?")),
        _ => Answer::Permanent(reason),
    }
}

/// Text from the answer, shortened and without control characters, which could manipulate the terminal.
fn printable(text: &str) -> String {
    text.chars().take(300).map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&'static str>, body: &str) -> Answer {
        let headers = retry_after.map(|value| (RETRY_AFTER, HeaderValue::from_static(value)));
        interpret(StatusCode::from_u16(status).unwrap(), &headers.into_iter().collect(), body.as_bytes())
    }

    #[test]
    fn only_a_202_with_the_services_body_means_accepted() {
        assert_eq!(answer(202, None, r#"{"data":{"accepted":true}}"#), Answer::Accepted);
        for (status, body) in
            [(200, r#"{"data":{"accepted":true}}"#), (202, "{}"), (202, "<html>"), (204, ""), (301, "")]
        {
            assert!(
                matches!(answer(status, None, body), Answer::Permanent(reason) if reason.contains("--url")),
                "{status}"
            );
        }
    }

    #[test]
    fn statuses_are_retryable_or_permanent() {
        let limited = r#"{"errors":[{"code":"rate_limited","message":"wait"}]}"#;
        let throttled = |wait| Answer::Throttled("429 rate_limited: wait".to_owned(), wait);
        assert_eq!(answer(429, Some("7"), limited), throttled(Some(Duration::from_secs(7))));
        assert_eq!(answer(429, Some("Tue, 24 Nov 2026 00:00:00 GMT"), limited), throttled(None));
        let from_gateway = answer(429, None, r#"{"message":"Too Many Requests"}"#);
        assert_eq!(from_gateway, Answer::Throttled("429 Too Many Requests".to_owned(), None));
        assert!(matches!(answer(503, Some("1"), "{}"), Answer::Throttled(..)));
        let capped = answer(503, Some("18446744073709551615"), "{}");
        assert!(matches!(capped, Answer::Throttled(_, Some(MAX_RETRY_AFTER))));
        for status in [408, 500, 502, 504] {
            assert!(matches!(answer(status, None, ""), Answer::Retryable(_)));
        }
        for status in [400, 401, 403, 404, 405, 409, 415, 422] {
            assert!(matches!(answer(status, None, ""), Answer::Permanent(_)));
        }
        assert_eq!(answer(413, None, ""), Answer::TooLarge);
        let reuse = answer(422, None, r#"{"errors":[{"code":"idempotency_key_reuse","message":"no"}]}"#);
        assert!(matches!(reuse, Answer::Permanent(reason) if reason.contains("changed")));
    }

    #[test]
    fn a_field_names_an_event_and_a_member() {
        let parse = |field: &str| {
            let error = ApiError { field: Some(field.to_owned()), code: String::new(), message: String::new() };
            error.event_and_member().map(|(index, member)| (index, member.map(str::to_owned)))
        };
        assert_eq!(parse("events[3].name"), Some((3, Some("name".to_owned()))));
        assert_eq!(parse("events[12]"), Some((12, None)));
        for other in ["events", "events[x]", "events[1", "events[1]name", "name", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
