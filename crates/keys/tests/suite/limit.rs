//! `limit`, which changes the rate limit of a key.

use crate::scripted_dynamodb::scripted_dynamodb;
use crate::shell::{AssertExt, Shell, command, hint};
use assert_cmd::assert::OutputAssertExt;
use aws_sdk_dynamodb::types::AttributeValue;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};
use test_support::tables::{Item, s};

fn with_limit(item: &Item, limit: Option<&str>) -> Item {
    let mut item = item.clone();
    item.remove("rate_limit");
    item.extend(limit.map(|limit| ("rate_limit".to_owned(), AttributeValue::N(limit.to_owned()))));
    item
}

#[tokio::test]
async fn a_limit_is_set_changed_and_removed_and_nothing_else_is() {
    let shell = Shell::new().await;
    let key = shell.key("create --project beta --name web --scope events:write");
    let bystander = shell.key("create --project beta --name job --rate-limit 300");
    let (created, untouched) = (shell.item(&key).await, shell.item(&bystander).await);
    let limit = format!("limit --hint {} --yes --rate-limit", hint(&key));
    for (limit_to, stored, from_to) in [
        ("200", Some("200"), "from default to 200/s"),
        ("100", Some("100"), "from 200/s to 100/s"),
        ("0", Some("0"), "from 100/s to none"),
        ("default", None, "from none to default"),
    ] {
        let run = shell.run(&format!("{limit} {limit_to}")).success().stdout("");
        run.says(&[&hint(&key), "web of beta", from_to, "within 60 seconds"]);
        assert_eq!(shell.item(&key).await, with_limit(&created, stored));
    }
    shell.run("limit --project beta --name web --rate-limit 500 -y").success();
    assert_eq!(shell.item(&key).await, with_limit(&created, Some("500")));
    // An equal limit needs no confirmation.
    shell.run("limit --project beta --name web --rate-limit 500").success().says(&["already has the limit 500/s"]);
    assert_eq!(shell.item(&bystander).await, untouched);
}

#[tokio::test]
async fn a_change_needs_a_confirmation() {
    let shell = Shell::new().await;
    let key = shell.key("create --project beta --name web --rate-limit 300");
    let created = shell.item(&key).await;
    let limit = "limit --project beta --name web --rate-limit default";
    shell.run(limit).fails(4, &["--yes"]);
    shell.run_on_a_terminal(limit, "n\n").code(4).stdout(contains("300/s").and(contains("nothing was changed")));
    assert_eq!(shell.item(&key).await, created);
    shell.run_on_a_terminal(limit, "y\n").success().stdout(contains("project's limit").and(contains("[y/N]")));
    assert_eq!(shell.item(&key).await, with_limit(&created, None));
}

#[tokio::test]
async fn a_revoked_key_is_left_as_it_is() {
    let shell = Shell::new().await;
    let key = shell.key("create --project beta --name web");
    shell.run("revoke --project beta --name web --yes").success();
    let revoked = shell.item(&key).await;
    let limit = "limit --project beta --name web --rate-limit 200 --yes";
    shell.run(limit).fails(3, &["is revoked", "was not changed"]);
    assert_eq!(shell.item(&key).await, revoked);
}

#[tokio::test]
async fn a_limit_that_the_function_cannot_read_is_replaced() {
    let shell = Shell::new().await;
    let key = format!("sk_live_{:040}", 1);
    shell.put_key(&key, "beta", &[("name", s("web")), ("rate_limit", s("many"))]).await;
    let limit = format!("limit --hint {} --yes --rate-limit", hint(&key));
    let run = shell.run(&format!("{limit} default")).success().says(&["from unknown to default"]);
    run.stderr(contains("warning").not());
    assert!(!shell.item(&key).await.contains_key("rate_limit"));
    // Another fault remains, and is reported.
    let other = format!("sk_live_{:040}", 2);
    shell.put_key(&other, "beta", &[("name", s("job")), ("scopes", s("all"))]).await;
    let run = shell.run(&format!("limit --hint {} --yes --rate-limit 200", hint(&other)));
    run.success().says(&["to 200/s", "warning: requests with", "`scopes`"]);
}

/// The key is revoked or deleted after `limit` has read it.
#[test]
fn a_key_that_disappears_meanwhile_is_not_changed() {
    let item = json!({
        "key_hash": {"S": "5e88"}, "project_id": {"S": "beta"}, "name": {"S": "web"}, "hint": {"S": "sk_live_0001"},
        "status": {"S": "active"}, "created_at": {"S": "2026-11-23T09:00:00Z"},
    });
    let limit_with = |existing: Option<Value>| {
        let item = item.clone();
        let endpoint = scripted_dynamodb(move |operation, input| {
            if operation == "Scan" {
                return Some((200, json!({"Items": [item]})));
            }
            // The scripted DynamoDB refuses only an update with both conditions.
            let condition = input["ConditionExpression"].as_str().unwrap_or_default();
            if !condition.contains("attribute_exists(key_hash)") || !condition.contains("#status <> :revoked") {
                return Some((200, json!({"Attributes": item})));
            }
            let code = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
            let mut failure = json!({"__type": code, "message": "the condition failed"});
            failure.as_object_mut()?.extend(existing.clone().map(|item| ("Item".to_owned(), item)));
            Some((400, failure))
        });
        let arguments = ["limit", "--hint", "sk_live_0001", "--rate-limit", "200", "--yes"];
        command("api-keys", &endpoint).args(arguments).assert()
    };
    limit_with(None).fails(3, &["has been deleted"]);
    limit_with(Some(item.clone())).fails(3, &["just been revoked", "was not changed"]);
}
