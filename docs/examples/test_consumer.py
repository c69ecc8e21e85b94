"""Tests the example consumer on a local AWS: python -m unittest discover -s docs/examples"""

import importlib
import json
import os
import sys
import tempfile
import unittest
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import local_aws
import project


def message(
    events: Sequence[object], batch: str = "01a207af-0ff7-7cc3-9d4e-0a1b2c3d4e5f", **more: object
) -> dict[str, object]:
    entries = [{"id": f"{batch}-{index}", "event": event} for index, event in enumerate(events)]
    envelope = {
        "schema": "event-batch/1",
        "batch_id": batch,
        "project_id": "acme",
        "mode": "live",
        "received_at": "2026-11-23T09:14:03.127Z",
        "events": entries,
    }
    return envelope | more


def signup(**more: str) -> dict[str, str]:
    return {"external_user_id": "usr_42", "name": "user_signed_up"} | more


class ConsumerTest(unittest.TestCase):
    aws: local_aws.LocalAws
    consumer: ModuleType

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        project.isolate_environment()
        cls.aws = local_aws.start(Path(folder.name), local_aws.free_port())
        cls.addClassCleanup(local_aws.stop, Path(folder.name))
        os.environ.update(AWS_ENDPOINT_URL=cls.aws.url, COUNTS_TABLE="counts", SEEN_TABLE="seen")
        # The consumer reads the environment when it is imported.
        cls.consumer = importlib.import_module("consumer")

    def setUp(self) -> None:
        dynamodb = self.aws.client("dynamodb")
        for table, key in (("counts", "pk"), ("seen", "id")):
            dynamodb.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
                KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            )
            self.addCleanup(dynamodb.delete_table, TableName=table)

    def deliver(self, **messages: object) -> list[str]:
        records = [
            {"messageId": name, "body": body if isinstance(body, str) else json.dumps(body)}
            for name, body in messages.items()
        ]
        response = self.consumer.handler({"Records": records}, None)
        return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]

    def count(self, pk: str = "acme#live#user_signed_up") -> int:
        item = self.aws.client("dynamodb").get_item(TableName="counts", Key={"pk": {"S": pk}})
        return int(item["Item"]["seen"]["N"]) if "Item" in item else 0

    def test_counts_every_event(self) -> None:
        self.assertEqual(self.deliver(one=message([signup(), signup(), signup(name="left")])), [])
        self.assertEqual((self.count(), self.count("acme#live#left")), (2, 1))

    def test_a_redelivered_message_changes_nothing(self) -> None:
        for _ in range(3):
            self.assertEqual(self.deliver(one=message([signup(), signup()])), [])
        self.assertEqual(self.count(), 2)

    def test_concurrent_copies_count_once(self) -> None:
        copies = [message([signup()])] * 8
        with ThreadPoolExecutor(8) as pool:
            failed = list(pool.map(lambda copy: self.deliver(one=copy), copies))
        # A copy that failed because of a concurrent one is delivered again, and finds the event counted.
        for copy in (copy for copy, ids in zip(copies, failed, strict=True) if ids):
            self.assertEqual(self.deliver(one=copy), [])
        self.assertEqual(self.count(), 1)

    def test_only_the_message_that_failed_is_reported(self) -> None:
        other = "01a207af-0ff7-7cc3-9d4e-0a1b2c3d4e60"
        failed = self.deliver(good=message([signup()]), bad="not JSON", good_too=message([signup()], other))
        self.assertEqual(failed, ["bad"])
        self.assertEqual(self.count(), 2)

    def test_a_message_with_a_poison_event_is_redelivered_but_its_other_events_count_once(self) -> None:
        poisoned = message([signup(), {"external_user_id": "usr_42"}, signup()])
        for _ in range(2):
            self.assertEqual(self.deliver(poisoned=poisoned), ["poisoned"])
        self.assertEqual(self.count(), 2)

    def test_an_unknown_schema_is_rejected_and_an_unknown_member_ignored(self) -> None:
        self.assertEqual(self.deliver(new=message([signup()], schema="event-batch/2")), ["new"])
        self.assertEqual(self.deliver(more=message([signup()], future=1)), [])
        self.assertEqual(self.count(), 1)


if __name__ == "__main__":
    unittest.main()
