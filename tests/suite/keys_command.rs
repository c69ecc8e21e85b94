//! The operator's command as an operator runs it: the compiled program over a real local AWS.

use crate::gateway_event::post;
use crate::local_aws;
use crate::test_app::{Item, Resources, TestApp};
use aws_sdk_dynamodb::types::AttributeValue;
use event_ingest::auth::{ApiKey, KNOWN_FOR};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// What a run of the command came to.
#[derive(Debug)]
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The one line on standard output, which must be a key and nothing else.
    #[track_caller]
    fn key(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        let key = self.stdout.strip_suffix('\n').expect("a line");
        assert!(ApiKey::parse(key).is_some() && key.len() == 48, "{self:?}");
        assert!(!self.stderr.contains(key) && !self.stderr.contains(&hash_of(key)), "{self:?}");
        assert!(self.stderr.contains(&hint_of(key)), "{self:?}");
        key
    }

    #[track_caller]
    fn assert_fails(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{self:?}");
        for words in words {
            assert!(self.stderr.contains(words), "{words:?} is missing from {self:?}");
        }
    }

    #[track_caller]
    fn assert_says(&self, words: &[&str]) {
        self.assert_fails(0, words);
    }
}

/// A shell in which the command finds the local AWS and one table of it.
struct Shell<'a> {
    aws: &'a Resources,
}

impl Shell<'_> {
    fn command(&self, line: &str) -> Command {
        let mut command = command(&self.aws.api_keys_table);
        command.args(line.split_whitespace());
        command
    }

    fn run(&self, line: &str) -> Run {
        Run::of(self.command(line).output().expect("the command runs"))
    }

    fn json(&self) -> Vec<Value> {
        let run = self.run("list --json");
        assert_eq!(run.code, 0, "{run:?}");
        serde_json::from_str(&run.stdout).expect("a JSON array")
    }

    /// A column of `list --json`.
    fn listed(&self, member: &str) -> Vec<String> {
        self.json().iter().map(|key| key[member].as_str().expect("text").to_owned()).collect()
    }
}

/// The command, with nothing of this process's environment but what is given here.
fn command(table: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_event-ingest-keys"));
    command
        .env_clear()
        .env("API_KEYS_TABLE", table)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_ENDPOINT_URL", local_aws::endpoint())
        .stdin(Stdio::null());
    command
}

fn hint_of(key: &str) -> String {
    format!("{}{}", &key[..8], &key[key.len() - 4..])
}

fn hash_of(key: &str) -> String {
    ApiKey::parse(key).expect("a key").hash().to_hex()
}

async fn items(aws: &Resources) -> Vec<Item> {
    let dynamodb = aws_sdk_dynamodb::Client::new(&aws.sdk);
    let scan = dynamodb.scan().table_name(&aws.api_keys_table).consistent_read(true).send().await;
    scan.expect("the table answers").items.unwrap_or_default()
}

async fn item_of(aws: &Resources, key: &str) -> Item {
    let hash = AttributeValue::S(hash_of(key));
    items(aws).await.into_iter().find(|item| item["key_hash"] == hash).expect("the key is stored")
}

async fn status_with(test: &TestApp, key: &str) -> u64 {
    let event = post().key(&uuid::Uuid::new_v4().to_string()).header("authorization", &format!("Bearer {key}"));
    test.send(&event).await.status
}

fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

#[tokio::test]
async fn a_created_key_lets_its_bearer_in() {
    let test = TestApp::start().await;
    let shell = Shell { aws: &test.aws };
    let live = shell.run("create --project beta --name web");
    assert!(live.key().starts_with("sk_live_"));
    assert!(live.stderr.contains("within 10 seconds"), "{live:?}");
    assert_eq!(status_with(&test, live.key()).await, 202);
    let scoped = shell.run("create --project beta --name job --mode test --scope events:write --rate-limit 50");
    assert!(scoped.key().starts_with("sk_test_"));
    assert_eq!(status_with(&test, scoped.key()).await, 202);
}

