"""Builds the function: a debug build for a local AWS, a release build for AWS.

A local build is cargo's own debug build in cargo's own target directory, so that `make run`,
`make test` and `cargo test` compile each dependency once. cargo-lambda makes the release build, with
profile-guided optimization, and `sam build` packages it.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from progress import CARGO_PROGRESS, Failure, Running, run, step
from project import LOCAL, ROOT, TEMPLATE

FUNCTION = "event-ingest"
KEYS = "event-ingest-keys"
PGO_PROFILE = ROOT / "benches" / "pgo" / "x86_64.profdata"
# The hashes that the files with the versions of the compiler and the dependencies had when the profile was written.
PGO_VERSIONS = PGO_PROFILE.with_suffix(".versions")
# Between the flags in CARGO_ENCODED_RUSTFLAGS, which, unlike RUSTFLAGS, can contain a path with a space.
SEPARATOR = "\x1f"
# The processor of this machine, as the template's parameter Architecture names it.
HOST = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


class CargoBuild(Running):
    """A debug build in progress. After `wait`, `binary` is the path of the binary."""

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
        raise Failure(f"cargo reported no path for the binary {self.name}; see {self.messages}")


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
    """Build the function for the local AWS, and return a template that refers to the build."""
    directory = state_dir / "build"
    bootstrap = directory / "Function" / "bootstrap"
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    # One build at a time: tests build concurrently, and cargo writes every binary to the same directory.
    with TEMPLATE.open() as template:
        fcntl.flock(template, fcntl.LOCK_EX)
        with compile_function(state_dir) as compiling:
            compiling.wait()
        copy_without_symbols(compiling.binary, bootstrap)
        text = template.read()
    # Like `sam build`, write a copy of the template in which CodeUri is the folder of the built function.
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
        raise Failure("The function is not built yet. Run make test or make run.")
    return template


def copy_without_symbols(binary: Path, destination: Path) -> None:
    """Copy a binary without its symbols, which halves its size and the uploads."""
    strip = shutil.which("strip")
    destination.unlink(missing_ok=True)
    if strip:
        subprocess.run([strip, "-o", destination, binary], check=True)
    else:
        shutil.copy2(binary, destination)


def release_environment(arm64: bool) -> dict[str, str]:
    """The environment of the release build, with the profile of `make pgo` (docs/performance.md)."""
    if arm64:
        return {}  # There is no profile for arm64.
    encoded = os.environ.get("CARGO_ENCODED_RUSTFLAGS")
    of_user = encoded.split(SEPARATOR) if encoded else os.environ.get("RUSTFLAGS", "").split()
    # If any flags are set, cargo-lambda does not add its own -Ctarget-cpu=haswell. The last flag wins: the user's.
    flags = ["-Ctarget-cpu=haswell", f"-Cprofile-use={PGO_PROFILE}", *of_user]
    return {"CARGO_ENCODED_RUSTFLAGS": SEPARATOR.join(flags)}


def profile_is_current() -> bool:
    """Whether the profile was written with today's versions of the compiler and the dependencies."""
    hashes = [line.split() for line in PGO_VERSIONS.read_text().splitlines()]
    return all(hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == digest for digest, name in hashes)


def compile_for_release(state_dir: Path, arm64: bool, *arguments: str) -> None:
    """Compile the function for AWS, to target/lambda/event-ingest/."""
    if not arm64 and not profile_is_current():
        print(
            "The compiler or a dependency has changed since the profile for profile-guided optimization was written.\n"
            "The function may be slower than it could be. To renew the profile: make pgo",
            file=sys.stderr,
        )
    command = ["cargo", "lambda", "build", "--locked", "--release", "--bin", FUNCTION, *arguments]
    with step("Compile the function for release, which takes minutes the first time"):
        run(
            [*command, "--arm64" if arm64 else "--x86-64"],
            state_dir / "cargo.log",
            environment=CARGO_PROGRESS | release_environment(arm64),
        )


def build_for_release(state_dir: Path, parameters: Sequence[str] = ()) -> Path:
    """Build the function for AWS, and return a template that refers to the build.

    Of the parameters, only Architecture affects the build.
    """
    directory = state_dir / "build"
    arm64 = any(re.fullmatch(r'Architecture="?arm64"?', word) for word in parameters)
    with TEMPLATE.open() as template:
        fcntl.flock(template, fcntl.LOCK_EX)
        # `sam build` runs the same command but does not show its progress. Run it here first, so that
        # `sam build` finds everything compiled.
        compile_for_release(state_dir, arm64)
        with step("Prepare the deployment with sam build"):
            run(
                [
                    "sam", "build",
                    "--template-file", template.name,
                    "--build-dir", str(directory),
                    *(["--parameter-overrides", *parameters] if parameters else []),
                ],
                state_dir / "build.log",
                environment=release_environment(arm64),
            )  # fmt: skip
    return directory / "template.yaml"
