//! [`KeyStore`] over `DynamoDB` (docs/contract.md, "API keys table").

use super::{answer_by, store_error};
use crate::auth::KeyStore;
use crate::clock::Timestamp;
use crate::store::StoreError;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use contract::api_key::{Attribute, KeyHash, KeyRecord};

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
        let call = self.client.get_item().table_name(&self.table).key("key_hash", key).consistent_read(true);
        let item = match answer_by(by, Box::pin(call.send())).await {
            Some(Ok(found)) => found.item,
            failed => return Err(store_error("GetItem on the API keys table", failed.and_then(Result::err))),
        };
        let record = item.map(|item| KeyRecord::read(|name| item.get(name).map(attribute))).transpose();
        record.map_err(|unusable| StoreError::Defect(unusable.to_string()))
    }
}

fn attribute(value: &AttributeValue) -> Attribute<'_> {
    match value {
        AttributeValue::S(text) => Attribute::String(text),
        AttributeValue::N(number) => Attribute::Number(number),
        AttributeValue::Ss(texts) => Attribute::StringSet(texts),
        _ => Attribute::Other,
    }
}
