"""What tools/local.py and tools/deploy.py have in common: building, the stack, calling its API."""

import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
ENDPOINT = "/api/v1/events/batch"

EXAMPLE_BATCH: dict[str, Any] = {
    "events": [
        {
            "external_user_id": "usr_42",
            "name": "user_signed_up",
            "properties": {"plan": "trial"},
        }
    ]
}


class Failure(Exception):
    """What failed and what to do about it, for a person to read."""


def prepare_environment() -> None:
    """Let children find the pinned sam and cargo-lambda.

    And, below `cargo test`, hide from them what cargo tells about the package: build scripts look at
    that, and would compile half of the function anew.
    """
    hidden = ("CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_")
    for name in [name for name in os.environ if name.startswith(hidden)]:
        del os.environ[name]
    os.environ.update(
        SAM_CLI_TELEMETRY="0", PATH=f"{VENV / 'sam' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    )


# ── Talking to the person at the terminal ────────────────────────────────────────────────────

STARTED = time.monotonic()


def say(text: str) -> None:
    """Print one progress line with the seconds since the start. Standard output is for results."""
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", file=sys.stderr, flush=True)


def run_logged(command: list[str], log: Path, remedy: str) -> None:
    """Run a command with its output in `log`; say every 15 s that it still runs."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        while True:
            try:
                status = process.wait(timeout=15)
                break
            except subprocess.TimeoutExpired:
                say(f"    still at it: {Path(command[0]).name} {command[1]}")
            except KeyboardInterrupt:
                process.wait()
                raise
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise Failure(f"`{shlex.join(command)}` failed:\n\n{tail}\n\nAll of it: {log}\n{remedy}")


# ── The stack ────────────────────────────────────────────────────────────────────────────────


def build(state_dir: Path, parameters: Sequence[str] = ()) -> Path:
    """Build the function and return the template that says where it is.

    Of the parameters it is the architecture that decides what is built.
    """
    say("building the function for release with sam build (minutes the first time, then seconds)")
    target = state_dir / "build"
    # One at a time: tests come here side by side, and all builds share cargo's target directory.
    with (ROOT / "template.yaml").open() as template:
        fcntl.flock(template, fcntl.LOCK_EX)
        run_logged(
            [
                "sam", "build",
                "--template-file", template.name,
                "--build-dir", str(target),
                *(["--parameter-overrides", *parameters] if parameters else []),
            ],
            state_dir / "build.log",
            "If it is the code that does not compile, `cargo build --release` shows it best.",
        )  # fmt: skip
    return target / "template.yaml"


def stack_outputs(cloudformation: Any, stack: str) -> dict[str, str]:
    described = cloudformation.describe_stacks(StackName=stack)
    outputs = described["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


# ── Its API ──────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    def error_code(self) -> str | None:
        """The code of our first error, or None where somebody else answered."""
        try:
            return json.loads(self.body)["errors"][0]["code"]
        except (ValueError, LookupError, TypeError):
            return None


@dataclasses.dataclass(frozen=True)
class Api:
    """A deployed API. A local AWS is called at its own address and tells APIs apart by host name."""

    url: str
    endpoint_url: str | None = None

    @property
    def address(self) -> str:
        """What to connect to."""
        return (self.endpoint_url or self.url) + ENDPOINT

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def post(self, batch: Any, headers: dict[str, str]) -> Answer:
        address = urlsplit(self.address)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        headers = {"Host": self.host, "Content-Type": "application/json"} | headers
        with contextlib.closing(kind(address.netloc, timeout=15)) as connection:
            connection.request("POST", address.path, json.dumps(batch), headers)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read().decode(errors="replace"))

    def curl(self, key: str, idempotency_key: str) -> str:
        """The command that posts the example batch."""
        parts = [
            "curl -i",
            *([f"-H 'Host: {self.host}'"] if self.endpoint_url else []),
            f'-H "Authorization: Bearer {key}"',
            "-H 'Content-Type: application/json'",
            f"-H 'Idempotency-Key: {idempotency_key}'",
            f"-d '{json.dumps(EXAMPLE_BATCH)}'",
            self.address,
        ]
        return " \\\n    ".join(parts)
