"""Sends load to a deployed stack, and checks that every accepted batch is in the function's log.

    tools/load.py PROFILE --rate 50 --seconds 60 [--events-per-batch 100] [--yes]

It shows what the run costs and asks for confirmation. Then it sends RATE batches per second for SECONDS
seconds, with a temporary API key of the project load-test, in test mode, and retries like a client. At the
end it prints the answers by status, the retries and the latencies, and looks up every accepted batch in the
function's log. It exits with 1 if one is missing. The events are in the queue, for your consumers.

Make runs it with .venv/sam/bin/python, which has boto3.
"""

import argparse
import http.client
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import account
import costs
import function_log
from command import run_command
from progress import Failure, say, step
from stack import ENDPOINT
from temporary_key import KEY_REVOKED, LOAD_PROJECT, TemporaryKey
from verify import Target, deployed_target

# More needs more than one machine.
MAX_RATE, MAX_SECONDS = 1_000, 600
RATE_PER_PROCESS = 100
ATTEMPTS = 5
ATTEMPT_SECONDS = 15.0
BACKOFF_SECONDS = 0.5
LOG_SECONDS = 120
ACCEPTED = ("accepted", "taken_over", "resumed")


@dataclass
class Sent:
    """A batch that was sent: each attempt's answer and duration, and the seconds from when it was due."""

    answers: list[tuple[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    late: float = 0.0
    batch_id: str | None = None

    @property
    def accepted(self) -> bool:
        return self.answers[-1][0] == "202"


# ── Sending ──────────────────────────────────────────────────────────────────────────────────────


def make_body(events: int, seed: int) -> bytes:
    """A batch of events of about 200 bytes."""
    chosen = random.Random(seed)
    batch = [
        {
            "external_user_id": f"usr_{chosen.randrange(100_000)}",
            "name": chosen.choice(["page_viewed", "item_added", "order_completed"]),
            "timestamp": "2026-01-01T00:00:00Z",
            "properties": {"page": f"/products/{chosen.randrange(1000)}", "amount": chosen.randrange(10_000) / 100},
        }
        for _ in range(events)
    ]
    return json.dumps({"events": batch}).encode()


class Client:
    """Sends batches over one connection, and retries as docs/clients.md says."""

    def __init__(self, address: str, key: str) -> None:
        self.address, self.key = urlsplit(address), key
        self.connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes, due: float) -> Sent:
        sent = Sent(late=time.monotonic() - due)
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Idempotency-Key": str(uuid.uuid4()),
        }
        for attempt in range(ATTEMPTS):
            started = time.monotonic()
            status, wait = self.attempt(body, headers, sent)
            sent.answers.append((status, time.monotonic() - started))
            if not status.startswith(("429", "5", "no answer")) or attempt + 1 == ATTEMPTS:
                break
            time.sleep(max(wait, random.uniform(0.5, 1.0) * BACKOFF_SECONDS * 2**attempt))
        sent.seconds = time.monotonic() - due
        return sent

    def attempt(self, body: bytes, headers: dict[str, str], sent: Sent) -> tuple[str, float]:
        """The status of one request, and the seconds of its Retry-After."""
        try:
            if self.connection is None:
                https = self.address.scheme == "https"
                kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
                self.connection = kind(self.address.netloc, timeout=ATTEMPT_SECONDS)
            self.connection.request("POST", self.address.path, body, headers)
            response = self.connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            if self.connection is not None:
                self.connection.close()
            self.connection = None
            return f"no answer ({type(error).__name__})", 0.0
        sent.batch_id = response.headers.get("x-batch-id") or sent.batch_id
        source = "" if response.headers.get("x-request-id") else " from the gateway"
        return f"{response.status}{source}", float(response.headers.get("retry-after") or 0)


def send_share(
    address: str, key: str, rate: float, seconds: float, events: int, connections: int, start: float, seed: int
) -> list[Sent]:
    """Sends one process's share of the load, whether or not answers arrive in time. `start` is an epoch time."""
    bodies = [make_body(events, seed + number) for number in range(8)]
    idle: list[Client] = []
    begin = time.monotonic() + start - time.time()

    def send(number: int, due: float) -> Sent:
        client = idle.pop() if idle else Client(address, key)
        try:
            return client.send(bodies[number % len(bodies)], due)
        finally:
            idle.append(client)

    with ThreadPoolExecutor(connections) as pool:
        futures = []
        for number in range(max(1, round(rate * seconds))):
            due = begin + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            futures.append(pool.submit(send, number, due))
        return [future.result() for future in futures]


