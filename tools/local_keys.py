"""API keys on a local AWS: the sample keys of events/, and a new key created with event-ingest-keys."""

import datetime
import hashlib
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from local_aws import LocalAws
from progress import Failure

# The samples in events/ use these keys. They exist only on a local AWS, so they need not be secret.
SAMPLE_KEYS: dict[str, dict[str, Any]] = {
    "sk_test_LOCAL_ONLY_not_a_secret_0123456789": {},
    "sk_test_LOCAL_ONLY_revoked_key_0123456789": {"status": "revoked"},
    "sk_test_LOCAL_ONLY_read_scope_0123456789": {"scopes": ["events:read"]},
}


def seed_sample_keys(aws: LocalAws, table: str) -> None:
    for key, more in SAMPLE_KEYS.items():
        put_key(aws, table, key, "local", **more)


def put_key(aws: LocalAws, table: str, key: str, project: str, **more: Any) -> None:
    """Store an API key. The table contains the key's hash, never the key."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    item: dict[str, Any] = {
        "key_hash": {"S": hashlib.sha256(key.encode()).hexdigest()},
        "project_id": {"S": project},
        "name": {"S": f"sample key of {project}"},
        "hint": {"S": key[:8] + key[-4:]},
        "status": {"S": more.get("status", "active")},
        "created_at": {"S": now},
    }
    if more.get("status") == "revoked":
        item["revoked_at"] = {"S": now}
    if "scopes" in more:
        item["scopes"] = {"SS": more["scopes"]}
    aws.client("dynamodb").put_item(TableName=table, Item=item)


def create_key(aws: LocalAws, command: Path, table: str, project: str) -> str:
    """Create a key as an operator does: with event-ingest-keys, which prints it once."""
    # Two active keys of a project cannot have the same name.
    name = f"make run {uuid.uuid4()}"
    created = subprocess.run(
        [command, "create", "--table", table, "--project", project, "--name", name, "--mode", "test"],
        env=os.environ | {"AWS_ENDPOINT_URL": aws.url},
        capture_output=True,
        text=True,
        check=False,
    )
    if created.returncode != 0:
        raise Failure(f"event-ingest-keys could not create a key:\n\n{created.stderr}")
    return created.stdout.strip()
