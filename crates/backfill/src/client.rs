//! Sends one request and interprets the answer (docs/contract.md, "Responses").

use crate::error::causes;
use crate::target::Target;
use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use reqwest::{StatusCode, Url, redirect};
use serde::Deserialize;
use std::error::Error as StdError;
use std::io;
use std::time::{Duration, SystemTime};

/// The longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of bytes of an answer. Lambda's answers have at most 6 MB.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// The longest `Retry-After` that is respected. The service itself asks for seconds.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);
/// The variables that name a proxy, in the order in which they apply to an `https://` URL.
const HTTPS_PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
/// The same for an `http://` URL.
const HTTP_PROXY_VARIABLES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The meaning of an answer, or of a missing answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every event that the service did not reject is in the queue.
    Queued(Queued),
    /// The service will never accept this batch: the error code and the message.
    Rejected(String, String),
    /// The body is too large for the service, or for something in front of it.
    TooLarge(String),
    /// A retryable failure after which fewer requests must be sent: the reason, and `Retry-After` if present.
    Throttled(String, Option<Duration>),
    /// A retryable failure: there was no answer in time.
    TimedOut(String),
    /// A retryable failure.
    Retryable(String),
    /// There is no connection, for a reason that a retry removes, such as a service that restarts.
    Unconnected(String),
    /// There is no connection, for a reason that a retry is unlikely to remove: the reason and what to do.
    Unreachable(String),
    /// A success, but not of the service: another server answered, or the answer was cut off.
    Foreign(String),
    /// A permanent failure.
    Permanent(String),
}

impl Answer {
    /// Whether the service may have queued the events nevertheless.
    pub fn is_uncertain(&self) -> bool {
        match self {
            Self::Queued(queued) => queued.accepted > 0,
            Self::Retryable(_) | Self::TimedOut(_) | Self::Foreign(_) => true,
            // A 429 sends nothing, and a 503 may have sent something.
            Self::Throttled(reason, _) => !reason.starts_with("429"),
            Self::Rejected(..)
            | Self::TooLarge(_)
            | Self::Unconnected(_)
            | Self::Unreachable(_)
            | Self::Permanent(_) => false,
        }
    }
}

/// The answer to a batch that the service processed.
#[derive(Debug, PartialEq, Eq)]
pub struct Queued {
    /// Whether the service had processed the same batch before, and queued nothing now.
    pub replayed: bool,
    /// The number of events in the queue.
    pub accepted: usize,
    /// The number of rejected events.
    pub rejected: usize,
    /// At least one entry for each rejected event.
    pub errors: Vec<EventError>,
}

/// Why the service rejected an event.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct EventError {
    /// The index of the event in the request.
    pub index: usize,
    /// The error code.
    #[serde(default)]
    pub code: String,
    /// The rule that is broken.
    #[serde(default)]
    pub message: String,
    /// The member at fault, such as `name`; `None` means the whole event.
    #[serde(default)]
    pub field: Option<String>,
}

/// Sends requests.
pub struct Client {
    http: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    api_key: String,
    host: String,
    /// The variable that names a proxy for this URL, for messages.
    proxy_variable: Option<&'static str>,
}

