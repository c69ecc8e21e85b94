"""Writes the handmade part of fuzz/corpus/: the samples of events/, and a case on each side of every
limit in docs/contract.md. Files found by the fuzzers have names of 40 hexadecimal digits.

A body writes a long run as 0xFF, a length, a count in three bytes, and the text to repeat; see
fuzz/src/expand.rs.
"""

import gzip
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"


def run(text: str, count: int) -> bytes:
    return run_of(text.encode(), count)


def run_of(unit: bytes, count: int) -> bytes:
    assert 0 < len(unit) < 256 and 0 <= count < 1 << 24
    return b"\xff" + bytes([len(unit)]) + count.to_bytes(3, "big") + unit


def fill(template: str, *runs: bytes) -> bytes:
    """Replaces each § of the template with a run."""
    parts = template.encode().split("§".encode())
    assert len(parts) == len(runs) + 1
    return parts[0] + b"".join(run + part for run, part in zip(runs, parts[1:], strict=True))


def gz(content: bytes) -> bytes:
    """One gzip member whose header names Unix as its origin. Python writes 0xFF there, which begins a run."""
    member = bytearray(gzip.compress(content, mtime=0))
    member[9] = 3
    return bytes(member)


def batch(event: str) -> str:
    return '{"events":[' + event + "]}"


def valid(member: str) -> str:
    return batch('{"external_user_id":"u","name":"n",' + member + "}")


GOOD = batch('{"external_user_id":"usr_42","name":"user_signed_up","properties":{"plan":"trial"}}')
REST = '{"external_user_id":"u","name":"n"}'


