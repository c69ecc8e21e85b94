"""Progress on the terminal: numbered steps, elapsed seconds, and why a command failed.

Progress goes to standard error; standard output is for results. On a terminal, the line of the
current step is updated in place. In a pipe, a step prints a line when it starts and every 15 s.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from project import ROOT

REFRESH_SECONDS = 0.2
REPEAT_SECONDS = 15.0

# Makes cargo report its progress although its output goes to a file.
CARGO_PROGRESS = {
    "CARGO_TERM_COLOR": "never",
    "CARGO_TERM_PROGRESS_WHEN": "always",
    "CARGO_TERM_PROGRESS_WIDTH": "100",
}


class Failure(Exception):
    """An error message for the user: what failed, and what to do about it."""


# ── Steps ────────────────────────────────────────────────────────────────────────────────────────


class Display:
    """The progress lines of this process."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.total = 0
        self.count = 0
        self.title: str | None = None
        self.printed_at = 0.0

    def print(self, text: str) -> None:
        """Print a whole line. On a terminal it replaces the line that is updated in place."""
        start = "\r\x1b[2K" if self.on_terminal else ""
        print(f"{start}{text}", file=sys.stderr, flush=True)
        self.printed_at = time.monotonic()

    def line(self, text: str) -> str:
        number = f"[{self.count}/{self.total}] " if self.total else ""
        return f"{number}{time.monotonic() - self.started:5.1f} s  {text}"

    def update(self, detail: str) -> None:
        """Show the progress of the current step."""
        if self.title is None:
            return
        text = self.line(f"{self.title}{f' ({detail})' if detail else ''}")
        if self.on_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{text[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.printed_at >= REPEAT_SECONDS:
            self.print(text)


DISPLAY = Display()


def plan(total: int) -> None:
    """Number the following steps from 1 to `total`."""
    DISPLAY.total = total


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Show `title` while the block runs."""
    DISPLAY.count += 1
    DISPLAY.title = title
    if DISPLAY.on_terminal:
        DISPLAY.update("")
    else:
        DISPLAY.print(DISPLAY.line(title))
    try:
        yield
    except BaseException:
        DISPLAY.print(DISPLAY.line(f"{title}: not completed"))
        raise
    else:
        if DISPLAY.on_terminal:
            DISPLAY.print(DISPLAY.line(title))
    finally:
        DISPLAY.title = None


def say(text: str) -> None:
    """Print a line outside of the numbered steps."""
    DISPLAY.print(f"{time.monotonic() - DISPLAY.started:5.1f} s  {text}")


# ── Commands ─────────────────────────────────────────────────────────────────────────────────────


class Running:
    """A command that runs with its output in a log file. Leaving its `with` block ends it."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        remedy: str = "",
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> None:
        self.command, self.log, self.remedy = list(command), log, remedy
        log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            log_file = files.enter_context(log.open("w"))
            output_file = files.enter_context(output.open("w")) if output else log_file
            try:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=ROOT,
                    env=os.environ | environment if environment else None,
                    stdin=subprocess.DEVNULL,
                    stdout=output_file,
                    stderr=log_file,
                )
            except FileNotFoundError:
                raise Failure(f"{self.command[0]} is not installed. {remedy}".rstrip()) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            if not isinstance(error, KeyboardInterrupt):  # the terminal interrupts the child, too
                self.process.terminate()
            self.process.wait()

    def wait(self) -> None:
        """Wait until the command ends, and show its progress. Raises `Failure` if it fails."""
        while True:
            try:
                status = self.process.wait(timeout=REFRESH_SECONDS)
                break
            except subprocess.TimeoutExpired:
                DISPLAY.update(cargo_progress(self.log))
        if status != 0:
            reason = excerpt(self.log.read_text(errors="replace"))
            failed = f"`{shlex.join(self.command)}` failed with exit status {status}:"
            remedy = f"\n{self.remedy}" if self.remedy else ""
            raise Failure(f"{failed}\n\n{reason}\n\nThe full log: {self.log}{remedy}")


def run(
    command: Sequence[str],
    log: Path,
    remedy: str = "",
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> None:
    """Run a command with its output in a log file. Raises `Failure` if it fails."""
    with Running(command, log, remedy, environment, output) as running:
        running.wait()


# ── Logs ─────────────────────────────────────────────────────────────────────────────────────────

BUILDING = re.compile(r"Building \[[=> ]*\] (\d+)/(\d+)(?:: ([^\r\n]*))?")
CARGO_BAR = re.compile(r"^\s*(Building|Downloading|Updating|Fetch)\b.*\[[=> ]*\]")
ERROR = re.compile(r"\b(error|failed|failure|fatal|panicked|cannot|traceback|exception)\b|_FAILED\b", re.I)


def cargo_progress(log: Path) -> str:
    """What cargo last reported in this log, as "57 of 120: aws-sdk-sqs", or "" if it did not."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        end = file.read().decode(errors="replace")
    matches = list(BUILDING.finditer(end))
    if not matches:
        return ""
    done, total, names = matches[-1].groups()
    return f"{done} of {total}" + (f": {names.strip()}" if names else "")


def excerpt(log: str, longest: int = 40) -> str:
    """The lines of a log that explain a failure: those around the first errors, and the last lines."""
    lines = [line.rstrip() for line in log.replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line.strip() and not CARGO_BAR.match(line)]
    last = range(max(0, len(lines) - 8), len(lines))
    shown = set(last)
    for number, line in enumerate(lines):
        if ERROR.search(line):
            around = {near for near in range(number - 1, number + 8) if 0 <= near < len(lines)}
            if len(shown | around) > longest:
                break
            shown |= around
    result: list[str] = []
    previous = -1
    for number in sorted(shown):
        if number != previous + 1:
            result.append("…")
        result.append(lines[number])
        previous = number
    return "\n".join(f"  {line}" for line in result) or "  (it printed nothing)"
