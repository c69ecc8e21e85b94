//! Errors in the environment: settings, network, credentials and permissions.

use crate::scripted_dynamodb::scripted_dynamodb;
use crate::shell::{AssertExt, Shell, command};
use assert_cmd::assert::OutputAssertExt;
use serde_json::json;
use test_support::local_aws;

#[tokio::test]
async fn an_invalid_environment_is_an_error_that_says_what_to_check() {
    let shell = Shell::new().await;
    let with = |changes: &[(&str, Option<&str>)]| {
        let mut command = shell.command("create --project beta --name web");
        for (name, value) in changes {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.assert()
    };
    let unused = format!("http://127.0.0.1:{}", local_aws::free_port());
    with(&[("API_KEYS_TABLE", None)]).fails(2, &["--table", "API_KEYS_TABLE"]);
    with(&[("API_KEYS_TABLE", Some(""))]).fails(2, &["--table"]);
    with(&[("AWS_ENDPOINT_URL", Some(""))]).fails(2, &["AWS_ENDPOINT_URL must not be empty"]);
    with(&[("AWS_ENDPOINT_URL_DYNAMODB", Some(""))]).fails(2, &["AWS_ENDPOINT_URL_DYNAMODB"]);
    with(&[("AWS_REGION", None)]).fails(2, &["AWS_REGION"]);
    let no_credentials = [("AWS_ACCESS_KEY_ID", None), ("AWS_EC2_METADATA_DISABLED", Some("true"))];
    with(&no_credentials).fails(1, &["no usable AWS credentials", "AWS_PROFILE"]);
    with(&[("API_KEYS_TABLE", Some("nowhere"))]).fails(1, &["no table nowhere", "AWS_REGION"]);
    with(&[("AWS_ENDPOINT_URL", Some(&unused))]).fails(1, &[&unused, "try again"]);
    assert_eq!(shell.items().await.len(), 0);
}

#[test]
fn a_proxy_is_taken_from_the_environment() {
    let proxy = scripted_dynamodb(|_, _| Some((200, json!({"Items": []}))));
    let nobody = format!("http://127.0.0.1:{}", local_aws::free_port());
    let list = |endpoint: &str, variables: &[(&str, &str)]| {
        let mut command = command("api-keys", endpoint);
        command.envs(variables.iter().copied()).args(["list", "--json"]).assert()
    };
    list("http://dynamodb.invalid", &[("HTTP_PROXY", &proxy)]).success();
    list(&proxy, &[("HTTP_PROXY", &nobody), ("NO_PROXY", "127.0.0.1")]).success();
    list(&proxy, &[("HTTP_PROXY", &nobody)]).fails(1, &["no answer from"]);
}

#[test]
fn errors_from_aws_say_what_to_do() {
    let list_with = |code: &'static str| {
        let endpoint = scripted_dynamodb(move |_, _| {
            let body = json!({"__type": format!("com.amazon.coral.service#{code}"), "message": "message from AWS"});
            Some((400, body))
        });
        command("api-keys", &endpoint).arg("list").assert()
    };
    let texts = ["permission denied", "dynamodb:PutItem", "message from AWS"];
    list_with("AccessDeniedException").fails(1, &texts);
    for code in ["ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException"] {
        list_with(code).fails(1, &["no usable AWS credentials", code, "log in again"]);
    }
    list_with("SomethingElse").fails(1, &["SomethingElse", "message from AWS"]);
}
