"""A consumer of the queue that counts events per project, mode and name. It counts each event once.

This is a Lambda function for an SQS event source mapping with ReportBatchItemFailures. It reads these
environment variables:

    COUNTS_TABLE  DynamoDB table of the counts: partition key `pk` (S)
    SEEN_TABLE    DynamoDB table of event ids: partition key `id` (S), TTL attribute `expires_at` (N)
"""

import json
import os
import time
from typing import Any

import boto3

# Any second copy of an event arrives within this time: messages stay in the queues for 14 days, and clients may
# retry for some days before that.
REMEMBER_SECONDS = 30 * 24 * 3600

dynamodb = boto3.client("dynamodb", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Returns the messages that failed. Lambda deletes the others."""
    failed = []
    for record in event["Records"]:
        try:
            consume(json.loads(record["body"]))
        except Exception as error:  # The other messages must not be delivered again.
            print(json.dumps({"level": "ERROR", "message": str(error), "messageId": record["messageId"]}))
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


def consume(message: dict[str, Any]) -> None:
    """Applies every event of a message. If one fails, the others are still applied."""
    if message["schema"] != "event-batch/1":
        raise ValueError(f"unknown schema {message['schema']}")
    failures = []
    for entry in message["events"]:
        try:
            apply_once(message, entry)
        except Exception as error:
            failures.append(f"{entry['id']}: {error}")
    if failures:
        raise RuntimeError("; ".join(failures))


def apply_once(message: dict[str, Any], entry: dict[str, Any]) -> None:
    """Records the event id and counts the event in one transaction."""
    name = entry["event"]["name"]
    record_id = {
        "TableName": os.environ["SEEN_TABLE"],
        "Item": {
            "id": {"S": entry["id"]},
            "expires_at": {"N": str(int(time.time()) + REMEMBER_SECONDS)},
        },
        "ConditionExpression": "attribute_not_exists(id)",
    }
    count = {
        "TableName": os.environ["COUNTS_TABLE"],
        "Key": {"pk": {"S": f"{message['project_id']}#{message['mode']}#{name}"}},
        "UpdateExpression": "ADD seen :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    try:
        dynamodb.transact_write_items(TransactItems=[{"Put": record_id}, {"Update": count}])
    except dynamodb.exceptions.TransactionCanceledException as error:
        reasons = error.response["CancellationReasons"]
        if reasons[0]["Code"] != "ConditionalCheckFailed":
            raise  # For example a conflict with a concurrent copy. SQS delivers the message again.
        # The event was already counted.
