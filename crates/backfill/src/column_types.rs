//! `--types`: the JSON types of properties.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The prefix of a column that is a property of the event.
pub const PROPERTIES_PREFIX: &str = "properties.";
/// The members that every event must have.
pub const REQUIRED_MEMBERS: [&str; 2] = ["external_user_id", "name"];
/// The optional member with the event's time.
pub const TIMESTAMP: &str = "timestamp";
/// The optional member with the event's properties.
pub const PROPERTIES: &str = "properties";

/// The type of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// A JSON string.
    String,
    /// A JSON number with the same digits as the cell.
    Number,
    /// `true` or `false`.
    Boolean,
    /// JSON text, such as an object or an array.
    Json,
}

/// The types of properties, by name. Without one, cells of CSV are strings, and JSON values keep their type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ColumnTypes(BTreeMap<String, ColumnType>);

impl ColumnTypes {
    /// Parses a list such as `properties.age=number,vip=boolean`. The prefix `properties.` is optional.
    ///
    /// # Errors
    /// The message says which entry is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut types = BTreeMap::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (column, kind) = entry.rsplit_once('=').ok_or_else(|| format!("`{entry}` is not COLUMN=TYPE"))?;
            let kind = match kind {
                "string" => ColumnType::String,
                "number" => ColumnType::Number,
                "boolean" => ColumnType::Boolean,
                "json" => ColumnType::Json,
                _ => return Err(format!("`{kind}` is not one of string, number, boolean, json")),
            };
            let name = column.strip_prefix(PROPERTIES_PREFIX).unwrap_or(column);
            let is_fixed = REQUIRED_MEMBERS.contains(&name) || name == TIMESTAMP || name == PROPERTIES;
            if name.is_empty() || (name == column && is_fixed) {
                return Err(format!("`{column}` is not a property"));
            }
            types.insert(name.to_owned(), kind);
        }
        Ok(Self(types))
    }

    /// The type of the property with this name, if one was given.
    pub fn of(&self, property: &str) -> Option<ColumnType> {
        self.0.get(property).copied()
    }

    /// The names of the properties that have a type.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_properties_can_have_a_type() {
        let types = ColumnTypes::parse("properties.age=number, vip=boolean,plan=string,properties.name=json").unwrap();
        let found = ["age", "vip", "plan", "name", "x"].map(|name| types.of(name));
        let expected = [ColumnType::Number, ColumnType::Boolean, ColumnType::String, ColumnType::Json];
        assert_eq!((&found[..4], found[4]), (&expected.map(Some)[..], None));
        for bad in
            ["name=number", "timestamp=string", "properties=json", "a", "a=date", "=number", "properties.=number"]
        {
            assert!(ColumnTypes::parse(bad).is_err(), "{bad}");
        }
    }
}
