//! API keys and their records in the API keys table.

use crate::tenant::{Mode, ProjectId};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;

/// The scope that a key needs to send events.
pub const WRITE_SCOPE: &str = "events:write";

/// A well-formed API key. It implements neither `Debug` nor `Display`, because logs must not
/// contain it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ApiKey<'request> {
    text: &'request str,
    mode: Mode,
}

impl<'request> ApiKey<'request> {
    /// Parses the value of an `Authorization` header: `Bearer`, one space, a key.
    #[must_use]
    pub fn from_header(value: &'request str) -> Option<Self> {
        let (scheme, key) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Self::parse(key)
    }

    /// Parses `sk_live_` or `sk_test_` followed by 32 to 128 characters of `A-Z a-z 0-9 _ -`.
    #[must_use]
    pub fn parse(text: &'request str) -> Option<Self> {
        let secret_of = |mode: Mode| text.strip_prefix(mode.key_prefix()).map(|secret| (mode, secret));
        let (mode, secret) = secret_of(Mode::Live).or_else(|| secret_of(Mode::Test))?;
        let in_alphabet = secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        ((32..=128).contains(&secret.len()) && in_alphabet).then_some(Self { text, mode })
    }

    /// Live or test.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The hash under which the table stores the key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.text).into())
    }

    /// The part of the key that people may see: its first 8 and last 4 characters.
    #[must_use]
    pub fn hint(&self) -> String {
        // A well-formed key is ASCII and longer than 12 characters.
        format!("{}{}", &self.text[..8], &self.text[self.text.len() - 4..])
    }
}

/// SHA-256 of an API key, prefix included.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The value of the table's `key_hash` attribute: lowercase hex.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// An API key as the table stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The project that the key belongs to.
    pub project: ProjectId,
    /// The key's first 8 and last 4 characters.
    pub hint: String,
    /// Whether `status` is `active`; any other status disables the key.
    pub active: bool,
    /// The key's scopes; `None` means all.
    pub scopes: Option<BTreeSet<String>>,
    /// The key's own limit in events per second. 0 means no limit; `None` means the configured
    /// default.
    pub rate_limit: Option<u32>,
}

/// The value of an item's attribute, independent of the DynamoDB client that read it.
#[derive(Clone, Copy, Debug)]
pub enum Attribute<'item> {
    /// `S`
    String(&'item str),
    /// `N`
    Number(&'item str),
    /// `SS`
    StringSet(&'item [String]),
    /// Any other type.
    Other,
}

impl KeyRecord {
    /// Reads an item of the API keys table strictly: an attribute of the wrong type or with an
    /// unusable value is an error, so that it can never grant access. The exception is `hint`, which
    /// is only for people.
    ///
    /// # Errors
    /// If an attribute is missing or unusable. The error names the attribute.
    pub fn read<'item>(attribute: impl Fn(&str) -> Option<Attribute<'item>>) -> Result<Self, UnusableKey> {
        let string = |name| match attribute(name) {
            Some(Attribute::String(text)) => Ok(text),
            _ => Err(UnusableKey(name)),
        };
        let scopes = match attribute("scopes") {
            None => None,
            Some(Attribute::StringSet(scopes)) => Some(scopes.iter().cloned().collect()),
            Some(_) => return Err(UnusableKey("scopes")),
        };
        let rate_limit = match attribute("rate_limit") {
            None => None,
            Some(Attribute::Number(number)) => Some(number.parse().map_err(|_| UnusableKey("rate_limit"))?),
            Some(_) => return Err(UnusableKey("rate_limit")),
        };
        Ok(Self {
            project: ProjectId::parse(string("project_id")?).ok_or(UnusableKey("project_id"))?,
            hint: string("hint").unwrap_or_default().to_owned(),
            active: string("status")? == "active",
            scopes,
            rate_limit,
        })
    }
}

/// The name of the attribute that makes an item of the API keys table unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnusableKey(pub &'static str);

impl fmt::Display for UnusableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key in the API keys table has no usable `{}`", self.0)
    }
}

impl std::error::Error for UnusableKey {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn an_unusable_attribute_is_an_error_that_names_it() {
        let good = HashMap::from([
            ("project_id", Attribute::String("acme")),
            ("hint", Attribute::String("sk_live_wxyz")),
            ("status", Attribute::String("active")),
            ("rate_limit", Attribute::Number("50")),
        ]);
        let read = |item: &HashMap<&str, Attribute<'static>>| KeyRecord::read(|name| item.get(name).copied());
        let record = read(&good).unwrap();
        assert_eq!((record.project.as_str(), record.active, record.rate_limit), ("acme", true, Some(50)));
        for (name, value) in [
            ("project_id", Attribute::String("Acme")),
            ("project_id", Attribute::Other),
            ("status", Attribute::Number("1")),
            ("scopes", Attribute::String("events:write")),
            ("rate_limit", Attribute::String("50")),
            ("rate_limit", Attribute::Number("-1")),
        ] {
            let mut item = good.clone();
            item.insert(name, value);
            assert_eq!(read(&item), Err(UnusableKey(name)), "{value:?}");
        }
        for missing in ["project_id", "status"] {
            let mut item = good.clone();
            item.remove(missing);
            assert_eq!(read(&item), Err(UnusableKey(missing)));
        }
        let mut revoked = good;
        revoked.insert("status", Attribute::String("revoked"));
        assert!(!read(&revoked).unwrap().active);
    }
}
