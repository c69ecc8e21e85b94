//! [`KeyStore`] over `DynamoDB` (docs/contract.md, "API keys table").

use super::{answer_by, store_error};
use crate::auth::KeyStore;
use crate::clock::Timestamp;
use crate::store::StoreError;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::get_item::builders::GetItemFluentBuilder;
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

    /// A strongly consistent read. The result is cached for a minute, so an older state would let a
    /// revoked key work for longer.
    fn get(&self, hash: &KeyHash) -> GetItemFluentBuilder {
        let key = AttributeValue::S(hash.to_hex());
        self.client.get_item().table_name(&self.table).key("key_hash", key).consistent_read(true)
    }
}

impl KeyStore for ApiKeysTable {
    async fn find(&self, hash: &KeyHash, by: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
        let item = match answer_by(by, Box::pin(self.get(hash).send())).await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use aws_config::{BehaviorVersion, Region};
    use contract::api_key::ApiKey;

    #[test]
    fn keys_are_read_consistently() {
        let sdk = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
        let table = ApiKeysTable::new(&sdk.build(), "keys".to_owned());
        let key = ApiKey::parse("sk_live_0123456789abcdefghijklmnopqrstuvwxyzABCD").unwrap();
        assert_eq!(table.get(&key.hash()).get_consistent_read(), &Some(true));
    }
}
