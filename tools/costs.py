#!/usr/bin/env python3
"""Computes what the stack costs: the only source of prices and cost figures in the documentation.

    tools/costs.py                          print the cost at one volume, and where it comes from
        --events-per-day 1000000 --events-per-batch 100
    tools/costs.py --write                  write all tables and figures to the documentation
    tools/costs.py --check                  fail if the documentation differs, or if logs cost more than the target

The prices and assumptions are at the top of this file. Everything else is measured or read: service times and
sizes from docs/benchmarks/results.json, metrics and the function's log line from src/telemetry.rs and its test, and
from template.yaml the alarms, the access log, tracing and throttling. Needs only the standard library.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# ── Prices ───────────────────────────────────────────────────────────────────────────────────────

# Dollars, list prices in us-east-1, November 2026, without free tiers. Tiers are (up to this amount per
# month, dollars each).
Tiers = list[tuple[float, float]]

LAMBDA_REQUEST = 0.20e-6
LAMBDA_GB_SECOND: Tiers = [(6e9, 16.6667e-6), (15e9, 15.0000e-6), (math.inf, 13.3334e-6)]
WRITE_UNIT, READ_UNIT = 0.625e-6, 0.125e-6
TABLE_GB_MONTH = 0.25
RESTORE_GB = 0.15
# Warm throughput costs as much as an hour of provisioned capacity, once, for what exceeds the current value.
WARM_WRITE_UNIT, WARM_READ_UNIT = 0.00065, 0.00013
SQS_REQUEST: Tiers = [(100e9, 0.40e-6), (200e9, 0.30e-6), (math.inf, 0.24e-6)]  # of up to 64 KB
SQS_GROUP = 0.10e-6  # surcharge for sending messages with a group (fair queues)
GATEWAY_REQUEST: Tiers = [(300e6, 1.00e-6), (math.inf, 0.90e-6)]  # of up to 512 KB
# Lambda's logs and API Gateway's access logs are vended logs, which have tiers.
TB = 1024.0  # GB
LOG_GB: Tiers = [(10 * TB, 0.50), (30 * TB, 0.25), (50 * TB, 0.10), (math.inf, 0.05)]
LOG_GB_MONTH = 0.03  # of stored, compressed logs
LOG_QUERY_GB = 0.005
TRACE = 5.00e-6
METRIC_MONTH: Tiers = [(10_000, 0.30), (250_000, 0.10), (1_000_000, 0.05), (math.inf, 0.02)]
ALARM_MONTH = 0.10  # for each metric that the alarm reads
DASHBOARD_MONTH = 3.00
TRANSFER_GB = 0.09  # out to the internet
KEY_MONTH = 1.00  # a KMS key of your own
KMS_REQUEST = 0.03e-4
CLOUDFRONT_REQUEST = 1.00e-6  # HTTPS, United States and Europe
WAF_ACL_MONTH, WAF_RULE_MONTH, WAF_REQUEST = 5.00, 1.00, 0.60e-6
REST_REQUEST = 3.50e-6  # a REST API instead of the HTTP API

# ── Assumptions ──────────────────────────────────────────────────────────────────────────────────

DAYS_PER_MONTH = 30.4
SECONDS_PER_DAY = 86_400
# The template's MemorySize, and the share of a CPU that Lambda gives it.
MEMORY_MB = 256
CPU_SHARE = MEMORY_MB / 1769
BUSY_CONSUMER_MESSAGES = 10  # messages per receive and per delete call
RESPONSE_BYTES = 400  # with headers
LOG_EVENT_BYTES = 26  # that CloudWatch Logs adds to each line
STORED_LOG_SHARE = 0.15  # of the ingested bytes, after compression
STATE_ITEM_BYTES = 400  # with DynamoDB's overhead
STATE_ITEM_DAYS = 2  # 24 hours, and the time until DynamoDB removes the item
# What Lambda writes about each request if SystemLogLevel is INFO: platform.start and platform.report.
PLATFORM_BYTES = 190 + 480 + 2 * LOG_EVENT_BYTES
# X-Ray records one request per second, and this share of the others.
TRACED_SHARE = 0.05
# The most that logs, metrics' lines and traces of a million events may cost.
OBSERVABILITY_TARGET = 0.006
# Typical values of the variables in the access log.
ACCESS_LOG_VALUES = {
    "requestId": "Xy1zAbCdEfGhIjk=",
    "requestTime": "26/Nov/2026:09:14:03 +0000",
    "requestTimeEpoch": "1795684443127",
    "identity.sourceIp": "203.0.113.201",
    "httpMethod": "POST",
    "path": "/api/v1/events/batch",
    "routeKey": "POST /api/v1/events/batch",
    "protocol": "HTTP/1.1",
    "status": "202",
    "responseLength": "26",
    "responseLatency": "31",
    "integrationStatus": "200",
    "integration.status": "202",
    "integrationLatency": "29",
    "integration.latency": "29",
    "error.message": "-",
    "integrationErrorMessage": "-",
}


def tiered(amount: float, tiers: Tiers) -> float:
    """The cost of an amount if the price depends on the tier."""
    cost, below = 0.0, 0.0
    for upper, price in tiers:
        cost += max(0.0, min(amount, upper) - below) * price
        below = upper
    return cost


# ── What is measured and read ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Batch:
    """One request with a number of events: CPU and billed milliseconds, and what it uses."""

    events: int
    cpu_ms: float
    duration_ms: float
    write_units: float
    messages: float
    message_bytes: float


@dataclass(frozen=True)
class Template:
    """What template.yaml turns on, with the defaults of its parameters."""

    alarm_metrics: int
    dashboards: int
    platform_logs: bool
    traces: bool
    route_metrics: bool
    access_log_bytes: int
    throttle: int


@cache
def measured() -> list[Batch]:
    """The benchmark's batches of small events, by size."""
    rows = json.loads((ROOT / "docs/benchmarks/results.json").read_text())["rows"]
    found = []
    for row in rows:
        if row["target"] == "event-ingest" and re.fullmatch(r"\d+ events?", row["shape"]):
            figures, usage = row["figures"], row["figures"]["usage"]
            # The benchmark ran on a whole CPU. As in benches/harness/src/prices.rs, CPU time is divided by
            # Lambda's share, so this is the most that Lambda would bill.
            duration = figures["billed"] - figures["cpu"] + figures["cpu"] / CPU_SHARE
            found.append(
                Batch(
                    row["events"],
                    figures["cpu"],
                    duration,
                    usage["write_units"],
                    usage["messages"],
                    usage["bytes"],
                )
            )
    return sorted(found, key=lambda batch: batch.events)