def bodies() -> dict[str, bytes]:
    texts = {
        "good": GOOD,
        "empty": "",
        "no-events": '{"events":[]}',
        "no-member-events": "{}",
        "events-null": '{"events":null}',
        "events-twice": '{"events":[' + REST + '],"events":[]}',
        "events-twice-escaped": r'{"events":[' + REST + r'],"\u0065vents":[]}',
        "top-level-array": "[]",
        "top-level-number-too-large": "1e999",
        "other-members": r'{"a":1e999,"\ud800":"\ud800","a":[],"events":[' + REST + "]}",
        "spaces": ' \n{ "events" :\t[ ' + REST + " ,\r\n" + REST + " ] } ",
        "scalars-for-events": '{"events":[null,1,"x",[],true,-1.5e3,{}]}',
        "all-members-wrong": '{"events":[{"external_user_id":1,"name":"","properties":[],"timestamp":5}]}',
        "all-members-twice": batch(
            '{"name":"n","name":"n","external_user_id":"u","external_user_id":"","properties":null,'
            '"properties":{},"timestamp":null,"timestamp":null}'
        ),
        "name-twice-escaped": batch(r'{"external_user_id":"u","name":"n","n\u0061me":"m"}'),
        "surrogate-in-own-key": batch(r'{"\ud800":1}'),
        "surrogate-in-own-key-and-more": batch(r'{"\ud800":{"x":1e999},"name":"","timestamp":1}'),
        "surrogate-in-property-key": valid(r'"properties":{"\udc00\ud800":1}'),
        "surrogates": valid(r'"x":["\ud83d\ude00","\ud83d","\ude00\ud83d","\ud83d\u0041","\ud83d\ud83d\ude00"]'),
        "surrogate-in-name": batch(r'{"external_user_id":"u","name":"\udfff"}'),
        "numbers": valid(
            '"x":[0,-0,1e308,-1e308,1e-400,1.7976931348623158e308,123456789012345678901234567890,0e999,0.1e-999]'
        ),
        "number-just-too-large": valid('"x":1.7976931348623159e308'),
        "number-too-large": valid('"properties":{"k":[-1e999]}'),
        "escapes": valid(r'"x":"\"\\\/\b\f\n\r\t\u0000é😀' + '\ufffe\uffff\ufffd"'),
        "refused-by-sqs": valid('"\ufffe":"\uffff\uffff","properties":{"\uffff":"\ufffe"}'),
        "hundred-violations": "§",
    }
    times = [
        "2026-11-23T09:14:03Z", "2026-11-23T09:14:03.127z", "2026-11-23t09:14:03+01:00", "2024-02-29T00:00:00Z",
        "2023-02-29T00:00:00Z", "2000-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2016-12-31T23:59:60Z",
        "2017-01-01T00:59:60+01:00", "2016-12-30T23:59:60Z", "2016-12-31T00:00:60-23:59", "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:60-00:01", "9999-12-31T23:59:59.999999999999-23:59", "2026-11-23 09:14:03Z",
        "2026-11-23T09:14:03", "2026-11-23T24:00:00Z", "2026-11-23T09:60:00Z", "2026-13-01T00:00:00Z",
        "2026-11-31T00:00:00Z", "2026-11-23T09:14:03+24:00", "2026-11-23T09:14:03+23:60", "2026-11-23T09:14:03.Z",
        "2026-11-23T09:14:03+0100", "+2026-11-23T09:14:03Z", "2026-11-23T09:14:03Zx", "２026-11-23T09:14:03Z",
    ]  # fmt: skip
    every = ",".join('{"external_user_id":"u","name":"n","timestamp":' + json.dumps(time) + "}" for time in times)
    found = {name: text.encode() for name, text in texts.items()}
    found["timestamps"] = batch(every).encode()
    found["hundred-violations"] = fill('{"events":[§1]}', run('{"name":"n"},', 100))
    found["hundred-and-more-violations"] = fill('{"events":[§{}]}', run("{},", 60))
    for count in (499, 500):
        found[f"events-{count + 1}"] = fill('{"events":[§' + REST + "]}", run(REST + ",", count))
    for count in (100, 101):
        keys = ",".join(f'"{key}":{key}' for key in range(count))
        found[f"keys-{count}"] = valid('"properties":{' + keys + "}").encode()
    found["keys-101-equal"] = fill(valid('"properties":{§"k":1}'), run('"k":1,', 100))
    for count in (1024, 1025):
        name = batch('{"external_user_id":"u","name":"§"}')
        found[f"name-{count}"] = fill(name, run("x", count))
        found[f"name-{count}-emoji"] = fill(name, run("😀", count))
        found[f"name-{count}-escaped"] = fill(name, run(r"\ud83d\ude00", count))
    for depth in (31, 32, 400):
        found[f"depth-{depth + 1}"] = fill(valid('"x":§§'), run("[", depth), run("]", depth))
        found[f"depth-{depth + 1}-objects"] = fill(valid('"x":§1§'), run('{"k":', depth), run("}", depth))
        found[f"depth-{depth + 2}-properties"] = fill(valid('"properties":{"k":§§}'), run("[", depth), run("]", depth))
    found["depth-100000"] = fill(valid('"x":§§'), run("[", 100_000), run("]", 100_000))
    found["depth-100000-at-the-top"] = fill("§§", run("[", 100_000), run("]", 100_000))
    found["depth-100000-open"] = run('{"k":[', 100_000)
    # Both scans of the body nest deeply: the one for the events, and the one that reports the syntax.
    found["depth-1000000-open-in-an-event"] = fill('{"events":[{"x":{"k":§', run("[", 1_090_000))
    # The costliest bodies for each byte: numbers between two floats, a refused value after many others, and
    # short keys.
    found["costly-numbers"] = fill(valid('"x":[§0]'), run("2.4703282292062327208e-324,", 38_000))
    found["costly-refusal"] = fill(valid(r'"x":[§"\ud800"]'), run("0,", 500_000))
    found["costly-keys"] = fill(valid('§"b":0'), run('"a":0,', 170_000))
    found["costly-keys-malformed"] = fill('{"events":[' + REST + '],§"b":0}!', run('"a":0,', 170_000))
    # A message with such a string would have six bytes for each of its characters.
    found["string-of-control-characters"] = fill('"§"', run("\x7f", 1_000_000))
    found["string-of-control-characters-for-events"] = fill('{"events":"§"}', run("\x7f", 1_000_000))
    # The least integer beyond a float, and the greatest within.
    found["number-least-infinite"] = valid(f'"x":{2**1024 - 2**970}').encode()
    found["number-greatest-finite"] = valid(f'"x":{2**1024 - 2**970 - 1}').encode()
    for size in (1_000_000, 1_000_001):
        found[f"properties-{size}"] = fill(valid('"properties":{"k":"§"}'), run("x", size - len('{"k":""}')))
    for size in (1_047_552, 1_047_553):
        around = '{"external_user_id":"u","name":"n","x":"'
        found[f"event-{size}"] = fill(batch(around + '§"}'), run("x", size - len(around) - 2))
        found[f"event-{size}-escaped"] = fill(batch(around + '\uffff§"}'), run("x", size - len(around) - 8))
    # The size of a message without events, with the project and mode of the target `batch`: the body before
    # the first event and after the last, and the attributes.
    head = (
        '{"schema":"event-batch/1","batch_id":"' + "x" * 36 + '","project_id":"acme","mode":"live",'
        '"received_at":"2026-11-23T09:14:03.127Z","events":[]}'
    )
    attributes = sum(len(name + "String" + value) for name, value in
                     [("schema", "event-batch/1"), ("project_id", "acme"), ("mode", "live")])  # fmt: skip
    around = '{"external_user_id":"u","name":"n","x":"'
    for events in (2, 50):
        wrapped = sum(len('{"id":"' + "x" * 36 + f'-{index}","event":' + around + '"}}') for index in range(events))
        empty = len(head) + attributes + wrapped + events - 1
        for beyond in (-1, 0, 1, 20):
            padding, more = divmod(1_048_576 + beyond - empty, events)
            runs = [run("x", padding)] * (events - 1) + [run("x", padding + more)]
            found[f"message-of-{events}-events-{beyond:+}"] = fill(batch(",".join([around + '§"}'] * events)), *runs)
    malformed = [
        " ", "{", '{"events":[}', '{"events":[],}', '{"events":[1 2]}', '{"events":[]} x', '{"events":["a\nb"]}',
        r'{"events":["\x"]}', r'{"events":["\u12"]}', '{"events":[01]}', '{"events":[1.]}', '{"events":[-]}',
        '{"events":[1e]}', '{"events":[.5]}', "{'events':[]}", '{"events":[tru]}', '{"events":[NaN]}', "\ufeff{}",
        '{"a":{]}', '{"a" 1}', '{1:2}', '"', "[[[",
    ]  # fmt: skip
    found |= {f"malformed-{number:02}": text.encode() for number, text in enumerate(malformed)}
    broken = [b'{"events":["\xc3\x28"]}', b'\n{"\xed\xa0\x80":1}', b'{"events":[\n"\xf0\x9f\x98', b"\x1f\x8b\x08\x00"]
    found |= {f"not-utf8-{number}": text for number, text in enumerate(broken)}
    singles = {"single": REST, "single-spaces": " \r\n" + REST + "\t", "single-violations": '{"name":"","timestamp":1}'}
    return found | {name: text.encode() for name, text in singles.items()}


