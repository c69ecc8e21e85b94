//! A stub of `DynamoDB`: tables with one partition key; `PutItem`, `GetItem`, `UpdateItem` and
//! `DeleteItem` with conditions; and the billed units.

use super::expression::{Bindings, Item, holds, update};
use super::{Reply, Usage};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Tables by name; items by the text of their key.
#[derive(Default)]
pub struct Tables {
    keys: HashMap<String, &'static str>,
    items: HashMap<(String, String), Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Call {
    table_name: String,
    item: Option<Item>,
    key: Option<Item>,
    condition_expression: Option<String>,
    update_expression: Option<String>,
    expression_attribute_names: Option<Map<String, Value>>,
    expression_attribute_values: Option<Item>,
    return_values: Option<String>,
    return_values_on_condition_check_failure: Option<String>,
    #[serde(default)]
    consistent_read: bool,
}

impl Tables {
    /// Creates an empty table with the partition key `key`.
    pub fn create(&mut self, table: &str, key: &'static str) {
        self.keys.insert(table.to_owned(), key);
    }

    /// Puts an item without billing it.
    pub fn seed(&mut self, table: &str, item: Item) -> Result<()> {
        let key = self.key_of(table, &item)?;
        self.items.insert((table.to_owned(), key), item);
        Ok(())
    }

    fn key_of(&self, table: &str, attributes: &Item) -> Result<String> {
        let name = self.keys.get(table).with_context(|| format!("there is no table {table}"))?;
        let value = attributes.get(*name).and_then(|value| value["S"].as_str());
        value.map(ToOwned::to_owned).with_context(|| format!("no key {name} for the table {table}"))
    }

    /// Executes one call.
    pub fn call(&mut self, operation: &str, body: &[u8], usage: &mut Usage) -> Result<Reply> {
        let call: Call = serde_json::from_slice(body).with_context(|| format!("cannot read a {operation}"))?;
        let attributes = call.item.as_ref().or(call.key.as_ref()).context("neither Item nor Key")?;
        let place = (call.table_name.clone(), self.key_of(&call.table_name, attributes)?);
        let bindings = Bindings {
            names: call.expression_attribute_names.as_ref(),
            values: call.expression_attribute_values.as_ref(),
        };
        let old = self.items.get(&place);
        if operation == "GetItem" {
            usage.dynamodb_reads += 1;
            // One unit per 4 KB, or half a unit for an eventually consistent read.
            let blocks = old.map_or(1, size).div_ceil(4096).max(1) as f64;
            usage.read_units += if call.consistent_read { blocks } else { blocks / 2.0 };
            return Ok(Reply::ok(&old.map_or(json!({}), |item| json!({ "Item": item }))));
        }

        usage.dynamodb_writes += 1;
        let nothing = Item::new();
        if let Some(condition) = &call.condition_expression
            && !holds(condition, old.unwrap_or(&nothing), bindings)?
        {
            // A failed condition is billed by the size of the existing item.
            usage.write_units += write_units(old.map_or(0, size));
            let mut error = json!({
                "__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException",
                "message": "The conditional request failed",
            });
            if let (Some("ALL_OLD"), Some(item)) = (call.return_values_on_condition_check_failure.as_deref(), old) {
                error["Item"] = Value::Object(item.clone());
            }
            return Ok(Reply::error(&error));
        }
        let old_size = old.map_or(0, size);
        let (new, changed) = match operation {
            "PutItem" => (call.item, Vec::new()),
            "DeleteItem" => (None, Vec::new()),
            "UpdateItem" => {
                let mut item = old.cloned().or(call.key).unwrap_or_default();
                let expression = call.update_expression.as_deref().context("no UpdateExpression")?;
                let changed = update(expression, &mut item, bindings)?;
                (Some(item), changed)
            }
            other => bail!("the stub does not support {other}"),
        };
        usage.write_units += write_units(old_size.max(new.as_ref().map_or(0, size)));
        let returned = match call.return_values.as_deref() {
            None | Some("NONE") => None,
            Some("ALL_OLD") => old.cloned(),
            Some("ALL_NEW") => new.clone(),
            Some("UPDATED_NEW") => {
                new.clone().map(|item| item.into_iter().filter(|(name, _)| changed.contains(name)).collect())
            }
            Some(other) => bail!("the stub does not support ReturnValues {other}"),
        };
        match new {
            Some(item) => self.items.insert(place, item),
            None => self.items.remove(&place),
        };
        Ok(Reply::ok(&returned.map_or(json!({}), |item| json!({ "Attributes": item }))))
    }
}

/// One unit per started 1 KB.
fn write_units(bytes: usize) -> f64 {
    bytes.div_ceil(1024).max(1) as f64
}

/// The approximate size of an item as `DynamoDB` counts it: names and values.
fn size(item: &Item) -> usize {
    item.iter().map(|(name, value)| name.len() + value_size(value)).sum()
}

fn value_size(value: &Value) -> usize {
    let Some((kind, value)) = value.as_object().and_then(|typed| typed.iter().next()) else { return 0 };
    match (kind.as_str(), value) {
        ("S", Value::String(text)) => text.len(),
        // Two digits per byte, and one more byte.
        ("N", Value::String(digits)) => digits.len().div_ceil(2) + 1,
        ("B", Value::String(base64)) => base64.len() / 4 * 3,
        ("M", Value::Object(map)) => 3 + size(map),
        ("L", Value::Array(list)) => 3 + list.iter().map(value_size).sum::<usize>(),
        (_, Value::Array(set)) => set.iter().filter_map(Value::as_str).map(str::len).sum(),
        _ => 1,
    }
}