def batch_of(events: int) -> Batch:
    """A batch of any size, interpolated between the measured sizes."""
    batches = measured()
    upper = next((index for index, batch in enumerate(batches) if batch.events >= events), len(batches) - 1)
    above, below = batches[upper], batches[max(0, upper - 1)]
    share = (events - below.events) / (above.events - below.events) if above != below else 1.0

    def between(value: Callable[[Batch], float]) -> float:
        return value(below) + share * (value(above) - value(below))

    return Batch(
        events,
        between(lambda batch: batch.cpu_ms),
        between(lambda batch: batch.duration_ms),
        between(lambda batch: batch.write_units),
        math.ceil(events / 50),
        between(lambda batch: batch.message_bytes),
    )


@cache
def template() -> Template:
    text = (ROOT / "template.yaml").read_text()
    resources = re.split(r"\n  (?=\w+:\n    Type: )", text[text.index("\nResources:") : text.index("\nOutputs:")])
    alarms = [block for block in resources if "Type: AWS::CloudWatch::Alarm\n" in block]
    # NoTrafficAlarm is created only on request. An alarm on metric math reads several metrics.
    alarm_metrics = sum(max(1, block.count("MetricStat:")) for block in alarms if "WatchesForTraffic" not in block)
    access_log = re.search(r"Format: >-\n\s+(\{.*\})\n", text)
    if access_log is None:
        raise SystemExit("template.yaml has no access log format")
    # Without an entry in ACCESS_LOG_VALUES, this raises KeyError: add one.
    line = re.sub(r"\$context\.([\w.]+)", lambda variable: ACCESS_LOG_VALUES[variable[1]], access_log[1])
    return Template(
        alarm_metrics=alarm_metrics,
        dashboards=text.count("Type: AWS::CloudWatch::Dashboard\n"),
        platform_logs=default(text, "SystemLogLevel", "INFO") not in ("WARN", "ERROR"),
        traces=default(text, "Tracing", "PassThrough") == "Active",
        route_metrics=default(text, "RouteMetrics", "false") == "true",
        access_log_bytes=len(line) + LOG_EVENT_BYTES,
        throttle=int(default(text, "ThrottleRequestsPerSecond", "0")),
    )


