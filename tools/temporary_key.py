"""A temporary API key for checks of a deployed stack. It is revoked when the check ends, however it ends."""

import contextlib
import datetime
import hashlib
import secrets
import signal
import string
from types import TracebackType
from typing import Any, Self

from command import AWS_ERRORS
from progress import Failure

# Consumers can ignore events of these projects, whose mode is `test`.
CHECK_PROJECT = "deployment-check"
LOAD_PROJECT = "load-test"

# What a command says after an interruption.
KEY_REVOKED = "Interrupted. The temporary API key, if there was one, is revoked."
KEY_CHARACTERS = string.ascii_letters + string.digits


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class TemporaryKey:
    """A `sk_test_` key that exists inside the `with` block (docs/contract.md, "API keys table").

    Without a `rate_limit`, the function's default limit applies. Only this process knows the key, so nobody can
    use it if the process is killed before it revokes it.
    """

    def __init__(self, dynamodb: Any, table: str, project: str, rate_limit: int | None = None) -> None:
        self.dynamodb, self.table, self.project, self.rate_limit = dynamodb, table, project, rate_limit
        self.key = "sk_test_" + "".join(secrets.choice(KEY_CHARACTERS) for _ in range(40))
        self.hint = self.key[:8] + self.key[-4:]
        self.hash = hashlib.sha256(self.key.encode()).hexdigest()

    def __enter__(self) -> Self:
        item: dict[str, Any] = {
            "key_hash": {"S": self.hash},
            "project_id": {"S": self.project},
            "name": {"S": f"temporary {now()} {self.hint[-4:]}"},
            "hint": {"S": self.hint},
            "status": {"S": "active"},
            "created_at": {"S": now()},
            "scopes": {"SS": ["events:write"]},
        }
        if self.rate_limit is not None:
            item["rate_limit"] = {"N": str(self.rate_limit)}
        try:
            self.dynamodb.put_item(
                TableName=self.table, Item=item, ConditionExpression="attribute_not_exists(key_hash)"
            )
        except BaseException as error:
            # The key may be stored even if no answer arrived.
            with contextlib.suppress(*AWS_ERRORS):
                self.revoke()
            if isinstance(error, AWS_ERRORS):
                raise Failure(
                    f"No temporary API key could be created in the table {self.table}:\n\n  {error}\n\n"
                    "This needs dynamodb:PutItem and dynamodb:UpdateItem on the table."
                ) from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ctrl-C must not interrupt the revocation. Its duration is limited by boto3's timeouts.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.revoke()
        except AWS_ERRORS as failure:
            # Printed with the error that ended the block, if there is one.
            cause = f"\n\nBefore that: {error}" if error else ""
            raise Failure(
                f"The temporary API key {self.hint} of project {self.project} could not be revoked:\n\n  {failure}\n\n"
                f"Revoke it: event-ingest-keys revoke --hint {self.hint} --table {self.table}{cause}"
            ) from error
        finally:
            signal.signal(signal.SIGINT, before)

    def revoke(self) -> None:
        # The condition fails if the key was never stored, or if somebody has deleted it.
        with contextlib.suppress(self.dynamodb.exceptions.ConditionalCheckFailedException):
            self.dynamodb.update_item(
                TableName=self.table,
                Key={"key_hash": {"S": self.hash}},
                UpdateExpression="SET #status = :revoked, revoked_at = :now",
                ConditionExpression="attribute_exists(key_hash)",
                ExpressionAttributeNames={"#status": "status"},
                ExpressionAttributeValues={":revoked": {"S": "revoked"}, ":now": {"S": now()}},
            )
