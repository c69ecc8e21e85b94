//! Everything that is not a 202: one enum, one table (contract section 2).

use crate::batch::Fault;
use crate::idempotency::StoreError;
use lambda_http::http::StatusCode;
use serde::Serialize;
use std::borrow::Cow;
use std::time::Duration;
use tracing::Level;

/// Why a request is not accepted, in the order of the checks.
#[derive(Debug)]
pub enum Error {
    /// Row 1.
    NotFound,
    /// Row 2.
    MethodNotAllowed,
    /// Row 3.
    AuthRequired,
    /// Row 4.
    Forbidden,
    /// Row 5: which header, and what it may be.
    UnsupportedMediaType(&'static str),
    /// Row 6.
    IdempotencyKeyRequired,
    /// Row 6.
    IdempotencyKeyInvalid,
    /// Row 7: which size.
    PayloadTooLarge(&'static str),
    /// Row 8: what is wrong and what to do.
    MalformedEncoding(&'static str),
    /// Row 8: what, line and column.
    MalformedJson(String),
    /// Row 9: 1 to 100 faults.
    ValidationFailed(Vec<Fault>),
    /// Row 10.
    RateLimited {
        /// Until the next window starts.
        wait: Duration,
    },
    /// Row 11.
    KeyReused,
    /// Row 12.
    InProgress {
        /// Until the running request can no longer hold the key.
        lease_left: Duration,
    },
    /// Row 13: for the log, what could not be reached and why.
    Unavailable(String),
    /// Row 14: for the log, the defect.
    Internal(String),
}

/// One row of the contract's table of errors.
pub struct Row {
    /// The HTTP status.
    pub status: StatusCode,
    /// The wire name.
    pub code: &'static str,
    /// For the client; holds no key, header or value, and of a 5xx no internals.
    pub message: Cow<'static, str>,
    /// A header beside the usual ones.
    pub header: Option<(&'static str, Cow<'static, str>)>,
    /// How loud the log line is.
    pub level: Level,
}

/// One element of `errors` in an answer.
#[derive(Serialize)]
struct Item<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl Error {
    /// The error's row in the table.
    #[must_use]
    pub fn row(&self) -> Row {
        match self {
            Self::NotFound => Row::client(
                StatusCode::NOT_FOUND,
                "not_found",
                "no such resource; events go to POST /api/v1/events/batch or POST /api/v1/events",
            ),
            Self::MethodNotAllowed => {
                Row::client(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this resource takes POST only")
                    .with("allow", "POST")
            }
            Self::AuthRequired => Row::client(
                StatusCode::UNAUTHORIZED,
                "auth_required",
                "an active API key is required, sent as `Authorization: Bearer <key>`",
            )
            .with("www-authenticate", "Bearer"),
            Self::Forbidden => Row::client(
                StatusCode::FORBIDDEN,
                "forbidden",
                "this API key may not send events; it lacks the scope events:write",
            ),
            Self::UnsupportedMediaType(what) => {
                Row::client(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", *what)
            }
            Self::IdempotencyKeyRequired => Row::client(
                StatusCode::BAD_REQUEST,
                "idempotency_key_required",
                "the header Idempotency-Key is required: a unique value per batch, the same for each of its retries",
            ),
            Self::IdempotencyKeyInvalid => Row::client(
                StatusCode::BAD_REQUEST,
                "idempotency_key_invalid",
                "the header Idempotency-Key must be 1 to 255 visible ASCII characters",
            ),
            Self::PayloadTooLarge(what) => Row::client(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", *what),
            Self::MalformedEncoding(what) => Row::client(StatusCode::BAD_REQUEST, "malformed_encoding", *what),
            Self::MalformedJson(what) => {
                Row::client(StatusCode::BAD_REQUEST, "malformed_json", format!("the body is not JSON: {what}"))
            }
            Self::ValidationFailed(_) => {
                Row::client(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed", "the batch breaks a rule")
            }
            Self::RateLimited { wait } => Row::client(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "the project is over its limit of events; retry after Retry-After with the same Idempotency-Key",
            )
            .with("retry-after", whole_seconds(*wait)),
            Self::KeyReused => Row::client(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reuse",
                "this Idempotency-Key was used with another body; a new batch needs a new key",
            ),
            Self::InProgress { lease_left } => Row::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "request_in_progress",
                "the same request is still running; retry with the same Idempotency-Key",
                Level::INFO,
            )
            .with("retry-after", whole_seconds(*lease_left)),
            Self::Unavailable(_) => Row::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                "the events cannot be taken now; retry with the same Idempotency-Key",
                Level::WARN,
            )
            .with("retry-after", "1"),
            Self::Internal(_) => Row::server(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "an error on our side; retry with the same Idempotency-Key",
                Level::ERROR,
            ),
        }
    }

    /// What the log says beyond the row, and the client never sees.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Unavailable(cause) | Self::Internal(cause) => Some(cause),
            _ => None,
        }
    }

    /// The value of `errors` in the answer.
    fn items<'a>(&'a self, row: &'a Row) -> Vec<Item<'a>> {
        match self {
            Self::ValidationFailed(faults) => faults
                .iter()
                .map(|fault| Item { code: row.code, message: &fault.message, field: fault.field.as_deref() })
                .collect(),
            _ => vec![Item { code: row.code, message: &row.message, field: None }],
        }
    }

    /// The body of the answer: `{"errors":[…]}`.
    #[must_use]
    pub fn body(&self, row: &Row) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            errors: Vec<Item<'a>>,
        }
        serde_json::to_string(&Body { errors: self.items(row) }).unwrap_or_default()
    }
}

/// A value of `Retry-After`: whole seconds, rounded up, at least 1.
fn whole_seconds(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).max(1).to_string()
}

impl Row {
    fn client(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), header: None, level: Level::INFO }
    }

    fn server(status: StatusCode, code: &'static str, message: &'static str, level: Level) -> Self {
        Self { status, code, message: message.into(), header: None, level }
    }

    fn with(self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        Self { header: Some((name, value.into())), ..self }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::Unavailable(cause),
            StoreError::Defect(cause) => Self::Internal(cause),
        }
    }
}
