//! DynamoDB tables on the local AWS, and API keys in them.

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use contract::api_key::ApiKey;
use std::collections::HashMap;

/// An item of a table.
pub type Item = HashMap<String, AttributeValue>;

/// A string attribute.
pub fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

/// Creates a table whose partition key is the string attribute `partition_key`.
pub async fn create_table(sdk: &SdkConfig, name: &str, partition_key: &str) {
    let attribute = AttributeDefinition::builder().attribute_name(partition_key).attribute_type(ScalarAttributeType::S);
    let schema = KeySchemaElement::builder().attribute_name(partition_key).key_type(KeyType::Hash);
    Client::new(sdk)
        .create_table()
        .table_name(name)
        .attribute_definitions(attribute.build().expect("complete"))
        .key_schema(schema.build().expect("complete"))
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await
        .expect("the table is created");
}

/// Creates an API keys table named `name`.
pub async fn create_api_keys_table(sdk: &SdkConfig, name: &str) {
    create_table(sdk, name, "key_hash").await;
}

/// Stores an active API key of `project`. `attributes` adds to or replaces the usual attributes.
pub async fn put_api_key(
    sdk: &SdkConfig,
    table: &str,
    api_key: &str,
    project: &str,
    attributes: &[(&str, AttributeValue)],
) {
    let api_key = ApiKey::parse(api_key).expect("a well-formed key");
    let mut item: Item = [
        ("key_hash", s(&api_key.hash().to_hex())),
        ("project_id", s(project)),
        ("name", s("test")),
        ("hint", s(&api_key.hint())),
        ("status", s("active")),
        ("created_at", s("2026-11-23T09:00:00Z")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    item.extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    put_item(sdk, table, item).await;
}

/// Stores an item.
pub async fn put_item(sdk: &SdkConfig, table: &str, item: Item) {
    let put = Client::new(sdk).put_item().table_name(table).set_item(Some(item)).send().await;
    put.expect("the item is stored");
}

/// Returns the items of a table, which must fit into one page.
pub async fn items(sdk: &SdkConfig, table: &str) -> Vec<Item> {
    let scan = Client::new(sdk).scan().table_name(table).consistent_read(true).send().await;
    scan.expect("the table is scanned").items.unwrap_or_default()
}
