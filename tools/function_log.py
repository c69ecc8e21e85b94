"""The log of a deployed function: the line of each request, as src/telemetry.rs writes it."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Entry = dict[str, Any]
T = TypeVar("T")

# A local AWS returns at most this many events of a log group, without a token for the rest.
LOCAL_PAGE = 10_000


def messages(logs: Any, group: str, since: float, pattern: str = "") -> Iterator[str]:
    """The messages of a log group from the time `since`, in epoch seconds. A page is at most 1 MB or 10,000 events.

    A local AWS ignores the filter pattern, so callers must filter again.
    """
    arguments = {"logGroupName": group, "startTime": int(since * 1000)}
    if pattern:
        arguments["filterPattern"] = pattern
    seen: set[tuple[str, int, str]] = set()
    while True:
        page = logs.filter_log_events(**arguments)
        for event in page["events"]:
            identity = (event["logStreamName"], event["timestamp"], event["message"])
            if identity not in seen:
                seen.add(identity)
                yield event["message"].rstrip()
        if "nextToken" in page:
            arguments["nextToken"] = page["nextToken"]
            continue
        last = page["events"][-1]["timestamp"] if page["events"] else 0
        if len(page["events"]) < LOCAL_PAGE or arguments["startTime"] == last:
            return
        arguments.pop("nextToken", None)
        arguments["startTime"] = last


def requests(logs: Any, group: str, since: float, **members: str) -> Iterator[Entry]:
    """The lines of requests whose members have these values."""
    conditions = " && ".join(f'$.{name} = "{value}"' for name, value in members.items())
    for message in messages(logs, group, since, f"{{ {conditions} }}"):
        found = entry(message)
        if all(found.get(name) == value for name, value in members.items()):
            yield found


def entry(message: str) -> Entry:
    """The JSON object in a message, or an empty one. In a local log, text may precede and follow it."""
    start = message.find('{"')
    try:
        found, _ = json.JSONDecoder().raw_decode(message[start:]) if start >= 0 else ({}, 0)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def wait_for(find: Callable[[], T | None], seconds: float) -> T | None:
    """Calls `find` until it returns something. CloudWatch usually shows a line within 10 seconds."""
    deadline = time.monotonic() + seconds
    while (found := find()) is None and time.monotonic() < deadline:
        time.sleep(1)
    return found


def level(function: Any, name: str) -> str:
    """The log level of a function, such as INFO."""
    variables = function.get_function_configuration(FunctionName=name).get("Environment", {}).get("Variables", {})
    return str(variables.get("RUST_LOG") or variables.get("AWS_LAMBDA_LOG_LEVEL") or "INFO").upper()


def shows_requests(log_level: str) -> bool:
    """Whether the function writes a line for each successful request."""
    return log_level not in ("WARN", "ERROR", "OFF")
