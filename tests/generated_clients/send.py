"""Sends with the Python client that openapi-python-client generated: send.py URL API_KEY."""

import gzip
import json
import sys
from io import BytesIO

from client import AuthenticatedClient
from client.api.events import ingest_event, ingest_event_batch, ingest_event_bulk
from client.models import (
    Accepted,
    BulkResult,
    ErrorResponse,
    Event,
    EventBatch,
    EventBulk,
    EventPropertiesType0,
    IngestEventBatchContentEncoding,
)
from client.types import File


def event(user: str) -> Event:
    """An event with properties and a member that the schema does not name."""
    properties = EventPropertiesType0()
    properties["plan"] = "trial"
    event = Event(external_user_id=user, name="user_signed_up", properties=properties)
    event["source"] = "checkout"
    return event


def main() -> None:
    url, key = sys.argv[1:]
    client = AuthenticatedClient(base_url=url, token=key)

    batch = EventBatch(events=[event("batch-0"), event("batch-1")])
    accepted = ingest_event_batch.sync(client=client, body=batch, idempotency_key="python-batch")
    assert isinstance(accepted, Accepted), accepted
    assert accepted.data.accepted is True

    compressed = gzip.compress(json.dumps(EventBatch(events=[event("gzip-0")]).to_dict()).encode())
    accepted = ingest_event_batch.sync(
        client=client,
        body=File(payload=BytesIO(compressed)),
        idempotency_key="python-gzip",
        content_encoding=IngestEventBatchContentEncoding.GZIP,
    )
    assert isinstance(accepted, Accepted), accepted

    single = ingest_event.sync(client=client, body=event("single-0"), idempotency_key="python-single")
    assert isinstance(single, Accepted), single

    bulk = EventBulk(events=[event("bulk-0"), Event(external_user_id="", name="user_signed_up")])
    result = ingest_event_bulk.sync(client=client, body=bulk)
    assert isinstance(result, BulkResult), result
    assert (result.data.accepted, result.data.rejected, result.meta.received) == (1, 1, 2)
    error = result.data.errors[0]
    assert (error.index, error.code, error.field) == (1, "validation", "external_user_id")

    refused = ingest_event_batch.sync(client=client, body=EventBatch(events=[]), idempotency_key="python-empty")
    assert isinstance(refused, ErrorResponse), refused
    assert (refused.errors[0].code, refused.errors[0].field) == ("validation_failed", "events")


if __name__ == "__main__":
    main()
