//! The functions to measure.

use std::path::{Path, PathBuf};

/// A function to measure.
pub struct Target {
    /// The name in tables.
    pub name: &'static str,
    /// The kind, which determines the checks.
    pub kind: Kind,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The working directory.
    pub directory: PathBuf,
    /// Additional environment variables.
    pub environment: Vec<(&'static str, String)>,
    /// The name of the partition key of the state table.
    pub state_key: &'static str,
}

/// The kinds of targets, and the check of the messages of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The function of this repository: events must arrive byte for byte.
    Ours,
    /// Put, send, update, and nothing else: the body must arrive in pieces.
    Floor,
    /// An alternative that users would build: events must arrive equal as JSON.
    Peer,
}

impl Target {
    /// The binary that `make deploy` deploys, with the environment of template.yaml.
    pub fn ours(root: &Path) -> Self {
        Self {
            name: "event-ingest",
            kind: Kind::Ours,
            command: vec![text(&root.join("target/lambda/event-ingest/bootstrap"))],
            directory: root.into(),
            environment: malloc_settings(),
            state_key: "pk",
        }
    }

    /// Another build of the function.
    pub fn other_build(root: &Path, binary: &Path) -> Self {
        Self { name: "other build", command: vec![text(binary)], ..Self::ours(root) }
    }

    /// A build that writes a profile to `profiles` when it exits.
    pub fn instrumented(root: &Path, binary: &Path, profiles: &Path) -> Self {
        let mut target = Self { name: "instrumented build", command: vec![text(binary)], ..Self::ours(root) };
        target.environment.push(("LLVM_PROFILE_FILE", text(&profiles.join("%p.profraw"))));
        target
    }

    /// The floor.
    pub fn floor(root: &Path) -> Self {
        Self {
            name: "floor",
            kind: Kind::Floor,
            command: vec![text(&root.join("benches/target/release/floor"))],
            directory: root.into(),
            environment: malloc_settings(),
            state_key: "pk",
        }
    }

    /// The peers: first the idiomatic variants, then the variants with packed messages.
    pub fn peers(root: &Path) -> Vec<Self> {
        let peers = root.join("benches/peers");
        let python = vec![text(&root.join(".venv/bench/bin/python")), "-m".into(), "awslambdaric".into()];
        let typescript = vec!["node".into(), "runtime.mjs".into(), "dist/handler.mjs".into()];
        let peer = |name, directory: &str, command: Vec<String>, events_per_message: u32| Self {
            name,
            kind: Kind::Peer,
            command,
            directory: peers.join(directory),
            environment: vec![("MAX_EVENTS_PER_MESSAGE", events_per_message.to_string())],
            state_key: "id",
        };
        let python: Vec<String> = python.into_iter().chain(["handler.lambda_handler".into()]).collect();
        vec![
            peer("Python", "python", python.clone(), 1),
            peer("TypeScript", "typescript", typescript.clone(), 1),
            peer("Python, packed", "python", python, 50),
            peer("TypeScript, packed", "typescript", typescript, 50),
        ]
    }

    /// Whether the peer packs events into messages as event-ingest does.
    pub fn is_packed(&self) -> bool {
        self.name.ends_with("packed")
    }
}

/// The settings of template.yaml.
fn malloc_settings() -> Vec<(&'static str, String)> {
    vec![
        ("MALLOC_MMAP_THRESHOLD_", "33554432".into()),
        ("MALLOC_TRIM_THRESHOLD_", "67108864".into()),
        ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=127".into()),
    ]
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
