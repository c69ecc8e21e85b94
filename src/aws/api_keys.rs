//! [`KeyStore`] over `DynamoDB` (contract section 6).

use super::{answer_by, no_answer};
use crate::auth::{KeyHash, KeyRecord, KeyStore, ProjectId};
use crate::clock::Timestamp;
use crate::idempotency::StoreError;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;

pub(super) type Item = HashMap<String, AttributeValue>;

/// The API keys table.
pub struct ApiKeysTable {
    client: Client,
    table: String,
}

impl ApiKeysTable {
    /// The table named `table`.
    #[must_use]
    pub fn new(sdk: &SdkConfig, table: String) -> Self {
        Self { client: super::dynamodb(sdk), table }
    }
}

impl KeyStore for ApiKeysTable {
    async fn find(&self, hash: &KeyHash, by: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
        let key = AttributeValue::S(hash.to_hex());
        let call = self.client.get_item().table_name(&self.table).key("key_hash", key);
        match answer_by(by, Box::pin(call.send())).await {
            Some(Ok(found)) => found.item.map(|item| key_record(&item)).transpose(),
            failed => Err(no_answer("GetItem on the API keys table", failed.and_then(Result::err))),
        }
    }
}

/// Reads an item strictly: what is not understood must not let anybody in.
pub(super) fn key_record(item: &Item) -> Result<KeyRecord, StoreError> {
    let unusable = |name| StoreError::Defect(format!("a key in the API keys table has no usable `{name}`"));
    let text = |name| item.get(name).and_then(|value| value.as_s().ok()).ok_or_else(|| unusable(name));
    let scopes = match item.get("scopes") {
        None => None,
        Some(value) => Some(value.as_ss().map_err(|_| unusable("scopes"))?.iter().cloned().collect()),
    };
    let rate_limit = match item.get("rate_limit") {
        None => None,
        Some(value) => {
            let number = value.as_n().ok().and_then(|number| number.parse().ok());
            Some(number.ok_or_else(|| unusable("rate_limit"))?)
        }
    };
    Ok(KeyRecord {
        project: ProjectId::parse(text("project_id")?).ok_or_else(|| unusable("project_id"))?,
        hint: item.get("hint").and_then(|value| value.as_s().ok()).cloned().unwrap_or_default(),
        active: text("status")? == "active",
        scopes,
        rate_limit,
    })
}