def gateway_events() -> dict[str, bytes]:
    samples = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "events").glob("*.json"))}
    del samples["expected"], samples["five-hundred-events"]
    found = {f"sample-{name}": json.dumps(event, separators=(",", ":")).encode() for name, event in samples.items()}
    # The bits of the first byte: REST, single event, gzip, compressed by the target, text instead of base64.
    for how in range(32):
        body = REST if how & 2 else GOOD
        wrapped = gz(body.encode()) if how & 0b11100 == 0b00100 else body.encode()
        found[f"wrapped-{how:05b}"] = bytes([how]) + wrapped
    raw = {
        "two-members": gz(GOOD.encode()[:40]) + gz(GOOD.encode()[40:]),
        "cut-short": gz(GOOD.encode())[:-3],
        "wrong-sum": gz(GOOD.encode())[:-8] + bytes(8),
        "trailing": gz(GOOD.encode()) + b"x",
    }
    assert not any(b"\xff" in body for body in raw.values())
    found |= {f"gzip-{name}": b"\x04" + body for name, body in raw.items()}
    # 350 members of 180 KB each: 63 MB, of which at most 5 MB may be in memory.
    found["gzip-bomb-of-members"] = b"\x04" + run_of(gz(b" " * 180_000), 350)
    # Deflate blocks of ten bits that contain nothing: four of them in five bytes.
    found["gzip-of-empty-blocks"] = b"\x04" + gz(b"")[:10] + run_of(bytes.fromhex("0208208000"), 19_000)
    found["gzip-of-violations"] = b"\x0c" + fill('{"events":[§{}]}', run("{},", 60))
    found["gzip-of-a-run"] = b"\x0c" + fill(valid('"x":"§"'), run("x", 90_000))
    found["gzip-without-header"] = b"\x00" + gz(GOOD.encode())
    found["gzip-header-without-gzip"] = b"\x04[1]"
    found["gzip-header-without-gzip-not-utf8"] = b'\x04"\x99"'
    odd = samples["accepted"] | {"body": None}
    found["body-null"] = json.dumps(odd).encode()
    found["headers-null"] = json.dumps(odd | {"headers": None}).encode()
    found["base64-garbled"] = json.dumps(samples["accepted"] | {"isBase64Encoded": True}).encode()
    found["request-id-odd"] = json.dumps(
        samples["accepted"] | {"requestContext": {"requestId": "é\n", "http": {"method": "POST"}}}
    ).encode()
    paths = {"stage": "/prod/api/v1/events/batch", "two": "/a/b/api/v1/events", "none": "//api/v1/events"}
    for name, path in paths.items():
        found[f"path-{name}"] = json.dumps(samples["accepted"] | {"rawPath": path}).encode()
    return found


