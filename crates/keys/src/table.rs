//! The API keys table in DynamoDB: create, list, limit and revoke keys.

use crate::key::{NewKey, StoredKey};
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::ProvideCredentials;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpConnector, http_client_fn};
use contract::api_key::KeyHash;
use contract::tenant::ProjectId;
use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

/// Long enough for a distant region over a slow network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Includes all retries.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Outside of AWS, the search for credentials ends with requests to an address that does not answer.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The key is revoked, by this call or by an earlier one.
    Revoked,
    /// The key is no longer in the table.
    NotFound,
}

/// The result of a change of a key's rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitChange {
    /// The key as it is stored now.
    Changed(Box<StoredKey>),
    /// The key is revoked, and was not changed.
    Revoked,
    /// The key is no longer in the table.
    NotFound,
}

/// Why a call to AWS failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("no AWS region: set AWS_REGION, or set AWS_PROFILE to a profile that has a region")]
    NoRegion,
    /// No credentials were found, or AWS rejected them.
    #[error(
        "no usable AWS credentials ({0}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in \
         again"
    )]
    Credentials(String),
    #[error(
        "permission denied ({0}): this program needs dynamodb:Scan, dynamodb:PutItem and dynamodb:UpdateItem on the \
         table"
    )]
    Forbidden(String),
    #[error(
        "there is no table {0} in this account and region: check --table or API_KEYS_TABLE, AWS_REGION and AWS_PROFILE"
    )]
    NoTable(String),
    #[error("table {0} does not contain API keys: check --table or API_KEYS_TABLE")]
    NotApiKeys(String),
    /// There was no answer in time. A write may have been applied.
    #[error("no answer from {0}: check the network, AWS_REGION and AWS_ENDPOINT_URL, then try again")]
    NoAnswer(String),
    #[error("DynamoDB returned an error: {0}")]
    Other(String),
}

/// A client for one API keys table.
pub struct ApiKeysTable {
    client: Client,
    name: String,
    /// The endpoint or region, for error messages.
    location: String,
}