#[tokio::test]
async fn what_is_stored_is_what_the_contract_lists_and_no_key() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    let plain = shell.run("create --project beta --name web");
    let full = shell.run("create --project beta --name job --scope events:write --scope events:write --rate-limit 0");
    let plain_item = item_of(&aws, plain.key()).await;
    let created_at = plain_item["created_at"].clone();
    assert!(created_at.as_s().is_ok_and(|time| time.len() == 20 && time.ends_with('Z')), "{created_at:?}");
    let expected = |name: &str, key: &str, created_at: &AttributeValue| -> Item {
        HashMap::from([
            ("key_hash".to_owned(), s(&hash_of(key))),
            ("project_id".to_owned(), s("beta")),
            ("name".to_owned(), s(name)),
            ("hint".to_owned(), s(&hint_of(key))),
            ("status".to_owned(), s("active")),
            ("created_at".to_owned(), created_at.clone()),
        ])
    };
    assert_eq!(plain_item, expected("web", plain.key(), &created_at));
    let full_item = item_of(&aws, full.key()).await;
    let mut expected = expected("job", full.key(), &full_item["created_at"]);
    expected.insert("scopes".to_owned(), AttributeValue::Ss(vec!["events:write".to_owned()]));
    expected.insert("rate_limit".to_owned(), AttributeValue::N("0".to_owned()));
    assert_eq!(full_item, expected);
    for key in [plain.key(), full.key()] {
        let secret = &key[8..44];
        assert!(!format!("{:?}", items(&aws).await).contains(secret));
    }
}

#[tokio::test]
async fn no_two_active_keys_of_a_project_share_a_name() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    let first = shell.run("create --project beta --name web");
    let hint = hint_of(first.key());
    let rotate = format!("event-ingest-keys rotate --hint {hint}");
    shell.run("create --project beta --name web").assert_fails(3, &["beta", "web", &hint, &rotate]);
    shell.run("create --project beta --name web --mode test").assert_fails(3, &[&hint]);
    shell.run("create --project gamma --name web").key();
    shell.run("revoke --project beta --name web --yes").assert_says(&[&hint]);
    shell.run("create --project beta --name web").key();
    assert_eq!(items(&aws).await.len(), 3);
}

#[tokio::test]
async fn bad_values_are_usage_errors_and_nothing_is_stored() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    let long = format!("create --project beta --name {}", "n".repeat(65));
    for (line, words) in [
        ("create --project Beta --name web", "a-z 0-9 _ -"),
        ("create --project beta", "--name"),
        (&long, "1 to 64 characters"),
        ("create --project beta --name web --rate-limit 49", "must be 0 (no limit) or at least 50"),
        ("create --project beta --name web --rate-limit many", "whole number"),
        ("create --project beta --name web --scope events:wriet", "events:write"),
        ("create --project beta --name web --mode prod", "live, test"),
        ("revoke --name web --yes", "--project"),
        ("revoke --yes", "--hint"),
        ("rotate --project beta", "--name"),
        ("remove --hint x", "revoke"),
    ] {
        shell.run(line).assert_fails(2, &[words]);
    }
    let empty_name = shell.command("create --project beta --name").arg("").output().expect("the command runs");
    Run::of(empty_name).assert_fails(2, &["1 to 64 characters"]);
    assert_eq!(items(&aws).await.len(), 0);
}

#[tokio::test]
async fn a_key_that_could_not_be_told_is_revoked() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    let full = File::options().write(true).open("/dev/full").expect("a device that is always full");
    let output = shell.command("create --project beta --name web").stdout(full).output().expect("the command runs");
    Run::of(output).assert_fails(1, &["standard output", "nobody has", "is revoked"]);
    assert_eq!(shell.listed("status"), ["revoked"]);
}

#[tokio::test]
async fn the_list_shows_every_key_sorted_and_nothing_secret() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    shell.run("list").assert_says(&["There are no keys."]);
    assert_eq!(shell.run("list --json").stdout, "[]\n");

    let web = shell.run("create --project beta --name web --rate-limit 0");
    let job = shell.run("create --project beta --name job --scope events:write --rate-limit 75");
    let old = shell.run("create --project acme --name web --mode test");
    shell.run("revoke --project acme --name web -y").assert_says(&[]);
    let [web, job, old] = [&web, &job, &old].map(|run| run.key().to_owned());

    let table = shell.run("list");
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["HINT", "NAME", "PROJECT", "STATUS", "SCOPES", "LIMIT", "CREATED", "REVOKED"]);
    assert_eq!(rows[1][..6], [&hint_of(&old), "web", "acme", "revoked", "all", "default"]);
    assert_eq!(rows[2][..6], [&hint_of(&job), "job", "beta", "active", "events:write", "75/s"]);
    assert_eq!(rows[3][..6], [&hint_of(&web), "web", "beta", "active", "all", "none"]);
    assert_eq!((rows.len(), rows[1].len(), rows[2][7]), (4, 8, "-"));

    let keys = shell.json();
    let expected = json!({
        "hint": hint_of(&job), "name": "job", "project_id": "beta", "status": "active", "scopes": ["events:write"],
        "rate_limit": 75, "created_at": keys[1]["created_at"], "revoked_at": null, "fault": null,
    });
    assert_eq!(keys[1], expected);
    assert_eq!((&keys[0]["scopes"], &keys[0]["rate_limit"]), (&Value::Null, &Value::Null));
    assert!(keys[0]["revoked_at"].is_string());

    let acme = shell.run("list --project acme");
    assert_eq!(acme.stdout.lines().count(), 2);
    for key in [&web, &job, &old] {
        for shown in [&table, &shell.run("list --json"), &acme] {
            let all = format!("{shown:?}");
            assert!(!all.contains(&key[8..44]) && !all.contains(&hash_of(key)), "{all}");
        }
    }
}

