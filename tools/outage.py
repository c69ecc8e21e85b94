"""Simulates the retries of the function's writes while DynamoDB is unavailable or throttled.

tools/scale.py writes the table to docs/scale.md. The present retries are read from src/, so that the table
cannot describe others. Needs only the standard library.
"""

import heapq
import math
import random
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SOURCES = Path(__file__).resolve().parent.parent / "src"

# The ends of the first and the last write of a request, from its start (src/deadline.rs), and the longest time
# of one try of the SDK (src/aws.rs).
CLAIM_BY_S, WRITE_BY_S = 3.3, 3.9
TRY_S = 0.6

# The retries of the AWS SDK (src/aws.rs). Their pauses double.
SDK_FIRST_PAUSE_S, SDK_LONGEST_PAUSE_S = 0.025, 0.2
# The retry quota of the AWS SDK in each sandbox: each retry takes from it. What a retry took comes back if
# it succeeds, and a success without a retry gives one back.
SDK_QUOTA, SDK_THROTTLED_COST, SDK_TIMEOUT_COST = 500, 5, 10


@dataclass(frozen=True)
class Retries:
    """The function's tries of one write. Each try is up to `sdk_tries` requests of the AWS SDK."""

    name: str
    tries: float
    first_pause_s: float
    growth: float
    longest_pause_s: float
    sdk_tries: int
    # Whether a pause that does not fit is shortened to half of the time left, rather than ending the tries.
    shortens: bool

    @classmethod
    def present(cls) -> Self:
        """The retries in the source."""
        ingest, aws = (SOURCES / "ingest.rs").read_text(), (SOURCES / "aws.rs").read_text()

        def number(text: str, pattern: str) -> int:
            found = re.search(pattern, text)
            if not found:
                raise SystemExit(f"src/ has no match for {pattern}")
            return int(found[1])

        return cls(
            "now",
            number(ingest, r"WRITE_TRIES: u32 = (\d+)"),
            number(ingest, r"FIRST_BACKOFF: Duration = Duration::from_millis\((\d+)\)") / 1000,
            number(ingest, r"BACKOFF_GROWTH: u32 = (\d+)"),
            math.inf,
            number(aws, r"with_max_attempts\((\d+)\)"),
            shortens=True,
        )


# The retries before the number of tries was limited.
UNLIMITED = Retries("unlimited", math.inf, 0.025, 2, 0.2, 3, shortens=False)


@dataclass(frozen=True)
class Service:
    """The rest of the service. Latencies are medians in milliseconds; `tail_sigma` is their spread."""

    dynamodb_ms: float
    sqs_ms: float
    tail_sigma: float
    cpu_ms: float
    cold_start_ms: float
    concurrency: int
    table_writes: float
    client_attempts: int
    client_backoff_ms: float


@dataclass(frozen=True)
class Incident:
    """What happens to the table between the seconds BEGIN and END."""

    name: str
    # The writes per second that the table still takes.
    writes: float = 0.0
    # Whether the table does not respond, rather than respond with an error.
    hangs: bool = False
    # Whether claims still succeed.
    takes_claims: bool = False


RATE = 1_000
BEGIN, END, SECONDS = 10.0, 20.0, 30.0
INCIDENTS = [
    Incident("DynamoDB returns errors for 10 s"),
    Incident("DynamoDB does not respond for 10 s", hangs=True),
    Incident("DynamoDB throttles to half of the writes for 10 s", writes=RATE),
    Incident("no completion succeeds for 10 s", takes_claims=True),
]

# A process yields the seconds for which it waits.
Process = Generator[float, None, bool]


@dataclass
class Sandbox:
    """A sandbox, with the retry quota of its SDK."""

    quota: float = SDK_QUOTA


