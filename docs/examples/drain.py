"""Deletes all messages of a queue and counts their events. Meant for a queue of the local AWS.

drain.py QUEUE_URL [ENDPOINT]     the default ENDPOINT is http://127.0.0.1:4566
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import boto3


def messages(sqs: Any, queue: str) -> Iterator[dict[str, Any]]:
    """Yields every message of the queue. Deletes each group of ten before it receives the next one."""
    while found := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        yield from found
        handles = [one["ReceiptHandle"] for one in found]
        entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)]
        sqs.delete_message_batch(QueueUrl=queue, Entries=entries)


def main(queue: str, endpoint: str = "http://127.0.0.1:4566") -> None:
    credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    sqs = boto3.client("sqs", endpoint_url=endpoint, **credentials)
    count = 0
    ids: Counter[str] = Counter()
    contents: Counter[int] = Counter()
    for message in messages(sqs, queue):
        count += 1
        for entry in json.loads(message["Body"])["events"]:
            ids[entry["id"]] += 1
            contents[hash(json.dumps(entry["event"]))] += 1
    repeated_ids = sum(times > 1 for times in ids.values())
    repeated_contents = sum(times > 1 for times in contents.values())
    print(
        f"{count:,} messages, {ids.total():,} events; "
        f"{repeated_ids:,} event ids and {repeated_contents:,} event contents occur more than once"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
