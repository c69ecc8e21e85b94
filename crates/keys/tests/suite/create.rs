//! `create`

use crate::shell::{AssertExt, Shell, hash, hint};
use assert_cmd::assert::OutputAssertExt;
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::HashMap;
use std::fs::File;
use test_support::tables::{Item, s};

#[tokio::test]
async fn the_stored_item_has_the_attributes_of_the_contract_and_not_the_key() {
    let shell = Shell::new().await;
    let plain = shell.key("create --project beta --name web");
    let full = shell.key("create --project beta --name job --scope events:write --scope events:write --rate-limit 0");
    let plain_item = shell.item(&plain).await;
    let created_at = plain_item["created_at"].clone();
    assert!(created_at.as_s().is_ok_and(|time| time.len() == 20 && time.ends_with('Z')), "{created_at:?}");
    let expected = |name: &str, key: &str, created_at: &AttributeValue| -> Item {
        HashMap::from([
            ("key_hash".to_owned(), s(&hash(key))),
            ("project_id".to_owned(), s("beta")),
            ("name".to_owned(), s(name)),
            ("hint".to_owned(), s(&hint(key))),
            ("status".to_owned(), s("active")),
            ("created_at".to_owned(), created_at.clone()),
        ])
    };
    assert_eq!(plain_item, expected("web", &plain, &created_at));
    let full_item = shell.item(&full).await;
    let mut expected = expected("job", &full, &full_item["created_at"]);
    expected.insert("scopes".to_owned(), AttributeValue::Ss(vec!["events:write".to_owned()]));
    expected.insert("rate_limit".to_owned(), AttributeValue::N("0".to_owned()));
    assert_eq!(full_item, expected);
}

#[tokio::test]
async fn active_keys_of_a_project_have_different_names() {
    let shell = Shell::new().await;
    let first = hint(&shell.key("create --project beta --name web"));
    let rotate = format!("event-ingest-keys rotate --hint {first} --table {}", shell.table);
    shell.run("create --project beta --name web").fails(3, &["beta", "web", &rotate]);
    shell.run("create --project beta --name web --mode test").fails(3, &[&first]);
    shell.key("create --project gamma --name web");
    shell.run("revoke --project beta --name web --yes").success().says(&[&first]);
    shell.key("create --project beta --name web");
    assert_eq!(shell.items().await.len(), 3);
}

#[tokio::test]
async fn invalid_arguments_are_usage_errors_and_store_nothing() {
    let shell = Shell::new().await;
    let long = format!("create --project beta --name {}", "n".repeat(65));
    for (line, text) in [
        ("create --project Beta --name web", "a-z 0-9 _ -"),
        ("create --project beta", "--name"),
        (&long, "1 to 64 characters"),
        ("create --project beta --name web --rate-limit 99", "must be 0 (no limit) or at least 100"),
        ("create --project beta --name web --rate-limit many", "whole number"),
        ("create --project beta --name web --scope events:wriet", "events:write"),
        ("create --project beta --name web --mode prod", "live, test"),
        ("revoke --name web --yes", "--project"),
        ("revoke --yes", "--hint"),
        ("rotate --project beta", "--name"),
        ("remove --hint x", "revoke"),
    ] {
        shell.run(line).fails(2, &[text]);
    }
    shell.command("create --project beta --name").arg("").assert().fails(2, &["1 to 64 characters"]);
    assert_eq!(shell.items().await.len(), 0);
}

#[tokio::test]
async fn a_key_that_cannot_be_printed_is_revoked() {
    let shell = Shell::new().await;
    let full = File::options().write(true).open("/dev/full").expect("a device that is always full");
    let create = shell.command("create --project beta --name web").stdout(full).assert();
    create.fails(1, &["cannot write to standard output", &shell.listed_members("hint")[0], "was revoked"]);
    assert_eq!(shell.listed_members("status"), ["revoked"]);
}
