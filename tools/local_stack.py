"""The stack on a local AWS: checks template.yaml, deploys it, and reads the function's log."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from local_aws import LocalAws
from progress import run, step
from project import CONSUMER_TEMPLATE, REGION, TEMPLATE
from stack import stack_outputs


def validate(state_dir: Path) -> None:
    """Check the templates with sam and, including its advice, with cfn-lint."""
    for template in (TEMPLATE, CONSUMER_TEMPLATE):
        remedy = f"Each line names a rule and a place in {template.name}."
        with step(f"Check {template.name} with sam validate --lint"):
            run(
                ["sam", "validate", "--lint", "--template-file", str(template), "--region", REGION],
                state_dir / "validate.log",
                remedy,
            )
        with step(f"Check {template.name} with cfn-lint, including its advice"):
            run(["cfn-lint", "--include-checks", "I", "--", str(template)], state_dir / "lint.log", remedy)


def deploy(aws: LocalAws, template: Path, stack: str, parameters: Sequence[str]) -> dict[str, str]:
    """Deploy a built template and return the outputs of the stack."""
    bucket = f"{stack}-artifacts"
    aws.client("s3").create_bucket(Bucket=bucket)
    run(
        [
            "sam", "deploy",
            "--template-file", str(template),
            "--stack-name", stack,
            "--s3-bucket", bucket,
            "--region", REGION,
            "--capabilities", "CAPABILITY_IAM",
            "--no-confirm-changeset",
            "--no-fail-on-empty-changeset",
            *(["--parameter-overrides", *parameters] if parameters else []),
        ],
        aws.state_dir / "deploy.log",
        "If the local AWS is in a bad state, start it again: make stop, then make run.",
        environment={"AWS_ENDPOINT_URL": aws.url},
    )  # fmt: skip
    return stack_outputs(aws.client("cloudformation"), stack)


def parameters_for(aws: LocalAws) -> list[str]:
    """The parameters of the template that a local AWS needs."""
    return [f"EndpointUrl={aws.url}", "ProtectApiKeys=false"]


def write_function_environment(aws: LocalAws, function: str) -> None:
    """Write the deployed function's environment to the file that `cargo lambda watch` reads."""
    configuration = aws.client("lambda").get_function_configuration(FunctionName=function)
    variables = {
        name: value
        for name, value in configuration["Environment"]["Variables"].items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    variables |= {
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    (aws.state_dir / "function.env").write_text(text)


def log_lines(aws: LocalAws, stack: str, containing: str, follow: bool) -> Iterator[str]:
    """The log lines of the deployed function that contain a text. With `follow`, it waits for more."""
    logs = aws.client("logs")
    # The local AWS returns at most 10,000 events and no token for the next ones, so each call starts
    # at the time of the last event.
    start, shown = 0, set[tuple[str, int, str]]()
    while True:
        found = logs.filter_log_events(logGroupName=f"/aws/lambda/{stack}", startTime=start)["events"]
        events = [(event["logStreamName"], event["timestamp"], event["message"].rstrip()) for event in found]
        new = [event for event in events if event not in shown]
        yield from (message for _, _, message in new if containing in message)
        if new:
            start = max(timestamp for _, timestamp, _ in events)
            shown = {event for event in events if event[1] == start}
        elif follow:
            time.sleep(1)
        else:
            return
