//! `--types`: the JSON types of CSV columns.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The prefix of a column that is a property of the event.
pub const PROPERTIES_PREFIX: &str = "properties.";
/// The columns that every CSV file must have.
pub const REQUIRED_COLUMNS: [&str; 2] = ["external_user_id", "name"];
/// The optional column that is not a property.
pub const TIMESTAMP_COLUMN: &str = "timestamp";

/// A type other than string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// A JSON number with the same digits as the cell.
    Number,
    /// `true` or `false`.
    Boolean,
}

/// The types of the columns that are not strings, by property name.
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
            let (column, kind) = entry.split_once('=').ok_or_else(|| format!("`{entry}` is not COLUMN=TYPE"))?;
            let kind = match kind {
                "string" => None,
                "number" => Some(ColumnType::Number),
                "boolean" => Some(ColumnType::Boolean),
                _ => return Err(format!("`{kind}` is not one of string, number, boolean")),
            };
            let name = column.strip_prefix(PROPERTIES_PREFIX).unwrap_or(column);
            let is_fixed = REQUIRED_COLUMNS.contains(&name) || name == TIMESTAMP_COLUMN;
            if name.is_empty() || (name == column && is_fixed) {
                return Err(format!("`{column}` is always a string"));
            }
            if let Some(kind) = kind {
                types.insert(name.to_owned(), kind);
            }
        }
        Ok(Self(types))
    }

    /// The types by property name.
    pub fn by_property(&self) -> &BTreeMap<String, ColumnType> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_properties_can_have_a_type() {
        let types =
            ColumnTypes::parse("properties.age=number, vip=boolean,plan=string,properties.name=number").unwrap();
        let expected = [("age", ColumnType::Number), ("name", ColumnType::Number), ("vip", ColumnType::Boolean)];
        assert_eq!(types.by_property(), &expected.map(|(name, kind)| (name.to_owned(), kind)).into());
        for bad in ["name=number", "timestamp=string", "a", "a=date", "=number", "properties.=number"] {
            assert!(ColumnTypes::parse(bad).is_err(), "{bad}");
        }
    }
}
