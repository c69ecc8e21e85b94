"""The adapter of event-ingest-backfill for the conformance suite, which docs/conformance.md describes.

backfill_adapter.py target/debug/event-ingest-backfill
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How long a run continues without a success. The next `flush` resumes it.
GIVE_UP_AFTER = "20s"
# The exit codes of a run that accepted or reported every event.
COMPLETE = {0, 1}

Json = dict[str, Any]


class Backfill:
    """Writes the events of each `flush` to a file, and runs the command until the file is complete."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.options: list[str] = []
        self.base_url = ""
        self.api_key = ""
        self.pending: list[str] = []
        self.files: list[Path] = []
        self.is_incomplete = False

    def capabilities(self) -> Json:
        return {"endpoint": "bulk", "half_surrogates": "rejected"}

    def start(self, base_url: str, api_key: str, max_events: int, timeout_ms: int) -> None:
        self.base_url, self.api_key = base_url, api_key
        self.options = ["--max-events", str(max_events), "--concurrency", "1", "--timeout", f"{timeout_ms}ms"]
        self.options += ["--give-up-after", GIVE_UP_AFTER, "--json"]

    def track(self, event: Json) -> None:
        # The JSON is ASCII with escapes, which preserve half of a surrogate pair.
        self.pending.append(json.dumps({"external_user_id": event.pop("user_id"), **event}))

    def flush(self) -> None:
        if self.is_incomplete:
            self.send(self.files[-1])
        if self.pending:
            self.files.append(self.directory / f"events-{len(self.files)}.ndjson")
            self.files[-1].write_text("".join(f"{event}\n" for event in self.pending))
            self.pending = []
            self.is_incomplete = True
            self.send(self.files[-1])

    def send(self, file: Path) -> None:
        run = self.run(str(file), *self.options)
        if run.returncode not in COMPLETE:
            summary = json.loads(run.stdout) if run.stdout else {"error": run.stderr}
            raise RuntimeError(summary["error"])
        self.is_incomplete = False

    def set_api_key(self, api_key: str) -> None:
        self.api_key = api_key
        self.options.append("--same-project")

    def rejected(self) -> Json:
        paths = [Path(f"{file}.rejects.ndjson") for file in self.files]
        printed = [self.run("rejects", str(path)).stdout for path in paths if path.exists()]
        events = [json.loads(line) for lines in printed for line in lines.splitlines()]
        return {"rejected": [event["external_user_id"] for event in events]}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # The command must not inherit other variables, such as a proxy.
        environment = {"VIBEFOLLOW_BASE_URL": self.base_url, "VIBEFOLLOW_API_KEY": self.api_key}
        return subprocess.run(
            [self.program, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )


def answer(client: Backfill, line: str) -> Json:
    parameters = json.loads(line)
    command: Callable[..., Json | None] = getattr(client, parameters.pop("command"))
    try:
        return command(**parameters) or {}
    except RuntimeError as error:
        return {"error": str(error)}


def main() -> None:
    program = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as directory:
        client = Backfill(program, Path(directory))
        for line in sys.stdin:
            print(json.dumps(answer(client, line)), flush=True)


main()
