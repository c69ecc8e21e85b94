//! One request and what its answer means (contract section 2).

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper::http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::http::{Method, Request, StatusCode, Uri};
use serde::Deserialize;
use std::net::IpAddr;
use std::time::Duration;

const PATH: &str = "/api/v1/events/batch";
/// A network that answers at all does so sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The service's longest answer, 100 faults, has some 20 KB.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// The longest `Retry-After` that is honoured; our own service asks for seconds.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Where batches are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    base: String,
    uri: Uri,
}

impl Target {
    /// Reads a base URL. One that has our path already is taken, too.
    ///
    /// # Errors
    /// In words, where it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let base = text.trim_end_matches('/');
        let base = base.strip_suffix(PATH).unwrap_or(base);
        let usage = "must be a URL such as https://api.example.com";
        let uri: Uri = format!("{base}{PATH}").parse().map_err(|_| usage.to_owned())?;
        let authority = uri.authority().ok_or(usage)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() || base.contains('#') {
            return Err(usage.to_owned());
        }
        if authority.as_str().contains('@') {
            return Err("must hold no user name or password".to_owned());
        }
        Ok(Self { base: base.to_owned(), uri })
    }

    /// The base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether the API key would go unencrypted over a network.
    pub fn is_exposed(&self) -> bool {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        self.uri.scheme_str() == Some("http") && !is_here
    }
}

/// What an answer, or its absence, means.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every event is in the queue.
    Accepted,
    /// These events are against the rules; nothing was taken.
    Invalid(Vec<ServerFault>),
    /// The body is too large for somebody on the way.
    TooLarge,
    /// Try again, but not so much at once, and not before so long.
    Busy(String, Option<Duration>),
    /// Try again.
    Failed(String),
    /// Trying again is of no use.
    Refused(String),
}

/// One entry of `errors`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct ServerFault {
    /// Such as `events[3].name`.
    pub field: Option<String>,
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
}

impl ServerFault {
    /// The event's index and the member of it that is at fault.
    pub fn place(&self) -> Option<(usize, Option<&str>)> {
        let (index, member) = self.field.as_deref()?.strip_prefix("events[")?.split_once(']')?;
        let member = if member.is_empty() { None } else { Some(member.strip_prefix('.')?) };
        Some((index.parse().ok()?, member))
    }
}

/// Makes requests.
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    /// The API key.
    key: String,
    timeout: Duration,
}

impl Client {
    /// Sends to `target` with `key`, as `host` if that is given.
    ///
    /// # Errors
    /// In words, where `host` is no header value or the system's certificates cannot be read.
    pub fn new(target: &Target, key: &str, host: Option<&str>, timeout: Duration) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| "the API key is no header value".to_owned())?;
        authorization.set_sensitive(true);
        headers.insert(AUTHORIZATION, authorization);
        // Any other type is text to API Gateway, which garbles what is compressed.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let agent = concat!("event-ingest-backfill/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(host) = host {
            headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| "--host is no host name".to_owned())?);
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| format!("the system's certificates cannot be read: {error}"))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { http, uri: target.uri.clone(), headers, key: key.to_owned(), timeout })
    }

    /// Sends a compressed batch once.
    pub async fn send(&self, idempotency_key: &HeaderValue, body: Bytes) -> Answer {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert("idempotency-key", idempotency_key.clone());
        let answered = async {
            let (head, body) = self.http.request(request).await.map_err(|error| reason(&error))?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes();
            // A proxy may quote what it was sent, and what is told here ends up in logs.
            let body = String::from_utf8_lossy(&body).replace(&self.key, "[API key]");
            Ok(meaning(head.status, &head.headers, body.as_bytes()))
        };
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => Answer::Failed(reason),
            Err(_) => Answer::Failed(format!("no answer within {} s", self.timeout.as_secs())),
        }
    }
}

/// The innermost cause says it best, as in "Connection refused".
fn reason(error: &hyper_util::client::legacy::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(cause) = reason.source() {
        reason = cause;
    }
    if error.is_connect() { format!("cannot connect: {reason}") } else { format!("no answer: {reason}") }
}

