"""Measures event-ingest-backfill and, for comparison, simpler ways to send events.

A stub on this machine accepts every batch at once. It decompresses each body and counts its
events, so that a lost event is noticed. `make bench-backfill` runs this script.

    python3 tools/bench_backfill.py                 1 million and 10 million events of 200 bytes
    python3 tools/bench_backfill.py --rows 1000000  another number of events
    python3 tools/bench_backfill.py --formats       1 million events as CSV, with gzip and Zstandard, and as Parquet

`--formats` needs the command zstd and the package pyarrow.

The figures in docs/backfill.md come from this script.
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ROOT / "target" / "release" / "event-ingest-backfill"
API_KEY = "sk_test_LOCAL_ONLY_not_a_secret_0123456789"
EVENT_BYTES = 200
BATCH_EVENTS = 500
# One POST per event and one curl process per POST are slow, so they are measured with fewer events.
SAMPLE_EVENTS = 20_000
SAMPLE_CURLS = 1_000

RESPONSE = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"


def event(number: int) -> str:
    """Return an event of exactly EVENT_BYTES. Its random text keeps gzip from compressing it too well."""
    start = f'{{"external_user_id":"usr_{number:09}","name":"order_placed","timestamp":"2026-11-23T09:14:03Z"'
    start += f',"properties":{{"order":{number},"plan":"trial","note":"'
    noise = hashlib.blake2b(number.to_bytes(8), digest_size=64).hexdigest()
    return start + noise[: EVENT_BYTES - len(start) - len('"}}')] + '"}}'


# ── The stub ─────────────────────────────────────────────────────────────────────────────────


def response(bulk: bool, events: int) -> bytes:
    status, body = b"202 Accepted", b'{"data":{"accepted":true}}'
    if bulk:
        status = b"200 OK"
        body = b'{"data":{"accepted":%d,"rejected":0,"errors":[]},"meta":{"received":%d}}' % (events, events)
    return RESPONSE % (status, len(body), body)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"expect: 100-continue" in head:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            if b"content-encoding: gzip" in head:
                body = zlib.decompress(body, wbits=31)
            events = body.count(b'"external_user_id"')
            count(events)
            writer.write(response(b"/events/bulk" in head, events))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def serve(
    port: "multiprocessing.sharedctypes.Synchronized[int]", counted: "multiprocessing.sharedctypes.Synchronized[int]"
) -> None:
    def count(events: int) -> None:
        counted.value += events

    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: answer(r, w, count), "127.0.0.1", 0, limit=16 * 1024 * 1024)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(main())


# ── The measurements ─────────────────────────────────────────────────────────────────────────


def ndjson(rows: int, directory: Path) -> Path:
    path = directory / f"{rows}.ndjson"
    with path.open("w") as file:
        for number in range(rows):
            file.write(event(number) + "\n")
    return path


def csv(rows: int, directory: Path) -> Path:
    """Write the same events as CSV, the columns being members and properties."""
    path = directory / f"{rows}.csv"
    with path.open("w") as file:
        file.write("external_user_id,name,timestamp,properties.order,properties.plan,properties.note\n")
        for number in range(rows):
            row = json.loads(event(number))
            properties = row["properties"].values()
            file.write(",".join([row["external_user_id"], row["name"], row["timestamp"], *map(str, properties)]) + "\n")
    return path


def compressed(write: Callable[[int, Path], Path], command: str, rows: int, directory: Path) -> Path:
    path = write(rows, directory)
    target = path.with_name(f"{path.name}.{command}")
    with target.open("wb") as file:
        subprocess.run([command, "-q", "-c", path], stdout=file, check=True)
    path.unlink()
    return target


def parquet(rows: int, directory: Path) -> Path:
    """Write the same events as Parquet, with the defaults of pyarrow except for Zstandard."""
    path = csv(rows, directory)
    target = path.with_suffix(".parquet")
    # In a process of its own, because the memory of this one would count as that of the backfill before its start.
    writer = multiprocessing.Process(target=to_parquet, args=(path, target))
    writer.start()
    writer.join()
    path.unlink()
    return target


def to_parquet(path: Path, target: Path) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.csv.read_csv(path), target, compression="zstd")


FORMATS: dict[str, Callable[[int, Path], Path]] = {
    "CSV": csv,
    "NDJSON, gzip": partial(compressed, ndjson, "gzip"),
    "NDJSON, Zstandard": partial(compressed, ndjson, "zstd"),
    "CSV, gzip": partial(compressed, csv, "gzip"),
    "Parquet": parquet,
}


def backfill(write: Callable[[int, Path], Path], rows: int, directory: Path, port: int) -> str:
    """Send a file with this many rows. Report the time, and the CPU time and memory that the system measured."""
    path = write(rows, directory)
    environment = {"VIBEFOLLOW_API_KEY": API_KEY, "PATH": os.environ["PATH"]}
    command: list[str | Path] = [COMMAND, "--url", f"http://127.0.0.1:{port}", "--json", path]
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.monotonic() - started
    path.unlink()
    if status != 0 or summary["accepted"] != rows:
        sys.exit(f"the backfill failed: {summary}")
    cpu = usage.ru_utime + usage.ru_stime
    speed = f"{elapsed:8.1f} s  {rows / elapsed:>9,.0f} events/s"
    return f"{rows:>10,} events  {speed}  {cpu:6.1f} s CPU  {usage.ru_maxrss / 1024:5.0f} MB at most"


def curl(events_each: int, calls: int, directory: Path, port: int) -> str:
    """Run curl once per batch in a shell loop, each time with another idempotency key."""
    for number in range(calls):
        body = ",".join(event(number * events_each + i) for i in range(events_each))
        (directory / f"{number}.json").write_text(f'{{"events":[{body}]}}')
    script = (
        f'for n in $(seq 0 {calls - 1}); do curl -sf -o /dev/null "http://127.0.0.1:{port}/api/v1/events/batch"'
        f' -H "Authorization: Bearer {API_KEY}" -H "Content-Type: application/json"'
        f' -H "Idempotency-Key: curl-{events_each}-$n" --data-binary @$n.json || exit 1; done'
    )
    started = time.monotonic()
    subprocess.run(["sh", "-c", script], cwd=directory, check=True)
    elapsed = time.monotonic() - started
    events = calls * events_each
    return f"{events:>10,} events  {elapsed:8.1f} s  {events / elapsed:>9,.0f} events/s"


def post_each(port: int) -> str:
    """Send one POST per event over one connection, as a simple script would."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    started = time.monotonic()
    for number in range(SAMPLE_EVENTS):
        row = json.loads(event(number))
        connection.request(
            "POST",
            "/api/v1/events/batch",
            json.dumps({"events": [row]}),
            headers | {"Idempotency-Key": f"post-{number}"},
        )
        response = connection.getresponse()
        response.read()
        if response.status != 202:
            sys.exit(f"the script got status {response.status}")
    elapsed = time.monotonic() - started
    return f"{SAMPLE_EVENTS:>10,} events  {elapsed:8.1f} s  {SAMPLE_EVENTS / elapsed:>9,.0f} events/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--formats", action="store_true")
    arguments = parser.parse_args()
    port = multiprocessing.Value("i", 0)
    counted = multiprocessing.Value("q", 0)
    stub = multiprocessing.Process(target=serve, args=(port, counted), daemon=True)
    stub.start()
    while port.value == 0:
        time.sleep(0.01)

    def measure(title: str, expected: int, run: Callable[[], str]) -> None:
        before = counted.value
        result = run()
        if counted.value - before != expected:
            sys.exit(f"{title}: the stub received {counted.value - before:,} events, not {expected:,}")
        print(f"{title:44}{result}", flush=True)

    with tempfile.TemporaryDirectory(dir=ROOT / "target") as temporary:
        directory = Path(temporary)
        for rows in arguments.rows[:1] if arguments.formats else arguments.rows:
            measure("event-ingest-backfill", rows, partial(backfill, ndjson, rows, directory, port.value))
        if arguments.formats:
            for name, write in FORMATS.items():
                measure(name, arguments.rows[0], partial(backfill, write, arguments.rows[0], directory, port.value))
        else:
            calls, each = SAMPLE_CURLS, BATCH_EVENTS
            title = f"curl in a loop, {each} events each"
            measure(title, calls * each, lambda: curl(each, calls, directory, port.value))
            measure("curl in a loop, one event each", calls, lambda: curl(1, calls, directory, port.value))
            measure("one POST per event (Python, one connection)", SAMPLE_EVENTS, lambda: post_each(port.value))
    stub.terminate()
    stub.join()
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"(all child processes used {cpu.ru_utime + cpu.ru_stime:.0f} s of CPU, including the stub)")


if __name__ == "__main__":
    main()