#[tokio::test]
async fn the_list_goes_on_beyond_one_page() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    // DynamoDB ends a page after 1 MB.
    let padding = s(&"x".repeat(300_000));
    let names: BTreeSet<String> = (0..8).map(|n| format!("name-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let key = format!("sk_live_{n:040}");
        aws.put_key(&key, "beta", &[("name", s(name)), ("padding", padding.clone())]).await;
    }
    let dynamodb = aws_sdk_dynamodb::Client::new(&aws.sdk);
    let page = dynamodb.scan().table_name(&aws.api_keys_table).send().await.expect("a page");
    assert!(page.last_evaluated_key().is_some(), "the items fit one page");
    assert_eq!(shell.listed("name"), Vec::from_iter(names.clone()));
    assert_eq!(shell.run("list --project beta").stdout.lines().count(), 1 + names.len());
}

#[tokio::test]
async fn an_item_the_function_refuses_is_listed_with_a_warning_and_never_copied() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    let key = format!("sk_live_{:040}", 1);
    aws.put_key(&key, "beta", &[("rate_limit", s("fast")), ("name", s("\u{1b}[31mred"))]).await;
    let list = shell.run("list");
    assert_eq!(list.code, 0);
    assert!(list.stderr.contains("sk_live_0001") && list.stderr.contains("rate_limit"), "{list:?}");
    assert!(!list.stdout.contains('\u{1b}'), "{list:?}");
    shell.run("rotate --hint sk_live_0001").assert_fails(3, &["rate_limit", "create"]);
    assert_eq!(items(&aws).await.len(), 1);
    shell.run("revoke --hint sk_live_0001 --yes").assert_says(&["Revoked"]);
}

#[tokio::test]
async fn a_revoked_key_is_refused_once_it_is_forgotten() {
    let test = TestApp::start().await;
    let shell = Shell { aws: &test.aws };
    let web = shell.run("create --project beta --name web");
    let job = shell.run("create --project beta --name job");
    assert_eq!(status_with(&test, web.key()).await, 202);
    let by_hint = format!("revoke --hint {} --yes", hint_of(web.key()));
    shell.run(&by_hint).assert_says(&["Revoked", "within 60 seconds"]);
    shell.run("revoke --project beta --name job --yes").assert_says(&["Revoked"]);
    assert_eq!(status_with(&test, web.key()).await, 202);
    test.clock.advance(KNOWN_FOR);
    assert_eq!(status_with(&test, web.key()).await, 401);
    assert_eq!(status_with(&test, job.key()).await, 401);
}

#[tokio::test]
async fn revoking_again_changes_nothing() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    let key = shell.run("create --project beta --name web");
    let revoke = format!("revoke --hint {}", hint_of(key.key()));
    shell.run(&format!("{revoke} --yes")).assert_says(&["Revoked"]);
    let once = item_of(&aws, key.key()).await;
    assert_eq!(once["status"], s("revoked"));
    assert!(once["revoked_at"].as_s().is_ok_and(|time| time.len() == 20));
    // There is nothing to confirm any more.
    shell.run(&revoke).assert_says(&["revoked already", once["revoked_at"].as_s().expect("text")]);
    shell.run("revoke --project beta --name web -y").assert_says(&["revoked already"]);
    assert_eq!(item_of(&aws, key.key()).await, once);
}