def leave_signals_to_the_parent() -> None:
    """Makes Ctrl-C reach only the parent, which then terminates its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def send_all(target: Target, key: str, arguments: argparse.Namespace) -> list[Sent]:
    # Enough for answers after two seconds.
    connections = arguments.connections or math.ceil(arguments.rate * 2) + 8
    processes = min(os.cpu_count() or 1, math.ceil(arguments.rate / RATE_PER_PROCESS), connections)
    start = time.time() + 1.0
    shares = [
        (
            target.api.base_url + ENDPOINT,
            key,
            arguments.rate / processes,
            arguments.seconds,
            arguments.events_per_batch,
            math.ceil(connections / processes),
            # The processes take turns.
            start + number / arguments.rate,
            number * 1000,
        )
        for number in range(processes)
    ]
    # Leaving the block, for example after Ctrl-C, terminates the processes.
    with multiprocessing.Pool(processes, leave_signals_to_the_parent) as pool:
        return [sent for share in pool.starmap(send_share, shares) for sent in share]


# ── The report ───────────────────────────────────────────────────────────────────────────────────


def percentiles(seconds: Iterable[float]) -> str:
    ordered = sorted(seconds)
    if not ordered:
        return "none"

    def at(share: float) -> str:
        return f"{1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)]:,.0f}"

    shares = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max"))
    return ", ".join(f"{name} {at(share)}" for share, name in shares)


def print_report(sent: Sequence[Sent], arguments: argparse.Namespace) -> None:
    accepted = [batch for batch in sent if batch.accepted]
    answers = Counter(status for batch in sent for status, _ in batch.answers)
    attempts = sum(answers.values())
    print(f"""
  batches    {len(sent):,} sent, {len(accepted):,} accepted, {len(sent) - len(accepted):,} given up or rejected
  events     {len(accepted) * arguments.events_per_batch:,} accepted
  retries    {attempts - len(sent):,}
  latency    of a request that got 202, ms: {percentiles(s for b in sent for status, s in b.answers if status == "202")}
             of a batch with its retries, ms: {percentiles(batch.seconds for batch in accepted)}
  answers""")
    for status, count in answers.most_common():
        print(f"             {count:8,}  {status}")
    late = max(batch.late for batch in sent)
    if late > 1:
        reason = "because this machine or --connections limits the rate"
        print(f"\n  Batches left up to {late:.1f} s late, {reason}. Lower RATE.")


def check_log(target: Target, key: TemporaryKey, sent: Sequence[Sent]) -> None:
    """Finds every accepted batch in the function's log. Raises `Failure` if one is missing."""
    missing = {batch.batch_id or "(without x-batch-id)" for batch in sent if batch.accepted}
    count = len(missing)
    outcomes: Counter[str] = Counter()
    troubles: Counter[str] = Counter()
    logs, group = target.client("logs"), target.outputs["FunctionLog"]

    def all_found() -> bool | None:
        outcomes.clear()
        troubles.clear()
        for line in function_log.requests(logs, group, target.since, key_hint=key.hint):
            outcomes[str(line.get("outcome"))] += 1
            if line.get("outcome") in ACCEPTED:
                missing.discard(str(line.get("batch_id")))
            troubles["AWS calls retried"] += int(line.get("aws_retries", 0))
            troubles["not marked accepted"] += line.get("completion") == "failed"
            troubles["not counted against the limit"] += "limiter_failure" in line
        return None if missing else True

    with step(f"Find {count:,} accepted batches in the function's log"):
        function_log.wait_for(all_found, LOG_SECONDS)
    print(
        f"  log        {', '.join(f'{number:,} {outcome}' for outcome, number in outcomes.most_common()) or 'nothing'}"
    )
    print(f"             {', '.join(f'{trouble}: {number:,}' for trouble, number in troubles.items())}")
    if missing:
        shown = "\n  ".join(sorted(missing)[:10])
        raise Failure(
            f"{len(missing):,} of {count:,} accepted batches are not in the log group {group} as accepted:\n\n  {shown}"
        )
    say(f"Every accepted batch is in the log as accepted: {count:,} of {count:,}.")


# ── The command ──────────────────────────────────────────────────────────────────────────────────


def announce(target: Target, arguments: argparse.Namespace) -> None:
    """Shows what the run will do and cost, and asks for confirmation."""
    batches = max(1, round(arguments.rate * arguments.seconds))
    events = batches * arguments.events_per_batch
    lines = costs.traffic(events, arguments.events_per_batch, arguments.seconds / costs.SECONDS_PER_DAY)
    print(
        f"  load     {arguments.rate:g} batches of {arguments.events_per_batch} events per second for "
        f"{arguments.seconds:g} s: {batches:,} batches, {events:,} events\n"
        f"  cost     about ${costs.total(lines):.4f}, of which the largest is "
        f"{max(lines, key=lambda line: line.dollars).name}; list prices in us-east-1"
    )
    throttle = float(target.stack.parameters.get("ThrottleRequestsPerSecond", "inf"))
    if arguments.rate > throttle:
        print(f"  limit    ThrottleRequestsPerSecond is {throttle:g}, so API Gateway will answer the rest with 429")
    if not arguments.yes:
        account.confirm(
            "The events go to your consumers. Start?", "To start without a question: YES=1", "Nothing was sent."
        )


def bounded(most: float, text: str) -> float:
    number = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if not 0 < number <= most:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most {most:g}")
    return number


def whole(most: int, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    account.add_arguments(parser)
    account.add_url_argument(parser)
    parser.add_argument("--rate", required=True, type=partial(bounded, MAX_RATE), help="batches per second")
    parser.add_argument("--seconds", required=True, type=partial(bounded, MAX_SECONDS))
    parser.add_argument("--events-per-batch", type=partial(whole, 500), default=100, metavar="N")
    parser.add_argument("--connections", type=partial(whole, 2000), metavar="N", help="most requests in flight")
    parser.add_argument("--yes", action="store_true", help="ask no questions")
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> None:
    target = deployed_target(arguments)
    level = function_log.level(target.client("lambda"), target.outputs["FunctionName"])
    announce(target, arguments)
    temporary_key = TemporaryKey(target.client("dynamodb"), target.outputs["ApiKeysTable"], LOAD_PROJECT)
    with temporary_key as key, step(f"Send for {arguments.seconds:g} s"):
        sent = send_all(target, key.key, arguments)
    print_report(sent, arguments)
    if function_log.shows_requests(level):
        check_log(target, key, sent)
    else:
        say(f"LogLevel is {level}, so the function logs no accepted batch: not checked.")
    purge = f"aws sqs purge-queue --queue-url {target.outputs['QueueUrl']}"
    print(f"\nThe events are in the queue. To delete everything in it, if nobody consumes it: {purge}")


def main() -> int:
    arguments = parse_arguments()
    return run_command(lambda: load(arguments), KEY_REVOKED)


if __name__ == "__main__":
    sys.exit(main())