impl Client {
    /// Makes a client for `target`. `host` replaces the `Host` header.
    ///
    /// # Errors
    /// If `host` is not a header value, or the system's root certificates cannot be read.
    pub fn new(target: &Target, api_key: &str, host: Option<&str>) -> Result<Self, String> {
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
        // Fails if a provider is installed already, which is this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).redirect(redirect::Policy::none());
        if !target.is_https() {
            // A machine without root certificates can still send to a local service.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| {
            format!(
                "cannot set up TLS or the proxy: {}. Install the system's root certificates (package `ca-certificates`), \
                 or name a PEM file in SSL_CERT_FILE; check HTTPS_PROXY",
                innermost(&error)
            )
        })?;
        let variables = if target.is_https() { HTTPS_PROXY_VARIABLES } else { HTTP_PROXY_VARIABLES };
        let proxy_variable =
            variables.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        let (url, host) = (target.url().clone(), target.host().to_owned());
        Ok(Self { http, url, headers, api_key: api_key.to_owned(), host, proxy_variable })
    }

    /// Sends a compressed body once.
    pub async fn send(&self, idempotency_key: &HeaderValue, body: Bytes, timeout: Duration) -> Answer {
        let request = self.http.post(self.url.clone()).headers(self.headers.clone());
        let request = request.header("idempotency-key", idempotency_key).body(body);
        let answer = async {
            let mut response = request.send().await.map_err(|error| self.no_answer(&error))?;
            let mut body = Vec::new();
            while let Some(part) = response.chunk().await.map_err(|error| cut_off(&error))? {
                body.extend_from_slice(&part);
                if body.len() > MAX_ANSWER_BYTES {
                    return Err(Answer::Retryable("the answer is longer than any answer of the service".to_owned()));
                }
            }
            // A proxy may echo the request, and parts of the answer are printed.
            let body = String::from_utf8_lossy(&body).replace(&self.api_key, "[API key]");
            Ok(interpret(response.status(), response.headers(), body.as_bytes()))
        };
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer) | Err(answer)) => answer,
            Err(_) => Answer::TimedOut(format!("no answer within {}", humantime::format_duration(timeout))),
        }
    }

    fn no_answer(&self, error: &reqwest::Error) -> Answer {
        let cause = innermost(error);
        if cause.contains("proxy authorization required") {
            return Answer::Permanent(proxy_credentials(&format!("the proxy refused the connection: {cause}")));
        }
        if !error.is_connect() {
            return Answer::Retryable(format!("no answer: {cause}"));
        }
        let proxy = self.proxy_variable.map(|name| format!(" ({name} is set)")).unwrap_or_default();
        let reason = format!("cannot connect: {cause}{proxy}");
        match self.advice(error, &cause) {
            Some(advice) => Answer::Unreachable(format!("{reason}. {advice}")),
            None => Answer::Unconnected(reason),
        }
    }

    /// What to do about an error that a retry is unlikely to remove.
    fn advice(&self, error: &reqwest::Error, cause: &str) -> Option<String> {
        let host = &self.host;
        // The resolver's codes for a failure that may pass, in the words of glibc and musl.
        let may_pass = ["Temporary failure", "Try again"].iter().any(|text| cause.contains(text));
        if (error.is_dns() && !may_pass) || cause == "invalid dns name" {
            return Some(format!("There is no host {host}. Is --url right?"));
        }
        match tls_error(error)? {
            rustls::Error::InvalidCertificate(_) => Some(format!(
                "The certificate of {host} is not trusted. If a private authority has signed it, add the authority's \
                 certificate to the system's, or name a PEM file in SSL_CERT_FILE"
            )),
            _ => Some(format!("{host} does not speak TLS on this port. Is --url right?")),
        }
    }
}

fn cut_off(error: &reqwest::Error) -> Answer {
    Answer::Retryable(format!("the answer was cut off: {}", innermost(error)))
}

fn proxy_credentials(reason: &str) -> String {
    format!("{reason}. Add the proxy's user name and password to HTTPS_PROXY: http://user:password@proxy:3128")
}

/// The innermost cause, such as "Connection refused".
fn innermost(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// The TLS error among the causes.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(within)
}

/// The TLS error within `cause`. An `io::Error` contains another error, but does not report it as its source.
fn within<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let inner = || cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.downcast_ref().or_else(|| within(inner()?))
}

/// What docs/clients.md, "What to do with a response", says about this response.
fn interpret(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Processed {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        accepted: usize,
        rejected: usize,
        errors: Vec<EventError>,
    }
    #[derive(Deserialize)]
    struct Refused {
        errors: Vec<ApiError>,
    }
    #[derive(Deserialize)]
    struct ApiError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if status == StatusCode::OK
        && let Ok(Processed { data }) = serde_json::from_slice(body)
    {
        let Data { accepted, rejected, errors } = data;
        let replayed = headers.get("idempotency-replayed").is_some_and(|value| value == "true");
        return Answer::Queued(Queued { replayed, accepted, rejected, errors });
    }
    let error = serde_json::from_slice(body).ok().and_then(|answer: Refused| answer.errors.into_iter().next());
    let reason = error.as_ref().map_or_else(
        || format!("{status}"),
        |error| format!("{} {}: {}", status.as_u16(), printable(&error.code), printable(&error.message)),
    );
    let code = error.as_ref().map(|error| error.code.as_str());
    match status.as_u16() {
        429 | 503 => Answer::Throttled(reason, retry_after(headers)),
        408 | 409 | 421 | 425 | 500.. => Answer::Retryable(reason),
        413 => Answer::TooLarge(reason),
        422 if matches!(code, Some("validation_failed" | "idempotency_key_reuse")) => {
            Answer::Rejected(code.unwrap_or_default().to_owned(), reason)
        }
        401 => Answer::Permanent(format!("{reason}. Is this the right API key for this service?")),
        403 => Answer::Permanent(format!(
            "{reason}. The API key lacks the scope events:write, or a firewall refuses the request"
        )),
        407 => Answer::Permanent(proxy_credentials(&reason)),
        415 => {
            Answer::Permanent(format!("{reason}. Does a proxy change the headers Content-Type and Content-Encoding?"))
        }
        200..=299 => Answer::Foreign(format!(
            "{reason}, which is not an answer of the service's bulk endpoint. Are --url and --host right?"
        )),
        404 | 405 | 300..=399 => Answer::Permanent(format!("{reason}. Are --url and --host right?")),
        _ => Answer::Permanent(reason),
    }
}

