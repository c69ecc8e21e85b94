"""Measures the example consumers on a local AWS, for docs/consuming.md.

    cargo build --release --locked --package event-ingest --package example-consumer --bin example-consumer
    .venv/sam/bin/python docs/examples/measure_consumer.py

It needs Linux. Response times are not measured, because the local AWS is slow.
"""

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import local_aws
import project
from test_consumer import PYTHON, RUST, Resources, message, record, signup

INVOCATIONS = 100


def records(names: int) -> list[dict[str, object]]:
    """The records of an invocation: a batch of 500 events in 10 messages, with as many different names."""
    batch = str(uuid.uuid4())
    events = [signup(f"event_with_a_usual_name_{number % names}", plan="trial", seats=number) for number in range(500)]
    bodies = (message(events[at : at + 50], batch, range(at, at + 50)) for at in range(0, 500, 50))
    group = {"MessageGroupId": "acme"}
    return [record(str(number), json.dumps(body), group) for number, body in enumerate(bodies)]


def measure(aws: local_aws.LocalAws, name: str, command: Sequence[str], names: int) -> None:
    run = Resources(aws, command, "")
    sandbox = run.sandboxes[0]
    try:
        sandbox.invoke({"Records": []})
        assert sandbox.process
        process = Path(f"/proc/{sandbox.process.pid}")
        init = cpu_ms(process)
        # The first invocations open connections.
        for _ in range(10):
            sandbox.invoke({"Records": records(names)})
        before, sandbox.write_units, sandbox.read_units = cpu_ms(process), 0, 0
        for _ in range(INVOCATIONS):
            assert not sandbox.invoke({"Records": records(names)})["batchItemFailures"]
        cpu = (cpu_ms(process) - before) / INVOCATIONS
        memory = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM"))
        events = INVOCATIONS * 500
        print(
            f"{name}, {names} names: init {init:.0f} ms of CPU; 500 events {cpu:.1f} ms of CPU; "
            f"{sandbox.write_units / events:.3f} write and {sandbox.read_units / events:.3f} read units per event; "
            f"{int(memory.split()[1]) / 1024:.0f} MB"
        )
    finally:
        run.close()


def cpu_ms(process: Path) -> float:
    """The CPU time of a process, in user and system mode."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    project.isolate_environment()
    with tempfile.TemporaryDirectory() as folder:
        aws = local_aws.start(Path(folder), local_aws.free_port())
        try:
            for name, command in (("Python", PYTHON), ("Rust", [RUST[0].replace("/debug/", "/release/")])):
                for names in (1, 20, 50):
                    measure(aws, name, command, names)
        finally:
            local_aws.stop(Path(folder))


if __name__ == "__main__":
    main()
