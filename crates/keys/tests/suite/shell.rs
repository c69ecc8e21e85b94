//! A shell in which the program finds the local AWS and an API keys table.

use assert_cmd::assert::{Assert, OutputAssertExt};
use assert_cmd::cargo::cargo_bin;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use contract::api_key::ApiKey;
use predicates::str::contains;
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use test_support::local_aws;
use test_support::tables::{self, Item};

/// The program, with a new and empty API keys table.
pub struct Shell {
    pub sdk: SdkConfig,
    pub table: String,
}

impl Shell {
    pub async fn new() -> Self {
        static TABLES: AtomicUsize = AtomicUsize::new(0);
        let sdk = local_aws::sdk().await;
        let table = format!("api-keys-{}", TABLES.fetch_add(1, Ordering::Relaxed));
        tables::create_api_keys_table(&sdk, &table).await;
        Self { sdk, table }
    }

    /// The program with the arguments in `line`, which are separated by spaces.
    pub fn command(&self, line: &str) -> Command {
        let mut command = command(&self.table, &local_aws::endpoint());
        command.args(line.split_whitespace());
        command
    }

    /// Runs the program in a pseudo-terminal, on which the user types `input`. Everything that it
    /// prints arrives on standard output.
    pub fn run_on_a_terminal(&self, line: &str, input: &str) -> Assert {
        let python = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
        let mut command = assert_cmd::Command::new("python3");
        for (name, value) in self.command("").get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.args(["-c", python]).arg(cargo_bin!("event-ingest-keys")).args(line.split_whitespace());
        command.write_stdin(input).assert()
    }

    pub fn run(&self, line: &str) -> Assert {
        self.command(line).assert()
    }

    /// Creates a key with the program and returns it.
    pub fn key(&self, line: &str) -> String {
        self.run(line).new_key()
    }

    /// The output of `list --json`.
    pub fn listed(&self) -> Vec<Value> {
        serde_json::from_str(&self.run("list --json").success().printed()).expect("a JSON array")
    }

    /// One member of every object that `list --json` prints.
    pub fn listed_members(&self, member: &str) -> Vec<String> {
        self.listed().iter().map(|key| key[member].as_str().expect("a string").to_owned()).collect()
    }

    pub async fn items(&self) -> Vec<Item> {
        tables::items(&self.sdk, &self.table).await
    }

    /// The item of `key`.
    pub async fn item(&self, key: &str) -> Item {
        let hash = tables::s(&hash(key));
        self.items().await.into_iter().find(|item| item["key_hash"] == hash).expect("the key is stored")
    }

    /// Stores a key without the program.
    pub async fn put_key(&self, key: &str, project: &str, attributes: &[(&str, AttributeValue)]) {
        tables::put_api_key(&self.sdk, &self.table, key, project, attributes).await;
    }
}

/// The program without any environment variables of this process.
pub fn command(table: &str, endpoint: &str) -> Command {
    let mut command = Command::new(cargo_bin!("event-ingest-keys"));
    command
        .env_clear()
        .env("API_KEYS_TABLE", table)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_ENDPOINT_URL", endpoint);
    command
}

/// Further assertions on a run of the program.
pub trait AssertExt {
    /// Standard output.
    fn printed(&self) -> String;
    /// Asserts that standard error contains every one of `texts`.
    fn says(self, texts: &[&str]) -> Self;
    /// Asserts an exit code, no standard output, and `texts` on standard error.
    fn fails(self, code: i32, texts: &[&str]) -> Self;
    /// Asserts that the run printed a new key, and that only standard output contains it. Returns
    /// the key.
    fn new_key(self) -> String;
}

impl AssertExt for Assert {
    fn printed(&self) -> String {
        String::from_utf8(self.get_output().stdout.clone()).expect("UTF-8")
    }

    #[track_caller]
    fn says(self, texts: &[&str]) -> Self {
        texts.iter().fold(self, |run, text| run.stderr(contains(*text)))
    }

    #[track_caller]
    fn fails(self, code: i32, texts: &[&str]) -> Self {
        self.code(code).stdout("").says(texts)
    }

    #[track_caller]
    fn new_key(self) -> String {
        let printed = self.printed();
        let run = self.success();
        let key = printed.strip_suffix('\n').expect("a line");
        assert!(ApiKey::parse(key).is_some() && key.len() == 48, "not one key: {printed:?}");
        let run = run.says(&[&hint(key)]);
        let messages = String::from_utf8_lossy(&run.get_output().stderr);
        assert!(!messages.contains(key) && !messages.contains(&hash(key)), "{messages}");
        key.to_owned()
    }
}

/// The first 8 and last 4 characters of a key.
pub fn hint(key: &str) -> String {
    format!("{}{}", &key[..8], &key[key.len() - 4..])
}

pub fn hash(key: &str) -> String {
    ApiKey::parse(key).expect("a key").hash().to_hex()
}
