"""A consumer of the queue: counts events per project, mode and name, each event exactly once.

A Lambda function for an SQS event source mapping with ReportBatchItemFailures. Its environment:

    COUNTS_TABLE  DynamoDB table, partition key `pk` (S): what this consumer is about
    SEEN_TABLE    DynamoDB table, partition key `id` (S), TTL attribute `expires_at` (N)
"""

import json
import os
import time

import boto3

# Longer than any copy of an event can be on its way: 14 days in the queues, and a client's retries.
REMEMBER_SECONDS = 30 * 24 * 3600

dynamodb = boto3.client("dynamodb", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"))


def handler(event, context):
    """Report the messages that failed; Lambda deletes the others."""
    failed = []
    for record in event["Records"]:
        try:
            consume(json.loads(record["body"]))
        except Exception as error:  # One message must not bring back the other nine.
            print(json.dumps({"level": "ERROR", "message": str(error), "messageId": record["messageId"]}))
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


def consume(message):
    """Apply every event of a message, the good ones even if another one fails."""
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


def apply_once(message, entry):
    """Remember the event and do its work in one transaction: both happen, or neither."""
    name = entry["event"]["name"]
    remember = {
        "TableName": os.environ["SEEN_TABLE"],
        "Item": {
            "id": {"S": entry["id"]},
            "expires_at": {"N": str(int(time.time()) + REMEMBER_SECONDS)},
        },
        "ConditionExpression": "attribute_not_exists(id)",
    }
    work = {
        "TableName": os.environ["COUNTS_TABLE"],
        "Key": {"pk": {"S": f"{message['project_id']}#{message['mode']}#{name}"}},
        "UpdateExpression": "ADD seen :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    try:
        dynamodb.transact_write_items(TransactItems=[{"Put": remember}, {"Update": work}])
    except dynamodb.exceptions.TransactionCanceledException as error:
        reasons = error.response["CancellationReasons"]
        if reasons[0]["Code"] != "ConditionalCheckFailed":
            raise  # Such as a conflict with another copy at this moment: comes again.
        # Seen before, and so done before.
