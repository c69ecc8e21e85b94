"""Writes the samples in events/: one API Gateway event per kind of response, and the expected responses.

python3 tools/make_events.py
"""

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

EVENTS = Path(__file__).resolve().parent.parent / "events"
ENDPOINT = "/api/v1/events/batch"
SINGLE_ENDPOINT = "/api/v1/events"
BULK_ENDPOINT = "/api/v1/events/bulk"
JSON = "application/json"

# These keys exist only on the local AWS; tools/local_keys.py adds them to its API keys table.
KEY = "sk_test_LOCAL_ONLY_not_a_secret_0123456789"
REVOKED_KEY = "sk_test_LOCAL_ONLY_revoked_key_0123456789"
READ_ONLY_KEY = "sk_test_LOCAL_ONLY_read_scope_0123456789"
UNKNOWN_KEY = "sk_test_LOCAL_ONLY_nobody_knows_0123456789"

ACCOUNT, SOURCE_IP, AGENT = "123456789012", "203.0.113.7", "example-client/1.0"
TIME, TIME_EPOCH = "23/Nov/2026:09:14:03 +0000", 1795425243127

SIGN_UP = {"external_user_id": "usr_42", "name": "user_signed_up", "properties": {"plan": "trial"}}


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def text_body(text: str) -> dict[str, Any]:
    return {"body": text, "isBase64Encoded": False}


def binary_body(data: bytes) -> dict[str, Any]:
    return {"body": base64.b64encode(data).decode(), "isBase64Encoded": True}


def request_id(name: str) -> str:
    """A request id in the format of API Gateway. It depends only on the name, so it is the same in every run."""
    return base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()[:11]).decode()


def client_headers(idempotency_key: str | None, key: str | None, content_type: str) -> dict[str, str]:
    headers = {"accept": "*/*", "content-type": content_type, "user-agent": AGENT}
    if key:
        headers["authorization"] = f"Bearer {key}"
    if idempotency_key:
        headers["idempotency-key"] = idempotency_key
    return headers


def http_api_event(
    name: str,
    body: dict[str, Any],
    *,
    idempotency_key: str | None,
    key: str | None = KEY,
    method: str = "POST",
    path: str = ENDPOINT,
    content_type: str = JSON,
    more_headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """An HTTP API event, payload format 2.0."""
    sent = base64.b64decode(body["body"]) if body["isBase64Encoded"] else body["body"].encode()
    host = "a1b2c3d4e5.execute-api.us-east-1.amazonaws.com"
    headers = client_headers(idempotency_key, key, content_type) | (more_headers or {})
    headers |= {
        "content-length": str(len(sent)),
        "host": host,
        "x-amzn-trace-id": "Root=1-6b03e81b-3d1f0c5a7e9b2d4f6a8c0e1f",
        "x-forwarded-for": SOURCE_IP,
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
    }
    has_route = method == "POST" and path in (ENDPOINT, SINGLE_ENDPOINT, BULK_ENDPOINT)
    route = f"POST {path}" if has_route else "$default"
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": dict(sorted(headers.items())),
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": "a1b2c3d4e5",
            "domainName": host,
            "domainPrefix": "a1b2c3d4e5",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": SOURCE_IP,
                "userAgent": AGENT,
            },
            "requestId": request_id(name),
            "routeKey": route,
            "stage": "$default",
            "time": TIME,
            "timeEpoch": TIME_EPOCH,
        },
    } | body


def rest_api_event(name: str, text: str) -> dict[str, Any]:
    """A REST API event, payload format 1.0: headers in the case that the client sent, each also as a list."""
    host = "f6g7h8i9j0.execute-api.us-east-1.amazonaws.com"
    headers = {
        "Accept": "*/*",
        "Authorization": f"Bearer {KEY}",
        "Content-Type": JSON,
        "Host": host,
        "Idempotency-Key": f"sample-{name}",
        "User-Agent": AGENT,
        "X-Amzn-Trace-Id": "Root=1-6b03e81b-3d1f0c5a7e9b2d4f6a8c0e1f",
        "X-Forwarded-For": SOURCE_IP,
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
    }
    return {
        "resource": ENDPOINT,
        "path": ENDPOINT,
        "httpMethod": "POST",
        "headers": headers,
        "multiValueHeaders": {header: [value] for header, value in headers.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": "f6g7h8i9j0",
            "domainName": host,
            "domainPrefix": "f6g7h8i9j0",
            "extendedRequestId": request_id(name + " extended"),
            "httpMethod": "POST",
            "identity": {
                "accessKey": None,
                "accountId": None,
                "caller": None,
                "cognitoAuthenticationProvider": None,
                "cognitoAuthenticationType": None,
                "cognitoIdentityId": None,
                "cognitoIdentityPoolId": None,
                "principalOrgId": None,
                "sourceIp": SOURCE_IP,
                "user": None,
                "userAgent": AGENT,
                "userArn": None,
            },
            "path": f"/prod{ENDPOINT}",
            "protocol": "HTTP/1.1",
            "requestId": "5f0c1a52-8d1e-4a7b-9c36-2f4e6a8b0d13",
            "requestTime": TIME,
            "requestTimeEpoch": TIME_EPOCH,
            "resourceId": "abc123",
            "resourcePath": ENDPOINT,
            "stage": "prod",
        },
    } | text_body(text)