#[tokio::test]
async fn a_revocation_is_confirmed_or_does_not_happen() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    shell.run("create --project beta --name web").key();
    shell.run("revoke --project beta --name web").assert_fails(4, &["--yes"]);
    assert_eq!(shell.listed("status"), ["active"]);
    // A terminal, as far as the command can tell.
    let on_a_terminal = |answer: &str| {
        let program = env!("CARGO_BIN_EXE_event-ingest-keys");
        let python = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
        let mut python_command = Command::new("python3");
        for (name, value) in shell.command("list").get_envs() {
            python_command.env(name, value.unwrap_or_default());
        }
        let mut child = python_command
            .args(["-c", python, program, "revoke", "--project", "beta", "--name", "web"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        child.stdin.as_mut().expect("piped").write_all(answer.as_bytes()).expect("an answer");
        Run::of(child.wait_with_output().expect("it ends"))
    };
    let declined = on_a_terminal("n\n");
    assert_eq!(declined.code, 4, "{declined:?}");
    assert!(declined.stdout.contains("[y/N]") && declined.stdout.contains("nothing was changed"), "{declined:?}");
    assert_eq!(shell.listed("status"), ["active"]);
    let confirmed = on_a_terminal("y\n");
    assert_eq!(confirmed.code, 0, "{confirmed:?}");
    assert_eq!(shell.listed("status"), ["revoked"]);
}

#[tokio::test]
async fn a_choice_that_is_not_clear_changes_nothing() {
    let aws = Resources::create().await;
    let shell = Shell { aws: &aws };
    for (n, project) in [(1, "beta"), (2, "beta"), (3, "gamma")] {
        let key = format!("sk_live_{n:036}0000");
        aws.put_key(&key, project, &[("name", s("web"))]).await;
    }
    let other = format!("sk_live_{:040}", 9);
    aws.put_key(&other, "beta", &[("name", s("web"))]).await;
    for command in ["revoke --yes", "rotate"] {
        let by_name = shell.run(&format!("{command} --project beta --name web"));
        by_name.assert_fails(3, &["sk_live_0000", "sk_live_0009", "--hint"]);
        shell.run(&format!("{command} --hint sk_live_0000")).assert_fails(3, &["beta", "gamma"]);
        shell.run(&format!("{command} --hint sk_live_none")).assert_fails(3, &["no such key"]);
        shell.run(&format!("{command} --project gamma --name job")).assert_fails(3, &["no such key"]);
    }
    assert_eq!(items(&aws).await.len(), 4);
    assert_eq!(BTreeSet::from_iter(shell.listed("status")), BTreeSet::from(["active".to_owned()]));
    shell.run("revoke --yes --hint sk_live_0000 --project gamma").assert_says(&["gamma"]);
    shell.run("revoke --yes --hint sk_live_0009").assert_says(&["beta"]);
}

#[tokio::test]
async fn rotation_overlaps_and_says_how_to_end() {
    let test = TestApp::start().await;
    let shell = Shell { aws: &test.aws };
    let old = shell.run("create --project beta --name web --mode test --scope events:write --rate-limit 60");
    let new = shell.run("rotate --project beta --name web");
    assert_ne!(new.key(), old.key());
    let (old_hint, new_hint) = (hint_of(old.key()), hint_of(new.key()));
    let end = format!("event-ingest-keys revoke --hint {old_hint} --table {}", test.aws.api_keys_table);
    assert!(new.stderr.contains(&end) && new.stderr.contains(&new_hint), "{new:?}");

    let (mut old_item, mut new_item) = (item_of(&test.aws, old.key()).await, item_of(&test.aws, new.key()).await);
    for item in [&mut old_item, &mut new_item] {
        for own in ["key_hash", "hint", "created_at"] {
            item.remove(own).expect("every key has it");
        }
    }
    assert_eq!(old_item, new_item);
    assert_eq!([status_with(&test, old.key()).await, status_with(&test, new.key()).await], [202, 202]);

    shell.run("rotate --project beta --name web").assert_fails(3, &[&old_hint, &new_hint]);
    shell.run(&format!("{} --yes", end.trim_start_matches("event-ingest-keys "))).assert_says(&["Revoked"]);
    test.clock.advance(KNOWN_FOR);
    assert_eq!([status_with(&test, old.key()).await, status_with(&test, new.key()).await], [401, 202]);
    shell.run(&format!("rotate --hint {old_hint}")).assert_fails(3, &["is revoked", "create"]);
    shell.run("revoke --project beta --name web --yes").assert_says(&[&new_hint]);
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let aws = Resources::create().await;
    let with = |changes: &[(&str, Option<&str>)]| {
        let mut command = command(&aws.api_keys_table);
        for (name, value) in changes {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let create = ["create", "--project", "beta", "--name", "web"];
        Run::of(command.args(create).output().expect("the command runs"))
    };
    let nobody = format!("http://127.0.0.1:{}", local_aws::free_port());
    with(&[("API_KEYS_TABLE", None)]).assert_fails(2, &["--table", "API_KEYS_TABLE"]);
    with(&[("API_KEYS_TABLE", Some(""))]).assert_fails(2, &["--table"]);
    with(&[("AWS_ENDPOINT_URL", Some(""))]).assert_fails(2, &["AWS_ENDPOINT_URL must not be empty"]);
    with(&[("AWS_ENDPOINT_URL_DYNAMODB", Some(""))]).assert_fails(2, &["AWS_ENDPOINT_URL_DYNAMODB"]);
    with(&[("AWS_REGION", None)]).assert_fails(2, &["AWS_REGION"]);
    let no_keys = [("AWS_ACCESS_KEY_ID", None), ("AWS_EC2_METADATA_DISABLED", Some("true"))];
    with(&no_keys).assert_fails(1, &["no usable AWS credentials", "AWS_PROFILE"]);
    with(&[("API_KEYS_TABLE", Some("nowhere"))]).assert_fails(1, &["no table nowhere", "AWS_REGION"]);
    with(&[("AWS_ENDPOINT_URL", Some(&nobody))]).assert_fails(1, &[&nobody, "try again"]);
    assert_eq!(items(&aws).await.len(), 0);
}

/// A `DynamoDB` that says what a real one cannot be made to say: `answer` gets the number of the
/// call, the operation and its input; `None` hangs up.
fn scripted_dynamodb(answer: impl Fn(usize, &str, &Value) -> Option<(u16, Value)> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for (call, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let head: Vec<String> =
                reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let header = |name: &str| {
                let mut values = head.iter().filter_map(|line| line.split_once(": "));
                values.find(|(header, _)| header.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
            };
            let mut body = vec![0; header("content-length").parse().expect("a length")];
            reader.read_exact(&mut body).expect("a body");
            let operation = header("x-amz-target").split('.').next_back().unwrap_or_default();
            let input = serde_json::from_slice(&body).expect("JSON");
            let Some((status, body)) = answer(call, operation, &input) else { continue };
            let body = body.to_string();
            let head = "content-type: application/x-amz-json-1.0\r\nconnection: close";
            let length = body.len();
            write!(stream, "HTTP/1.1 {status} -\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}").expect("written");
        }
    });
    endpoint
}

fn create_at(endpoint: &str) -> Run {
    let mut create = command("api-keys");
    create.env("AWS_ENDPOINT_URL", endpoint).args(["create", "--project", "beta", "--name", "web"]);
    Run::of(create.output().expect("the command runs"))
}

#[test]
fn refusals_of_aws_say_what_to_do() {
    let refusing = |code: &'static str| {
        scripted_dynamodb(move |_, _, _| {
            let body = json!({"__type": format!("com.amazon.coral.service#{code}"), "message": "said by AWS"});
            Some((400, body))
        })
    };
    let words = ["not permitted", "dynamodb:PutItem", "said by AWS"];
    create_at(&refusing("AccessDeniedException")).assert_fails(1, &words);
    for code in ["ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException"] {
        create_at(&refusing(code)).assert_fails(1, &["no usable AWS credentials", code, "log in again"]);
    }
    create_at(&refusing("SomethingElse")).assert_fails(1, &["SomethingElse", "said by AWS"]);
}

#[test]
fn a_reply_lost_on_the_way_makes_neither_a_second_key_nor_an_error() {
    let endpoint = scripted_dynamodb(|call, operation, input| match (call, operation) {
        (_, "Scan") => Some((200, json!({"Items": []}))),
        // The first try is stored but its reply is lost; the second meets what the first wrote.
        (1, "PutItem") => None,
        _ => {
            let code = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
            Some((400, json!({"__type": code, "message": "exists", "Item": input["Item"]})))
        }
    });
    create_at(&endpoint).key();
}

#[test]
fn a_key_of_unknown_fate_is_not_printed_and_can_be_found() {
    let endpoint = scripted_dynamodb(|_, operation, _| (operation == "Scan").then(|| (200, json!({"Items": []}))));
    create_at(&endpoint).assert_fails(1, &["may have been stored", "revoke --hint sk_live_", "no answer from"]);
}

#[tokio::test]
async fn another_table_is_recognised() {
    let test = TestApp::start().await;
    test.send(&post().key("leaves-a-record")).await.assert_accepted();
    let list = command(&test.aws.state_table).arg("list").output().expect("the command runs");
    Run::of(list).assert_fails(1, &["not one of API keys", "--table"]);
}
