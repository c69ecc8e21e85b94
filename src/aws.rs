//! The implementations of the ports. Only this module calls the AWS SDK.

pub mod api_keys;
pub mod calls;
mod json_string;
pub mod queue;
pub mod state_table;
mod user_agent;

use queue::SqsQueue;
use state_table::StateTable;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::store::StoreError;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{HttpClient, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// The longest time to connect. Within a region it takes milliseconds, so a new try is better after this.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest time for one try of a `DynamoDB` call. A try usually takes 5 ms.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(600);

/// The longest time for [`prewarm`]. Lambda allows 10 s for init.
const PREWARM_TIMEOUT: Duration = Duration::from_secs(2);

/// The settings of every client: region, credentials, endpoint and one connection pool. Without `uses_tls`,
/// no client can use TLS, and no certificates are read.
pub async fn sdk_config(uses_tls: bool) -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new();
    let http =
        if uses_tls { http.tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https() } else { http.build_http() };
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(OnDemand(http))
        .timeout_config(timeouts)
        // This protection is for streams. Every call here is short and has a deadline.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .load()
        .await
}

/// An HTTP client that makes a connector only when a call needs one.
///
/// The SDK's own client also makes one, to drop it at once, whenever a client of a service is created. Each
/// of them parses all root certificates.
#[derive(Debug)]
struct OnDemand(SharedHttpClient);

impl HttpClient for OnDemand {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        self.0.http_connector(settings, components)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

/// Opens connections during init, when Lambda provides a full CPU, so that the first request does
/// not pay for the TLS handshakes.
///
/// Best effort: errors are ignored here, because the first request will report them.
pub async fn prewarm(state_table: &StateTable, queue: &SqsQueue) {
    let by = SystemClock.now() + PREWARM_TIMEOUT;
    futures_util::future::join(state_table.connect(by), queue.connect(by)).await;
    // The first request's log line must not count these calls.
    calls::take();
}

/// A `DynamoDB` client whose calls the SDK may retry. Retries are safe for reads, and for conditional
/// writes, which recognize their own effect. A retry after a lost response counts the events of a grant
/// twice, so the window admits fewer events, not more.
fn dynamodb(sdk: &SdkConfig) -> aws_sdk_dynamodb::Client {
    let retries = RetryConfig::standard()
        .with_max_attempts(3)
        .with_initial_backoff(Duration::from_millis(25))
        .with_max_backoff(Duration::from_millis(200));
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let mut config = aws_sdk_dynamodb::config::Builder::from(sdk).retry_config(retries).timeout_config(timeouts);
    config.push_interceptor(calls::counter()).push_interceptor(user_agent::kept());
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// Waits for a call until `by`. The call is boxed because the SDK's futures are tens of kilobytes, and
/// every caller's future would otherwise contain them.
async fn answer_by<T>(by: Timestamp, call: Pin<Box<impl Future<Output = T>>>) -> Option<T> {
    let left = SystemClock.now().until(by);
    tokio::time::timeout(left, call).await.ok()
}

/// The error of a call that failed, or that had no response in time (`None`).
fn store_error<E: ProvideErrorMetadata, R>(operation: &str, error: Option<SdkError<E, R>>) -> StoreError {
    match error {
        None => StoreError::Unavailable(format!("{operation}: no response by the deadline")),
        // A retry of an invalid call would fail again.
        Some(error) if error.code() == Some("ValidationException") => StoreError::Defect(describe(operation, &error)),
        Some(error) => StoreError::Unavailable(describe(operation, &error)),
    }
}

/// A description of a failed call for the log. It contains none of the SDK's messages, which may quote
/// the request.
fn describe<E: ProvideErrorMetadata, R>(operation: &str, error: &SdkError<E, R>) -> String {
    let what = match error {
        SdkError::TimeoutError(_) => "timed out",
        SdkError::DispatchFailure(failure) if failure.is_timeout() => "could not connect in time",
        SdkError::DispatchFailure(failure) if failure.is_io() => "the connection failed",
        SdkError::DispatchFailure(_) => "could not be sent: check the credentials, region and endpoint",
        SdkError::ResponseError(_) => "the response could not be read",
        SdkError::ServiceError(service) => service.err().code().unwrap_or("an error without a code"),
        _ => "could not be built",
    };
    format!("{operation}: {what}")
}
