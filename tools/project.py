"""Where the project's files are, and the environment that every command runs in."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "template.yaml"
CONSUMER_TEMPLATE = ROOT / "docs" / "examples" / "consumer-stack.yaml"
VENV = ROOT / ".venv"
LOCAL = ROOT / ".local"  # state, builds and logs of the local AWS

REGION = "us-east-1"  # of the local AWS


def prepare_environment() -> None:
    """Put the pinned sam and cargo-lambda first on the path of child processes.

    Also remove the variables in which `cargo test` describes the package under test. Build scripts
    depend on them, so cargo would otherwise compile half of the dependencies again.
    """
    hidden = ("CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_")
    for name in [name for name in os.environ if name.startswith(hidden)]:
        del os.environ[name]
    os.environ["SAM_CLI_TELEMETRY"] = "0"
    # cargo-lambda first: it runs `python3 -m ziglang`, and only its environment has ziglang.
    tools = [str(VENV / name / "bin") for name in ("cargo-lambda", "sam")]
    os.environ["PATH"] = os.pathsep.join([*tools, os.environ["PATH"]])


def isolate_environment() -> None:
    """Hide the user's AWS accounts and settings from this process and its children."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAM_"))]:
        del os.environ[name]
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION=REGION,
        AWS_REGION=REGION,
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
    )
    prepare_environment()
