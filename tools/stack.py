"""A deployed stack: its outputs, and how to call its API."""

import contextlib
import dataclasses
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

ENDPOINT = "/api/v1/events/batch"

EXAMPLE_BATCH: dict[str, Any] = {
    "events": [
        {
            "external_user_id": "usr_42",
            "name": "user_signed_up",
            "properties": {"plan": "trial"},
        }
    ]
}


def stack_outputs(cloudformation: Any, stack: str) -> dict[str, str]:
    described = cloudformation.describe_stacks(StackName=stack)
    outputs = described["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    def error_code(self) -> str | None:
        """The code of the function's first error, or None if something else answered."""
        try:
            code = json.loads(self.body)["errors"][0]["code"]
        except (ValueError, LookupError, TypeError):
            return None
        return code if isinstance(code, str) else None


@dataclasses.dataclass(frozen=True)
class Api:
    """A deployed API. A local AWS has one address for all APIs and tells them apart by host name."""

    url: str
    endpoint_url: str | None = None

    @property
    def address(self) -> str:
        """The URL to connect to."""
        return (self.endpoint_url or self.url) + ENDPOINT

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def post(self, batch: Any, headers: dict[str, str]) -> Answer:
        address = urlsplit(self.address)
        https = address.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        headers = {"Host": self.host, "Content-Type": "application/json"} | headers
        with contextlib.closing(kind(address.netloc, timeout=15)) as connection:
            connection.request("POST", address.path, json.dumps(batch), headers)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read().decode(errors="replace"))

    def curl(self, key: str, idempotency_key: str) -> str:
        """The command that posts the example batch."""
        parts = [
            "curl -i",
            *([f"-H 'Host: {self.host}'"] if self.endpoint_url else []),
            f'-H "Authorization: Bearer {key}"',
            "-H 'Content-Type: application/json'",
            f"-H 'Idempotency-Key: {idempotency_key}'",
            f"-d '{json.dumps(EXAMPLE_BATCH)}'",
            self.address,
        ]
        return " \\\n    ".join(parts)
