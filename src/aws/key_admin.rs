//! What an operator does to the API keys table (contract section 6): create, list, revoke.
//!
//! Only `event-ingest-keys` is built with this; the function has no code that writes the table.

use super::api_keys::{Item, key_record};
use crate::auth::{KeyHash, ProjectId};
use crate::idempotency::StoreError;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::ProvideCredentials;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// An operator may sit far from the region, on a bad line; still they want to know soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Outside of AWS the search for credentials ends by asking an address that nobody answers at.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

/// A key to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Whose key it is.
    pub project: ProjectId,
    /// What people call it.
    pub name: String,
    /// First 8 and last 4 characters.
    pub hint: String,
    /// What it may do; `None` is everything.
    pub scopes: Option<BTreeSet<String>>,
    /// Its own limit in events per second: 0 is none, absent leaves it to the configuration.
    pub rate_limit: Option<u32>,
    /// RFC 3339.
    pub created_at: String,
}

impl NewKey {
    /// The attributes of contract section 6, and no others.
    fn into_item(self, hash: &KeyHash) -> Item {
        let required = [
            ("key_hash", hash.to_hex()),
            ("project_id", self.project.as_str().to_owned()),
            ("name", self.name),
            ("hint", self.hint),
            ("status", "active".to_owned()),
            ("created_at", self.created_at),
        ];
        let required = required.map(|(name, text)| (name, AttributeValue::S(text)));
        let scopes = self.scopes.map(|scopes| ("scopes", AttributeValue::Ss(scopes.into_iter().collect())));
        let rate_limit = self.rate_limit.map(|limit| ("rate_limit", AttributeValue::N(limit.to_string())));
        let all = required.into_iter().chain(scopes).chain(rate_limit);
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A key as the table holds it. What the item lacks is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredKey {
    /// The partition key. Not for people.
    pub hash: String,
    /// First 8 and last 4 characters.
    pub hint: String,
    /// What people call it.
    pub name: String,
    /// Whose key it is.
    pub project: String,
    /// `active` or `revoked`.
    pub status: String,
    /// What it may do; `None` is everything.
    pub scopes: Option<BTreeSet<String>>,
    /// Its own limit in events per second: 0 is none, absent leaves it to the configuration.
    pub rate_limit: Option<u32>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub revoked_at: Option<String>,
    /// Why the function cannot use this item, if so; then scopes and limit are not known.
    pub fault: Option<String>,
}

impl StoredKey {
    /// Whether the key was revoked. Every other status may still be made `revoked`.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.status == "revoked"
    }

    fn order(&self) -> impl Ord + use<'_> {
        (&self.project, &self.name, &self.created_at, &self.hash)
    }

    /// Reads leniently: a list must show what the function refuses. `None` for an item that is
    /// not one of an API keys table.
    fn from_item(item: &Item) -> Option<Self> {
        let text = |name| item.get(name).and_then(|value| value.as_s().ok()).cloned();
        let (record, fault) = match key_record(item) {
            Ok(record) => (Some(record), None),
            Err(StoreError::Unavailable(why) | StoreError::Defect(why)) => (None, Some(why)),
        };
        Some(Self {
            hash: text("key_hash")?,
            hint: text("hint").unwrap_or_default(),
            name: text("name").unwrap_or_default(),
            project: text("project_id").unwrap_or_default(),
            status: text("status").unwrap_or_default(),
            scopes: record.as_ref().and_then(|record| record.scopes.clone()),
            rate_limit: record.as_ref().and_then(|record| record.rate_limit),
            created_at: text("created_at").unwrap_or_default(),
            revoked_at: text("revoked_at"),
            fault,
        })
    }
}

/// What a revocation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The key is revoked, by this call or one just before it.
    Revoked,
    /// The key is not in the table any more.
    Gone,
}

/// Why AWS did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// The environment names no region.
    NoRegion,
    /// No credentials were found, or they were refused.
    Credentials(String),
    /// The credentials are good, but not for this.
    Forbidden(String),
    /// There is no such table.
    NoTable(String),
    /// The table is there but is not one of API keys.
    NotApiKeys(String),
    /// Nothing answered at this place in time. A write may have been done all the same.
    Unreachable(String),
    /// Anything else that AWS said.
    Refused(String),
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegion => {
                f.write_str("no AWS region: set AWS_REGION, or a region in the profile AWS_PROFILE names")
            }
            Self::Credentials(why) => write!(
                f,
                "no usable AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log \
                 in again ({why})"
            ),
            Self::Forbidden(why) => write!(
                f,
                "not permitted: this needs dynamodb:Scan, dynamodb:PutItem and dynamodb:UpdateItem on the table ({why})"
            ),
            Self::NoTable(table) => write!(
                f,
                "there is no table {table} in this account and region: look at --table or API_KEYS_TABLE, AWS_REGION \
                 and AWS_PROFILE"
            ),
            Self::NotApiKeys(table) => {
                write!(f, "the table {table} is not one of API keys: look at --table or API_KEYS_TABLE")
            }
            Self::Unreachable(place) => write!(
                f,
                "no answer from {place}: look at the network, AWS_REGION and AWS_ENDPOINT_URL, then try again"
            ),
            Self::Refused(why) => write!(f, "DynamoDB refused: {why}"),
        }
    }
}

