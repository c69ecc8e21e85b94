//! Programs that use the TypeScript client.

use std::path::Path;
use tokio::process::Command;
use tokio::sync::OnceCell;

static BUILD: OnceCell<()> = OnceCell::const_new();

/// Builds the client, once in each test run.
pub async fn build() {
    BUILD
        .get_or_init(async || {
            let client = directory();
            assert!(
                client.join("node_modules").exists(),
                "the client's dependencies are missing: `make test` installs them"
            );
            let status = Command::new("npm").args(["run", "-s", "build"]).current_dir(client).status().await;
            assert!(status.expect("npm is installed").success());
        })
        .await;
}

/// A command that runs a script of `sdk/typescript` in Node.
pub fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(directory().join(script));
    command
}

/// `sdk/typescript`
pub fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/typescript")
}
