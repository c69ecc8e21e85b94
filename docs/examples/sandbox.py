"""Runs a consumer as Lambda does, with faults: for test_consumer.py.

A sandbox is a process that asks an emulator of the Lambda Runtime API for events, as every custom runtime does. Its
calls to AWS go through a proxy, which can refuse them, lose their responses, or kill the process.

    sandbox.py    the process of the Python consumer
"""

import contextlib
import http.client
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

ROOT = "/2018-06-01/runtime"
DEADLINE, REQUEST_ID = "Lambda-Runtime-Deadline-Ms", "Lambda-Runtime-Aws-Request-Id"

Fault = Literal["refuse", "lose response", "kill before", "kill after"] | None
Call = tuple[str, dict[str, Any]]
Step = Callable[[int, Call], Fault]


def no_fault(_number: int, _call: Call) -> Fault:
    return None


class Died(Exception):
    """The process was killed before it responded."""


class Handler(BaseHTTPRequestHandler):
    """Answers with a status, a JSON body, and headers. `do` returns None to close the connection without an answer."""

    protocol_version = "HTTP/1.1"
    # Otherwise each answer, whose headers and body are two writes, takes 40 ms.
    disable_nagle_algorithm = True
    do: Callable[[str, Message, bytes], tuple[int, bytes, dict[str, str]] | None]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.do(self.path, self.headers, body)
        if answer is None:
            self.close_connection = True
            return
        status, content, headers = answer
        with contextlib.suppress(OSError):  # The process may be dead.
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Ignores that a killed process resets its connections."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(do: Callable[..., Any]) -> Iterator[str]:
    """Serves requests on a free port. Yields the address."""
    server = Server(("127.0.0.1", 0), type("Served", (Handler,), {"do": staticmethod(do)}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Sandbox:
    """One sandbox of a function. Its process starts when it is first needed, and again after it was killed."""

    def __init__(self, command: Sequence[str | os.PathLike[str]], environment: Mapping[str, str], aws: str) -> None:
        self.command, self.aws = command, urlsplit(aws).netloc
        self.stack = contextlib.ExitStack()
        self.events: queue.Queue[tuple[bytes, int]] = queue.Queue()
        self.responses: queue.Queue[Any] = queue.Queue()
        self.process: subprocess.Popen[bytes] | None = None
        self.step: Step = no_fault
        self.calls: list[Call] = []
        self.write_units = self.read_units = 0.0
        self.lock = threading.Lock()
        self.environment = {
            **environment,
            "AWS_LAMBDA_RUNTIME_API": self.stack.enter_context(serving(self.runtime_api)),
            "AWS_ENDPOINT_URL": f"http://{self.stack.enter_context(serving(self.proxy))}",
            "AWS_LAMBDA_FUNCTION_NAME": "consumer",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        }

    def invoke(self, event: dict[str, Any], step: Step = no_fault, seconds: float = 30) -> dict[str, Any]:
        """Runs one event. Raises `Died` if the process ends first."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.DEVNULL)
        self.step, self.calls = step, []
        self.events.put((json.dumps(event).encode(), int((time.time() + seconds) * 1000)))
        while True:
            try:
                response: dict[str, Any] = self.responses.get(timeout=0.05)
            except queue.Empty:
                if self.process.poll() is not None:
                    self.events = queue.Queue()
                    raise Died from None
                continue
            if "batchItemFailures" not in response:
                raise RuntimeError(f"the handler failed: {response}")
            return response

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        self.stack.close()

    def runtime_api(self, path: str, _headers: Message, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if path == f"{ROOT}/invocation/next":
            event, deadline = self.events.get()
            arn = {"Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:consumer"}
            return 200, event, {REQUEST_ID: str(deadline), DEADLINE: str(deadline), **arn}
        self.responses.put(json.loads(body))
        return 202, b"{}", {}

    def proxy(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes, dict[str, str]] | None:
        """Passes a call on to the local AWS. Lets DynamoDB report the capacity that the call consumed."""
        call = (headers["X-Amz-Target"].rpartition(".")[2], json.loads(body))
        with self.lock:
            number = len(self.calls)
            self.calls.append(call)
        fault = self.step(number, call)
        if fault == "kill before":
            self.kill()
            return None
        if fault == "refuse":
            return 400, b'{"__type":"AccessDeniedException","message":"refused by the test"}', {}
        if call[0] in ("GetItem", "PutItem"):
            body = json.dumps(call[1] | {"ReturnConsumedCapacity": "TOTAL"}).encode()
        connection = http.client.HTTPConnection(self.aws)
        with contextlib.closing(connection):
            others = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            connection.request("POST", path, body, others)
            response = connection.getresponse()
            content = response.read()
        self.count_units(call[0], json.loads(content))
        if fault == "kill after":
            self.kill()
        if fault in ("kill after", "lose response"):
            return None
        return response.status, content, {"Content-Type": response.getheader("Content-Type", "")}

    def count_units(self, operation: str, response: dict[str, Any]) -> None:
        units = response.get("ConsumedCapacity", {}).get("CapacityUnits", 0)
        if operation == "GetItem":
            self.read_units += units
        elif operation == "PutItem":
            # DynamoDB charges for a write whose condition fails, too. These items are smaller than 1 KB.
            self.write_units += units or 1

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


# ── The process of the Python consumer ───────────────────────────────────────────────────────────


class Context:
    def __init__(self, deadline: int) -> None:
        self.deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self.deadline - int(time.time() * 1000))


def main() -> None:
    handler = importlib.import_module("consumer").handler
    api = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}{ROOT}/invocation"
    while True:
        with urllib.request.urlopen(f"{api}/next") as event:
            request_id, deadline = event.headers[REQUEST_ID], int(event.headers[DEADLINE])
            response = handler(json.load(event), Context(deadline))
        urllib.request.urlopen(f"{api}/{request_id}/response", json.dumps(response).encode()).close()


if __name__ == "__main__":
    main()