def headers() -> dict[str, bytes]:
    key = "sk_live_0123456789abcdefghijklmnopqrstuvwxyzABCD"
    good = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Idempotency-Key": "7b6c7e9e-2c2d-4a8d-9d3a-4f3d2c1b0a99",
    }
    found = {"good": good, "none": {}}
    for name in good:
        found[f"without-{name.lower()}"] = {other: value for other, value in good.items() if other != name}

    def put(label: str, name: str, value: str) -> None:
        found[label] = good | {name: value}

    for length in (31, 32, 128, 129):
        put(f"secret-{length}", "Authorization", "bearer sk_test_" + "x_-9"[: length % 4] + "aZ09" * (length // 4))
    for number, value in enumerate(
        ["Basic " + key, "Bearer  " + key, "Bearer", "Bearer " + key + " ", key, "BEARER pk" + key[2:], "é" * 7 + key]
    ):
        put(f"authorization-{number}", "Authorization", value)
    for name, value in {"revoked": "revoked_key", "read-only": "read_scope"}.items():
        put(name, "Authorization", f"Bearer sk_test_LOCAL_ONLY_{value}_0123456789")
    for length in (0, 1, 255, 256):
        put(f"key-{length}", "Idempotency-Key", "~" * length)
    for number, value in enumerate(["a b", "é", "a\tb", "\x7f", "!"]):
        put(f"key-odd-{number}", "Idempotency-Key", value)
    types = ["text/plain", "application/json; charset=utf-8", "APPLICATION/JSON ;x", "application/gzip", "", ";"]
    for number, value in enumerate([*types, "application/octet-stream", "application/json,application/json"]):
        put(f"type-{number}", "Content-Type", value)
        found[f"type-{number}-gzip"] = found[f"type-{number}"] | {"content-encoding": "GZip"}
    for number, value in enumerate(["identity", "Identity", "gzip", "br", "gzip, gzip", ""]):
        put(f"encoding-{number}", "Content-Encoding", value)
    texts = {name: "\n".join(f"{name}: {value}" for name, value in lines.items()) for name, lines in found.items()}
    texts["repeated"] = texts["good"] + "\nidempotency-key: again\nIDEMPOTENCY-KEY:thrice"
    texts["null"] = texts["good"] + "\nContent-Encoding\n"
    return {name: text.encode() for name, text in texts.items()}


def packings() -> dict[str, bytes]:
    # The generated batches do not matter; these inputs are starting points for the fuzzers.
    return {
        "nothing": b"",
        "zeroes": bytes(64),
        "ones": b"\xff" * 256,
        "counting": bytes(range(256)),
        "counting-down": bytes(range(255, -1, -1)) * 2,
        "steps": bytes(number * 37 % 256 for number in range(1024)),
        "squares": bytes(number * number % 251 for number in range(2048)),
    }


def readers() -> dict[str, bytes]:
    # The first byte: the format, and how it is read. The others: the size of a piece, and a record.
    texts = {
        0: {
            "lines": REST + "\r\n\n \t\n{}\n\ufeff\n" + REST,
            "blank": "\n\r\n \n",
            "mark": "\ufeff" + REST + "\n",
            "members": '{"external_user_id":1,"a":{"b":"n"},"c":"[1]","d":2,"properties":{"a":"1","e":null},"x":[]}',
            "properties-in-text": '{"external_user_id":"u","name":"n","properties":"{\\"a\\": 1}",'
            '"timestamp":1740816000005}',
        },
        1: {
            "array": "[ " + REST + ' , {"a":"]},\\"[{"}\n,[1,{\r\n}],7,"x",-1e3 ,true\n]\n',
            "arrays": "[{}][ ]\n[[]]",
            "values": '{"a":\n{}}{} 7\n"x"[1]null',
            "comma-missing": "[{}{}]",
            "cut-off": '[{"a":"',
            "empty": " ",
        },
        2: {
            "cells": 'a,"b ""q"" c",\r\n\n"d\ne",NULL,"NULL"\n\\N,f"g,h',
            "broken": 'a,"b"c\nd,e\n"f',
            "not-utf8": "",
            "marks": "\ufeff\ufeffa,b\n",
        },
        3: {
            "events": "external_user_id,name,timestamp,properties.a,b,c\nu,n,2026-11-23T09:14:03Z,1,t,{}\nu,n,,x,y,z\n",
            "inner": 'external_user_id,name,a,properties\nu,,"{""b"":""n""}","{""a"":1}"\nu,n,1,[]\n',
            "times": "external_user_id,name,timestamp,a\nu,n,1740816000005,1\nu,n,x,2\n",
            "header-twice": "external_user_id,name,name\n",
        },
    }
    found = {}
    for how, files in texts.items():
        for name, text in files.items():
            # Every mapping, and every dialect.
            for variant in (0, 4, 8, 12) if how == 0 else (0, 4, 12, 28, 44, 64, 132, 192) if how >= 2 else (0,):
                file = text.encode() if name != "not-utf8" else b"\xfe,\xc3,\xa9\n\xc3\xa9,b\n"
                if variant & 4 and how >= 2:
                    file = file.replace(b",", b";")
                if variant & 8 and how >= 2:
                    file = file.replace(b'"', b"'")
                found[f"{['ndjson', 'json', 'csv', 'csv-events'][how]}-{name}-{variant:03}"] = (
                    bytes([how | variant, 2, 1]) + file
                )
    for how, (start, end) in {0: ('{"a":"', '"}\n{}\n'), 1: ('[{"a":"', '"},{}]'), 2: ('"', '"\na\n')}.items():
        for size in (1_047_552, 1_047_553) if how == 0 else (1_047_553,):
            inner = size - len(start.strip("[")) - len(end.split("\n")[0].split(",")[0])
            found[f"long-{how}-{size}"] = bytes([how, 254, 1]) + start.encode() + run("x", inner) + end.encode()
    found["csv-columns-2049"] = bytes([2, 254, 1]) + run("a,", 2049) + b"\nb\n"
    found["json-arrays-20000"] = bytes([1, 254, 0]) + run("[]", 20_000)
    return found


def times() -> dict[str, bytes]:
    # The first byte: the format, and the time zone.
    sql = [
        *["2025-03-01 08:00:00+00", "2025-03-01T08:00:00.1 +0530", "2025-03-30 02:30:00.250 UTC"],
        *["2025-10-26 02:30:00", "2025-03-30 02:30:00", "0000-01-01 00:00:00", "9999-12-31 23:59:60-00:01"],
        "2025-03-01 08:00:00.Z",
    ]
    numbers = ["1740816000", "1740816000.250", "-1", "-1.0", "-62167219200"]
    numbers += ["253402300799", "253402300800", "1e9", "+5"]
    found = {}
    for how in range(4):
        for zone in (0, 3) if how else range(5):
            for number, text in enumerate(numbers if how else sql):
                found[f"time-{how}-{zone}-{number}"] = bytes([how | zone << 2]) + text.encode()
    return found


def main() -> None:
    for target, inputs in {
        "batch": bodies(),
        "bulk": bodies(),
        "gateway_event": gateway_events(),
        "headers": headers(),
        "packing": packings(),
        "ordered": packings(),
        "readers": readers(),
        "times": times(),
    }.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in inputs.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