/// Text from the answer, shortened and without control characters, which could manipulate the terminal.
fn printable(text: &str) -> String {
    text.chars().take(300).map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    // The service sends whole seconds. A proxy may send fractions or a date.
    let wait = match value.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER),
        Ok(_) => return None,
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, header: Option<(&'static str, &'static str)>, body: &str) -> Answer {
        let header = header.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        interpret(StatusCode::from_u16(status).unwrap(), &header.into_iter().collect(), body.as_bytes())
    }

    #[test]
    fn only_a_200_with_the_services_body_means_queued() {
        let body = r#"{"data":{"accepted":2,"rejected":1,"errors":[{"index":1,"code":"validation","message":"m"}]}}"#;
        let error = EventError { index: 1, code: "validation".to_owned(), message: "m".to_owned(), field: None };
        let queued = |replayed| Queued { replayed, accepted: 2, rejected: 1, errors: vec![] };
        let Answer::Queued(found) = answer(200, None, body) else { panic!() };
        assert_eq!(found, Queued { errors: vec![error], ..queued(false) });
        let Answer::Queued(found) = answer(200, Some(("idempotency-replayed", "true")), body) else { panic!() };
        assert_eq!(Queued { errors: vec![], ..found }, queued(true));
        for (status, body) in [(202, body), (200, "{}"), (200, "<html>"), (204, "")] {
            let found = answer(status, None, body);
            assert!(matches!(&found, Answer::Foreign(reason) if reason.contains("--url")), "{status}");
            assert!(found.is_uncertain());
        }
    }

    #[test]
    fn statuses_are_retryable_or_permanent() {
        let limited = r#"{"errors":[{"code":"rate_limited","message":"wait"}]}"#;
        let throttled = |wait| Answer::Throttled("429 rate_limited: wait".to_owned(), wait);
        let after = |value| Some(("retry-after", value));
        assert_eq!(answer(429, after("7"), limited), throttled(Some(Duration::from_secs(7))));
        assert_eq!(answer(429, after("1.5"), limited), throttled(Some(Duration::from_millis(1500))));
        assert_eq!(answer(429, after("Tue, 24 Nov 2020 00:00:00 GMT"), limited), throttled(Some(Duration::ZERO)));
        assert_eq!(answer(429, after("Tue, 24 Nov 2099 00:00:00 GMT"), limited), throttled(Some(MAX_RETRY_AFTER)));
        for bad in ["-1", "NaN", "soon", ""] {
            assert_eq!(answer(429, after(bad), limited), throttled(None), "{bad}");
        }
        let from_gateway = answer(429, None, r#"{"message":"Too Many Requests"}"#);
        assert_eq!(from_gateway, Answer::Throttled("429 Too Many Requests".to_owned(), None));
        assert!(!from_gateway.is_uncertain() && answer(503, None, "").is_uncertain());
        assert!(matches!(answer(503, after("1"), "{}"), Answer::Throttled(..)));
        let capped = answer(503, after("18446744073709551615"), "{}");
        assert!(matches!(capped, Answer::Throttled(_, Some(MAX_RETRY_AFTER))));
        for status in [408, 409, 421, 425, 500, 502, 504, 599] {
            assert!(matches!(answer(status, None, ""), Answer::Retryable(_)), "{status}");
        }
        for status in [301, 307, 400, 401, 403, 404, 405, 407, 410, 415, 422, 451] {
            assert!(matches!(answer(status, None, ""), Answer::Permanent(_)), "{status}");
        }
        for body in [r#"{"errors":[{"code":"payload_too_large","message":"m"}]}"#, r#"{"message":"Too Large"}"#] {
            assert!(matches!(answer(413, None, body), Answer::TooLarge(_)));
        }
        let reuse = answer(422, None, r#"{"errors":[{"code":"idempotency_key_reuse","message":"no"}]}"#);
        assert!(matches!(reuse, Answer::Rejected(code, _) if code == "idempotency_key_reuse"));
    }
}
