//! Formats keys for people (a table) and programs (JSON). Neither contains the key or its hash.

use crate::key::StoredKey;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use std::collections::BTreeSet;

const TITLES: [&str; 8] = ["HINT", "NAME", "PROJECT", "STATUS", "SCOPES", "LIMIT", "CREATED", "REVOKED"];

/// A table with a header line.
pub fn table(keys: &[StoredKey]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(TITLES).add_rows(keys.iter().map(row));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

fn row(key: &StoredKey) -> [String; TITLES.len()] {
    let if_known = |text: String| if key.fault.is_some() { "?".to_owned() } else { text };
    [
        printable(&key.hint),
        printable(&key.name),
        printable(&key.project),
        printable(&key.status),
        if_known(scopes(key.scopes.as_ref())),
        if_known(limit(key.rate_limit)),
        printable(&key.created_at),
        printable(key.revoked_at.as_deref().unwrap_or_default()),
    ]
}

/// The scopes, or `all`.
pub fn scopes(scopes: Option<&BTreeSet<String>>) -> String {
    scopes.map_or_else(|| "all".to_owned(), |scopes| printable(&scopes.iter().cloned().collect::<Vec<_>>().join(",")))
}

/// The rate limit, `default` or `none`.
pub fn limit(limit: Option<u32>) -> String {
    match limit {
        None => "default".to_owned(),
        Some(0) => "none".to_owned(),
        Some(limit) => format!("{limit}/s"),
    }
}

/// Text from the table without control characters, which a terminal could interpret. Empty text
/// becomes `-`.
pub fn printable(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.replace(char::is_control, "\u{fffd}") }
}

/// A JSON array of the keys. The members have the names of the table's attributes.
pub fn json(keys: &[StoredKey]) -> String {
    #[derive(Serialize)]
    struct Key<'a> {
        hint: &'a str,
        name: &'a str,
        project_id: &'a str,
        status: &'a str,
        scopes: Option<&'a BTreeSet<String>>,
        rate_limit: Option<u32>,
        created_at: &'a str,
        revoked_at: Option<&'a str>,
        fault: Option<&'a str>,
    }
    let keys: Vec<_> = keys
        .iter()
        .map(|key| Key {
            hint: &key.hint,
            name: &key.name,
            project_id: &key.project,
            status: &key.status,
            scopes: key.scopes.as_ref(),
            rate_limit: key.rate_limit,
            created_at: &key.created_at,
            revoked_at: key.revoked_at.as_deref(),
            fault: key.fault.as_deref(),
        })
        .collect();
    // Strings and numbers always serialize.
    serde_json::to_string_pretty(&keys).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> StoredKey {
        StoredKey {
            hash: "5e884898da28047151d0e56f8dc62927".to_owned(),
            hint: "sk_live_wxyz".to_owned(),
            name: "wéb".to_owned(),
            project: "acme".to_owned(),
            status: "active".to_owned(),
            created_at: "2026-11-23T09:00:00Z".to_owned(),
            ..StoredKey::default()
        }
    }

    fn job() -> StoredKey {
        StoredKey {
            hash: "03ac674216f3e15c761ee1a5e255f067".to_owned(),
            hint: "sk_test_1234".to_owned(),
            name: "nightly\u{1b}[31m".to_owned(),
            project: String::new(),
            status: "revoked".to_owned(),
            scopes: Some(["events:read".to_owned(), "events:write".to_owned()].into()),
            rate_limit: Some(50),
            created_at: "2026-11-22T09:00:00Z".to_owned(),
            revoked_at: Some("2026-11-23T10:00:00Z".to_owned()),
            ..StoredKey::default()
        }
    }

    #[test]
    fn columns_are_aligned_and_control_characters_replaced() {
        let expected = "\
HINT          NAME          PROJECT  STATUS   SCOPES                    LIMIT    CREATED               REVOKED
sk_live_wxyz  wéb           acme     active   all                       default  2026-11-23T09:00:00Z  -
sk_test_1234  nightly\u{fffd}[31m  -        revoked  events:read,events:write  50/s     2026-11-22T09:00:00Z  2026-11-23T10:00:00Z
";
        assert_eq!(table(&[web(), job()]), expected);
    }

    /// A terminal shows each of these characters two columns wide, except for the accent, which has
    /// no width.
    #[test]
    fn wide_characters_take_two_columns_and_combining_characters_none() {
        let named = |name: &str| StoredKey { name: name.to_owned(), ..web() };
        let expected = "\
HINT          NAME  PROJECT  STATUS  SCOPES  LIMIT    CREATED               REVOKED
sk_live_wxyz  名前  acme     active  all     default  2026-11-23T09:00:00Z  -
sk_live_wxyz  🔑    acme     active  all     default  2026-11-23T09:00:00Z  -
sk_live_wxyz  e\u{301}     acme     active  all     default  2026-11-23T09:00:00Z  -
";
        assert_eq!(table(&[named("名前"), named("🔑"), named("e\u{301}")]), expected);
    }

    #[test]
    fn unknown_scopes_and_limits_are_not_shown_as_unlimited() {
        let key = StoredKey { fault: Some("`rate_limit` is missing or invalid".to_owned()), ..StoredKey::default() };
        assert_eq!(row(&key), ["-", "-", "-", "-", "?", "?", "-", "-"]);
    }

    #[test]
    fn json_has_the_names_of_the_attributes_and_no_hash() {
        let keys = [web(), job()];
        let text = json(&keys);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "hint": "sk_live_wxyz", "name": "wéb", "project_id": "acme", "status": "active", "scopes": null,
            "rate_limit": null, "created_at": "2026-11-23T09:00:00Z", "revoked_at": null, "fault": null,
        });
        assert_eq!(value[0], expected);
        assert_eq!(value[1]["scopes"], serde_json::json!(["events:read", "events:write"]));
        assert_eq!(value[1]["rate_limit"], 50);
        assert!(keys.iter().all(|key| !text.contains(&key.hash) && !table(&keys).contains(&key.hash)));
        assert_eq!(json(&[]), "[]\n");
    }
}
