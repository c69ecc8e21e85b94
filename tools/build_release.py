"""Compiles the function as `make deploy` does, to target/lambda/event-ingest/.

    python3 tools/build_release.py host
    python3 tools/build_release.py arm64 --output-format zip

The first argument is the architecture: x86_64, arm64, or host, which is that of this machine. The others are
passed to `cargo lambda build`.
"""

import sys

from build import HOST, compile_for_release
from progress import Failure
from project import LOCAL, prepare_environment


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ("x86_64", "arm64", "host"):
        print("usage: build_release.py x86_64|arm64|host [ARGUMENT]...", file=sys.stderr)
        return 2
    architecture = HOST if sys.argv[1] == "host" else sys.argv[1]
    prepare_environment()
    state = LOCAL / "release"
    state.mkdir(parents=True, exist_ok=True)
    try:
        compile_for_release(state, architecture == "arm64", *sys.argv[2:])
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
