"""Tests the example consumers on a local AWS: python -m unittest discover -s docs/examples

The Python and the Rust consumer pass the same tests. Build the Rust consumer first:

    cargo build --locked --package event-ingest --package example-consumer --bin example-consumer
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import sys
import tempfile
import time
import unittest
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import local_aws
import local_consumer
import project
import sandbox
from sandbox import Call, Died, Fault, Sandbox, Step, no_fault

PYTHON = [sys.executable, str(Path(sandbox.__file__))]
RUST = [str(Path(os.environ.get("CARGO_TARGET_DIR", project.ROOT / "target")) / "debug" / "example-consumer")]
CHAOS_MESSAGES = os.environ.get("CHAOS_MESSAGES", "")
FAULTS: list[Fault] = ["refuse", "lose response", "kill before", "kill after"]
BATCH = "01a207af-0ff7-7cc3-9d4e-0a1b2c3d4e5f"
OTHER = "01a207af-0ff7-7cc3-9d4e-0a1b2c3d4e60"
TOO_MUCH: dict[str, Any] = {"quantity": 1_000_001}  # The consumer can never process an event with these properties.
REASON = "properties.quantity must be a whole number from 0 to 1,000,000"

Message = dict[str, Any]


def signup(name: str = "user_signed_up", **properties: object) -> dict[str, Any]:
    return {"external_user_id": "usr_42", "name": name, "properties": properties}


def message(events: Iterable[object], batch: str = BATCH, indexes: Iterable[int] | None = None, **more: Any) -> Message:
    """A queue message with events of a batch; `indexes` are their indexes in the batch."""
    entries = [
        {"id": f"{batch}-{index}", "event": event}
        for index, event in zip(indexes or itertools.count(), events, strict=False)
    ]
    envelope = {
        "schema": "event-batch/1",
        "batch_id": batch,
        "project_id": "acme",
        "mode": "live",
        "received_at": "2026-11-23T09:14:03.127Z",
        "events": entries,
    }
    return envelope | more


def part(*indexes: int, batch: str = BATCH) -> Message:
    """A message with events that each add 2 to the power of the index, so that a sum shows which events it contains."""
    return message([signup(quantity=2**index) for index in indexes], batch, indexes)


def record(message_id: str, body: str, attributes: dict[str, str], suffix: str = "") -> dict[str, Any]:
    """A message as an event source mapping passes it to the function."""
    return {
        "messageId": message_id,
        "receiptHandle": "unused",
        "body": body,
        "attributes": attributes,
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:us-east-1:000000000000:events{suffix}",
        "awsRegion": "us-east-1",
    }


@dataclasses.dataclass
class Resources:
    """The queues and the table of one test, and the sandboxes of its consumer."""

    aws: local_aws.LocalAws
    command: Sequence[str]
    suffix: str
    name: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    sandboxes: list[Sandbox] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.sqs, self.dynamodb = self.aws.client("sqs"), self.aws.client("dynamodb")
        self.queue, self.parked_queue = self.create_queue("events"), self.create_queue("parked")
        keys = [("pk", "HASH"), ("batch_id", "RANGE")]
        self.dynamodb.create_table(
            TableName=self.name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key, _ in keys],
            KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in keys],
        )
        self.new_sandbox()

    def create_queue(self, name: str) -> str:
        fifo = {"FifoQueue": "true", "DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
        attributes = {"MaximumMessageSize": "1048576"} | (fifo if self.suffix else {})
        queue = self.sqs.create_queue(QueueName=f"{name}-{self.name}{self.suffix}", Attributes=attributes)
        return str(queue["QueueUrl"])

    def attributes(self, queue: str) -> dict[str, str]:
        attributes: dict[str, str] = self.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
        return attributes

    def new_sandbox(self) -> Sandbox:
        environment = {
            **{name: os.environ[name] for name in os.environ if name.startswith("AWS_")},
            "RESULTS_TABLE": self.name,
            "PARKED_QUEUE": self.parked_queue,
        }
        self.sandboxes.append(Sandbox(self.command, environment, self.aws.url))
        return self.sandboxes[-1]

    def close(self) -> None:
        for one in self.sandboxes:
            one.close()

    def send(self, *messages: Message | str, group: str = "acme.live.0") -> None:
        for number, one in enumerate(messages):
            body = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
            body = body.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
            fifo = {"MessageDeduplicationId": f"{number}-{uuid.uuid4()}"} if self.suffix else {}
            self.sqs.send_message(QueueUrl=self.queue, MessageBody=body, MessageGroupId=group, **fifo)

    def send_lines(self, lines: Sequence[dict[str, str]]) -> None:
        """Sends messages as `CHAOS_MESSAGES` contains them."""
        for start in range(0, len(lines), 10):
            entries = [
                {"Id": str(number), "MessageBody": line["body"], "MessageGroupId": line["group"]}
                | ({"MessageDeduplicationId": f"{start}-{number}"} if self.suffix else {})
                for number, line in enumerate(lines[start : start + 10])
            ]
            sent = self.sqs.send_message_batch(QueueUrl=self.queue, Entries=entries)
            assert len(sent["Successful"]) == len(entries), sent

    def receive(self, queue: str) -> list[dict[str, Any]]:
        received = self.sqs.receive_message(
            QueueUrl=queue,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
            VisibilityTimeout=600,
        )
        messages: list[dict[str, Any]] = received.get("Messages", [])
        return messages

    def deliver(self, step: Step = no_fault, seconds: float = 30, to: Sandbox | None = None) -> list[str] | None:
        """Delivers up to 10 messages as an event source mapping does. Returns the bodies of those that failed.

        Returns None if the queue is empty. Messages that failed are visible again at once, even if the process died.
        """
        received = self.receive(self.queue)
        if not received:
            return None
        records = [record(one["MessageId"], one["Body"], one["Attributes"], self.suffix) for one in received]
        failed = {record["messageId"] for record in records}
        try:
            response = (to or self.sandboxes[0]).invoke({"Records": records}, step, seconds)
            failed = {failure["itemIdentifier"] for failure in response["batchItemFailures"]}
        finally:
            for one in received:
                handle = {"QueueUrl": self.queue, "ReceiptHandle": one["ReceiptHandle"]}
                if one["MessageId"] in failed:
                    self.sqs.change_message_visibility(**handle, VisibilityTimeout=0)
                else:
                    self.sqs.delete_message(**handle)
        return [one["Body"] for one in received if one["MessageId"] in failed]

    def drain(self, to: Sandbox | None = None) -> None:
        """Delivers until the queue is empty. No message may fail."""
        while (failed := self.deliver(to=to)) is not None:
            if failed:
                raise AssertionError(f"{len(failed)} messages failed, the first is {failed[0][:300]}")

    def drain_with_faults(self, to: Sandbox, rng: random.Random) -> Counter[Fault]:
        """Delivers until the queue is empty. One percent of the calls has a fault. Returns the faults."""
        faults: Counter[Fault] = Counter()

        def step(_number: int, _call: Call) -> Fault:
            fault = rng.choice(FAULTS) if rng.random() < 0.01 else None
            if fault:
                faults[fault] += 1
            return fault

        is_empty = False
        while not is_empty:
            with contextlib.suppress(Died):
                is_empty = self.deliver(step, to=to) is None
        return faults

    def items(self) -> list[dict[str, Any]]:
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=self.name, ConsistentRead=True)
        return [item for page in pages for item in page["Items"]]

    def totals(self) -> dict[str, int]:
        """The sum of all items, by event name."""
        totals: Counter[str] = Counter()
        for item in self.items():
            totals.update({name: int(total["N"]) for name, total in item["totals"]["M"].items()})
        return dict(totals)

    def parked(self) -> list[dict[str, Any]]:
        """Receives and deletes the messages in the queue of parked events."""
        parked = []
        while found := self.receive(self.parked_queue):
            for one in found:
                self.sqs.delete_message(QueueUrl=self.parked_queue, ReceiptHandle=one["ReceiptHandle"])
            parked += found
        return parked


class ConsumerTest(unittest.TestCase):
    """Tests of the Python consumer, and through a subclass, of the Rust consumer."""

    command = PYTHON
    chaos_run = "standard"
    aws: local_aws.LocalAws

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        project.isolate_environment()
        cls.aws = local_aws.start(Path(folder.name), local_aws.free_port())
        cls.addClassCleanup(local_aws.stop, Path(folder.name))

    def resources(self, suffix: str = "") -> Resources:
        created = Resources(self.aws, self.command, suffix)
        self.addCleanup(created.close)
        return created

    def each_kind(self) -> list[Resources]:
        return [self.resources(), self.resources(".fifo")]

    # ── Results ──────────────────────────────────────────────────────────────────────────────────

    def test_adds_every_event(self) -> None:
        for run in self.each_kind():
            run.send(message([signup(), signup(quantity=5), signup("left")]), message([signup()], OTHER, mode="test"))
            run.drain()
            self.assertEqual(run.totals(), {"user_signed_up": 7, "left": 1})
            keys = {(item["pk"]["S"], item["batch_id"]["S"]) for item in run.items()}
            self.assertEqual(keys, {("acme#live#2026-11-23#f", BATCH), ("acme#test#2026-11-23#0", OTHER)})

    def test_doubled_and_reordered_messages_add_once(self) -> None:
        for run in self.each_kind():
            messages = [part(0, 1), part(2), part(0, 1), part(3, 4), part(2), part(0, 1)]
            run.send(*messages, *reversed(messages))
            run.drain()
            self.assertEqual(run.totals(), {"user_signed_up": 2**5 - 1})

    def test_copies_of_an_event_in_messages_with_other_boundaries_add_once(self) -> None:
        """MAX_EVENTS_PER_MESSAGE changed between two attempts, or a retry left out acknowledged events."""
        cuts = [part(*range(10)), part(*range(5, 15)), part(3, 7, 16), part(16), part(*range(17))]
        for order in (cuts, cuts[::-1], [cuts[2], cuts[4], cuts[0]]):
            run = self.resources()
            run.send(*order)
            run.drain()
            self.assertEqual(run.totals(), {"user_signed_up": 2**17 - 1})

    def test_concurrent_messages_of_a_batch_lose_and_double_nothing(self) -> None:
        run = self.resources()
        batches = [f"{BATCH[:-2]}{number:02x}" for number in range(3)]
        messages = [part(*range(first, first + 3), batch=batch) for batch in batches for first in range(15)]
        random.Random(7).shuffle(messages)
        run.send(*messages)
        sandboxes = [run.sandboxes[0], run.new_sandbox(), run.new_sandbox()]
        with ThreadPoolExecutor() as pool:
            list(pool.map(run.drain, sandboxes))
        sums = {item["batch_id"]["S"]: int(item["totals"]["M"]["user_signed_up"]["N"]) for item in run.items()}
        self.assertEqual(sums, dict.fromkeys(batches, 2**17 - 1))

    def test_consumes_every_legal_name(self) -> None:
        run = self.resources()
        names = ["界" * 1024, "😀" * 1024, "a" * 64, "a" * 65, "\0", "\ufffe\uffff", "#.$:", "sha256:", "e\u0301", " "]
        run.send(message([signup(name) for name in names]))
        run.drain()
        self.assertEqual(len(run.totals()), len(names))
        self.assertLessEqual({name for name in names if len(name) <= 64}, run.totals().keys())

    def test_consumes_a_batch_with_as_many_or_as_long_names_as_possible(self) -> None:
        run = self.resources(".fifo")
        many = [chr(0x1F600 + number % 64) * 60 + f"{number:04}" for number in range(1000)]
        long = ["界" * 1020 + f"{number:04}" for number in range(310)]
        run.send(message([signup(name, quantity=1_000_000) for name in many]))
        run.send(message([signup(name) for name in long], OTHER))
        run.drain()
        totals = run.totals()
        self.assertEqual({name: totals.pop(name) for name in many}, dict.fromkeys(many, 1_000_000))
        self.assertEqual(list(totals.values()), [1] * len(long))

    # ── Failures ─────────────────────────────────────────────────────────────────────────────────

    def test_only_the_messages_that_failed_are_returned(self) -> None:
        run = self.resources()
        future = json.dumps(part(0, batch=OTHER) | {"schema": "event-batch/2"})
        run.send(part(0), "not JSON", part(1), future, part(2) | {"future": 1})
        self.assertEqual(run.deliver(), ["not JSON", future])
        self.assertEqual(run.totals(), {"user_signed_up": 0b111})

    def test_a_call_that_fails_returns_its_message(self) -> None:
        run = self.resources()
        run.send(part(0), part(0, batch=OTHER), part(1))
        failed = run.deliver(step=refuse(OTHER))
        self.assertEqual(failed, [json.dumps(part(0, batch=OTHER))])
        self.assertEqual(run.totals(), {"user_signed_up": 0b11})
        run.drain()
        self.assertEqual(run.totals(), {"user_signed_up": 0b100})

    def test_on_an_ordered_queue_the_rest_of_the_group_is_returned_too(self) -> None:
        run = self.resources(".fifo")
        run.send(part(0), group="acme.live.0")
        run.send(part(1), group="acme.live.1")
        run.send(part(0, batch=OTHER), part(2), part(3), group="acme.live.0")
        run.send(part(4), group="acme.live.1")
        failed = run.deliver(step=refuse(OTHER)) or []
        self.assertEqual(
            [json.loads(body)["events"][0]["id"] for body in failed], [f"{OTHER}-0", f"{BATCH}-2", f"{BATCH}-3"]
        )
        self.assertEqual(run.totals(), {"user_signed_up": 0b10011})
        run.drain()
        self.assertEqual(run.totals(), {"user_signed_up": 0b11111 + 1})

    def test_messages_are_returned_while_too_little_time_is_left(self) -> None:
        for run in self.each_kind():
            run.send(part(0), part(1))
            self.assertEqual(run.deliver(seconds=9), [json.dumps(part(0)), json.dumps(part(1))])
            self.assertEqual(run.sandboxes[0].calls, [])
            run.drain()
            self.assertEqual(run.totals(), {"user_signed_up": 0b11})

    # ── Poison events ────────────────────────────────────────────────────────────────────────────

    def test_a_poison_event_is_parked_alone_with_its_reason(self) -> None:
        for run in self.each_kind():
            poison = signup(**TOO_MUCH, text="grüße \ufffe\uffff 😀")
            run.send(message([signup(), poison, signup()]), message([signup()], OTHER))
            run.drain()
            self.assertEqual(run.totals(), {"user_signed_up": 3})
            (parked,) = run.parked()
            self.assertEqual(json.loads(parked["Body"]), message([poison], indexes=[1]))
            attributes = {name: value["StringValue"] for name, value in parked["MessageAttributes"].items()}
            self.assertIn(REASON, attributes.pop("reason"))
            self.assertEqual(attributes, {"schema": "event-batch/1", "project_id": "acme", "mode": "live"})
            self.assertEqual(parked["Attributes"]["MessageGroupId"], "acme.live.0")

    def test_a_parked_event_that_is_moved_back_is_parked_again_or_added_once(self) -> None:
        for run in self.each_kind():
            poison, good = message([signup(**TOO_MUCH)], indexes=[3]), message([signup()], indexes=[3])
            run.send(poison)
            run.drain()
            (parked,) = run.parked()
            # Less than five minutes later. A FIFO queue must not take the second parked message for a copy.
            run.send(parked["Body"])
            run.drain()
            self.assertEqual([one["Body"] for one in run.parked()], [parked["Body"]])
            # As if the consumer's rules had changed.
            run.send(good, good)
            run.drain()
            self.assertEqual(run.totals(), {"user_signed_up": 1})

    def test_a_poison_event_of_any_kind_and_size_is_parked(self) -> None:
        run = self.resources()
        large = signup(**TOO_MUCH, text="界" * 333_000)
        events = [{"external_user_id": "usr_42"}, signup(quantity=-1), signup(quantity=True), signup(quantity=1.5)]
        run.send(message([*events, signup(quantity=None), signup()]), message([large], OTHER))
        run.drain()
        self.assertEqual(run.totals(), {"user_signed_up": 1})
        self.assertEqual(len(run.parked()), 6)

    def test_an_event_that_cannot_be_parked_stays_in_the_queue(self) -> None:
        run = self.resources()
        run.send(message([signup(**TOO_MUCH), signup()]))
        self.assertEqual(len(run.deliver(step=refuse_operation("SendMessage")) or []), 1)
        self.assertEqual((run.totals(), run.parked()), ({"user_signed_up": 1}, []))
        run.drain()
        self.assertEqual((run.totals(), len(run.parked())), ({"user_signed_up": 1}, 1))

    # ── Crashes ──────────────────────────────────────────────────────────────────────────────────

    def test_a_fault_at_any_step_loses_and_doubles_nothing(self) -> None:
        self.check_faults("kill before", "")
        self.check_faults("kill after", ".fifo")
        self.check_faults("lose response", "")

    def check_faults(self, fault: Fault, suffix: str) -> None:
        """Consumes the same messages with a fault at the first call, then with one at the second call, and so on."""
        run = self.resources(suffix)
        poisoned = message([signup(quantity=1), signup(**TOO_MUCH), signup(quantity=4)])
        for number in itertools.count():
            batch = str(uuid.uuid4())
            run.send(*(json.dumps(one).replace(BATCH, batch) for one in (poisoned, part(2, 3), part(3))))
            with contextlib.suppress(Died):
                run.deliver(step=at(number, fault))
            calls = len(run.sandboxes[0].calls)
            run.drain()
            sums = [item["totals"]["M"] for item in run.items() if item["batch_id"]["S"] == batch]
            self.assertEqual(sums, [{"user_signed_up": {"N": str(0b1101)}}], (fault, number))
            parked = [json.loads(one["Body"])["events"][0]["id"] for one in run.parked()]
            # A standard queue can contain copies of a parked event. A FIFO queue drops them.
            self.assertEqual(parked if suffix else sorted(set(parked)), [f"{batch}-1"], (fault, number))
            if calls <= number:  # Every call has had its fault.
                self.assertGreaterEqual(number, 6)
                return

    @unittest.skipUnless(CHAOS_MESSAGES, "CHAOS_MESSAGES is not set; see make chaos")
    def test_adds_every_event_of_a_chaos_run_once(self) -> None:
        """Consumes what tests/suite/chaos.rs received, including copies from crashes and lost acknowledgements."""
        text = (Path(CHAOS_MESSAGES) / f"{self.chaos_run}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        is_ordered = self.chaos_run == "ordered"
        run = self.resources(".fifo" if is_ordered else "")
        rng = random.Random(7)
        if not is_ordered:
            rng.shuffle(lines)
        run.send_lines(lines)
        sandboxes = [run.sandboxes[0], *(run.new_sandbox() for _ in range(3))]
        faults: Counter[Fault] = Counter()
        with ThreadPoolExecutor() as pool:
            for counted in pool.map(lambda one: run.drain_with_faults(one, random.Random(rng.random())), sandboxes):
                faults += counted
        # One sandbox may have returned messages after the others found the queue empty.
        faults += run.drain_with_faults(sandboxes[0], rng)
        ids = [entry["id"] for line in lines for entry in json.loads(line["body"])["events"]]
        expected = Counter(one.rpartition("-")[0] for one in set(ids))
        found = {item["batch_id"]["S"]: int(item["totals"]["M"]["chaos"]["N"]) for item in run.items()}
        print(
            f"{self.chaos_run} queue: {len(lines):,} messages, {len(ids):,} events, "
            f"{len(ids) - len(set(ids)):,} of them copies; "
            f"{faults.total():,} faults: {dict(faults)}; added {sum(found.values()):,}, expected {len(set(ids)):,}"
        )
        self.assertEqual(found, expected)
        self.assertEqual(run.parked(), [])

    # ── Cost ─────────────────────────────────────────────────────────────────────────────────────

    def test_takes_at_most_a_tenth_of_a_write_unit_per_event(self) -> None:
        """The local AWS computes the units from the sizes of the items, as DynamoDB documents."""
        run = self.resources()
        events = [signup(f"event_with_a_usual_name_{number % 50}") for number in range(500)]
        starts = range(0, 500, 50)
        run.send(*(message(events[at : at + 50], indexes=range(at, at + 50)) for at in starts))
        run.drain()
        self.assertEqual(run.totals(), {f"event_with_a_usual_name_{number}": 10 for number in range(50)})
        self.assertEqual(len(run.items()), 1)
        self.assertLessEqual(run.sandboxes[0].write_units, 500 * 0.1)


class RustConsumerTest(ConsumerTest):
    command = RUST
    chaos_run = "ordered"


class StackTest(unittest.TestCase):
    """Deploys consumer-stack.yaml to a local AWS, where an event source mapping calls the consumer."""

    def test_the_mapping_keeps_only_the_message_that_failed(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        project.isolate_environment()
        aws = local_aws.start(Path(folder.name), local_aws.free_port())
        self.addCleanup(local_aws.stop, Path(folder.name))
        run = Resources(aws, PYTHON, "")
        self.addCleanup(run.close)
        arns = [run.attributes(queue)["QueueArn"] for queue in (run.queue, run.parked_queue)]
        outputs = {"QueueArn": arns[0], "DlqArn": arns[1], "DlqUrl": run.parked_queue}
        table = local_consumer.deploy(aws, outputs)
        run.send("not JSON", message([signup(quantity=2), signup(**TOO_MUCH), signup()]), part(0, 1, batch=OTHER))
        # The failed message stays in the queue, and is not visible until it is delivered again.
        counts = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        deadline = time.monotonic() + 60
        while [run.attributes(run.queue)[name] for name in counts] != ["0", "1"]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        parked = local_consumer.receive_parked(aws, run.parked_queue)
        self.assertIn(REASON, parked["MessageAttributes"]["reason"]["StringValue"])
        self.assertEqual(local_consumer.read_totals(aws, table), {"user_signed_up": 6})


def refuse(text: str) -> Step:
    return lambda _, call: "refuse" if text in json.dumps(call[1]) else None


def refuse_operation(operation: str) -> Step:
    return lambda _, call: "refuse" if call[0] == operation else None


def at(number: int, fault: Fault) -> Step:
    return lambda current, _: fault if current == number else None


if __name__ == "__main__":
    unittest.main()