impl ApiKeysTable {
    /// Connects to the table `name`, with region, credentials and endpoint from the usual AWS
    /// settings.
    ///
    /// Region and credentials are checked here, because the SDK reports their absence late and with
    /// little detail.
    pub async fn connect(name: String) -> Result<Self, TableError> {
        let sdk = sdk_config().await;
        let region = sdk.region().filter(|region| !region.as_ref().is_empty()).ok_or(TableError::NoRegion)?;
        let location = sdk.endpoint_url().map_or_else(|| format!("DynamoDB in {region}"), str::to_owned);
        let provider = sdk.credentials_provider().ok_or_else(|| TableError::Credentials("none configured".into()))?;
        match tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(TableError::Credentials(with_causes(&error))),
            Err(_) => return Err(TableError::Credentials("the search for them timed out".into())),
        }
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT)
            .build();
        let config = aws_sdk_dynamodb::config::Builder::from(&sdk)
            .retry_config(RetryConfig::standard())
            .timeout_config(timeouts)
            .build();
        Ok(Self { client: Client::from_conf(config), name, location })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores a new key.
    pub async fn create(&self, hash: &KeyHash, key: NewKey) -> Result<(), TableError> {
        let item = key.into_item(hash);
        let put = self
            .client
            .put_item()
            .table_name(&self.name)
            .set_item(Some(item.clone()))
            .condition_expression("attribute_not_exists(key_hash)")
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = put.send().await else { return Ok(()) };
        match error.as_service_error() {
            // An earlier attempt of this call stored the item, but its response was lost.
            Some(PutItemError::ConditionalCheckFailedException(existing))
                if existing.item().and_then(StoredKey::from_item) == StoredKey::from_item(&item) =>
            {
                Ok(())
            }
            _ => Err(self.error(&error)),
        }
    }

    /// Returns all keys, or those of one project, sorted by project, name and age.
    pub async fn list(&self, project: Option<&ProjectId>) -> Result<Vec<StoredKey>, TableError> {
        let mut scan = self.client.scan().table_name(&self.name).consistent_read(true);
        if let Some(project) = project {
            let project = AttributeValue::S(project.as_str().to_owned());
            scan = scan.filter_expression("project_id = :project").expression_attribute_values(":project", project);
        }
        let mut items = scan.into_paginator().items().send();
        let mut keys = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| self.error(&error))?;
            keys.push(StoredKey::from_item(&item).ok_or_else(|| TableError::NotApiKeys(self.name.clone()))?);
        }
        keys.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        Ok(keys)
    }

    /// Revokes the key stored under `hash`. If the key is already revoked, the time of its first
    /// revocation is kept.
    pub async fn revoke(&self, hash: &str, revoked_at: &str) -> Result<Revocation, TableError> {
        let update = self
            .client
            .update_item()
            .table_name(&self.name)
            .key("key_hash", AttributeValue::S(hash.to_owned()))
            .update_expression("SET #status = :revoked, revoked_at = :at")
            // Without `attribute_exists`, the update would create an item for a deleted key.
            .condition_expression("attribute_exists(key_hash) AND #status <> :revoked")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":revoked", AttributeValue::S("revoked".to_owned()))
            .expression_attribute_values(":at", AttributeValue::S(revoked_at.to_owned()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = update.send().await else { return Ok(Revocation::Revoked) };
        match error.as_service_error() {
            Some(UpdateItemError::ConditionalCheckFailedException(existing)) if existing.item().is_some() => {
                Ok(Revocation::Revoked)
            }
            Some(UpdateItemError::ConditionalCheckFailedException(_)) => Ok(Revocation::NotFound),
            _ => Err(self.error(&error)),
        }
    }

    /// Sets the rate limit of the key stored under `hash`, in events per second. `None` removes the
    /// attribute, so the function's default limit applies.
    pub async fn set_rate_limit(&self, hash: &str, limit: Option<u32>) -> Result<LimitChange, TableError> {
        let update = self
            .client
            .update_item()
            .table_name(&self.name)
            .key("key_hash", AttributeValue::S(hash.to_owned()))
            // Without `attribute_exists`, the update would create an item for a deleted key.
            .condition_expression("attribute_exists(key_hash) AND #status <> :revoked")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":revoked", AttributeValue::S("revoked".to_owned()))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let update = match limit {
            Some(limit) => update
                .update_expression("SET rate_limit = :limit")
                .expression_attribute_values(":limit", AttributeValue::N(limit.to_string())),
            None => update.update_expression("REMOVE rate_limit"),
        };
        match update.send().await {
            Ok(updated) => updated
                .attributes()
                .and_then(StoredKey::from_item)
                .map(|key| LimitChange::Changed(Box::new(key)))
                .ok_or_else(|| TableError::NotApiKeys(self.name.clone())),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(existing)) => {
                    Ok(if existing.item().is_some() { LimitChange::Revoked } else { LimitChange::NotFound })
                }
                _ => Err(self.error(&error)),
            },
        }
    }

    fn error<E: ProvideErrorMetadata + Error + 'static, R: Debug + Send + Sync + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> TableError {
        match error {
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
                TableError::NoAnswer(self.location.clone())
            }
            SdkError::ServiceError(service) => {
                let (code, message) = (service.err().code().unwrap_or("no code"), service.err().message());
                let details = format!("{code}: {}", message.unwrap_or("no message"));
                match code {
                    "ResourceNotFoundException" => TableError::NoTable(self.name.clone()),
                    "AccessDeniedException" => TableError::Forbidden(details),
                    "ExpiredTokenException"
                    | "IncompleteSignatureException"
                    | "InvalidSignatureException"
                    | "MissingAuthenticationTokenException"
                    | "UnrecognizedClientException" => TableError::Credentials(details),
                    _ => TableError::Other(details),
                }
            }
            _ => TableError::Other(with_causes(error)),
        }
    }
}

/// Loads region, credentials and endpoint from the usual AWS settings.
async fn sdk_config() -> SdkConfig {
    // The SDK's own builder ignores proxies.
    let connector = Connector::builder()
        .proxy_config(ProxyConfig::from_env())
        .connector_settings(HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build();
    let connector = SharedHttpConnector::new(connector);
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        // This protection is for streams. All calls here are short and have a timeout.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .load()
        .await
}

/// Formats an error and its causes on one line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
