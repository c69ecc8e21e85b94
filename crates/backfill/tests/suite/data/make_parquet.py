"""Writes the Parquet files of the tests. It needs pyarrow, which the tests do not.

python3 crates/backfill/tests/suite/data/make_parquet.py
"""

import datetime as dt
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
INSTANT = dt.datetime(2025, 3, 1, 8, 0, 0, 123456)


def events() -> None:
    """Write 1,000 events in 4 row groups, with the column names of an application."""
    rows = range(1000)
    table = pa.table(
        {
            "user_id": pa.array(rows, pa.int64()),
            "event": pa.array([f"event {row % 7}" for row in rows]),
            "ts": pa.array([INSTANT + dt.timedelta(seconds=row) for row in rows], pa.timestamp("us", "UTC")),
            "price": pa.array([decimal.Decimal(row) / 100 for row in rows], pa.decimal128(10, 2)),
            "plan": pa.array([None if row % 3 else "pro" for row in rows]),
        }
    )
    pq.write_table(table, HERE / "events.parquet", row_group_size=250, compression="zstd")


def types() -> None:
    """Write a row of values, and a row of NULLs, with a column of each type."""
    big = decimal.Decimal("-123456789012345678901234567890.12345678")
    columns = {
        "external_user_id": pa.array([7, 8], pa.int64()),
        "name": pa.array(["a", "b"]),
        "boolean": pa.array([True, None]),
        "i8": pa.array([-8, None], pa.int8()),
        "u64": pa.array([2**64 - 1, None], pa.uint64()),
        "i64": pa.array([-(2**63), None], pa.int64()),
        "f32": pa.array([0.1, None], pa.float32()),
        "f64": pa.array([1e300, None], pa.float64()),
        "nan": pa.array([float("nan"), None], pa.float64()),
        "decimal": pa.array([decimal.Decimal("42.50"), None], pa.decimal128(9, 2)),
        "small": pa.array([decimal.Decimal("-0.05"), None], pa.decimal128(5, 2)),
        "big": pa.array([big, None], pa.decimal256(50, 8)),
        "date": pa.array([dt.date(2025, 3, 1), None]),
        "old": pa.array([dt.date(1969, 12, 31), None]),
        "time_ms": pa.array([dt.time(8, 0, 0, 5000), None], pa.time32("ms")),
        "time_us": pa.array([dt.time(8, 0), None], pa.time64("us")),
        "time_ns": pa.array([dt.time(8, 0, 0, 7), None], pa.time64("ns")),
        "utc_ms": pa.array([INSTANT, None], pa.timestamp("ms", "UTC")),
        "utc_us": pa.array([INSTANT, None], pa.timestamp("us", "Europe/Berlin")),
        "utc_ns": pa.array([INSTANT, None], pa.timestamp("ns", "UTC")),
        "local_us": pa.array([INSTANT, None], pa.timestamp("us")),
        "local_ns": pa.array([INSTANT, None], pa.timestamp("ns")),
        "bytes": pa.array([b"\x00\xff", None], pa.binary()),
        "text_bytes": pa.array([b"text", None], pa.binary()),
        "fixed": pa.array([b"ab", None], pa.binary(2)),
        "dictionary": pa.array(["x", None]).dictionary_encode(),
        "list": pa.array([[1, None, 3], None], pa.list_(pa.int32())),
        "times": pa.array([[INSTANT], None], pa.list_(pa.timestamp("us", "UTC"))),
        "struct": pa.array([{"a": {"b": 'q"\n'}, "none": None}, None]),
        "map": pa.array([[("k", 1), ("l", 2)], None], pa.map_(pa.string(), pa.int64())),
        "structs": pa.array([[{"n": 1}, {"n": 2}], None]),
        "empty": pa.array([[], None], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), HERE / "types.parquet", compression="snappy")
    int96 = pa.table({"external_user_id": ["1"], "name": ["n"], "timestamp": pa.array([INSTANT], pa.timestamp("ns"))})
    pq.write_table(int96, HERE / "int96.parquet", use_deprecated_int96_timestamps=True, compression="gzip")


events()
types()