def default(text: str, parameter: str, missing: str) -> str:
    """The default of a parameter of the template, without quotes."""
    found = re.search(rf"\n  {parameter}:\n(?:    .*\n)*?    Default: (.*)\n", text)
    return found[1].strip('"') if found else missing


@cache
def custom_metrics() -> int:
    """The number of metrics that the function and the template's metric filters can publish."""
    filters = (ROOT / "template.yaml").read_text().count("Type: AWS::Logs::MetricFilter\n")
    return filters + number_in("src/telemetry.rs", r"METRICS: \[&str; (\d+)\]")


@cache
def line_bytes() -> int:
    """The most bytes of the function's log line about an accepted batch, which a test guarantees."""
    return number_in("tests/suite/telemetry.rs", r"line\.len\(\) < (\d+)")


def number_in(file: str, pattern: str) -> int:
    found = re.search(pattern, (ROOT / file).read_text())
    if found is None:
        raise SystemExit(f"{file} has no match for {pattern}")
    return int(found[1])


# ── Costs ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Line:
    """A part of the bill. `quantity` says what is counted, for a batch of 100."""

    name: str
    dollars: float
    quantity: str


def log_bytes() -> float:
    """The bytes that one request adds to the two logs."""
    platform = PLATFORM_BYTES if template().platform_logs else 0
    return line_bytes() + LOG_EVENT_BYTES + platform + template().access_log_bytes


def traces(requests_per_second: float, seconds: float) -> float:
    """The traces that X-Ray records if requests arrive evenly."""
    if not template().traces:
        return 0.0
    always = min(1.0, requests_per_second)
    return seconds * (always + TRACED_SHARE * (requests_per_second - always))


def traffic(events: float, events_per_batch: int, days: float) -> list[Line]:
    """What `events` cost if they arrive evenly in this many days. The prices of later tiers apply per month."""
    batch = batch_of(events_per_batch)
    requests = events / events_per_batch
    chunks = requests * max(1, math.ceil(batch.message_bytes / 65_536))
    messages = requests * batch.messages
    # A busy consumer's receive call takes several messages, and is billed by 64 KB like a send.
    received = min(BUSY_CONSUMER_MESSAGES, max(1.0, messages)) * batch.message_bytes / batch.messages
    receives = messages / BUSY_CONSUMER_MESSAGES * max(1, math.ceil(received / 65_536))
    deletes = messages / BUSY_CONSUMER_MESSAGES
    logged = requests * log_bytes() / 1e9
    recorded = traces(requests / (days * SECONDS_PER_DAY), days * SECONDS_PER_DAY)
    storage = requests / days * STATE_ITEM_DAYS * STATE_ITEM_BYTES / 1e9 * TABLE_GB_MONTH * days / DAYS_PER_MONTH
    gigabyte_seconds = requests * batch.duration_ms / 1000 * MEMORY_MB / 1024
    return [
        Line("API Gateway", tiered(requests, GATEWAY_REQUEST), f"{requests:,.0f} requests"),
        Line(
            "Lambda",
            requests * LAMBDA_REQUEST + tiered(gigabyte_seconds, LAMBDA_GB_SECOND),
            f"{requests:,.0f} requests of {batch.duration_ms:.0f} ms with {MEMORY_MB} MB",
        ),
        Line(
            "DynamoDB",
            requests * batch.write_units * WRITE_UNIT + storage,
            f"{requests * batch.write_units:,.0f} write units, and items for a day",
        ),
        Line(
            "SQS, sending",
            tiered(chunks, SQS_REQUEST) + chunks * SQS_GROUP,
            f"{chunks:,.0f} requests of up to 64 KB, and the surcharge for fair queues",
        ),
        Line(
            "SQS, your consumers",
            tiered(receives + deletes, SQS_REQUEST),
            f"{receives:,.0f} receives and {deletes:,.0f} deletes of {BUSY_CONSUMER_MESSAGES} messages",
        ),
        Line(
            "Logs and metrics' lines",
            tiered(logged, LOG_GB) + logged * STORED_LOG_SHARE * LOG_GB_MONTH,
            f"{logged * 1e9 / requests:,.0f} bytes per request",
        ),
        Line("X-Ray", recorded * TRACE, f"{recorded:,.0f} traces" if template().traces else "off (`Tracing`)"),
        Line("Data transfer", requests * RESPONSE_BYTES / 1e9 * TRANSFER_GB, "responses to clients"),
    ]


