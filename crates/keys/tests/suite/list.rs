//! `list`

use crate::shell::{AssertExt, Shell, command, hash, hint};
use assert_cmd::assert::OutputAssertExt;
use serde_json::{Value, json};
use test_support::local_aws;
use test_support::tables::{self, s};

#[tokio::test]
async fn an_empty_table_has_no_keys() {
    let shell = Shell::new().await;
    shell.run("list").success().stdout("").says(&["There are no keys."]);
    shell.run("list --json").success().stdout("[]\n");
}

#[tokio::test]
async fn the_list_shows_every_key_sorted_and_no_secret() {
    let shell = Shell::new().await;
    let web = shell.key("create --project beta --name web --rate-limit 0");
    let job = shell.key("create --project beta --name job --scope events:write --rate-limit 175");
    let old = shell.key("create --project acme --name web --mode test");
    shell.run("revoke --project acme --name web -y").success();

    let table = shell.run("list").success().printed();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["HINT", "NAME", "PROJECT", "STATUS", "SCOPES", "LIMIT", "CREATED", "REVOKED"]);
    assert_eq!(rows[1][..6], [&hint(&old), "web", "acme", "revoked", "all", "default"]);
    assert_eq!(rows[2][..6], [&hint(&job), "job", "beta", "active", "events:write", "175/s"]);
    assert_eq!(rows[3][..6], [&hint(&web), "web", "beta", "active", "all", "none"]);
    assert_eq!((rows.len(), rows[1].len(), rows[2][7]), (4, 8, "-"));

    let keys = shell.listed();
    let expected = json!({
        "hint": hint(&job), "name": "job", "project_id": "beta", "status": "active", "scopes": ["events:write"],
        "rate_limit": 175, "created_at": keys[1]["created_at"], "revoked_at": null, "fault": null,
    });
    assert_eq!(keys[1], expected);
    assert_eq!((&keys[0]["scopes"], &keys[0]["rate_limit"]), (&Value::Null, &Value::Null));
    assert!(keys[0]["revoked_at"].is_string());

    let acme = shell.run("list --project acme").success().printed();
    assert_eq!(acme.lines().count(), 2);
    let json = shell.run("list --json").success().printed();
    for key in [&web, &job, &old] {
        for output in [&table, &json] {
            assert!(output.contains(&hint(key)), "{output}");
            assert!(!output.contains(&key[8..44]) && !output.contains(&hash(key)), "{output}");
        }
    }
}

#[tokio::test]
async fn the_list_continues_after_the_first_page() {
    let shell = Shell::new().await;
    // DynamoDB ends a page after 1 MB.
    let padding = s(&"x".repeat(300_000));
    let names: Vec<String> = (0..8).map(|n| format!("name-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let key = format!("sk_live_{n:040}");
        shell.put_key(&key, "beta", &[("name", s(name)), ("padding", padding.clone())]).await;
    }
    let first_page = aws_sdk_dynamodb::Client::new(&shell.sdk).scan().table_name(&shell.table).send().await;
    assert!(first_page.expect("a page").last_evaluated_key().is_some(), "the items fit into one page");
    assert_eq!(shell.listed_members("name"), names);
    assert_eq!(shell.run("list --project beta").success().printed().lines().count(), 1 + names.len());
}

#[tokio::test]
async fn an_item_that_the_function_cannot_use_is_listed_with_a_warning() {
    let shell = Shell::new().await;
    let key = format!("sk_live_{:040}", 1);
    shell.put_key(&key, "beta", &[("rate_limit", s("fast")), ("name", s("\u{1b}[31mred"))]).await;
    let list = shell.run("list").success().says(&["warning: requests with sk_live_0001 fail: `rate_limit`"]);
    assert!(!list.printed().contains('\u{1b}'), "{list:?}");
    shell.run("revoke --hint sk_live_0001 --yes").success().says(&["Revoked"]);
}

#[tokio::test]
async fn a_table_without_api_keys_is_an_error() {
    let sdk = local_aws::sdk().await;
    tables::create_table(&sdk, "state", "pk").await;
    tables::put_item(&sdk, "state", [("pk".to_owned(), s("rate#acme#live"))].into()).await;
    let list = command("state", &local_aws::endpoint()).arg("list").assert();
    list.fails(1, &["table state does not contain API keys", "--table"]);
}
