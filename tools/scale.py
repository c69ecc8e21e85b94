#!/usr/bin/env python3
"""Computes the limits of scale, and what clients see during overload and outages.

    tools/scale.py           print the tables
    tools/scale.py --write   write them to docs/scale.md

The first part of this file lists every assumption, with its unit in its name. Service times are those of
docs/benchmarks/results.json, if `make bench` has written it. Prices and costs are in tools/costs.py. Needs only
the standard library.
"""

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import costs
import outage

ROOT = Path(__file__).resolve().parent.parent

Figures = dict[str, float]

# ── Assumptions ──────────────────────────────────────────────────────────────────────────────────

EVENTS_PER_BATCH = 100
SECONDS_PER_DAY = 86_400

# The default quotas of an account in one region.
GATEWAY_RATE, GATEWAY_BURST = 10_000, 5_000
# Some regions have less, and so do accounts that are new to AWS.
SMALL_GATEWAY_RATE, SMALL_LAMBDA_CONCURRENCY = 2_500, 10
TEMPLATE_RATE, TEMPLATE_BURST = 2_000, 1_000  # template.yaml's own throttle
LAMBDA_CONCURRENCY = 1_000
LAMBDA_RATE_PER_SANDBOX = 10  # requests per second for each unit of the concurrency quota
# In each period of this many seconds: new sandboxes, and additional requests per second.
LAMBDA_SCALING_S, LAMBDA_SCALING, LAMBDA_RATE_SCALING = 10, 1_000, 10_000
NEW_TABLE_WRITES, TABLE_WRITES = 4_000, 40_000  # write units per second: of a new table, and the quota

# AWS's latencies, which the benchmark cannot measure: medians, and the spread of the tail.
DYNAMODB_MS, SQS_MS, TAIL_SIGMA = 4.0, 8.0, 0.35
COLD_START_PLATFORM_MS = 120.0  # the time to fetch the code and start the sandbox
SANDBOX_IDLE_S = 300
NETWORK_MS = 20.0  # client to gateway and back

# The client: an SDK that waits 10 s, makes three attempts, and backs off with full jitter.
CLIENT_ATTEMPTS, CLIENT_BACKOFF_MS = 3, 500.0
# The duration of the function's own retries against a table that throttles.
FUNCTION_RETRIES_MS = 150.0


def measured() -> tuple[Figures, str]:
    """CPU milliseconds, write units, 64 KB chunks and log bytes of 100 events; init milliseconds."""
    found = {"cpu_ms": 0.8, "init_cpu_ms": 30.0, "write_units": 2.0, "chunks": 1.0, "log_bytes": 420.0}
    file = ROOT / "docs/benchmarks/results.json"
    if not file.exists():
        return found, "assumed service times, because docs/benchmarks/results.json is missing"
    results = json.loads(file.read_text())
    row = next(r for r in results["rows"] if r["target"] == "event-ingest" and r["shape"] == "100 events")
    figures = row["figures"]
    found = {
        "cpu_ms": figures["cpu"],
        "init_cpu_ms": results["tls"]["init_cpu"],
        "write_units": figures["usage"]["write_units"],
        "chunks": figures["usage"]["chunks"],
        "log_bytes": figures["log_bytes"],
    }
    return found, "the service times in docs/benchmarks/results.json"


# The share of a CPU for 256 MB of memory. During init, Lambda provides a full CPU.
CPU_SHARE = 256 / 1769


def service_ms() -> float:
    """The duration of a batch of 100 in Lambda, as in docs/costs.md."""
    return costs.batch_of(EVENTS_PER_BATCH).duration_ms


# ── Quotas ───────────────────────────────────────────────────────────────────────────────────────