def fixed(with_traffic: bool) -> list[Line]:
    """What the stack costs per month at any volume."""
    metrics = custom_metrics() if with_traffic else 0
    lines = [
        Line(
            "Alarms", template().alarm_metrics * ALARM_MONTH, f"{template().alarm_metrics} metrics at {ALARM_MONTH:.2f}"
        ),
        Line("Dashboard", template().dashboards * DASHBOARD_MONTH, f"{template().dashboards} at {DASHBOARD_MONTH:.2f}"),
        Line("Custom metrics", tiered(metrics, METRIC_MONTH), f"up to {metrics} metrics at {METRIC_MONTH[0][1]:.2f}"),
        Line("Tables, queues, topic, S3", 0.05, "less than this"),
    ]
    return [line for line in lines if line.dollars]


def per_million(events_per_batch: int = 100, events_per_day: float = 10e6) -> float:
    """Dollars for a million events, without the fixed costs."""
    month = traffic(events_per_day * DAYS_PER_MONTH, events_per_batch, DAYS_PER_MONTH)
    return sum(line.dollars for line in month) / (events_per_day * DAYS_PER_MONTH) * 1e6


def per_month(events_per_day: float, events_per_batch: int = 100) -> list[Line]:
    """All lines of a month's bill."""
    return traffic(events_per_day * DAYS_PER_MONTH, events_per_batch, DAYS_PER_MONTH) + fixed(with_traffic=True)


def unknown_key() -> list[Line]:
    """Dollars for an hour of requests with unknown keys, at the default throttle."""
    requests = template().throttle * 3600.0
    # A rejected request takes one read instead of two writes and a send, and its log line is shorter.
    reject_ms, line_bytes = 8.0, 500
    logged = line_bytes + LOG_EVENT_BYTES + template().access_log_bytes
    logged += PLATFORM_BYTES if template().platform_logs else 0
    return [
        Line("API Gateway", requests * GATEWAY_REQUEST[0][1], f"{requests:,.0f} requests"),
        Line(
            "Lambda",
            requests * (LAMBDA_REQUEST + reject_ms / 1000 * MEMORY_MB / 1024 * LAMBDA_GB_SECOND[0][1]),
            f"about {reject_ms:.0f} ms each",
        ),
        Line("DynamoDB", requests * READ_UNIT, "one read each, unless the key is malformed"),
        Line("Logs", requests * logged / 1e9 * LOG_GB[0][1], f"{logged:,.0f} bytes each"),
        Line("X-Ray", traces(template().throttle, 3600) * TRACE, "if on"),
    ]


def warm_throughput(writes: int, reads: int, now_writes: int = 4_000, now_reads: int = 12_000) -> float:
    """The one-time price of raising a table's warm throughput from what a new table has."""
    return max(0, writes - now_writes) * WARM_WRITE_UNIT + max(0, reads - now_reads) * WARM_READ_UNIT


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────


