"""Builds the function: for debugging on a local AWS, for release on AWS.

A local build is cargo's own debug build in cargo's own target directory, so that `make run`,
`make test` and `cargo test` compile each dependency once. A release build is that of `sam build`.
"""

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from progress import CARGO_PROGRESS, Failure, Running, run, step
from project import LOCAL, TEMPLATE

FUNCTION = "event-ingest"
KEYS = "event-ingest-keys"


class CargoBuild(Running):
    """A debug build that runs. After `wait`, `binary` is what it built."""

    def __init__(self, state_dir: Path, name: str, *arguments: str) -> None:
        self.name, self.messages = name, state_dir / f"cargo-{name}.json"
        command = ["cargo", "build", "--locked", "--message-format", "json-render-diagnostics"]
        super().__init__(
            [*command, *arguments, "--bin", name],
            state_dir / f"cargo-{name}.log",
            environment=CARGO_PROGRESS,
            output=self.messages,
        )

    @property
    def binary(self) -> Path:
        for line in self.messages.read_text().splitlines():
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] == self.name:
                return Path(message["executable"])
        raise Failure(f"cargo did not say where it put {self.name}; see {self.messages}")


def compile_function(state_dir: Path) -> CargoBuild:
    """Start to compile the function, with exactly the features that it has on AWS."""
    return CargoBuild(state_dir, FUNCTION, "--package", FUNCTION)


def compile_keys(state_dir: Path) -> CargoBuild:
    """Start to compile event-ingest-keys.

    Naming the function's package, too, makes cargo enable the same features of their common
    dependencies as for the function, so that it does not compile these dependencies again.
    """
    return CargoBuild(state_dir, KEYS, "--package", FUNCTION, "--package", KEYS)


def build_for_local(state_dir: Path) -> Path:
    """Build the function as the local AWS runs it, and return the template that says where it is."""
    directory = state_dir / "build"
    bootstrap = directory / "Function" / "bootstrap"
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    # One at a time: tests build side by side, and cargo puts every binary into one directory.
    with TEMPLATE.open() as template:
        fcntl.flock(template, fcntl.LOCK_EX)
        with compile_function(state_dir) as compiling:
            compiling.wait()
        copy_without_symbols(compiling.binary, bootstrap)
        text = template.read()
    # As `sam build` would: the same template, with the folder that has the built function.
    text, changes = re.subn(r"^(\s+CodeUri:) \.$", r"\1 Function", text, flags=re.MULTILINE)
    if changes != 1:
        raise Failure("template.yaml must have one line `CodeUri: .`, which the local build replaces.")
    built = directory / "template.yaml"
    built.write_text(text)
    return built


def last_build() -> Path:
    """The template of the last local build."""
    template = LOCAL / "build" / "template.yaml"
    if not template.exists():
        raise Failure("The function is not built yet: make test, or make run")
    return template


def copy_without_symbols(binary: Path, destination: Path) -> None:
    """Copy a binary. Without symbols it is half as large, and so are the uploads."""
    strip = shutil.which("strip")
    destination.unlink(missing_ok=True)
    if strip:
        subprocess.run([strip, "-o", destination, binary], check=True)
    else:
        shutil.copy2(binary, destination)


def build_for_release(state_dir: Path, parameters: Sequence[str] = ()) -> Path:
    """Build the function as AWS runs it, and return the template that says where it is.

    Of the parameters, Architecture decides what is built.
    """
    directory = state_dir / "build"
    with TEMPLATE.open() as template:
        fcntl.flock(template, fcntl.LOCK_EX)
        with step("Compile the function for release, which takes minutes the first time"):
            # The command that `sam build` runs. sam would show nothing of its progress; it then
            # finds everything compiled.
            arm64 = any(re.fullmatch(r'Architecture="?arm64"?', word) for word in parameters)
            run(
                ["cargo", "lambda", "build", "--release", *(["--arm64"] if arm64 else []), "--bin", FUNCTION],
                state_dir / "cargo.log",
                environment=CARGO_PROGRESS,
            )
        with step("Prepare the deployment with sam build"):
            run(
                [
                    "sam", "build",
                    "--template-file", template.name,
                    "--build-dir", str(directory),
                    *(["--parameter-overrides", *parameters] if parameters else []),
                ],
                state_dir / "build.log",
            )  # fmt: skip
    return directory / "template.yaml"
