//! Shows keys: as a table to people, as JSON to machines, and never what is secret of them.

use event_ingest::aws::key_admin::StoredKey;
use serde::Serialize;
use std::collections::BTreeSet;

const TITLES: [&str; 8] = ["HINT", "NAME", "PROJECT", "STATUS", "SCOPES", "LIMIT", "CREATED", "REVOKED"];

/// A table with a line of titles.
pub fn table(keys: &[StoredKey]) -> String {
    let rows: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(keys.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; TITLES.len()] = std::array::from_fn(width);
    let line = |row: &[String; TITLES.len()]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn row(key: &StoredKey) -> [String; TITLES.len()] {
    let known = |text: String| if key.fault.is_some() { "?".to_owned() } else { text };
    [
        shown(&key.hint),
        shown(&key.name),
        shown(&key.project),
        shown(&key.status),
        known(scopes(key.scopes.as_ref())),
        known(limit(key.rate_limit)),
        shown(&key.created_at),
        shown(key.revoked_at.as_deref().unwrap_or_default()),
    ]
}

/// The scopes in words.
pub fn scopes(scopes: Option<&BTreeSet<String>>) -> String {
    scopes.map_or_else(|| "all".to_owned(), |scopes| shown(&scopes.iter().cloned().collect::<Vec<_>>().join(",")))
}

/// The limit in words.
pub fn limit(limit: Option<u32>) -> String {
    match limit {
        None => "default".to_owned(),
        Some(0) => "none".to_owned(),
        Some(limit) => format!("{limit}/s"),
    }
}

/// Text of the table's, in which a control character could play tricks with the terminal.
pub fn shown(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.replace(char::is_control, "\u{fffd}") }
}

/// A JSON array of objects with the attributes of contract section 6, but for the hash.
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
    // Strings and numbers always make JSON.
    serde_json::to_string_pretty(&keys).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [StoredKey; 2] {
        let web = StoredKey {
            hash: "5e884898da28047151d0e56f8dc62927".to_owned(),
            hint: "sk_live_wxyz".to_owned(),
            name: "wéb".to_owned(),
            project: "acme".to_owned(),
            status: "active".to_owned(),
            created_at: "2026-11-23T09:00:00Z".to_owned(),
            ..StoredKey::default()
        };
        let job = StoredKey {
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
        };
        [web, job]
    }

    #[test]
    fn columns_line_up_and_nothing_reaches_the_terminal_raw() {
        let expected = "\
HINT          NAME          PROJECT  STATUS   SCOPES                    LIMIT    CREATED               REVOKED
sk_live_wxyz  wéb           acme     active   all                       default  2026-11-23T09:00:00Z  -
sk_test_1234  nightly\u{fffd}[31m  -        revoked  events:read,events:write  50/s     2026-11-22T09:00:00Z  2026-11-23T10:00:00Z
";
        assert_eq!(table(&keys()), expected);
    }

    #[test]
    fn a_limit_is_the_default_none_or_so_many() {
        assert_eq!([None, Some(0), Some(50)].map(limit), ["default", "none", "50/s"]);
    }

    #[test]
    fn what_cannot_be_read_is_not_shown_as_unlimited() {
        let key = StoredKey { fault: Some("no usable `rate_limit`".to_owned()), ..StoredKey::default() };
        assert_eq!(row(&key), ["-", "-", "-", "-", "?", "?", "-", "-"]);
    }

    #[test]
    fn json_has_the_contracts_names_and_no_hash() {
        let keys = keys();
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