def dollars(amount: float) -> str:
    return f"{amount:,.2f}" if amount < 1000 else f"{amount:,.0f}"


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    align = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, align, *rows]) + "\n"


def total(lines: list[Line]) -> float:
    return sum(line.dollars for line in lines)


VOLUMES = [10**exponent for exponent in range(5, 12)]


def million_table() -> str:
    sizes = (1, 10, 100, 500)
    events = 10e6 * DAYS_PER_MONTH
    columns = {size: traffic(events, size, DAYS_PER_MONTH) for size in sizes}
    rows = []
    for index, line in enumerate(traffic(1e6, 100, 0.1)):
        cost = [f"{columns[size][index].dollars / events * 1e6:.4f}" for size in sizes]
        rows.append([line.name, line.quantity, *cost])
    totals = [f"**{total(columns[size]) / events * 1e6:.4f}**" for size in sizes]
    head = ["", "100 events per batch", *(f"{size} per batch" for size in sizes)]
    return table(head, [*rows, ["**Total**", "", *totals]], left=2)


def month_table() -> str:
    names = [line.name for line in traffic(1e6, 100, DAYS_PER_MONTH)]
    head = ["events per day", *names, "fixed", "**per month**", "per million events"]
    rows = []
    for events in VOLUMES:
        lines = traffic(events * DAYS_PER_MONTH, 100, DAYS_PER_MONTH)
        whole = total(per_month(events))
        million = whole / (events * DAYS_PER_MONTH) * 1e6
        costs = [*(dollars(line.dollars) for line in lines), dollars(total(fixed(with_traffic=True)))]
        rows.append([f"{events:,}", *costs, f"**{dollars(whole)}**", f"{million:.3f}"])
    return table(head, rows)


def fixed_table() -> str:
    rows = [[line.name, line.quantity, dollars(line.dollars)] for line in fixed(with_traffic=True)]
    return table(["", "", "USD per month"], [*rows, ["**Total**", "", f"**{dollars(total(fixed(True)))}**"]], left=2)


def flood_table() -> str:
    lines = [line for line in unknown_key() if line.dollars]
    rows = [[line.name, line.quantity, dollars(line.dollars)] for line in lines]
    rows.append(["**Total**", "", f"**{dollars(total(lines))}**"])
    return table(["", f"{template().throttle:,} requests per second", "USD per hour"], rows, left=2)


def warm_table() -> str:
    rows = []
    for requests in (2_000, 4_000, 10_000, 20_000):
        writes = 2 * requests
        rows.append([f"{requests:,}", f"{writes:,}", "12,000", dollars(warm_throughput(writes, 12_000))])
    return table(["requests per second", "write units", "read units", "USD, once"], rows, left=0)


def optional_table() -> str:
    load = total(traffic(300_000, 100, 60 / SECONDS_PER_DAY))
    rows: list[tuple[str, str, float]] = [
        ("`KmsKeyArn`", "the key, per month", KEY_MONTH),
        ("", "10,000 requests to it", 10_000 * KMS_REQUEST),
        ("`RouteMetrics=true`", "6 metrics of each of 4 routes, per month", 24 * METRIC_MONTH[0][1]),
        ("`NoTrafficMinutes`", "an alarm, per month", ALARM_MONTH),
        ("`Tracing=Active`", "a million traces", 1e6 * TRACE),
        ("`make load RATE=50 SECONDS=60`", "300,000 events in batches of 100", load),
        ("`make backup-drill`", "a restore of 1 GB; a table of API keys is much smaller", RESTORE_GB),
        ("a saved query", "1 GB of logs that it reads", LOG_QUERY_GB),
    ]
    return table(["", "", "USD"], [[what, unit, f"{cost:,.3f}"] for what, unit, cost in rows], left=2)


