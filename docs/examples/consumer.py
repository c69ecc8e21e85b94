"""A consumer of the queue that adds up quantities per project, mode, day, and event name. It adds each event once.

This is a Lambda function for an SQS event source mapping with ReportBatchItemFailures. Its environment:

    RESULTS_TABLE  DynamoDB table with one item per batch: partition key `pk` (S), sort key `batch_id` (S)
    PARKED_QUEUE   URL of the queue for events that can never be processed, such as the dead-letter queue
"""

import json
import os
import random
import time
from hashlib import sha256
from typing import Any

import boto3
from botocore.config import Config

RESERVE_MS = 10_000  # A message can take this long if calls to AWS are slow.
config = Config(connect_timeout=1, read_timeout=1, retries={"mode": "standard", "total_max_attempts": 2})
results = boto3.resource("dynamodb", config=config).Table(os.environ["RESULTS_TABLE"])
sqs, PARKED_QUEUE = boto3.client("sqs", config=config), os.environ["PARKED_QUEUE"]


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Consumes messages. Returns the ones that SQS must deliver again; Lambda deletes the others."""
    failed, failed_groups = [], set()
    for record in event["Records"]:
        is_ordered = record["eventSourceARN"].endswith(".fifo")
        group = record["attributes"]["MessageGroupId"] if is_ordered else record["messageId"]
        try:
            if group in failed_groups or context.get_remaining_time_in_millis() < RESERVE_MS:
                raise RuntimeError("an earlier message of the group failed, or too little time is left")
            consume(record, json.loads(record["body"]))
        except Exception as error:
            print(json.dumps({"level": "ERROR", "message": repr(error), "messageId": record["messageId"]}))
            failed.append({"itemIdentifier": record["messageId"]})
            failed_groups.add(group)
    return {"batchItemFailures": failed}


def consume(record: dict[str, Any], message: dict[str, Any]) -> None:
    """Adds the events of a message to the results, and parks the ones that can never be processed."""
    if message["schema"] != "event-batch/1":
        raise ValueError(f"unknown schema {message['schema']}")
    quantities, poison = {}, []
    for entry in message["events"]:
        try:
            quantities[int(entry["id"].rsplit("-", 1)[1])] = evaluate(entry["event"])
        except Exception as error:  # `evaluate` does no I/O, so it would fail again.
            poison.append((entry, ascii(error)[:200]))
    add_once(message, quantities)
    for entry, reason in poison:
        park(record, message | {"events": [entry]}, reason)


def evaluate(event: dict[str, Any]) -> tuple[str, int]:
    """Returns the name to which an event adds, and the quantity that it adds. Replace this with your own rules."""
    name, quantity = event["name"], (event.get("properties") or {}).get("quantity", 1)
    if type(quantity) is not int or not 0 <= quantity <= 1_000_000:
        raise ValueError("properties.quantity must be a whole number from 0 to 1,000,000")
    return name if len(name) <= 64 else "sha256:" + sha256(name.encode()).hexdigest(), quantity  # Keeps items small.


def add_once(message: dict[str, Any], quantities: dict[int, tuple[str, int]]) -> None:
    """Adds the events to the item of their batch. The same write records their indexes in the bitmap `seen`."""
    # The last digit of the batch id is random and spreads the batches of a project over 16 partition keys.
    pk = f"{message['project_id']}#{message['mode']}#{message['received_at'][:10]}#{message['batch_id'][-1]}"
    key = {"pk": pk, "batch_id": message["batch_id"]}
    while True:
        item = results.get_item(Key=key, ConsistentRead=True).get("Item", {**key, "seen": b"\0", "totals": {}})
        before = bytes(item["seen"])
        seen = int.from_bytes(before, "little")
        new = {index: result for index, result in quantities.items() if not seen >> index & 1}
        if not new:
            return
        for index, (name, quantity) in new.items():
            seen |= 1 << index
            item["totals"][name] = item["totals"].get(name, 0) + quantity
        item["seen"] = seen.to_bytes(seen.bit_length() // 8 + 1, "little")
        condition = "attribute_not_exists(pk) OR seen = :before"
        try:
            results.put_item(Item=item, ConditionExpression=condition, ExpressionAttributeValues={":before": before})
            return
        except results.meta.client.exceptions.ConditionalCheckFailedException:
            time.sleep(random.uniform(0, 0.1))  # Another message of the batch was added meanwhile.


def park(record: dict[str, Any], message: dict[str, Any], reason: str) -> None:
    """Sends a message with one event to the queue of parked events. The message can be moved back later."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    attributes = {name: message[name] for name in ("schema", "project_id", "mode")} | {"reason": reason}
    fifo = {"MessageDeduplicationId": f"{record['messageId']}.{message['events'][0]['id']}"}
    sqs.send_message(
        QueueUrl=PARKED_QUEUE,
        MessageBody=body.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff"),  # SQS refuses these characters.
        MessageAttributes={name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()},
        MessageGroupId=record["attributes"]["MessageGroupId"],
        **(fifo if PARKED_QUEUE.endswith(".fifo") else {}),
    )
