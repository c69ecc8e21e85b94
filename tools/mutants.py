#!/usr/bin/env python3
"""Breaks the protocol in one place at a time and checks that the tests notice.

    tools/mutants.py              every mutation of tests/mutants/mutants.toml
    tools/mutants.py WORD ...     those whose name or test contains a word, as `explore`
    tools/mutants.py --traces     with each counterexample

Works on a copy of the tree under target/mutants, with a build directory of its own, since cargo
takes two copies of a package for one: the tree is never touched, and the first run takes longer.
Exits 1 if a mutation survives, does not end, does not apply or does not compile.
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

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "target" / "mutants" / "tree"
BUILD = ROOT / "target" / "mutants" / "build"
# Far longer than the tests take: a mutation that makes them run for ever is not "killed".
PATIENCE_SECONDS = 900
# The profile optimises this package for the exploration; the other tests rather build quickly.
UNOPTIMISED = ["--config", "profile.dev.package.event-ingest.opt-level=0"]


def copy_tree() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    # Whatever git would keep: the suite reads the schema, the samples and the template, too.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    (TREE / ".venv").symlink_to(ROOT / ".venv")


def cargo(arguments: list[str]) -> tuple[int | None, str]:
    """Runs cargo over the copy; the exit code is None if it did not end."""
    environment = os.environ | {"CARGO_TARGET_DIR": str(BUILD), "RUST_BACKTRACE": "0"}
    profile = [] if "explore" in arguments else UNOPTIMISED
    process = subprocess.Popen(
        ["cargo", "test", "--quiet", *profile, *arguments],
        cwd=TREE, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, ""


def apply(mutant: dict) -> dict[Path, str] | None:
    """Makes the edits; returns the files as they were, or None if one does not apply exactly once."""
    originals: dict[Path, str] = {}
    for edit in mutant["edit"]:
        path = TREE / edit["file"]
        text = path.read_text()
        originals.setdefault(path, text)
        if text.count(edit["find"]) != 1:
            restore(originals)
            return None
        path.write_text(text.replace(edit["find"], edit["replace"]))
    return originals


def restore(originals: dict[Path, str]) -> None:
    for path, text in originals.items():
        path.write_text(text)


def counterexample(output: str) -> list[str]:
    """The lines of a failed test that say what went wrong."""
    lines = output.splitlines()
    starts = [number for number, line in enumerate(lines) if "panicked at" in line]
    if not starts:
        return []
    end = starts[0] + 1
    while end < len(lines) and lines[end].strip() and not lines[end].startswith("note:"):
        end += 1
    return lines[starts[0] + 1 : end]


def judge(mutant: dict, traces: bool) -> bool:
    begun = time.monotonic()
    originals = apply(mutant)
    if originals is None:
        verdict, trace = "DOES NOT APPLY", []
    else:
        try:
            built, output = cargo([*mutant["test"].split(), "--no-run"])
            if built != 0:
                verdict, trace = "DOES NOT COMPILE", output.splitlines()[-20:]
            else:
                code, output = cargo(mutant["test"].split())
                verdict = {0: "SURVIVED", None: "DID NOT END"}.get(code, "killed")
                trace = counterexample(output)
        finally:
            restore(originals)
    seconds = time.monotonic() - begun
    print(f"{verdict:<9} {mutant['name']}  ({mutant['test']}, {seconds:.0f} s)", flush=True)
    for line in trace if traces or verdict != "killed" else trace[:1]:
        print(f"            {line.strip()}", flush=True)
    return verdict == "killed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutations whose name or test contains one of these")
    parser.add_argument("--traces", action="store_true", help="print each counterexample in full")
    options = parser.parse_args()

    mutants = tomllib.loads((ROOT / "tests/mutants/mutants.toml").read_text())["mutant"]
    if options.words:
        about = lambda mutant: mutant["name"] + mutant["test"]
        mutants = [mutant for mutant in mutants if any(word in about(mutant) for word in options.words)]
    if not mutants:
        print("no mutation has such a name", file=sys.stderr)
        return 2
    copy_tree()
    for test in sorted({mutant["test"] for mutant in mutants}):
        code, output = cargo(test.split())
        if code != 0:
            print(f"cargo test {test} fails without any mutation:\n{output}", file=sys.stderr)
            return 2
    killed = sum(judge(mutant, options.traces) for mutant in mutants)
    print(f"{killed} of {len(mutants)} mutations killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
