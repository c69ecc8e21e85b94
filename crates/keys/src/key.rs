//! Items of the API keys table (docs/contract.md, "API keys table").

use aws_sdk_dynamodb::types::AttributeValue;
use contract::api_key::{Attribute, KeyHash, KeyRecord, UnusableKey};
use contract::tenant::ProjectId;
use std::collections::{BTreeSet, HashMap};

pub type Item = HashMap<String, AttributeValue>;

/// A key to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    pub project: ProjectId,
    pub name: String,
    /// The key's first 8 and last 4 characters.
    pub hint: String,
    /// `None` means all scopes.
    pub scopes: Option<BTreeSet<String>>,
    /// Events per second. 0 means no limit; `None` means the function's configured default.
    pub rate_limit: Option<u32>,
    /// RFC 3339.
    pub created_at: String,
}

impl NewKey {
    pub fn into_item(self, hash: &KeyHash) -> Item {
        let strings = [
            ("key_hash", hash.to_hex()),
            ("project_id", self.project.as_str().to_owned()),
            ("name", self.name),
            ("hint", self.hint),
            ("status", "active".to_owned()),
            ("created_at", self.created_at),
        ];
        let strings = strings.map(|(name, text)| (name, AttributeValue::S(text)));
        let scopes = self.scopes.map(|scopes| ("scopes", AttributeValue::Ss(scopes.into_iter().collect())));
        let rate_limit = self.rate_limit.map(|limit| ("rate_limit", AttributeValue::N(limit.to_string())));
        let attributes = strings.into_iter().chain(scopes).chain(rate_limit);
        attributes.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A key read from the table. Text that the item lacks is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredKey {
    /// The partition key; never printed.
    pub hash: String,
    /// The key's first 8 and last 4 characters.
    pub hint: String,
    pub name: String,
    pub project: String,
    /// `active` or `revoked`, unless the item was edited by hand.
    pub status: String,
    /// `None` means all scopes.
    pub scopes: Option<BTreeSet<String>>,
    /// Events per second. 0 means no limit; `None` means the function's configured default.
    pub rate_limit: Option<u32>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub revoked_at: Option<String>,
    /// Why the function cannot use the item. If set, `scopes` and `rate_limit` are unknown.
    pub fault: Option<String>,
}

impl StoredKey {
    pub fn is_active(&self) -> bool {
        self.status == "active"
    }

    /// Whether the status is `revoked`. A key with any other status can still be revoked.
    pub fn is_revoked(&self) -> bool {
        self.status == "revoked"
    }

    /// The order in which keys are listed.
    pub fn sort_key(&self) -> impl Ord + use<'_> {
        (&self.project, &self.name, &self.created_at, &self.hash)
    }

    /// Reads an item leniently, because `list` must also show the items that the function cannot
    /// use. Returns `None` if the item does not belong to an API keys table.
    pub fn from_item(item: &Item) -> Option<Self> {
        let text = |name| item.get(name).and_then(|value| value.as_s().ok()).cloned();
        let (record, fault) = match KeyRecord::read(|name| item.get(name).map(attribute)) {
            Ok(record) => (Some(record), None),
            Err(UnusableKey(name)) => (None, Some(format!("`{name}` is missing or invalid"))),
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

fn attribute(value: &AttributeValue) -> Attribute<'_> {
    match value {
        AttributeValue::S(text) => Attribute::String(text),
        AttributeValue::N(number) => Attribute::Number(number),
        AttributeValue::Ss(texts) => Attribute::StringSet(texts),
        _ => Attribute::Other,
    }
}
