//! The adapters: the only code that calls the AWS SDK.

pub mod api_keys;
#[cfg(feature = "cli")]
pub mod key_admin;
pub mod queue;
pub mod state_table;

use queue::SqsQueue;
use state_table::StateTable;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::idempotency::StoreError;
use crate::telemetry::AWS_CALLS;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_dynamodb::config::interceptors::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// Within a region a connection takes milliseconds; longer than this, another try is better.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long one try of a `DynamoDB` call may take; they usually take 5 ms.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(600);

/// An unreachable AWS must not use up Lambda's 10 s for init.
const PREWARM_TIMEOUT: Duration = Duration::from_secs(2);

/// What every client shares: region, credentials, endpoint, one connection pool.
pub async fn sdk_config() -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        // It watches streams; every call here is short and has a deadline.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .load()
        .await
}

/// Opens the connections that the first request would otherwise pay for: Lambda lends init a
/// whole processor. Over plain HTTP, to a local AWS, there is nothing worth opening.
///
/// Best effort: whatever is wrong here, the first request meets it again and answers for it.
pub async fn prewarm(sdk: &SdkConfig, state_table: &StateTable, queue: &SqsQueue) {
    let is_tls = |of_service: &str| {
        let endpoint = std::env::var(of_service).ok().or_else(|| sdk.endpoint_url().map(str::to_owned));
        endpoint.is_none_or(|url| url.starts_with("https:"))
    };
    if is_tls("AWS_ENDPOINT_URL_DYNAMODB") || is_tls("AWS_ENDPOINT_URL_SQS") {
        let by = SystemClock.now() + PREWARM_TIMEOUT;
        futures_util::future::join(state_table.connect(by), queue.connect(by)).await;
        // No request's line is to count these.
        AWS_CALLS.take();
    }
}

/// A `DynamoDB` client for calls that may be repeated: reads, and conditional writes that
/// recognise their own effect.
fn dynamodb(sdk: &SdkConfig) -> aws_sdk_dynamodb::Client {
    let retries = RetryConfig::standard()
        .with_max_attempts(3)
        .with_initial_backoff(Duration::from_millis(25))
        .with_max_backoff(Duration::from_millis(200));
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let config = aws_sdk_dynamodb::config::Builder::from(sdk)
        .retry_config(retries)
        .timeout_config(timeouts)
        .interceptor(CallCounter)
        .build();
    aws_sdk_dynamodb::Client::from_conf(config)
}

/// Counts calls and their tries for the log line.
#[derive(Debug)]
struct CallCounter;

impl Intercept for CallCounter {
    fn name(&self) -> &'static str {
        "CallCounter"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        AWS_CALLS.begin();
        Ok(())
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        AWS_CALLS.begin_try();
        Ok(())
    }
}

/// Waits for a call, but not beyond `by`. Boxed, because the SDK's futures are tens of kilobytes, which
/// every function between here and `main` would otherwise move as a part of its own.
async fn answer_by<T>(by: Timestamp, call: Pin<Box<impl Future<Output = T>>>) -> Option<T> {
    let left = SystemClock.now().until(by);
    tokio::time::timeout(left, call).await.ok()
}

/// Why a call that failed, or that was given up (`None`), has no answer.
fn no_answer<E: ProvideErrorMetadata, R>(operation: &str, error: Option<SdkError<E, R>>) -> StoreError {
    match error {
        None => StoreError::Unavailable(format!("{operation}: given up at the deadline")),
        // What is refused as malformed will be refused again.
        Some(error) if error.code() == Some("ValidationException") => StoreError::Defect(describe(operation, &error)),
        Some(error) => StoreError::Unavailable(describe(operation, &error)),
    }
}

/// What the log may say of a failed call. The SDK's own texts may quote what was sent.
fn describe<E: ProvideErrorMetadata, R>(operation: &str, error: &SdkError<E, R>) -> String {
    let what = match error {
        SdkError::TimeoutError(_) => "timed out",
        SdkError::DispatchFailure(failure) if failure.is_timeout() => "could not connect in time",
        SdkError::DispatchFailure(failure) if failure.is_io() => "the connection failed",
        SdkError::DispatchFailure(_) => "could not be sent: look at credentials, region and endpoint",
        SdkError::ResponseError(_) => "the response could not be read",
        SdkError::ServiceError(service) => service.err().code().unwrap_or("an error without a code"),
        _ => "could not be built",
    };
    format!("{operation}: {what}")
}
