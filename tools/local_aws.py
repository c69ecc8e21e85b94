"""The local AWS process: starts, finds and stops ministack, which is in .venv/ministack."""

import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from progress import Failure
from project import REGION, VENV


@dataclasses.dataclass(frozen=True)
class LocalAws:
    """A running ministack. Its state directory records its port and process id."""

    state_dir: Path
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str) -> Any:
        import boto3  # takes half a second, which `stop` can save

        return boto3.client(service, endpoint_url=self.url)

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/_ministack/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


@contextlib.contextmanager
def ministack_lock(state_dir: Path) -> Iterator[int | None]:
    """Take the lock that a running ministack holds. Yields None if ministack is running.

    ministack inherits the lock, so the system releases it when that process ends, however it ends.
    A recorded process id alone could by now belong to another program.
    """
    with (state_dir / "ministack.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def running(state_dir: Path) -> LocalAws | None:
    """The local AWS that runs with this state directory, if there is one."""
    if not state_dir.is_dir():
        return None
    with ministack_lock(state_dir) as lock:
        if lock is not None:
            return None
    record = json.loads((state_dir / "ministack.json").read_text())
    return LocalAws(state_dir, record["port"], record["pid"])


def port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(state_dir: Path, port: int) -> LocalAws:
    """Start a local AWS, or return the one that already runs with this state directory."""
    aws = launch(state_dir, port)
    wait_until_ready(aws)
    return aws


def launch(state_dir: Path, port: int) -> LocalAws:
    """Like `start`, but return before a new local AWS is ready."""
    state_dir.mkdir(parents=True, exist_ok=True)
    found = running(state_dir)
    if found and found.port != port:
        raise Failure(f"The local AWS of this project runs on port {found.port}, not {port}.\nStop it first: make stop")
    if found and found.is_ready():
        return found
    if found:
        stop(state_dir)
    if port_is_taken(port):
        raise Failure(
            f"Another program uses port {port}.\n"
            f"Stop that program, or choose another port: make run LOCAL_PORT={port + 1}"
        )
    return spawn(state_dir, port)


def wait_until_ready(aws: LocalAws) -> None:
    deadline = time.monotonic() + 30
    while not aws.is_ready():
        if time.monotonic() > deadline or not running(aws.state_dir):
            stop(aws.state_dir)
            raise Failure(f"The local AWS did not start. The reason is in {aws.state_dir / 'ministack.log'}")
        time.sleep(0.1)


def spawn(state_dir: Path, port: int) -> LocalAws:
    temporary = state_dir / "tmp"
    temporary.mkdir(exist_ok=True)
    # Pass nothing else of this process's environment, because the deployed function inherits it.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(state_dir),
        "TMPDIR": str(temporary),
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_PORT": "0",
        "MINISTACK_HOST": "localhost",
        "MINISTACK_REGION": REGION,
    }
    with ministack_lock(state_dir) as lock, (state_dir / "ministack.log").open("w") as output:
        if lock is None:
            raise Failure("Another command is just starting the local AWS. Try again.")
        process = subprocess.Popen(
            [VENV / "ministack" / "bin" / "ministack"],
            env=environment,
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,
        )
        (state_dir / "ministack.json").write_text(json.dumps({"port": port, "pid": process.pid}))
    return LocalAws(state_dir, port, process.pid)


def stop(state_dir: Path) -> bool:
    """Stop the local AWS and every process it started. Its data is lost."""
    aws = running(state_dir)
    if not aws:
        return False
    os.killpg(aws.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while running(state_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(aws.pid, signal.SIGKILL)
    return True
