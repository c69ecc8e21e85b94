"""Builds the function for AWS, checks the size of its zip, and tests the build.

The tests that start sandboxes run again, with this binary instead of the debug build.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from build import HOST, build_for_release
from progress import Failure, step
from project import LOCAL, ROOT, prepare_environment

# Lambda downloads and unpacks the zip at each cold start.
MAX_ZIP_BYTES = 4_500_000
TESTS = "sandbox_scenarios"


def zip_size(bootstrap: Path) -> int:
    archive = bootstrap.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(bootstrap, "bootstrap")
    return archive.stat().st_size


def main() -> int:
    prepare_environment()
    state = LOCAL / "release"
    state.mkdir(parents=True, exist_ok=True)
    try:
        template = build_for_release(state, [f"Architecture={HOST}"])
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    bootstrap = template.parent / "Function" / "bootstrap"
    size = zip_size(bootstrap)
    print(f"The zip of the function has {size:,} bytes. The limit is {MAX_ZIP_BYTES:,}.")
    if size > MAX_ZIP_BYTES:
        return 1
    with step(f"Run the tests {TESTS} with the release build"):
        environment = os.environ | {"EVENT_INGEST_BINARY": str(bootstrap)}
        command = ["cargo", "test", "--locked", "--package", "event-ingest", "--test", "suite", TESTS]
        tests = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    print(tests.stdout)
    if "test result: ok. 0 passed" in tests.stdout:
        print(f"There are no tests named {TESTS}.", file=sys.stderr)
        return 1
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
