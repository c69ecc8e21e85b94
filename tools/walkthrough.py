"""Demonstrates the deployed API, and checks each answer and the queue message against the contract."""

import datetime
import hashlib
import json
import textwrap
import uuid
from typing import Any

from local_aws import LocalAws
from progress import Failure, run
from stack import BULK_ENDPOINT, ENDPOINT, EXAMPLE_BATCH, Answer, Api

INVALID_BATCH: dict[str, Any] = {"events": [{"name": "user_signed_up"}]}


# ── Requests ─────────────────────────────────────────────────────────────────────────────────────


def show_requests(aws: LocalAws, outputs: dict[str, str], project: str, key: str) -> None:
    """Post a batch, the same batch again, an invalid batch, and a bulk request. Show the message of the first one."""
    api = Api(outputs["ApiUrl"], aws.url)
    # Messages of an earlier `make run` may still be there.
    aws.client("sqs").purge_queue(QueueUrl=outputs["QueueUrl"])

    first = str(uuid.uuid4())
    answer = post_and_show("A batch of one event:", api, key, first, EXAMPLE_BATCH)
    expect(answer, 202)
    answer = post_and_show("The same request again, which sends nothing:", api, key, first, EXAMPLE_BATCH)
    expect(answer, 202, idempotency_replayed="true")
    title = "A batch whose event has no user:"
    expect(post_and_show(title, api, key, str(uuid.uuid4()), INVALID_BATCH), 422)
    message = receive(aws, outputs["QueueUrl"])
    show_bulk(api, key)
    show_and_check_message(message, project, outputs["QueueUrl"].endswith(".fifo"))


def show_bulk(api: Api, key: str) -> None:
    """Post a valid and an invalid event to the bulk endpoint. The hash of the body is the idempotency key."""
    events = EXAMPLE_BATCH["events"] + INVALID_BATCH["events"]
    answer = api.post({"events": events}, {"Authorization": f"Bearer {key}"}, BULK_ENDPOINT)
    print(f"\nBoth events in one bulk request: HTTP {answer.status}\n\n  POST {BULK_ENDPOINT}\n  {answer.body}")
    expect(answer, 200)


def post_and_show(title: str, api: Api, key: str, idempotency_key: str, batch: Any) -> Answer:
    print(f"\n{title}\n\n  POST {ENDPOINT}\n  Idempotency-Key: {idempotency_key}\n  {json.dumps(batch)}\n")
    answer = api.post(batch, {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency_key})
    print(f"  HTTP {answer.status}")
    for name in ("idempotency-replayed", "retry-after", "x-batch-id", "x-request-id"):
        if name in answer.headers:
            print(f"  {name}: {answer.headers[name]}")
    print(f"  {answer.body}")
    return answer


def expect(answer: Answer, status: int, **headers: str) -> None:
    wanted = {name.replace("_", "-"): value for name, value in headers.items()}
    found = {name: answer.headers.get(name) for name in wanted}
    if answer.status != status or found != wanted:
        expected = " ".join([f"HTTP {status}", *(f"{name}: {value}" for name, value in wanted.items())])
        raise Failure(f"The answer should have been {expected}\nThe function's log may say why: make logs")


# ── The queue message ────────────────────────────────────────────────────────────────────────────


def receive(aws: LocalAws, queue: str) -> dict[str, Any]:
    """Take one message from the queue."""
    sqs = aws.client("sqs")
    received = sqs.receive_message(
        QueueUrl=queue,
        WaitTimeSeconds=5,
        MessageAttributeNames=["All"],
        MessageSystemAttributeNames=["MessageGroupId"],
    )
    if "Messages" not in received:
        raise Failure("No message arrived in the queue, although the batch was accepted.")
    message: dict[str, Any] = received["Messages"][0]
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return message


def documented_message(batch_id: str, project: str) -> dict[str, Any]:
    """The queue message of the example batch, according to docs/contract.md, "The queue message"."""
    arrived = datetime.datetime.fromtimestamp((uuid.UUID(batch_id).int >> 80) / 1000, datetime.UTC)
    return {
        "schema": "event-batch/1",
        "batch_id": batch_id,
        "project_id": project,
        "mode": "test",
        "received_at": arrived.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "events": [
            {"id": f"{batch_id}-{index}", "event": event} for index, event in enumerate(EXAMPLE_BATCH["events"])
        ],
    }


