//! Every response that is not a success: one enum, and for each variant its code, message, header
//! and log level (docs/contract.md, "Order of checks").

use crate::store::StoreError;
use contract::error_code::ErrorCode;
use contract::event::Violation;
use serde::Serialize;
use std::borrow::Cow;
use std::time::Duration;
use tracing::Level;

/// Why a request is not accepted, in the order of the checks.
#[derive(Debug)]
pub enum Error {
    /// Check 1: unknown path.
    NotFound,
    /// Check 2: method other than POST.
    MethodNotAllowed,
    /// Check 3: no valid API key.
    AuthRequired,
    /// Check 4: the API key lacks the scope.
    Forbidden,
    /// Check 5: names the header and its allowed values.
    UnsupportedMediaType(&'static str),
    /// Check 6: no idempotency key.
    IdempotencyKeyRequired,
    /// Check 6: a malformed idempotency key.
    IdempotencyKeyInvalid,
    /// Check 7: says which size is too large.
    PayloadTooLarge(&'static str),
    /// Check 8: says what is wrong and what to do.
    MalformedEncoding(&'static str),
    /// Check 8: says what is wrong, with line and column.
    MalformedJson(String),
    /// Check 9: 1 to 100 violations.
    ValidationFailed(Vec<Violation>),
    /// Check 9 for a bulk request: the violations of `events` itself.
    InvalidBulk(Vec<Violation>),
    /// Check 10: the rate limit of the tenant or of the API key is exceeded.
    RateLimited {
        /// The time until the next window starts.
        wait: Duration,
    },
    /// Check 11: the idempotency key belongs to another body.
    KeyReused,
    /// Check 12: another request owns the idempotency key and may still be running.
    InProgress {
        /// The time until that request's lease ends.
        lease_left: Duration,
    },
    /// Check 13: a store or the queue is unavailable. The text is for the log.
    Unavailable(String),
    /// Check 14: a defect. The text is for the log.
    Internal(String),
}

impl Error {
    /// The wire name.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::MethodNotAllowed => ErrorCode::MethodNotAllowed,
            Self::AuthRequired => ErrorCode::AuthRequired,
            Self::Forbidden => ErrorCode::Forbidden,
            Self::UnsupportedMediaType(_) => ErrorCode::UnsupportedMediaType,
            Self::IdempotencyKeyRequired => ErrorCode::IdempotencyKeyRequired,
            Self::IdempotencyKeyInvalid => ErrorCode::IdempotencyKeyInvalid,
            Self::PayloadTooLarge(_) => ErrorCode::PayloadTooLarge,
            Self::MalformedEncoding(_) => ErrorCode::MalformedEncoding,
            Self::MalformedJson(_) => ErrorCode::MalformedJson,
            Self::ValidationFailed(_) | Self::InvalidBulk(_) => ErrorCode::ValidationFailed,
            Self::RateLimited { .. } => ErrorCode::RateLimited,
            Self::KeyReused => ErrorCode::IdempotencyKeyReuse,
            Self::InProgress { .. } => ErrorCode::RequestInProgress,
            Self::Unavailable(_) => ErrorCode::ServiceUnavailable,
            Self::Internal(_) => ErrorCode::InternalError,
        }
    }

    /// The HTTP status of the code. The exception is a bulk request with an invalid `events` array, which
    /// gets 400.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::InvalidBulk(_) => 400,
            _ => self.code().status(),
        }
    }

    /// The message for the client. It contains no key, header or value, and for a 5xx no internals.
    #[must_use]
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::NotFound => {
                "no such resource; send events to POST /api/v1/events/batch, /api/v1/events/bulk or /api/v1/events"
            },
            Self::MethodNotAllowed => "this resource supports only POST",
            Self::AuthRequired => "an active API key is required, sent as `Authorization: Bearer <key>`",
            Self::Forbidden => "this API key may not send events; it lacks the scope events:write",
            Self::IdempotencyKeyRequired => {
                "the header Idempotency-Key is required: a unique value per batch, the same for each of its retries"
            }
            Self::IdempotencyKeyInvalid => "the header Idempotency-Key must be 1 to 255 visible ASCII characters",
            Self::UnsupportedMediaType(what) | Self::PayloadTooLarge(what) | Self::MalformedEncoding(what) => what,
            Self::MalformedJson(what) => return format!("the body is not JSON: {what}").into(),
            Self::ValidationFailed(_) | Self::InvalidBulk(_) => "the batch breaks a rule",
            Self::RateLimited { .. } => {
                "the rate limit of this API key or its project is used up; retry with the same Idempotency-Key after the time in \
                 Retry-After"
            }
            Self::KeyReused => "this Idempotency-Key was used with another body; use a new key for a new batch",
            Self::InProgress { .. } => "the same request is still running; retry with the same Idempotency-Key",
            Self::Unavailable(_) => "the service cannot accept events now; retry with the same Idempotency-Key",
            Self::Internal(_) => "internal error; retry with the same Idempotency-Key",
        }
        .into()
    }

    /// A header that this response carries in addition to the usual ones.
    #[must_use]
    pub fn header(&self) -> Option<(&'static str, Cow<'static, str>)> {
        match self {
            Self::MethodNotAllowed => Some(("allow", "POST".into())),
            Self::AuthRequired => Some(("www-authenticate", "Bearer".into())),
            Self::RateLimited { wait } => Some(("retry-after", whole_seconds(*wait).into())),
            Self::InProgress { lease_left } => Some(("retry-after", whole_seconds(*lease_left).into())),
            Self::Unavailable(_) => Some(("retry-after", "1".into())),
            _ => None,
        }
    }

    /// The level of the request's log line.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::Internal(_) => Level::ERROR,
            Self::Unavailable(_) => Level::WARN,
            _ => Level::INFO,
        }
    }

    /// The cause for the log. The client never sees it.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Unavailable(cause) | Self::Internal(cause) => Some(cause),
            _ => None,
        }
    }

    /// The field of the first violation, for the log. It is a name from the contract, never one of the
    /// client's own keys.
    #[must_use]
    pub fn first_field(&self) -> Option<String> {
        match self {
            Self::ValidationFailed(violations) | Self::InvalidBulk(violations) => violations.first()?.field(),
            _ => None,
        }
    }

    /// The body of the response: `{"errors":[…]}`.
    #[must_use]
    pub fn body(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            errors: Vec<Item<'a>>,
        }
        let code = self.code().as_str();
        let message = self.message();
        let errors = match self {
            Self::ValidationFailed(violations) | Self::InvalidBulk(violations) => violations
                .iter()
                .map(|violation| Item { code, message: &violation.message, field: violation.field() })
                .collect(),
            _ => vec![Item { code, message: &message, field: None }],
        };
        serde_json::to_string(&Body { errors }).unwrap_or_default()
    }
}

/// One element of `errors` in a response.
#[derive(Serialize)]
struct Item<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

/// A value of `Retry-After`: whole seconds, rounded up, at least 1.
fn whole_seconds(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).max(1).to_string()
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::Unavailable(cause),
            StoreError::Defect(cause) => Self::Internal(cause),
        }
    }
}
