//! The errors that a response can carry, by their wire names.

/// A value of `code` in a response's `errors`, in the order of docs/contract.md, "Order of checks".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Check 1.
    NotFound,
    /// Check 2.
    MethodNotAllowed,
    /// Check 3.
    AuthRequired,
    /// Check 4.
    Forbidden,
    /// Check 5.
    UnsupportedMediaType,
    /// Check 6.
    IdempotencyKeyRequired,
    /// Check 6.
    IdempotencyKeyInvalid,
    /// Check 7.
    PayloadTooLarge,
    /// Check 8.
    MalformedEncoding,
    /// Check 8.
    MalformedJson,
    /// Check 9.
    ValidationFailed,
    /// Check 10.
    RateLimited,
    /// Check 11.
    IdempotencyKeyReuse,
    /// Check 12.
    RequestInProgress,
    /// Check 13.
    ServiceUnavailable,
    /// Check 14.
    InternalError,
}

impl ErrorCode {
    /// Every code, in the order of the checks.
    pub const ALL: [Self; 16] = [
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::AuthRequired,
        Self::Forbidden,
        Self::UnsupportedMediaType,
        Self::IdempotencyKeyRequired,
        Self::IdempotencyKeyInvalid,
        Self::PayloadTooLarge,
        Self::MalformedEncoding,
        Self::MalformedJson,
        Self::ValidationFailed,
        Self::RateLimited,
        Self::IdempotencyKeyReuse,
        Self::RequestInProgress,
        Self::ServiceUnavailable,
        Self::InternalError,
    ];

    /// The wire name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.wire().0
    }

    /// The HTTP status of a response with this error.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.wire().1
    }

    /// Whether the failure is on the server's side (a status of 500 or above).
    #[must_use]
    pub const fn is_server_error(self) -> bool {
        self.status() >= 500
    }

    const fn wire(self) -> (&'static str, u16) {
        match self {
            Self::NotFound => ("not_found", 404),
            Self::MethodNotAllowed => ("method_not_allowed", 405),
            Self::AuthRequired => ("auth_required", 401),
            Self::Forbidden => ("forbidden", 403),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415),
            Self::IdempotencyKeyRequired => ("idempotency_key_required", 400),
            Self::IdempotencyKeyInvalid => ("idempotency_key_invalid", 400),
            Self::PayloadTooLarge => ("payload_too_large", 413),
            Self::MalformedEncoding => ("malformed_encoding", 400),
            Self::MalformedJson => ("malformed_json", 400),
            Self::ValidationFailed => ("validation_failed", 422),
            Self::RateLimited => ("rate_limited", 429),
            Self::IdempotencyKeyReuse => ("idempotency_key_reuse", 422),
            Self::RequestInProgress => ("request_in_progress", 503),
            Self::ServiceUnavailable => ("service_unavailable", 503),
            Self::InternalError => ("internal_error", 500),
        }
    }
}
