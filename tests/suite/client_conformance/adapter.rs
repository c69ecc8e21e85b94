//! The process of an adapter, which reads one JSON command per line and answers each with one line.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

pub struct Adapter {
    process: Child,
    commands: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
}

/// The answer to a command.
#[derive(Debug, Deserialize)]
pub struct Reply {
    /// Why the command failed.
    pub error: Option<String>,
    /// The user ids of the events that the client has reported as rejected.
    #[serde(default)]
    rejected: BTreeSet<String>,
}

impl Adapter {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("the adapter starts");
        let commands = process.stdin.take().expect("piped");
        let replies = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, commands, replies }
    }

    pub async fn call(&mut self, command: &Value) -> Reply {
        self.ask(command).await
    }

    /// Calls a command whose answer has a form of its own.
    pub async fn ask<T: DeserializeOwned>(&mut self, command: &Value) -> T {
        self.ask_text(&command.to_string()).await
    }

    /// Calls a command that must succeed.
    pub async fn done(&mut self, command: &Value) {
        self.done_text(&command.to_string()).await;
    }

    pub async fn done_text(&mut self, command: &str) {
        let reply: Reply = self.ask_text(command).await;
        assert!(reply.error.is_none(), "{command}: {reply:?}");
    }

    /// The events that the client has reported so far.
    pub async fn rejected(&mut self) -> BTreeSet<String> {
        self.call(&json!({ "command": "rejected" })).await.rejected
    }

    /// Waits for the adapter to end, as it does when its standard input ends.
    pub async fn end(self) {
        let Self { mut process, commands, replies } = self;
        drop(commands);
        assert!(process.wait().await.expect("the adapter ends").success());
        drop(replies);
    }

    async fn ask_text<T: DeserializeOwned>(&mut self, command: &str) -> T {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.expect("the adapter reads");
        let line = self.replies.next_line().await.expect("text").expect("the adapter answers every command");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{command}: {error}: {line}"))
    }
}