def expected(
    event: dict[str, Any],
    status: int,
    code: str | None,
    answer_headers: dict[str, str] | None = None,
    fields: list[str] | None = None,
) -> dict[str, Any]:
    """The expected response to an event. It always contains the gateway's request id."""
    own = {"x-request-id": event["requestContext"]["requestId"]}
    return {"status": status, "code": code, "fields": fields or [], "headers": own | (answer_headers or {})}


def samples() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, event and expected response, in the order to send them. Some depend on earlier ones."""
    one = compact({"events": [SIGN_UP]})
    two = compact({"events": [SIGN_UP, SIGN_UP | {"name": "plan_chosen"}]})
    many = [
        {
            "external_user_id": f"usr_{index % 50}",
            "name": ("page_viewed", "button_clicked", "item_added", "order_paid")[index % 4],
            "timestamp": f"2026-11-23T09:{index // 60:02}:{index % 60:02}Z",
            "properties": {"page": f"/products/{index}", "position": index},
        }
        for index in range(500)
    ]
    faulty = [SIGN_UP, {"name": "user_signed_up"}, SIGN_UP | {"properties": ["plan", "trial"]}]
    garbled = zipped(one.encode()).decode("utf-8", errors="replace")
    bomb = zipped(b'{"events":[' + b" " * (5 * 1024 * 1024) + b"]}")
    gzip_header = {"content-encoding": "gzip"}
    challenge = {"www-authenticate": "Bearer"}

    def sample(
        name: str,
        status: int,
        code: str | None,
        body: dict[str, Any],
        answer_headers: dict[str, str] | None = None,
        fields: list[str] | None = None,
        **request: Any,
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        request.setdefault("idempotency_key", f"sample-{name}")
        event = http_api_event(name, body, **request)
        return name, event, expected(event, status, code, answer_headers, fields)

    rest = rest_api_event("rest-v1", one)
    first_key = "sample-accepted"
    replayed = {"idempotency-replayed": "true"}
    return [
        sample("accepted", 202, None, text_body(one)),
        sample("replayed", 202, None, text_body(one), replayed, idempotency_key=first_key),
        sample("reused-idempotency-key", 422, "idempotency_key_reuse", text_body(two), idempotency_key=first_key),
        sample("five-hundred-events", 202, None, text_body(compact({"events": many}))),
        sample(
            "gzip-body", 202, None, binary_body(zipped(one.encode())),
            content_type="application/gzip", more_headers=gzip_header,
        ),
        ("rest-v1", rest, expected(rest, 202, None)),
        sample("single-event", 202, None, text_body(compact(SIGN_UP)), path=SINGLE_ENDPOINT),
        sample(
            "invalid-single-event", 422, "validation_failed", text_body('{"name":"user_signed_up"}'),
            fields=["external_user_id"], path=SINGLE_ENDPOINT,
        ),
        sample("bulk", 200, None, text_body(compact({"events": faulty})), path=BULK_ENDPOINT),
        sample(
            "bulk-without-key", 200, None, text_body(compact({"events": faulty})),
            idempotency_key=None, path=BULK_ENDPOINT,
        ),
        sample(
            "empty-bulk", 400, "validation_failed", text_body('{"events":[]}'), fields=["events"], path=BULK_ENDPOINT,
        ),
        sample("not-found", 404, "not_found", text_body(one), path="/api/v1/event"),
        sample(
            "method-not-allowed", 405, "method_not_allowed", text_body(""), {"allow": "POST"}, method="GET",
        ),
        sample("missing-key", 401, "auth_required", text_body(one), challenge, key=None),
        sample("bad-key", 401, "auth_required", text_body(one), challenge, key=UNKNOWN_KEY),
        sample("revoked-key", 401, "auth_required", text_body(one), challenge, key=REVOKED_KEY),
        sample("read-only-key", 403, "forbidden", text_body(one), key=READ_ONLY_KEY),
        sample(
            "unsupported-media-type", 415, "unsupported_media_type", text_body(one), content_type="text/csv",
        ),
        sample(
            "missing-idempotency-key", 400, "idempotency_key_required", text_body(one), idempotency_key=None,
        ),
        sample(
            "gzip-bomb", 413, "payload_too_large", binary_body(bomb),
            content_type="application/gzip", more_headers=gzip_header,
        ),
        sample("garbled-gzip", 400, "malformed_encoding", text_body(garbled), more_headers=gzip_header),
        sample("malformed-json", 400, "malformed_json", text_body('{"events":[{"name":"user_signed_up",]}')),
        sample(
            "invalid-event", 422, "validation_failed", text_body(compact({"events": faulty})),
            fields=["events[1].external_user_id", "events[2].properties"],
        ),
    ]  # fmt: skip


def main() -> None:
    expectations = []
    for name, event, answer in samples():
        (EVENTS / f"{name}.json").write_text(json.dumps(event, indent=2) + "\n")
        expectations.append({"event": name} | answer)
    (EVENTS / "expected.json").write_text(json.dumps(expectations, indent=2) + "\n")


if __name__ == "__main__":
    main()