fn meaning(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
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
        errors: Vec<ServerFault>,
    }
    if status == StatusCode::ACCEPTED && serde_json::from_slice(body).is_ok_and(|ours: Accepted| ours.data.accepted) {
        return Answer::Accepted;
    }
    let faults = serde_json::from_slice(body).map_or(Vec::new(), |ours: Errors| ours.errors);
    let what = faults.first().map_or_else(
        || format!("{status}"),
        |fault| format!("{} {}: {}", status.as_u16(), shown(&fault.code), shown(&fault.message)),
    );
    let is = |code: &str| faults.first().is_some_and(|fault| fault.code == code);
    match status.as_u16() {
        429 | 503 => Answer::Busy(what, retry_after(headers)),
        408 | 500.. => Answer::Failed(what),
        413 => Answer::TooLarge,
        422 if is("validation_failed") => Answer::Invalid(faults),
        422 if is("idempotency_key_reuse") => Answer::Refused(format!(
            "{what}. A batch of this input was sent with other content within the last 24 hours: has the input changed?"
        )),
        401 => Answer::Refused(format!("{what}. Is it the right key, and for this service?")),
        404 | 405 | 200..=399 => Answer::Refused(format!("{what}. Is it the right --url (and --host)?")),
        _ => Answer::Refused(what),
    }
}

/// What somebody else wrote, in which a control character could play tricks with the terminal.
fn shown(text: &str) -> String {
    text.chars().take(300).map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(asked).min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&'static str>, body: &str) -> Answer {
        let headers = retry_after.map(|value| (RETRY_AFTER, HeaderValue::from_static(value)));
        meaning(StatusCode::from_u16(status).unwrap(), &headers.into_iter().collect(), body.as_bytes())
    }

    #[test]
    fn only_our_own_yes_is_one() {
        assert_eq!(answer(202, None, r#"{"data":{"accepted":true}}"#), Answer::Accepted);
        for (status, body) in
            [(200, r#"{"data":{"accepted":true}}"#), (202, "{}"), (202, "<html>"), (204, ""), (301, "")]
        {
            assert!(matches!(answer(status, None, body), Answer::Refused(why) if why.contains("--url")), "{status}");
        }
    }

    #[test]
    fn what_may_succeed_later_is_tried_again() {
        let limited = r#"{"errors":[{"code":"rate_limited","message":"wait"}]}"#;
        let busy = |wait| Answer::Busy("429 rate_limited: wait".to_owned(), wait);
        assert_eq!(answer(429, Some("7"), limited), busy(Some(Duration::from_secs(7))));
        assert_eq!(answer(429, Some("Tue, 24 Nov 2026 00:00:00 GMT"), limited), busy(None));
        let gateways = answer(429, None, r#"{"message":"Too Many Requests"}"#);
        assert_eq!(gateways, Answer::Busy("429 Too Many Requests".to_owned(), None));
        assert!(matches!(answer(503, Some("1"), "{}"), Answer::Busy(..)));
        let longest = answer(503, Some("18446744073709551615"), "{}");
        assert!(matches!(longest, Answer::Busy(_, Some(LONGEST_RETRY_AFTER))));
        for status in [408, 500, 502, 504] {
            assert!(matches!(answer(status, None, ""), Answer::Failed(_)));
        }
        for status in [400, 401, 403, 404, 405, 409, 415, 422] {
            assert!(matches!(answer(status, None, ""), Answer::Refused(_)));
        }
        assert_eq!(answer(413, None, ""), Answer::TooLarge);
        let reuse = answer(422, None, r#"{"errors":[{"code":"idempotency_key_reuse","message":"no"}]}"#);
        assert!(matches!(reuse, Answer::Refused(why) if why.contains("changed")));
    }

    #[test]
    fn faults_name_events() {
        let place = |field: &str| {
            let fault = ServerFault { field: Some(field.to_owned()), code: String::new(), message: String::new() };
            fault.place().map(|(index, member)| (index, member.map(str::to_owned)))
        };
        assert_eq!(place("events[3].name"), Some((3, Some("name".to_owned()))));
        assert_eq!(place("events[12]"), Some((12, None)));
        for other in ["events", "events[x]", "events[1", "events[1]name", "name", ""] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn a_target_is_a_base_url() {
        for (text, base) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example/prod/", "https://a.example/prod"),
            ("http://127.0.0.1:4566/api/v1/events/batch", "http://127.0.0.1:4566"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.base(), base);
            assert_eq!(target.uri.to_string(), format!("{base}/api/v1/events/batch"));
        }
        for bad in ["", "a.example", "/x", "ftp://a", "https://", "https://a?b", "https://a/#b", "https://u:p@a"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_plain_http_to_elsewhere_is_exposed() {
        let exposed = |url| Target::parse(url).unwrap().is_exposed();
        assert!(exposed("http://a.example") && exposed("http://10.0.0.1:80") && exposed("http://localhost.example"));
        for url in ["https://a.example", "http://localhost:1", "http://127.0.0.2", "http://[::1]:4566"] {
            assert!(!exposed(url), "{url}");
        }
    }
}
