//! Runs the compiled command in a temporary directory.

use crate::service::Service;
use serde_json::Value;
use snapbox::IntoData;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

pub const API_KEY: &str = "sk_test_backfill_not_a_secret_0123456789";

/// The command's environment: its working directory, and the address of the service.
pub struct Backfill {
    pub directory: TempDir,
    pub address: String,
}

/// A finished run.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Every run checks that its output does not contain the API key.
    pub fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let run = Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!format!("{run:?}").contains(&API_KEY[8..]), "the output contains the API key: {run:?}");
        run
    }

    /// Checks the exit code, and that standard error contains each of `phrases`.
    #[track_caller]
    pub fn assert(&self, code: i32, phrases: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for phrase in phrases {
            assert!(self.stderr.contains(phrase), "{phrase:?} is missing from {self:?}");
        }
    }

    /// Checks the exit code and all of standard error. `[..]` in `expected` matches anything in a line.
    #[track_caller]
    pub fn assert_stderr(&self, code: i32, expected: impl IntoData) {
        assert_eq!(self.code, Some(code), "{self:?}");
        snapbox::assert_data_eq!(self.stderr.as_str(), expected);
    }

    /// The summary that `--json` prints.
    #[track_caller]
    pub fn summary(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("standard output is one JSON object")
    }
}

impl Backfill {
    pub fn new(service: &Service) -> Self {
        Self::at(service.address())
    }

    pub fn at(address: String) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Self { directory, address }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).expect("written");
    }

    /// The content of a file, or nothing if it does not exist.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The lines of an NDJSON file.
    pub fn read_ndjson(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// The rejected events of `events.ndjson`.
    pub fn rejects(&self) -> Vec<Value> {
        self.read_ndjson("events.ndjson.rejects.ndjson")
    }

    /// The checkpoint of `events.ndjson`.
    pub fn checkpoint(&self) -> Value {
        serde_json::from_str(&self.read("events.ndjson.checkpoint.json")).expect("a checkpoint")
    }

    /// The environment of the command.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("VIBEFOLLOW_API_KEY", API_KEY.to_owned()), ("VIBEFOLLOW_BASE_URL", format!("http://{}", self.address))]
    }

    /// The command with these arguments, which are separated by spaces.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event-ingest-backfill"));
        command
            .env_clear()
            .envs(self.environment())
            .current_dir(self.directory.path())
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &str) -> Run {
        run(&mut self.command(arguments)).await
    }

    pub async fn run_with_stdin(&self, arguments: &str, input: impl AsRef<[u8]>) -> Run {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("it starts");
        // Writing fails if the command ends before it has read everything.
        let _ = child.stdin.take().expect("piped").write_all(input.as_ref()).await;
        wait(child).await
    }
}

pub async fn run(command: &mut Command) -> Run {
    Run::new(command.output().await.expect("it runs"))
}

pub async fn wait(child: Child) -> Run {
    Run::new(child.wait_with_output().await.expect("it ends"))
}

/// Sends a signal such as `-TERM`.
pub fn signal(child: &Child, name: &str) {
    let id = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args([name, &id]).status().expect("kill runs");
    assert!(sent.success());
}

/// Waits for a condition, for up to a minute.
pub async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The line and the field of a rejected event.
pub fn line_and_field(rejected: &Value) -> (u64, Option<&str>) {
    (rejected["line"].as_u64().expect("a line"), rejected["field"].as_str())
}

/// An event on a line, with unusual spaces and a number that must keep its digits.
pub fn line(id: usize, name: &str) -> String {
    format!("{{\"external_user_id\": \"{id}\",  \"name\":\"{name}\", \"properties\":{{\"price\":1.10}}}}\n")
}

/// `count` valid events.
pub fn lines(count: usize) -> String {
    (0..count).map(|id| line(id, "n")).collect()
}
