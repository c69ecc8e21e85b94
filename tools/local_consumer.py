"""The example consumer on a local AWS: deploys it, and shows what it makes of the events."""

import json
import time
import uuid
from collections import Counter
from typing import Any

import local_stack
import walkthrough
from local_aws import LocalAws
from progress import Failure
from project import CONSUMER_TEMPLATE
from stack import Api

STACK = "event-ingest-consumer-local"

BATCH: dict[str, Any] = {
    "events": [
        {"external_user_id": "usr_42", "name": "seats_added", "properties": {"quantity": 3}},
        {"external_user_id": "usr_42", "name": "seats_added", "properties": {"quantity": "three"}},
        {"external_user_id": "usr_43", "name": "seats_added"},
    ]
}


def stop(aws: LocalAws) -> None:
    """Delete the consumer of an earlier run, if there is one."""
    aws.client("cloudformation").delete_stack(StackName=STACK)


def deploy(aws: LocalAws, outputs: dict[str, str]) -> str:
    """Deploy the consumer for the queue of the deployed stack. Returns the table of its results."""
    parameters = [f"{name}={outputs[name]}" for name in ("QueueArn", "DlqArn", "DlqUrl")]
    parameters.append(f"EndpointUrl={aws.url}")
    return local_stack.deploy(aws, CONSUMER_TEMPLATE, STACK, parameters)["ResultsTable"]


def show(aws: LocalAws, outputs: dict[str, str], table: str, key: str) -> None:
    """Post a batch twice, wait until the consumer has emptied the queue, and print its results."""
    api = Api(outputs["ApiUrl"], aws.url)
    idempotency_key = str(uuid.uuid4())
    for title in ("A batch whose second event the consumer can never process:", "The same request again:"):
        answer = walkthrough.post_and_show(title, api, key, idempotency_key, BATCH)
        walkthrough.expect(answer, 202)
    wait_until_empty(aws, outputs["QueueUrl"])

    totals = read_totals(aws, table)
    print("\nThe consumer has emptied the queue. It has added up:\n")
    print("".join(f"  {name}: {total}\n" for name, total in sorted(totals.items())))
    parked = receive_parked(aws, outputs["DlqUrl"])
    print("The event that it parked in the dead-letter queue:\n")
    print(f"  reason: {parked['MessageAttributes']['reason']['StringValue']}\n  {parked['Body']}")
    if totals["seats_added"] != 4 or json.loads(parked["Body"])["events"][0]["event"] != BATCH["events"][1]:
        raise Failure("The consumer should have added 4 to seats_added, and parked the second event.")


def wait_until_empty(aws: LocalAws, queue: str) -> None:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    deadline = time.monotonic() + 60
    while True:
        attributes = aws.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        if all(attributes[name] == "0" for name in names):
            return
        if time.monotonic() > deadline:
            raise Failure(f"The consumer did not empty the queue; see {aws.state_dir / 'ministack.log'}")
        time.sleep(0.2)


def read_totals(aws: LocalAws, table: str) -> Counter[str]:
    """The sum of all items of the table, by event name."""
    totals: Counter[str] = Counter()
    for page in aws.client("dynamodb").get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            totals.update({name: int(total["N"]) for name, total in item["totals"]["M"].items()})
    return totals


def receive_parked(aws: LocalAws, queue: str) -> dict[str, Any]:
    received = aws.client("sqs").receive_message(QueueUrl=queue, MessageAttributeNames=["All"], WaitTimeSeconds=5)
    if "Messages" not in received:
        raise Failure("The consumer did not park the event that it can never process.")
    message: dict[str, Any] = received["Messages"][0]
    aws.client("sqs").delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return message