impl Error for AdminError {}

/// The API keys table in an operator's hands.
pub struct KeyAdmin {
    client: Client,
    table: String,
    /// Where the table is, for messages.
    place: String,
}

impl KeyAdmin {
    /// The table named `table`, with the region and credentials found beforehand: the SDK's own
    /// words for their lack come late and say little.
    ///
    /// # Errors
    /// Where there is no region or there are no credentials.
    pub async fn connect(sdk: &SdkConfig, table: String) -> Result<Self, AdminError> {
        let region = sdk.region().filter(|region| !region.as_ref().is_empty()).ok_or(AdminError::NoRegion)?;
        let place = sdk.endpoint_url().map_or_else(|| format!("DynamoDB in {region}"), str::to_owned);
        let provider = sdk.credentials_provider().ok_or_else(|| AdminError::Credentials("none configured".into()))?;
        match tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(AdminError::Credentials(causes(&error))),
            Err(_) => return Err(AdminError::Credentials("the search for them took too long".into())),
        }
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT)
            .build();
        let config = aws_sdk_dynamodb::config::Builder::from(sdk)
            .retry_config(RetryConfig::standard())
            .timeout_config(timeouts)
            .build();
        Ok(Self { client: Client::from_conf(config), table, place })
    }

    /// Stores a key that is not stored yet.
    ///
    /// # Errors
    /// Where AWS did not do it, or did not say that it did.
    pub async fn create(&self, hash: &KeyHash, key: NewKey) -> Result<(), AdminError> {
        let item = key.into_item(hash);
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item.clone()))
            .condition_expression("attribute_not_exists(key_hash)")
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = put.send().await else { return Ok(()) };
        match error.as_service_error() {
            // The SDK's second try met what its first had written.
            Some(PutItemError::ConditionalCheckFailedException(found))
                if found.item().and_then(StoredKey::from_item) == StoredKey::from_item(&item) =>
            {
                Ok(())
            }
            _ => Err(self.failure(&error)),
        }
    }

    /// Every key, or every key of a project, sorted by project, name and age.
    ///
    /// # Errors
    /// Where AWS did not answer, or the table is another one.
    pub async fn list(&self, project: Option<&ProjectId>) -> Result<Vec<StoredKey>, AdminError> {
        let mut scan = self.client.scan().table_name(&self.table).consistent_read(true);
        if let Some(project) = project {
            let project = AttributeValue::S(project.as_str().to_owned());
            scan = scan.filter_expression("project_id = :project").expression_attribute_values(":project", project);
        }
        let mut items = scan.into_paginator().items().send();
        let mut keys = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| self.failure(&error))?;
            keys.push(StoredKey::from_item(&item).ok_or_else(|| AdminError::NotApiKeys(self.table.clone()))?);
        }
        keys.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(keys)
    }

    /// Revokes the key stored under `hash`, once: the time of the first revocation stays.
    ///
    /// # Errors
    /// Where AWS did not do it, or did not say that it did.
    pub async fn revoke(&self, hash: &str, at: &str) -> Result<Revocation, AdminError> {
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("key_hash", AttributeValue::S(hash.to_owned()))
            .update_expression("SET #status = :revoked, revoked_at = :at")
            // An update alone would make an item of a key that was deleted meanwhile.
            .condition_expression("attribute_exists(key_hash) AND #status <> :revoked")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":revoked", AttributeValue::S("revoked".to_owned()))
            .expression_attribute_values(":at", AttributeValue::S(at.to_owned()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = update.send().await else { return Ok(Revocation::Revoked) };
        match error.as_service_error() {
            // Revoked by the SDK's first try, or by somebody else.
            Some(UpdateItemError::ConditionalCheckFailedException(found)) if found.item().is_some() => {
                Ok(Revocation::Revoked)
            }
            Some(UpdateItemError::ConditionalCheckFailedException(_)) => Ok(Revocation::Gone),
            _ => Err(self.failure(&error)),
        }
    }

    fn failure<E: ProvideErrorMetadata + Error + 'static, R: fmt::Debug + Send + Sync + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> AdminError {
        match error {
            SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => {
                AdminError::Unreachable(self.place.clone())
            }
            SdkError::ServiceError(service) => {
                let (code, message) = (service.err().code().unwrap_or("no code"), service.err().message());
                let said = format!("{code}: {}", message.unwrap_or("no message"));
                match code {
                    "ResourceNotFoundException" => AdminError::NoTable(self.table.clone()),
                    "AccessDeniedException" => AdminError::Forbidden(said),
                    "ExpiredTokenException"
                    | "IncompleteSignatureException"
                    | "InvalidSignatureException"
                    | "MissingAuthenticationTokenException"
                    | "UnrecognizedClientException" => AdminError::Credentials(said),
                    _ => AdminError::Refused(said),
                }
            }
            _ => AdminError::Refused(causes(error)),
        }
    }
}

/// An error and what lies behind it, on one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
