"""A typical Python implementation of the contract: Powertools for AWS Lambda, pydantic, boto3.

The event handler routes, pydantic validates, the idempotency utility keeps the records, and a small thread
pool sends. MAX_EVENTS_PER_MESSAGE is 1 in the idiomatic variant, and 50 in the variant that packs events into
messages as event-ingest does.
"""

import base64
import gzip
import hashlib
import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

MAX_BODY = 5 * 1024 * 1024
MAX_CALL_BYTES = 1_048_576
MAX_CALL_MESSAGES = 10
SENDERS = 10
KEY_KNOWN_FOR = 60
SCHEMA = "event-batch/1"

QUEUE_URL = os.environ["EVENTS_QUEUE_URL"]
API_KEYS_TABLE = os.environ["API_KEYS_TABLE"]
MAX_EVENTS_PER_MESSAGE = int(os.environ.get("MAX_EVENTS_PER_MESSAGE", "1"))

logger = Logger(service="event-ingest")
app = APIGatewayHttpResolver()
sqs = boto3.client("sqs", config=Config(max_pool_connections=SENDERS))
dynamodb = boto3.client("dynamodb")
senders = ThreadPoolExecutor(SENDERS)
store = DynamoDBPersistenceLayer(table_name=os.environ["STATE_TABLE"], boto3_client=dynamodb)
idempotency = IdempotencyConfig(
    event_key_jmespath="key",
    payload_validation_jmespath="fingerprint",
    expires_after_seconds=86_400,
)


class Event(BaseModel):
    model_config = ConfigDict(extra="allow")

    external_user_id: Annotated[str, Field(min_length=1, max_length=1024)]
    name: Annotated[str, Field(min_length=1, max_length=1024)]
    properties: Annotated[dict[str, Any], Field(max_length=100)] | None = None
    timestamp: AwareDatetime | None = None


class Batch(BaseModel):
    events: Annotated[list[Event], Field(min_length=1, max_length=500)]


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, field: str | None = None):
        super().__init__(message)
        self.status, self.code, self.field = status, code, field


@app.exception_handler(Refused)
def refused(error: Refused) -> Response:
    body = {"code": error.code, "message": str(error)} | ({"field": error.field} if error.field else {})
    return Response(error.status, "application/json", json.dumps({"errors": [body]}))


known_keys: dict[str, tuple[float, dict]] = {}


def authenticate(header: str) -> dict:
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.startswith(("sk_live_", "sk_test_")):
        raise Refused(401, "auth_required", "a valid API key is required")
    key_hash = hashlib.sha256(key.encode()).hexdigest()
    until, record = known_keys.get(key_hash, (0, None))
    if time.monotonic() >= until:
        record = dynamodb.get_item(TableName=API_KEYS_TABLE, Key={"key_hash": {"S": key_hash}}).get("Item")
        known_keys[key_hash] = (time.monotonic() + KEY_KNOWN_FOR, record)
    if record is None or record["status"]["S"] != "active":
        raise Refused(401, "auth_required", "a valid API key is required")
    return {"project_id": record["project_id"]["S"], "mode": "live" if key.startswith("sk_live_") else "test"}


def decoded_body(event) -> bytes:
    body = base64.b64decode(event.body) if event.is_base64_encoded else (event.body or "").encode()
    if event.headers.get("content-encoding", "").lower() == "gzip":
        body = gzip.decompress(body)
    if len(body) > MAX_BODY:
        raise Refused(413, "payload_too_large", "the body is larger than 5 MB")
    return body


@app.post("/api/v1/events/batch")
def ingest() -> Response:
    event = app.current_event
    caller = authenticate(event.headers.get("authorization", ""))
    key = event.headers.get("idempotency-key")
    if not key:
        raise Refused(400, "idempotency_key_required", "the header Idempotency-Key is required")
    body = decoded_body(event)
    try:
        # Validated, and passed on as it came.
        Batch.model_validate_json(body)
        events = json.loads(body)["events"]
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(422, "validation_failed", first["msg"], ".".join(map(str, first["loc"]))) from error

    request = {
        "key": f"{caller['project_id']}#{caller['mode']}#{key}",
        "fingerprint": hashlib.sha256(body).hexdigest(),
    }
    try:
        accepted = deliver(request=request, caller=caller, events=events)
    except IdempotencyValidationError as error:
        raise Refused(422, "idempotency_key_reuse", "the key was used with another body") from error
    except IdempotencyAlreadyInProgressError as error:
        raise Refused(503, "request_in_progress", "an identical request is in progress") from error
    return Response(202, "application/json", json.dumps(accepted))


@idempotent_function(data_keyword_argument="request", persistence_store=store, config=idempotency)
def deliver(request: dict, caller: dict, events: list[dict]) -> dict:
    calls = pack(caller, events)
    # list() raises the first failure.
    list(senders.map(send, calls))
    return {"data": {"accepted": True}}


def pack(caller: dict, events: list[dict]) -> list[list[dict]]:
    """Groups events into messages and messages into calls, within the limits of SQS."""
    batch_id = str(uuid7())
    envelope = {
        "schema": SCHEMA,
        "batch_id": batch_id,
        **caller,
        "received_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    attributes = {
        name: {"DataType": "String", "StringValue": envelope[name]} for name in ("schema", "project_id", "mode")
    }
    head = json.dumps(envelope, separators=(",", ":"))[:-1] + ',"events":['
    overhead = len(head) + sum(len(name) + 6 + len(value["StringValue"]) for name, value in attributes.items()) + 2
    calls: list[list[dict]] = []
    call_bytes = 0
    texts: list[str] = []
    text_bytes = overhead

    def close_message() -> None:
        nonlocal call_bytes, texts, text_bytes
        if not texts:
            return
        if not calls or len(calls[-1]) == MAX_CALL_MESSAGES or call_bytes + text_bytes > MAX_CALL_BYTES:
            calls.append([])
            call_bytes = 0
        calls[-1].append(
            {
                "Id": str(len(calls[-1])),
                "MessageBody": head + ",".join(texts) + "]}",
                "MessageAttributes": attributes,
                "MessageGroupId": caller["project_id"],
            }
        )
        call_bytes += text_bytes
        texts, text_bytes = [], overhead

    for index, event in enumerate(events):
        text = json.dumps({"id": f"{batch_id}-{index}", "event": event}, separators=(",", ":"), ensure_ascii=False)
        size = len(text.encode()) + 1
        if len(texts) == MAX_EVENTS_PER_MESSAGE or text_bytes + size > MAX_CALL_BYTES:
            close_message()
        texts.append(text)
        text_bytes += size
    close_message()
    return calls


def uuid7() -> uuid.UUID:
    """The standard library has uuid7 from Python 3.14."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10), "big")
    return uuid.UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | (7 << 76) | (2 << 62))


def send(entries: list[dict]) -> None:
    answer = sqs.send_message_batch(QueueUrl=QUEUE_URL, Entries=entries)
    if answer.get("Failed"):
        raise Refused(503, "service_unavailable", "SQS refused part of the batch")


def lambda_handler(event: dict, context: LambdaContext) -> dict:
    idempotency.register_lambda_context(context)
    answer = app.resolve(event, context)
    logger.info("request", extra={"status": answer["statusCode"], "request_id": context.aws_request_id})
    return answer
