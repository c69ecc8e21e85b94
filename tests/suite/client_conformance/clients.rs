//! The clients under test.

use super::adapter::Adapter;
use crate::client_program;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use tokio::process::Command;
use tokio::sync::OnceCell;

/// A client, and the command line of its adapter.
#[derive(Clone)]
pub struct Client {
    pub name: String,
    pub capabilities: Capabilities,
    command: Vec<OsString>,
}

/// What an adapter says about its client, because the table of responses permits more than one behavior.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    pub endpoint: Endpoint,
    pub half_surrogates: HalfSurrogates,
}

/// The endpoint to which the client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    Batch,
    Bulk,
}

impl Endpoint {
    pub fn path(self) -> &'static str {
        match self {
            Self::Batch => "/api/v1/events/batch",
            Self::Bulk => "/api/v1/events/bulk",
        }
    }

    /// The status of a success.
    pub fn success(self) -> u16 {
        match self {
            Self::Batch => 202,
            Self::Bulk => 200,
        }
    }

    /// The body of a success. `errors` has one element per rejected event.
    pub fn body_of_success(self, accepted: usize, errors: &[Value]) -> Value {
        match self {
            Self::Batch => json!({ "data": { "accepted": true } }),
            Self::Bulk => json!({
                "data": { "accepted": accepted, "rejected": errors.len(), "errors": errors },
                "meta": { "received": accepted + errors.len() },
            }),
        }
    }
}

/// What the client does with half of a surrogate pair, which the service rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HalfSurrogates {
    /// It sends U+FFFD instead.
    Replaced,
    /// It reports the event.
    Rejected,
}

impl Client {
    /// Asks the adapter for the capabilities of its client.
    async fn new(name: &str, command: Vec<OsString>) -> Self {
        let mut adapter = Adapter::start(process(&command));
        let capabilities = adapter.ask(&json!({ "command": "capabilities" })).await;
        adapter.end().await;
        Self { name: name.to_owned(), capabilities, command }
    }

    pub fn adapter(&self) -> Adapter {
        Adapter::start(process(&self.command))
    }
}

fn process(command: &[OsString]) -> Command {
    let (program, arguments) = command.split_first().expect("a program");
    let mut process = Command::new(program);
    process.args(arguments);
    process
}

static CLIENTS: OnceCell<Vec<Client>> = OnceCell::const_new();

/// The clients of this repository, or only the one whose adapter `CLIENT_ADAPTER` names.
pub async fn clients() -> &'static [Client] {
    CLIENTS.get_or_init(build_all).await
}

async fn build_all() -> Vec<Client> {
    if let Ok(command) = std::env::var("CLIENT_ADAPTER") {
        return vec![Client::new(&command, command.split_whitespace().map(Into::into).collect()).await];
    }
    client_program::build().await;
    let node = vec!["node".into(), client_program::directory().join("test/conformance-adapter.mjs").into()];
    let adapter = root().join("tests/suite/client_conformance/backfill_adapter.py");
    let backfill = vec!["python3".into(), adapter.into(), build_backfill().await.into()];
    vec![Client::new("the TypeScript client", node).await, Client::new("the backfill command", backfill).await]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the backfill command, which is in another package, into the directory of this build.
async fn build_backfill() -> PathBuf {
    let suite = std::env::current_exe().expect("the path of this program");
    let target = suite.ancestors().nth(3).expect("target/debug/deps/suite");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--bin", "event-ingest-backfill"]);
    // Including the function's package gives the dependencies the features of this build, so cargo compiles them once.
    build.args(["--package", "event-ingest", "--package", "event-ingest-backfill", "--target-dir"]).arg(target);
    // Build scripts that watch the variables that cargo sets for a test would otherwise run again.
    for (name, _) in std::env::vars_os() {
        let is_of_package =
            ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
        if is_of_package {
            build.env_remove(name);
        }
    }
    assert!(build.current_dir(root()).status().await.expect("cargo starts").success());
    target.join("debug/event-ingest-backfill")
}
