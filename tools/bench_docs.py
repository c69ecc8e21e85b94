#!/usr/bin/env python3
"""Writes the figures of the benchmark from docs/benchmarks/results.json to README.md and docs/performance.md.

    tools/bench_docs.py --write    write all tables and figures; `make bench` does this
    tools/bench_docs.py --check    fail if the documentation differs

Needs only the standard library.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/performance.md")

OURS, PEERS = "event-ingest", ("Python", "TypeScript")
COMPARED = ("1 event", "100 events", "500 events", "5 MB", "replay")
BULK_AND_ORDERED = ("1000 events, bulk", "500 events, ordered queue")
# The template's default of MemorySize.
DEFAULT_MB = 256
PERIOD_MS, WHOLE_CORE_MB = 20, 1769

Row = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    align = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, align, *rows]) + "\n"


def number(value: float | None) -> str:
    """About three significant digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def latency(row: Row) -> str:
    return f"{number(row['p50'])} ({number(row['p90'])})"


class Results:
    def __init__(self) -> None:
        self.all = json.loads((ROOT / "docs/benchmarks/results.json").read_text())
        self.rows = {(row["target"], row["shape"]): row for row in self.all["rows"]}
        by_memory = self.all["by_memory"]
        self.at = {(row["target"], row["shape"], row["memory_mb"]): row for row in by_memory["requests"]}
        self.first = {(row["target"], row["memory_mb"]): row["p50"] for row in by_memory["first"]}
        self.sizes = sorted({row["memory_mb"] for row in by_memory["requests"]})

    def machine(self) -> str:
        rounds = self.all["rounds"]
        return f"Measured in {rounds} round{'s' if rounds > 1 else ''} on {self.all['machine']}."

    def headline(self) -> str:
        """Medians at the default memory size, the start, and the price."""
        targets = (OURS, *PEERS)
        rows = [
            [f"{shape}, ms", *(latency(self.at[target, shape, DEFAULT_MB]) for target in targets)] for shape in COMPARED
        ]
        rows.append(
            [
                "first request after init, 100 events, ms",
                *(number(self.first[target, DEFAULT_MB]) for target in targets),
            ]
        )
        hundred = [self.rows[target, "100 events"] for target in targets]
        rows.append(["init, ms", *(number(row["figures"]["init"]) for row in hundred)])
        prices = [sum(row["dollars"][part] for part in ("lambda", "dynamodb", "sqs")) for row in hundred]
        rows.append(
            [
                "Lambda, DynamoDB and SQS for a million events, 100 per batch, USD",
                *(f"{price:.4f}" for price in prices),
            ]
        )
        for row in rows:
            row[1] = f"**{row[1]}**"
        return table(["", "this function", *PEERS], rows)

    def by_memory(self) -> str:
        """The function's latency by memory size."""
        rows = []
        for shape in (*COMPARED, *BULK_AND_ORDERED):
            ats = [self.at[OURS, shape, size] for size in self.sizes]
            rows.append([shape, *(" / ".join(number(at[p]) for p in ("p50", "p90", "p99")) for at in ats)])
        first = (number(self.first[OURS, size]) for size in self.sizes)
        rows.append(["first request after init, 100 events", *first])
        return table(["p50 / p90 / p99, ms", *(f"{size} MB" for size in self.sizes)], rows)

    def ratios(self) -> str:
        """The median of the better peer as a multiple of the function's."""
        rows = []
        for shape in COMPARED:
            cells = []
            for size in self.sizes:
                best = min(self.at[peer, shape, size]["p50"] for peer in PEERS)
                cells.append(f"{best / self.at[OURS, shape, size]['p50']:.1f} ×")
            rows.append([shape, *cells])
        return table(["better peer's p50", *(f"{size} MB" for size in self.sizes)], rows)

    def dollars(self) -> str:
        """Lambda's price by memory size. The cheapest size of each shape is bold."""
        rows = []
        for shape in (*COMPARED, *BULK_AND_ORDERED):
            ats = [self.at[OURS, shape, size] for size in self.sizes]
            least = min(at["lambda_dollars"] for at in ats)
            prices = [
                f"**{at['lambda_dollars']:.2f}**" if at["lambda_dollars"] == least else f"{at['lambda_dollars']:.2f}"
                for at in ats
            ]
            cpu = ats[-1]["cpu"]
            fits = next((f"{size} MB" for size in self.sizes if cpu <= PERIOD_MS * size / WHOLE_CORE_MB), "none")
            rows.append([shape, f"{cpu:.2f}", fits, *prices])
        return table(["", "CPU, ms", "fits the slice of", *(f"{size} MB" for size in self.sizes)], rows)

    def inline(self) -> dict[str, str]:
        """Figures within sentences: `p90-100-128` is the p90 of 100 events with 128 MB."""
        found = {}
        for size in self.sizes:
            hundred, full, large = (self.at[OURS, shape, size] for shape in ("100 events", "500 events", "5 MB"))
            found[f"p90-100-{size}"] = number(hundred["p90"])
            found[f"p90-500-{size}"] = number(full["p90"])
            found[f"p50-5mb-{size}"] = number(large["p50"])
            found[f"usd-100-{size}"] = f"{hundred['lambda_dollars']:.2f}"
        return found


def filled(text: str, sections: dict[str, str]) -> str:
    """The document with the figures between the markers `<!-- bench:name -->` and `<!-- /bench:name -->`."""

    def replace(marker: re.Match[str]) -> str:
        begin, name, old, end = marker.groups()
        # A table needs lines of its own.
        return begin + ("\n" if "\n" in old else "") + sections[name] + end

    return re.sub(r"(<!-- bench:([\w-]+) -->)(.*?)(<!-- /bench:\2 -->)", replace, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write the figures to the documentation")
    mode.add_argument("--check", action="store_true", help="fail if the documentation is not current")
    arguments = parser.parse_args()

    results = Results()
    if any((target, DEFAULT_MB) not in results.first for target in (OURS, *PEERS)):
        print("The benchmark measured no memory sizes or no peers, so the documentation is unchanged.", file=sys.stderr)
        return 1 if arguments.check else 0
    sections = {
        "machine": results.machine(),
        "headline": results.headline(),
        "by-memory": results.by_memory(),
        "ratios": results.ratios(),
        "dollars": results.dollars(),
        **results.inline(),
    }
    stale = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        if filled(text, sections) != text:
            stale.append(name)
            if arguments.write:
                (ROOT / name).write_text(filled(text, sections))
    if stale and arguments.check:
        print(f"The figures in {', '.join(stale)} are not current. Run tools/bench_docs.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