class Simulation:
    """Requests at RATE during one incident."""

    def __init__(self, service: Service, incident: Incident, retries: Retries, seed: int = 1) -> None:
        self.service, self.incident, self.retries = service, incident, retries
        self.random = random.Random(seed)
        self.now, self.number = 0.0, 0
        self.heap: list[tuple[float, int, Generator[float, None, object]]] = []
        self.idle = [Sandbox() for _ in range(RATE // 10)]
        self.busy = self.most_busy = self.requests = self.accepted = self.given_up = self.incomplete = 0
        self.tokens, self.tokens_at = 0.0, 0.0
        self.writes_by_second = [0] * 120
        # The writes of each invocation during the incident.
        self.writes: list[int] = []

    def run(self) -> Self:
        self.start(0.0, self.clients())
        while self.heap:
            self.now, _, process = heapq.heappop(self.heap)
            wait = next(process, None)
            if wait is not None:
                self.start(wait, process)
        return self

    def start(self, wait: float, process: Generator[float, None, object]) -> None:
        self.number += 1
        heapq.heappush(self.heap, (self.now + wait, self.number, process))

    def clients(self) -> Generator[float, None, None]:
        while self.now < SECONDS:
            yield self.random.expovariate(RATE)
            self.requests += 1
            self.start(0.0, self.client())

    def client(self) -> Process:
        """Sends a batch until it is accepted or no attempt is left."""
        for attempt in range(self.service.client_attempts):
            if attempt:
                pause = self.random.uniform(0.5, 1.5) * self.service.client_backoff_ms / 1000 * 2 ** (attempt - 1)
                yield max(pause, self.random.uniform(1.0, 1.5))
            if (yield from self.invocation()):
                self.accepted += 1
                return True
        self.given_up += 1
        return False

    def invocation(self) -> Process:
        """Runs one invocation up to its response. The completion continues in the sandbox."""
        if not self.idle and self.busy >= self.service.concurrency:
            return False
        is_cold = not self.idle
        sandbox = Sandbox() if is_cold else self.idle.pop()
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        if is_cold:
            yield self.service.cold_start_ms / 1000
        begun, during = self.now, BEGIN <= self.now < END
        written = [0]
        yield self.service.cpu_ms / 1000
        if not (yield from self.write(sandbox, begun + CLAIM_BY_S, written, is_claim=True)):
            # The claim may have taken effect, so the function releases it.
            yield from self.write(sandbox, begun + WRITE_BY_S, written)
            self.leave(sandbox, written, during)
            return False
        yield self.latency(self.service.sqs_ms)
        self.start(0.0, self.completion(sandbox, begun + WRITE_BY_S, written, during))
        return True

    def completion(self, sandbox: Sandbox, by: float, written: list[int], during: bool) -> Generator[float, None, None]:
        """`Pipeline::write` in src/ingest.rs."""
        retries, longest, tried = self.retries, self.retries.first_pause_s, 0
        done = False
        while not done:
            done = yield from self.write(sandbox, by, written)
            tried += 1
            left = by - self.now
            if done or tried >= retries.tries or left <= 0:
                break
            pause = self.random.uniform(0, min(longest, left / 2) if retries.shortens else longest)
            if pause >= left:
                break
            yield pause
            longest = min(longest * retries.growth, retries.longest_pause_s)
        self.incomplete += not done
        self.leave(sandbox, written, during)

    def leave(self, sandbox: Sandbox, written: list[int], during: bool) -> None:
        self.busy -= 1
        self.idle.append(sandbox)
        if during:
            self.writes.append(written[0])

    def write(self, sandbox: Sandbox, by: float, written: list[int], is_claim: bool = False) -> Process:
        """One call of the AWS SDK, with its retries, until it succeeds or the time is `by`."""
        taken = 0
        for attempt in range(self.retries.sdk_tries):
            written[0] += 1
            self.writes_by_second[int(self.now)] += 1
            done = (is_claim and self.incident.takes_claims) or self.table_takes_write()
            hangs = not done and self.incident.hangs
            wait = TRY_S if hangs else self.latency(self.service.dynamodb_ms)
            if self.now + wait >= by:
                yield max(0.0, by - self.now)
                return False
            yield wait
            if done:
                sandbox.quota = min(SDK_QUOTA, sandbox.quota + (taken or 1))
                return True
            cost = SDK_TIMEOUT_COST if hangs else SDK_THROTTLED_COST
            if attempt + 1 == self.retries.sdk_tries or sandbox.quota < cost:
                return False
            sandbox.quota -= cost
            taken = cost
            yield self.random.uniform(0, min(SDK_FIRST_PAUSE_S * 2**attempt, SDK_LONGEST_PAUSE_S))
        return False

    def table_takes_write(self) -> bool:
        rate = self.incident.writes if BEGIN <= self.now < END else self.service.table_writes
        # The burst is a tenth of a second, so that throttling begins with the incident.
        self.tokens = min(rate / 10, self.tokens + (self.now - self.tokens_at) * rate)
        self.tokens_at = self.now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def latency(self, median_ms: float) -> float:
        return self.random.lognormvariate(math.log(median_ms / 1000), self.service.tail_sigma)

    def row(self) -> list[str]:
        return [
            self.incident.name,
            self.retries.name,
            f"{sum(self.writes) / len(self.writes):.1f}",
            f"{max(self.writes)}",
            f"{max(self.writes_by_second):,}",
            f"{self.most_busy:,}",
            f"{100 * self.accepted / self.requests:.1f} %",
            f"{self.incomplete:,}",
        ]


HEAD = [
    "incident",
    "tries of a write",
    "writes per request",
    "most writes of a request",
    "writes/s at peak",
    "busy at peak",
    "202 in the end",
    "records not completed",
]


def rows(service: Service) -> list[list[str]]:
    """One row for each incident and each kind of retries."""
    kinds = [UNLIMITED, Retries.present()]
    return [Simulation(service, incident, retries).run().row() for incident in INCIDENTS for retries in kinds]
