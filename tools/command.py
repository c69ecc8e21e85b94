"""How the commands for a deployed stack start, and how they end after an error or an interruption."""

import io
import signal
import sys
from collections.abc import Callable
from typing import cast

import botocore.exceptions

from progress import Failure

AWS_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)


def run_command(action: Callable[[], None], interrupted: str = "Interrupted.") -> int:
    """Runs `action`, and returns the exit code: 1 after an error, 130 after an interruption."""
    # Keeps progress and results in order if both go to the same pipe.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    # Lets `with` blocks end, and so revoke a temporary API key, when the process is asked to stop.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        action()
    except (Failure, *AWS_ERRORS) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    return 0