def quota_table(found: Figures) -> str:
    """The request rate that each quota allows, the lowest first."""
    busy = service_ms() / 1000
    units = found["write_units"]
    limits = [
        ("the template's throttle (`ThrottleRequestsPerSecond`)", TEMPLATE_RATE, "a parameter"),
        (
            "a new on-demand table: 4,000 write units/s",
            NEW_TABLE_WRITES / units,
            "grows automatically within 30 minutes of load; or set warm throughput",
        ),
        ("API Gateway: 10,000 requests/s in the region", GATEWAY_RATE, "on request"),
        (
            "Lambda in an account that is new to AWS: 10 concurrent",
            SMALL_LAMBDA_CONCURRENCY * LAMBDA_RATE_PER_SANDBOX,
            "automatically with use, or on request",
        ),
        ("API Gateway in some regions: 2,500 requests/s", SMALL_GATEWAY_RATE, "on request"),
        (
            "Lambda: 10 requests/s for each of 1,000 concurrent",
            LAMBDA_CONCURRENCY * LAMBDA_RATE_PER_SANDBOX,
            "on request",
        ),
        ("DynamoDB: 40,000 write units/s per table", TABLE_WRITES / units, "on request"),
        ("Lambda: 1,000 concurrent sandboxes", LAMBDA_CONCURRENCY / busy, "on request"),
    ]
    rows = [
        [
            what,
            f"{rate:,.0f}",
            f"{rate * EVENTS_PER_BATCH:,.0f}",
            f"{rate * EVENTS_PER_BATCH * SECONDS_PER_DAY / 1e9:,.1f}",
            raised,
        ]
        for what, rate, raised in sorted(limits, key=lambda limit: limit[1])
    ]
    return table(["limit", "requests/s", "events/s", "billion events per day", "can be raised"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ── Simulation ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Bucket:
    """A token bucket."""

    rate: float
    size: float
    tokens: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.size

    def take(self, now: float, count: float = 1.0) -> bool:
        self.tokens = min(self.size, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True


class LambdaRate:
    """The requests per second that Lambda accepts: ten for each unit of concurrency, and at most 10,000 more than in
    the previous 10 seconds."""

    def __init__(self, concurrency: int, rate: float) -> None:
        self.most = concurrency * LAMBDA_RATE_PER_SANDBOX
        self.period, self.taken = 0, 0
        first = min(self.most, rate + LAMBDA_RATE_SCALING)
        self.bucket = Bucket(first, first)

    def take(self, now: float) -> bool:
        period = int(now / LAMBDA_SCALING_S)
        if period != self.period:
            reached = self.taken / LAMBDA_SCALING_S if period == self.period + 1 else 0.0
            self.bucket.rate = self.bucket.size = min(self.most, reached + LAMBDA_RATE_SCALING)
            self.period, self.taken = period, 0
        taken = self.bucket.take(now)
        self.taken += taken
        return taken


@dataclass(frozen=True)
class Scenario:
    """Arrivals as (from second, requests per second), and the conditions."""

    name: str
    arrivals: tuple[tuple[float, float], ...]
    seconds: float
    warm_sandboxes: int = 0
    gateway: tuple[float, float] = (TEMPLATE_RATE, TEMPLATE_BURST)
    concurrency: int = LAMBDA_CONCURRENCY
    table_writes: float = NEW_TABLE_WRITES
    outage: tuple[float, float] = (math.inf, math.inf)
    jitter: bool = True
    attempts: int = CLIENT_ATTEMPTS


SCENARIOS = [
    Scenario("steady, 500/s", ((0, 500),), 60, warm_sandboxes=40),
    Scenario("from 0 to 1,500/s immediately", ((0, 1500),), 30),
    Scenario("500/s, then 10 times as much for 20 s, default template", ((0, 500), (20, 5000), (40, 500)), 60, 40),
    Scenario("the same, throttle raised, new table", ((0, 500), (20, 5000), (40, 500)), 60, 40, (10_000, 5_000)),
    Scenario(
        "the same, throttle raised, warmed table",
        ((0, 500), (20, 5000), (40, 500)),
        60,
        40,
        (10_000, 5_000),
        table_writes=TABLE_WRITES,
    ),
    Scenario(
        "the same, 50 sandboxes reserved", ((0, 500), (20, 5000), (40, 500)), 60, 40, (10_000, 5_000), 50, TABLE_WRITES
    ),
    Scenario(
        "500/s, then 30 times as much for 20 s, all quotas raised",
        ((0, 500), (20, 15_000), (40, 500)),
        60,
        40,
        (40_000, 20_000),
        concurrency=4_000,
        table_writes=TABLE_WRITES,
    ),
    Scenario("1,000/s, DynamoDB unavailable for 10 s", ((0, 1000),), 60, 80, outage=(20, 30)),
    Scenario("the same, clients without jitter", ((0, 1000),), 60, 80, outage=(20, 30), jitter=False),
    Scenario("the same, with jitter and 6 attempts", ((0, 1000),), 60, 80, outage=(20, 30), attempts=6),
]


class Simulation:
    """Runs one scenario. The heap has an entry (time, number, action, arguments) for each pending event."""

    def __init__(self, scenario: Scenario, found: Figures, seed: int = 1) -> None:
        self.scenario, self.random = scenario, random.Random(seed)
        self.cpu_s = found["cpu_ms"] / CPU_SHARE / 1000
        self.cold_s = (COLD_START_PLATFORM_MS + found["init_cpu_ms"]) / 1000
        self.units = found["write_units"]
        self.gateway = Bucket(*scenario.gateway)
        self.scaling = Bucket(LAMBDA_SCALING / LAMBDA_SCALING_S, LAMBDA_SCALING)
        self.lambda_rate = LambdaRate(scenario.concurrency, scenario.arrivals[0][1])
        self.table = Bucket(scenario.table_writes, scenario.table_writes)
        # The times since which sandboxes are idle, the last used one at the end.
        self.idle = deque([0.0] * scenario.warm_sandboxes)
        self.busy = self.most_busy = self.cold = self.first_try = self.given_up = 0
        self.requests = self.calls = 0
        self.refused = {"gateway 429": 0, "Lambda throttle": 0, "503": 0}
        self.waits: list[float] = []
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.number = 0

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        self.number += 1
        heapq.heappush(self.heap, (time, self.number, action, arguments))

    def run(self) -> Self:
        now = 0.0
        while (rate := self.rate(now)) and now < self.scenario.seconds:
            now += self.random.expovariate(rate)
            self.at(now, self.arrive, now, 1)
            self.requests += 1
        while self.heap:
            now, _, action, arguments = heapq.heappop(self.heap)
            action(now, *arguments)
        return self

    def rate(self, now: float) -> float:
        return [rate for since, rate in self.scenario.arrivals if since <= now][-1]

    def arrive(self, now: float, begun: float, attempt: int) -> None:
        self.calls += 1
        if not self.gateway.take(now):
            self.refuse(now, begun, attempt, "gateway 429")
            return
        while self.idle and now - self.idle[0] > SANDBOX_IDLE_S:
            self.idle.popleft()
        start = 0.0
        if not self.lambda_rate.take(now):
            self.refuse(now, begun, attempt, "Lambda throttle")
            return
        if self.idle:
            self.idle.pop()
        elif self.busy < self.scenario.concurrency and self.scaling.take(now):
            start = self.cold_s
            self.cold += 1
        else:
            self.refuse(now, begun, attempt, "Lambda throttle")
            return
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        down, up = self.scenario.outage
        if down <= now < up or not self.table.take(now, self.units):
            self.at(now + start + FUNCTION_RETRIES_MS / 1000, self.answer, begun, attempt, False)
            return
        waits = sum(self.random.lognormvariate(math.log(ms), TAIL_SIGMA) for ms in (DYNAMODB_MS, SQS_MS, DYNAMODB_MS))
        self.at(now + start + waits / 1000 + self.cpu_s, self.answer, begun, attempt, True)
        return

    def answer(self, now: float, begun: float, attempt: int, accepted: bool) -> None:
        self.busy -= 1
        self.idle.append(now)
        if not accepted:
            self.refuse(now, begun, attempt, "503")
            return
        self.first_try += attempt == 1
        self.waits.append((now - begun) * 1000 + NETWORK_MS)

    def refuse(self, now: float, begun: float, attempt: int, why: str) -> None:
        self.refused[why] += 1
        if attempt == self.scenario.attempts:
            self.given_up += 1
            return
        pause = CLIENT_BACKOFF_MS * 2 ** (attempt - 1)
        # The function sends Retry-After, at least a second; the gateway and Lambda do not.
        least = 1000.0 if why == "503" else 0.0
        if self.scenario.jitter:
            pause = self.random.uniform(0.5, 1.5) * pause
            least = least * self.random.uniform(1.0, 1.5)
        self.at(now + (max(pause, least) + NETWORK_MS) / 1000, self.arrive, begun, attempt + 1)

    def row(self) -> list[str]:
        waits = sorted(self.waits)

        def quantile(share: float) -> str:
            return f"{waits[math.ceil(share * len(waits)) - 1]:,.0f}" if waits else "–"

        def share(count: int) -> str:
            return f"{100 * count / self.requests:.2f} %"

        return [
            self.scenario.name,
            share(self.first_try),
            share(len(self.waits)),
            share(self.given_up),
            quantile(0.5),
            quantile(0.99),
            f"{self.calls / self.requests:.2f}",
            f"{self.most_busy}",
            f"{self.cold}",
            *(f"{count:,}" for count in self.refused.values()),
        ]


def simulation_table(found: Figures) -> str:
    head = [
        "scenario",
        "202 at first",
        "202 in the end",
        "gave up",
        "p50 ms",
        "p99 ms",
        "calls per request",
        "busy at peak",
        "cold starts",
        "gateway 429",
        "Lambda throttled",
        "503",
    ]
    return table(head, [Simulation(scenario, found).run().row() for scenario in SCENARIOS])


def outage_table(found: Figures) -> str:
    """The retries of the function's writes during an incident of the table, before and after they were limited."""
    service = outage.Service(
        dynamodb_ms=DYNAMODB_MS,
        sqs_ms=SQS_MS,
        tail_sigma=TAIL_SIGMA,
        cpu_ms=found["cpu_ms"] / CPU_SHARE,
        cold_start_ms=COLD_START_PLATFORM_MS + found["init_cpu_ms"],
        concurrency=LAMBDA_CONCURRENCY,
        table_writes=NEW_TABLE_WRITES,
        client_attempts=CLIENT_ATTEMPTS,
        client_backoff_ms=CLIENT_BACKOFF_MS,
    )
    return table(outage.HEAD, outage.rows(service))


# ── Output ───────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--write", action="store_true", help="write the tables to docs/scale.md")
    write = arguments.parse_args().write
    found, source = measured()
    sections = {
        "basis": f"From {source}: {found['cpu_ms']:.2f} ms of CPU per batch of {EVENTS_PER_BATCH}, which take "
        f"{found['cpu_ms'] / CPU_SHARE:.1f} ms with 256 MB, so Lambda bills at most {service_ms():.0f} ms.\n",
        "quotas": quota_table(found),
        "simulation": simulation_table(found),
        "outage": outage_table(found),
    }
    document = ROOT / "docs/scale.md"
    text = document.read_text() if write else ""
    for name, content in sections.items():
        print(content)
        if write:
            begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
            head, _, rest = text.partition(begin)
            _, mark, tail = rest.partition(end)
            if not mark:
                raise SystemExit(f"docs/scale.md has no markers for {name!r}")
            text = head + begin + content + mark + tail
    if write:
        document.write_text(text)


if __name__ == "__main__":
    main()
