#!/usr/bin/env python3
"""Applies one mutation to the protocol at a time and checks that the tests fail.

    tools/mutants.py              all mutations of tests/mutants/mutants.toml
    tools/mutants.py WORD ...     those whose name or test contains one of the words, such as `explore`
    tools/mutants.py --traces     print each counterexample in full
    tools/mutants.py --check      check that every mutation applies; build nothing
    tools/mutants.py --generated  the mutations that cargo-mutants generates (.cargo/mutants.toml)

The mutations are applied to a copy of the tree in target/mutants, which has its own build directory. The
working tree is not changed, and the first run builds everything again.
Exits with 1 if a mutation survives, does not end, does not apply, or does not compile.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "target" / "mutants" / "tree"
BUILD = ROOT / "target" / "mutants" / "build"
# Much longer than the tests take. A mutation that makes them run forever does not count as killed.
TIMEOUT_SECONDS = 900
CARGO_MUTANTS = ROOT / ".venv" / "cargo-mutants" / "bin" / "cargo-mutants"
# The tests of the protocol in tests/suite, without those that take long or that fail on a busy machine.
SUITE_TESTS = [
    *["bulk::", "fuzz_corpus::packings", "message_schema::", "ordered::", "packing::", "pipeline_failures::"],
    *["ports::", "protocol::", "rate_limit::", "rules::"],
    *["--skip", "tenants_do_not_affect_each_other", "--skip", "a_million_invalid_events"],
    *["--skip", "a_large_lane_is_sent_in_order", "--skip", "thirty_two_concurrent"],
]


def copy_tree() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    # Every file that is not ignored by git, because the tests also read the schema, samples, and template.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            # Not copy2: with the old modification times, cargo would consider the last build up to date.
            shutil.copy(ROOT / name, TREE / name)
    (TREE / ".venv").symlink_to(ROOT / ".venv")


def cargo(arguments: list[str]) -> tuple[int | None, str]:
    """Runs cargo in the copy. The exit code is None if it did not end in time."""
    environment = os.environ | {"CARGO_TARGET_DIR": str(BUILD), "RUST_BACKTRACE": "0"}
    process = subprocess.Popen(
        ["cargo", "test", "--quiet", "--locked", *arguments],
        cwd=TREE,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, ""


class DoesNotApply(Exception):
    """The text to find does not occur exactly once, or the replacement is the same text."""


def mutated(mutant: dict[str, Any], root: Path) -> dict[Path, str]:
    """Returns the new text of each file that a mutation of the tree at `root` changes."""
    texts: dict[Path, str] = {}
    for edit in mutant["edit"]:
        path = root / edit["file"]
        text = texts.get(path) or path.read_text()
        if (count := text.count(edit["find"])) != 1:
            raise DoesNotApply(f"{edit['file']}: found {count} times: {edit['find']!r}")
        if edit["find"] == edit["replace"]:
            raise DoesNotApply(f"{edit['file']}: the replacement changes nothing: {edit['find']!r}")
        texts[path] = text.replace(edit["find"], edit["replace"])
    return texts


def write(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        path.write_text(text)


def check(mutants: list[dict[str, Any]]) -> int:
    """Checks that the mutations apply to the working tree, and that their names differ."""
    faults = []
    names = [mutant["name"] for mutant in mutants]
    faults += [f"{name}: the name is used twice" for name in sorted(set(names)) if names.count(name) > 1]
    for mutant in mutants:
        try:
            mutated(mutant, ROOT)
        except DoesNotApply as error:
            faults.append(f"{mutant['name']}: {error}")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(mutants)} mutations, {len(faults)} faults")
    return 1 if faults else 0


def counterexample(output: str) -> list[str]:
    """The panic message of a failed test."""
    lines = output.splitlines()
    starts = [number for number, line in enumerate(lines) if "panicked at" in line]
    if not starts:
        return []
    end = starts[0] + 1
    while end < len(lines) and lines[end].strip() and not lines[end].startswith("note:"):
        end += 1
    return lines[starts[0] + 1 : end]


def judge(mutant: dict[str, Any], traces: bool) -> bool:
    started = time.monotonic()
    try:
        texts = mutated(mutant, TREE)
    except DoesNotApply as error:
        verdict, trace = "DOES NOT APPLY", [str(error)]
    else:
        originals = {path: path.read_text() for path in texts}
        write(texts)
        try:
            built, output = cargo([*mutant["test"].split(), "--no-run"])
            if built != 0:
                verdict, trace = "DOES NOT COMPILE", output.splitlines()[-20:]
            else:
                code, output = cargo(mutant["test"].split())
                verdict = {0: "SURVIVED", None: "DID NOT END"}.get(code, "killed")
                trace = counterexample(output)
        finally:
            write(originals)
    seconds = time.monotonic() - started
    print(f"{verdict:<9} {mutant['name']}  ({mutant['test']}, {seconds:.0f} s)", flush=True)
    for line in trace if traces or verdict != "killed" else trace[:1]:
        print(f"            {line.strip()}", flush=True)
    return verdict == "killed"


def generated() -> int:
    """Runs cargo-mutants in the copy: all mutations with the unit tests, and then the survivors with the suite."""
    copy_tree()
    command = [str(CARGO_MUTANTS), "mutants", "--workspace", "--in-place", "--output", str(BUILD.parent)]
    environment = os.environ | {"CARGO_TARGET_DIR": str(BUILD), "RUST_BACKTRACE": "0"}

    def run(*arguments: str) -> int:
        return subprocess.run([*command, *arguments], cwd=TREE, env=environment).returncode

    unit_tests = run("--", "--lib")
    # 2: mutations were missed. 3: a mutation timed out.
    if unit_tests not in (0, 2, 3):
        return unit_tests
    suite = run("--iterate", "--test-package", "event-ingest", "--", "--test", "suite", "--", *SUITE_TESTS)
    return 0 if suite == 3 else suite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run only mutations whose name or test contains one of these")
    parser.add_argument("--traces", action="store_true", help="print each counterexample in full")
    parser.add_argument("--check", action="store_true", help="check that every mutation applies; build nothing")
    parser.add_argument("--generated", action="store_true", help="run the mutations that cargo-mutants generates")
    options = parser.parse_args()

    if options.generated:
        return generated()
    mutants = tomllib.loads((ROOT / "tests/mutants/mutants.toml").read_text())["mutant"]
    if options.words:
        mutants = [
            mutant for mutant in mutants if any(word in f"{mutant['name']} {mutant['test']}" for word in options.words)
        ]
    if not mutants:
        print("no mutation matches", file=sys.stderr)
        return 2
    if options.check:
        return check(mutants)
    copy_tree()
    for test in sorted({mutant["test"] for mutant in mutants}):
        code, output = cargo(test.split())
        if code != 0:
            print(f"cargo test {test} fails without a mutation:\n{output}", file=sys.stderr)
            return 2
    killed = sum(judge(mutant, options.traces) for mutant in mutants)
    print(f"{killed} of {len(mutants)} mutations killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