def show_and_check_message(message: dict[str, Any], project: str, ordered: bool) -> None:
    body = json.loads(message["Body"])
    attributes = {name: attribute["StringValue"] for name, attribute in message["MessageAttributes"].items()}
    group = message["Attributes"].get("MessageGroupId")
    print("\nThe message that arrived in the queue:\n")
    print(f"  attributes: {json.dumps(attributes)}\n  MessageGroupId: {group}")
    print(textwrap.indent(json.dumps(body, indent=2), "  "))

    expected = documented_message(body["batch_id"], project)
    expected_attributes = {name: expected[name] for name in ("schema", "project_id", "mode")}
    unchanged = all(json.dumps(event) in message["Body"] for event in EXAMPLE_BATCH["events"])
    user = EXAMPLE_BATCH["events"][0]["external_user_id"]
    expected_group = f"{project}.test.{lane(user)}" if ordered else project
    if (body, attributes, group, unchanged) != (expected, expected_attributes, expected_group, True):
        raise Failure(
            f"This is not the documented message. Its MessageGroupId must be {expected_group}, each event must\n"
            f"have the bytes that were sent, the attributes must be {json.dumps(expected_attributes)},\n"
            f"and the body must be\n{json.dumps(expected, indent=2)}"
        )


# ── An ordered queue ─────────────────────────────────────────────────────────────────────────────


def lane(user: str) -> int:
    """The lane of a user, with the default of ten lanes (docs/contract.md, "Ordered queues")."""
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big") % 10


def show_order(aws: LocalAws, outputs: dict[str, str], project: str, key: str) -> None:
    """Post a batch of two users, then make its request look unfinished and post it again."""
    sqs = aws.client("sqs")
    sqs.purge_queue(QueueUrl=outputs["QueueUrl"])
    api = Api(outputs["ApiUrl"], aws.url)
    steps = ("signed_up", "chose_plan", "paid")
    events = [{"external_user_id": user, "name": name} for name in steps for user in ("usr_42", "usr_43")]
    idempotency_key = str(uuid.uuid4())
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency_key}

    def post() -> Answer:
        answer = api.post({"events": events}, headers)
        expect(answer, 202)
        return answer

    post()
    print("\nA batch of two users, as it arrived in the ordered queue:\n")
    received = receive_all(aws, outputs["QueueUrl"])
    for group, names in received.items():
        print(f"  {group}: {', '.join(names)}")
    if sorted(received.values()) != [list(steps), list(steps)]:
        raise Failure("The events of each user should have arrived in the order in which they were sent.")
    forget_completion(aws, outputs["StateTable"], f"idem#{project}#test#{idempotency_key}")
    replayed = "idempotency-replayed" in post().headers
    again = receive_all(aws, outputs["QueueUrl"])
    print("\nThe same request again, as if the function had died before it recorded the first one:\n")
    print(f"  The function sent the messages {'no' if replayed else 'a second'} time. The queue dropped all of them.")
    if replayed or again:
        raise Failure(f"The queue should have dropped the second copies. It contains {again}.")


def receive_all(aws: LocalAws, queue: str) -> dict[str, list[str]]:
    """Take every message from an ordered queue: the names of its events by message group."""
    sqs = aws.client("sqs")
    names: dict[str, list[str]] = {}
    while True:
        received = sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, MessageSystemAttributeNames=["MessageGroupId"]
        )
        for message in received.get("Messages", []):
            group = names.setdefault(message["Attributes"]["MessageGroupId"], [])
            group += [event["event"]["name"] for event in json.loads(message["Body"])["events"]]
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        if "Messages" not in received:
            return names


def forget_completion(aws: LocalAws, table: str, pk: str) -> None:
    """Change a record to that of a request that died after SQS had acknowledged its messages."""
    aws.client("dynamodb").update_item(
        TableName=table,
        Key={"pk": {"S": pk}},
        UpdateExpression="SET #state = :state, lease_until = :zero, delivered = :none",
        ExpressionAttributeNames={"#state": "state"},
        ExpressionAttributeValues={":state": {"S": "in_progress"}, ":zero": {"N": "0"}, ":none": {"B": b"\0"}},
    )


# ── The client ───────────────────────────────────────────────────────────────────────────────────


def run_client(aws: LocalAws, outputs: dict[str, str], key: str) -> str:
    """Run the TypeScript client's example and return the output to show."""
    log = aws.state_dir / "example.log"
    run(
        ["npm", "--prefix", "sdk/typescript", "--silent", "run", "example", "--", "250"],
        log,
        environment={
            "VIBEFOLLOW_API_KEY": key,
            "VIBEFOLLOW_BASE_URL": Api(outputs["ApiUrl"], aws.url).base_url,
        },
    )
    shown = textwrap.indent(log.read_text().strip(), "  ")
    return f"\nThe TypeScript client's example, sdk/typescript/examples/backfill.ts:\n\n{shown}"


# ── What next ────────────────────────────────────────────────────────────────────────────────────


def print_what_next(aws: LocalAws, outputs: dict[str, str], key: str) -> None:
    api = Api(outputs["ApiUrl"], aws.url)
    print(f"""
The local AWS keeps running. To stop it: make stop

  URL             {api.base_url}
  API key         {key}
  Queue           {outputs["QueueUrl"]}
  API keys table  {outputs["ApiKeysTable"]}

  {api.curl(key, str(uuid.uuid4()))}
""")