def observability() -> tuple[float, float]:
    """Bytes per request of logs and metrics' lines, and dollars per million events with traces."""
    lines = {line.name: line for line in traffic(1e6, 100, 0.1)}
    return log_bytes(), lines["Logs and metrics' lines"].dollars + lines["X-Ray"].dollars


# ── Documentation ────────────────────────────────────────────────────────────────────────────────


def sections() -> dict[str, str]:
    """The text between the markers `<!-- cost:name -->` and `<!-- /cost:name -->` in the documentation."""
    bytes_per_request, logs = observability()
    return {
        "million": million_table(),
        "month": month_table(),
        "fixed": fixed_table(),
        "flood": flood_table(),
        "warm": warm_table(),
        "optional": optional_table(),
        "per-million": f"${per_million():.3f}",
        "fixed-total": f"${total(fixed(with_traffic=True)):.0f}",
        "idle-total": f"${total(fixed(with_traffic=False)):.0f}",
        "flood-total": f"${total(unknown_key()):.0f}",
        "front-million": f"${(CLOUDFRONT_REQUEST + WAF_REQUEST) * 1e6:.2f}",
        "waf-million": f"${WAF_REQUEST * 1e6:.2f}",
        "front-month": f"${WAF_ACL_MONTH + WAF_RULE_MONTH:.0f}",
        "rest-million": f"${(REST_REQUEST - GATEWAY_REQUEST[0][1]) * 1e6:.2f}",
        "duration": f"{batch_of(100).duration_ms:.0f} ms",
        "log-bytes": f"{bytes_per_request:,.0f} bytes",
        "logs": f"${logs:.4f}",
    }


DOCUMENTS = ("README.md", "docs/costs.md", "docs/deploy.md", "docs/scale.md", "docs/runbook.md")


def filled(text: str) -> str:
    """The document with current figures."""
    contents = sections()

    def replace(marker: re.Match[str]) -> str:
        begin, name, old, end = marker.groups()
        if name not in contents:
            raise SystemExit(f"there is no figure {name!r}")
        # A table needs lines of its own.
        separator = "\n" if "\n" in old else ""
        return begin + separator + contents[name] + end

    return re.sub(r"(<!-- cost:([\w-]+) -->)(.*?)(<!-- /cost:\2 -->)", replace, text, flags=re.DOTALL)


def update(write: bool) -> int:
    stale = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        if filled(text) != text:
            stale.append(name)
            if write:
                (ROOT / name).write_text(filled(text))
    if observability()[1] > OBSERVABILITY_TARGET:
        print(f"Logs and traces cost more than {OBSERVABILITY_TARGET} per million events.", file=sys.stderr)
        return 1
    if stale and not write:
        print(f"The costs in {', '.join(stale)} are not current. Update them: make costs", file=sys.stderr)
        return 1
    return 0


def report(events_per_day: float, events_per_batch: int) -> None:
    lines = per_month(events_per_day, events_per_batch)
    print(f"{events_per_day:,.0f} events per day in batches of {events_per_batch}, USD per month:\n")
    for line in [*lines, Line("Total", total(lines), "")]:
        print(f"  {line.name:28} {line.dollars:12,.2f}  {line.quantity}".rstrip())
    million = total(lines) / (events_per_day * DAYS_PER_MONTH) * 1e6
    variable = per_million(events_per_batch, events_per_day)
    print(f"\n{million:.4f} per million events, of which {million - variable:.4f} do not depend on the traffic.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events-per-day", type=float, default=1e6, metavar="N")
    parser.add_argument("--events-per-batch", type=int, default=100, metavar="N", help="1 to 500")
    parser.add_argument("--write", action="store_true", help="write the tables to the documentation")
    parser.add_argument("--check", action="store_true", help="fail if the documentation is not current")
    arguments = parser.parse_args()
    if arguments.events_per_day <= 0 or not 1 <= arguments.events_per_batch <= 500:
        parser.error("--events-per-day must be more than 0, and --events-per-batch 1 to 500")
    if arguments.write or arguments.check:
        return update(arguments.write)
    report(arguments.events_per_day, arguments.events_per_batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
