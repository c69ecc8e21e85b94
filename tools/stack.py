"""A deployed stack: its outputs, and how to call its API."""

import contextlib
import dataclasses
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

ENDPOINT = "/api/v1/events/batch"
BULK_ENDPOINT = "/api/v1/events/bulk"

EXAMPLE_BATCH: dict[str, Any] = {
    "events": [
        {
            "external_user_id": "usr_42",
            "name": "user_signed_up",
            "properties": {"plan": "trial"},
        }
    ]
}


@dataclasses.dataclass(frozen=True)
class StackDescription:
    """The name, the outputs and the parameters of a stack."""

    name: str
    outputs: dict[str, str]
    parameters: dict[str, str]


def stack_description(cloudformation: Any, stack: str) -> StackDescription:
    described = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}
    parameters = {given["ParameterKey"]: given["ParameterValue"] for given in described.get("Parameters", [])}
    return StackDescription(stack, outputs, parameters)


def stack_outputs(cloudformation: Any, stack: str) -> dict[str, str]:
    return stack_description(cloudformation, stack).outputs


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        """The body, or None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def error_code(self) -> str | None:
        """The code of the function's first error, or None if something else answered."""
        try:
            code = json.loads(self.body)["errors"][0]["code"]
        except (ValueError, LookupError, TypeError):
            return None
        return code if isinstance(code, str) else None


@dataclasses.dataclass(frozen=True)
class Api:
    """A deployed API. A local AWS has one address for all APIs and tells them apart by path."""

    url: str
    endpoint_url: str | None = None

    @property
    def base_url(self) -> str:
        """The URL before `/api`. Any HTTP client can use it: it needs no Host header of its own."""
        if self.endpoint_url is None:
            return self.url
        return f"{self.endpoint_url}/_aws/execute-api/{self.host.split('.')[0]}"

    @property
    def address(self) -> str:
        """The URL of the batch endpoint."""
        return self.base_url + ENDPOINT

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def post(self, batch: Any, headers: dict[str, str], endpoint: str = ENDPOINT) -> Answer:
        address = urlsplit(self.base_url + endpoint)
        https = address.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        headers = {"Content-Type": "application/json"} | headers
        with contextlib.closing(kind(address.netloc, timeout=15)) as connection:
            connection.request("POST", address.path, json.dumps(batch), headers)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read().decode(errors="replace"))

    def curl(self, key: str, idempotency_key: str) -> str:
        """The command that posts the example batch."""
        parts = [
            "curl -i",
            f'-H "Authorization: Bearer {key}"',
            "-H 'Content-Type: application/json'",
            f"-H 'Idempotency-Key: {idempotency_key}'",
            f"-d '{json.dumps(EXAMPLE_BATCH)}'",
            self.address,
        ]
        return " \\\n    ".join(parts)
