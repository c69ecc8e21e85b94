#!/usr/bin/env python3
"""Checks the shell commands and the links of the documentation.

    tools/check_docs.py [--keys PATH] [--backfill PATH]

Every shell block must parse, and the commands in it, and in inline code, must exist: make targets and
variables, packages and features of cargo, options of tools/*.py, arguments of event-ingest-keys and
event-ingest-backfill (which are run, without network, to parse them), operations, parameters and values of
the AWS CLI, and commands and options of the SAM CLI. The targets of relative links, and of references to
headings of docs/, must exist.

Run it with .venv/sam/bin/python, which has botocore and sam. It prints one line per problem and exits with 1
if there are any.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import botocore
import botocore.session

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "*.md",
    "docs/**/*.md",
    "fuzz/README.md",
    "events/README.md",
    "sdk/typescript/README.md",
    "sdk/typescript/docs/*.md",
)
SHELL_LANGUAGES = ("sh", "bash", "console")
# Commands of the AWS CLI that are not operations of the API, so no model describes them.
S3_COMMANDS = ("cp", "ls", "mv", "rm", "sync")


@dataclass(frozen=True)
class Problem:
    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Script:
    """Shell commands and the line of the document on which they begin."""

    path: Path
    line: int
    text: str


@dataclass(frozen=True)
class Command:
    """A simple command: its words without quotes, and its line in the document."""

    line: int
    words: list[str]


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Document:
    """A Markdown file, split into code and prose. Both keep the line numbers of the file."""

    path: Path
    scripts: list[Script]
    prose: list[tuple[int, str]]


def read_document(path: Path) -> Document:
    document = Document(path, [], [])
    lines = enumerate(path.read_text().splitlines(), start=1)
    for number, line in lines:
        opening = re.match(r"( *)(`{3,}|~{3,}) *([\w-]*)", line)
        if not opening:
            document.prose.append((number, line))
            continue
        indent, fence, language = opening.groups()
        block = []
        for _, inner in lines:
            if inner.strip().startswith(fence):
                break
            block.append(inner.removeprefix(indent))
        if language in SHELL_LANGUAGES:
            text = without_output(block) if language == "console" else "\n".join(block)
            document.scripts.append(Script(path, number + 1, text))
    document.scripts += inline_commands(document)
    return document


def without_output(block: list[str]) -> str:
    """Returns the commands of a console block, which begin with `$ `. Lines of output become empty."""
    commands, continued = [], False
    for line in block:
        is_command = continued or line.startswith("$ ")
        commands.append((line if continued else line.removeprefix("$ ")) if is_command else "")
        continued = is_command and line.endswith("\\")
    return "\n".join(commands)


def inline_commands(document: Document) -> Iterator[Script]:
    """Yields inline code that begins with a command that this program checks."""
    text = "\n".join(line for _, line in document.prose)
    numbers = [number for number, _ in document.prose]
    for code in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        words = code[1].split()
        if len(words) > 1 and command_name(words[0]):
            yield Script(document.path, numbers[text.count("\n", 0, code.start())], code[1])


def headings(path: Path) -> list[str]:
    return [line.lstrip("#").strip() for _, line in read_document(path).prose if re.match(r"#{1,6} ", line)]


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a document."""
    found: list[str] = []
    for heading in headings(path):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        repeated = found.count(slug)
        found.append(slug)
        if repeated:
            found.append(f"{slug}-{repeated}")
    return frozenset(found)


# ── Links ────────────────────────────────────────────────────────────────────────────────────────


def check_links(document: Document) -> Iterator[Problem]:
    for number, line in document.prose:
        for link in re.finditer(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            if not re.match(r"[a-z]+:", link[1]):
                yield from check_target(document.path, number, document.path.parent, link[1])


def check_target(path: Path, line: int, base: Path, link: str) -> Iterator[Problem]:
    """Checks that a file, and an anchor in it, exist."""
    file, _, anchor = link.partition("#")
    target = (base / file).resolve() if file else path
    if not target.exists():
        yield Problem(path, line, f"{link} does not exist")
    elif anchor and target.suffix == ".md" and anchor not in anchors(target):
        yield Problem(path, line, f"{file or path.name} has no heading for #{anchor}")


def check_references() -> Iterator[Problem]:
    """Checks references such as docs/contract.md, "Requests" and docs/runbook.md#alarms in all other files."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in (ROOT / name for name in tracked.stdout.splitlines() if not name.endswith(".md")):
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        for found in re.finditer(r'(docs/[\w-]+\.md)(?:(#[\w-]+)|,[ \n/!#*]+"([^"\n]+)")?', text):
            file, anchor, heading = found.groups()
            line = text.count("\n", 0, found.start()) + 1
            yield from check_target(path, line, ROOT, file + (anchor or ""))
            if heading and (ROOT / file).exists() and heading not in headings(ROOT / file):
                yield Problem(path, line, f'{file} has no heading "{heading}"')


# ── Shell ────────────────────────────────────────────────────────────────────────────────────────

KEYWORDS = ("if", "then", "else", "elif", "while", "until", "do", "done", "fi", "{", "}", "!", "time", "exec", "export")
TOKEN = re.compile(
    r"""
      (?P<space>(?:[ \t]|\\\n)+)
    | (?P<comment>\#[^\n]*)
    | (?P<end>\n|&&|\|\||[;|&()])
    | (?P<redirection>\d*(?:<<?|>>?|>&|<&)\&?)
    | (?P<word>(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|[^\s\\'";|&()<>])+)
    """,
    re.VERBOSE | re.DOTALL,
)
QUOTED = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)""", re.DOTALL)


def check_syntax(script: Script) -> Iterator[Problem]:
    bash = subprocess.run(["bash", "-n"], input=script.text, capture_output=True, text=True)
    for error in bash.stderr.splitlines():
        found = re.match(r"bash: line (\d+): (.*)", error)
        line = script.line + int(found[1]) - 1 if found else script.line
        yield Problem(script.path, line, found[2] if found else error)


def simple_commands(script: Script) -> Iterator[Command]:
    """Splits a script that bash can parse. Command substitutions inside double quotes are not checked."""
    words: list[str] = []
    line, skip_word = script.line, False
    for token in TOKEN.finditer(script.text + "\n"):
        if token.lastgroup == "word" and not skip_word:
            if not words:
                line = script.line + script.text.count("\n", 0, token.start())
            words.append(QUOTED.sub(lambda quoted: quoted[1] or quoted[2] or quoted[3] or "", token[0]))
        if token.lastgroup in ("word", "redirection"):
            skip_word = token.lastgroup == "redirection" and not token[0].endswith("&1")
        if token.lastgroup == "end" and words:
            yield Command(line, words)
            words = []


def command_name(word: str) -> str | None:
    """The name of a command that this program checks, which may be called by a path."""
    if re.search(r"(^|/)tools/[\w-]+\.py$", word):
        return "tool"
    name = word.rsplit("/", 1)[-1]
    return name if name in CHECKS else None


def without_prefix(words: list[str]) -> list[str]:
    """Drops keywords, assignments, an interpreter, and `timeout` with its arguments before a command."""
    for index, word in enumerate(words):
        if command_name(word):
            return words[index:]
        is_prefix = word in KEYWORDS or re.match(r"[A-Za-z_]\w*=", word) or "timeout" in words[: index + 1]
        if not is_prefix and not re.search(r"python[\d.]*$", word):
            break
    return []


def check_commands(script: Script, settings: argparse.Namespace) -> Iterator[Problem]:
    for command in simple_commands(script):
        words = without_prefix(command.words)
        name = command_name(words[0]) if words else None
        if name:
            for text in CHECKS[name](words, settings):
                yield Problem(script.path, command.line, text)


def options(words: list[str]) -> list[str]:
    """The names of long options, without their values."""
    return [word.split("=", 1)[0] for word in words if re.match(r"--[\w-]", word)]


def option_value(words: list[str], *names: str) -> str | None:
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in names:
            return value or (words[index + 1] if index + 1 < len(words) else None)
    return None


# ── make ─────────────────────────────────────────────────────────────────────────────────────────


def check_make(words: list[str], _: argparse.Namespace) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name, is_variable, _value = word.partition("=")
        if is_variable and not re.search(rf"^{re.escape(name)} *[?:+]?=", makefile, re.MULTILINE):
            yield f"the Makefile has no variable {name}"
        elif not is_variable and re.match(r"[\w-]+$", word) and not re.search(rf"^{word}:", makefile, re.MULTILINE):
            yield f"the Makefile has no target {word}"


# ── cargo ────────────────────────────────────────────────────────────────────────────────────────


@cache
def packages() -> dict[str, dict[str, Any]]:
    """The manifests of this repository by the names of their packages."""
    found = {}
    for path in ROOT.glob("**/Cargo.toml"):
        if not {"target", "node_modules", ".venv"} & set(path.relative_to(ROOT).parts):
            manifest = tomllib.loads(path.read_text())
            if "package" in manifest:
                found[manifest["package"]["name"]] = manifest
    return found


def check_cargo(words: list[str], settings: argparse.Namespace) -> Iterator[str]:
    ours = words[: words.index("--")] if "--" in words else words
    package = option_value(ours, "-p", "--package") or "event-ingest"
    if package not in packages():
        yield f"there is no package {package}"
        return
    binary = option_value(ours, "--bin")
    if binary and binary not in packages() and binary not in binaries(packages()[package]):
        yield f"package {package} has no binary {binary}"
    features = option_value(ours, "--features", "-F")
    for feature in re.split(r"[ ,]", features or ""):
        if feature and feature not in packages()[package].get("features", {}):
            yield f"package {package} has no feature {feature}"
    if "run" in ours and package in CHECKS:
        yield from CHECKS[package]([package, *words[len(ours) + 1 :]], settings)


def binaries(manifest: dict[str, Any]) -> list[str]:
    return [binary["name"] for binary in manifest.get("bin", [])]


# ── The project's commands ───────────────────────────────────────────────────────────────────────


def check_tool(words: list[str], _: argparse.Namespace) -> Iterator[str]:
    tool = ROOT / words[0][words[0].index("tools/") :]
    if not tool.exists():
        yield f"{words[0]} does not exist"
    elif used := options(words):
        known = literals(tool)
        yield from (f"{tool.name} has no option {option}" for option in used if option not in {*known, "--help"})


def literals(tool: Path) -> set[str]:
    """The string literals of a tool, which include its options. The tool is not run."""
    tree = ast.parse(tool.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def check_keys(words: list[str], settings: argparse.Namespace) -> Iterator[str]:
    return check_arguments(settings.keys, words[1:])


def check_backfill(words: list[str], settings: argparse.Namespace) -> Iterator[str]:
    return check_arguments(settings.backfill, words[1:])


def check_arguments(binary: Path, arguments: list[str]) -> Iterator[str]:
    """Runs a command in an environment that stops it after parsing. Errors of clap mention --help."""
    if not binary.exists():
        yield f"{binary} is not built, so its arguments cannot be checked"
        return
    values = [with_placeholders(argument) for argument in arguments if argument not in ("…", "...")]
    with tempfile.TemporaryDirectory() as empty:
        run = subprocess.run(
            [binary, *values],
            cwd=empty, env=OFFLINE, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    if run.returncode == 2 and "try '--help'" in run.stderr:
        yield f"{binary.name}: {run.stderr.splitlines()[0].removeprefix('error: ')}"


def with_placeholders(argument: str) -> str:
    """Replaces variables, substitutions and URLs, so that arguments are valid and nothing is sent."""
    if re.match(r"https?://|\$\{?\w*URL", argument):
        return UNREACHABLE
    return re.sub(r"\$\(.*\)|\$\{?\w+\}?|<[^>]*>", "x", argument, flags=re.DOTALL)


UNREACHABLE = "http://127.0.0.1:1"
# The commands parse their arguments first. Then event-ingest-keys stops at the empty endpoint, and
# event-ingest-backfill at the missing API key.
OFFLINE = {"API_KEYS_TABLE": "x", "AWS_ENDPOINT_URL": ""}


# ── aws ──────────────────────────────────────────────────────────────────────────────────────────

# Commands that the AWS CLI adds to the operations of the services.
# With their options.
CUSTOM_AWS_COMMANDS = {
    ("sso", "login"): {"--sso-session", "--no-browser"},
    ("logs", "tail"): {"--since", "--follow", "--format", "--filter-pattern", "--log-stream-names"},
}
# Options that the AWS CLI renames, because they have the name of a global option.
RENAMED_AWS_OPTIONS = {("sns", "subscribe", "--endpoint"): "--notification-endpoint"}
GLOBAL_AWS_OPTIONS = {
    "--cli-input-json", "--debug", "--endpoint-url", "--max-items", "--no-cli-pager", "--no-paginate", "--output",
    "--page-size", "--profile", "--query", "--region", "--starting-token",
}  # fmt: skip


@cache
def service_models() -> Any:
    return botocore.session.Session()


def check_aws(words: list[str], _: argparse.Namespace) -> Iterator[str]:
    service, operation = (*words[1:3], "", "")[:2]
    if (service, operation) in CUSTOM_AWS_COMMANDS:
        known = CUSTOM_AWS_COMMANDS[service, operation] | GLOBAL_AWS_OPTIONS
        yield from (f"aws {service} {operation} has no option {name}" for name in options(words) if name not in known)
        return
    session = service_models()
    if service not in session.get_available_services():
        yield f"aws has no service {service}"
        return
    if service == "s3" and operation in S3_COMMANDS:
        return
    model = session.get_service_model(service)
    operations = {cli_name(name): name for name in model.operation_names}
    if operation == "wait":
        waiter = (*words[3:], "")[0]
        waiters = {cli_name(name): name for name in session.get_waiter_model(service).waiter_names}
        if waiter not in waiters:
            yield f"aws {service} has no waiter {waiter}"
            return
        api_name = session.get_waiter_model(service).get_waiter(waiters[waiter]).operation
    elif operation in operations:
        api_name = operations[operation]
    else:
        yield f"aws {service} has no operation {operation}"
        return
    shape = model.operation_model(api_name).input_shape
    yield from check_aws_options(shape, words)
    yield from check_aws_values(shape, words)


def cli_name(name: str) -> str:
    return str(botocore.xform_name(name, "-"))


def check_aws_options(shape: Any, words: list[str]) -> Iterator[str]:
    command = " ".join(words[1:3])
    used = options(words)
    members = {aws_option(words, name): member for name, member in (shape.members if shape else {}).items()}
    booleans = {name.replace("--", "--no-", 1) for name, member in members.items() if member.type_name == "boolean"}
    for option in used:
        if option not in members and option not in booleans | GLOBAL_AWS_OPTIONS:
            yield f"aws {command} has no option {option}"
    # A command in inline code may be just a name.
    for name in shape.required_members if shape and used else []:
        option = aws_option(words, name)
        if not {option, option.replace("--", "--no-", 1)} & set(used):
            yield f"aws {command} requires {option}"


def aws_option(words: list[str], member: str) -> str:
    """The option for a member of an operation's input."""
    option = "--" + cli_name(member)
    return RENAMED_AWS_OPTIONS.get((words[1], words[2], option), option)


# ── Values of aws options ────────────────────────────────────────────────────────────────────────

# A value of which a part is only known when the command runs.
PLACEHOLDER = re.compile(r"\$|…|\.\.\.|<[^>]*>")


def check_aws_values(shape: Any, words: list[str]) -> Iterator[str]:
    """Checks values against the types, enumerations and required members of the service's model."""
    for name, member in (shape.members if shape else {}).items():
        option = aws_option(words, name)
        for text in check_aws_value(member, values_of(words, option)):
            yield f"aws {' '.join(words[1:3])} {option}: {text}"


def values_of(words: list[str], option: str) -> list[str]:
    """The words after an option, up to the next option."""
    if option not in words:
        return []
    after = words[words.index(option) + 1 :]
    end = next((index for index, word in enumerate(after) if re.match(r"--[a-z]", word)), len(after))
    return [value.replace('\\"', '"') for value in after[:end]]


def check_aws_value(shape: Any, values: list[str]) -> Iterator[str]:
    if not values or values[0].startswith("$") or shape.type_name in ("boolean", "timestamp", "blob"):
        return
    if shape.type_name in ("structure", "list", "map") and values[0].lstrip().startswith(("{", "[")):
        try:
            # A variable inside a text is a text.
            value = json.loads(re.sub(r"\$\{?\w+\}?|\$\([^)]*\)", "x", values[0]))
        except ValueError as error:
            yield f"is not JSON: {error}"
            return
        yield from check_json(shape, value)
    elif shape.type_name == "list" and shape.member.type_name not in ("structure", "list", "map"):
        for value in values:
            yield from check_json(shape.member, value)
    elif shape.type_name == "list":
        for value in values:
            yield from check_shorthand(shape.member, value)
    elif len(values) > 1:
        yield f"takes one value, not {len(values)}"
    elif shape.type_name in ("structure", "map"):
        yield from check_shorthand(shape, values[0])
    else:
        yield from check_json(shape, values[0])


def check_shorthand(shape: Any, text: str) -> Iterator[str]:
    """Checks the AWS CLI's shorthand: Key=value,Key=value. Nested shorthand is checked only at its first level."""
    if re.search(r"[{}\[\]]", text):
        pairs = re.findall(r"(?:^|,)(\w+)=", re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]", "x", text))
        values = dict.fromkeys(pairs)
    else:
        # A part without a key continues the list before it.
        values = {name: value for name, mark, value in (part.partition("=") for part in text.split(",")) if mark}
    if not values:
        yield f"{text} is neither JSON nor Key=value"
    if shape.type_name != "structure":
        return
    for name, value in values.items():
        if name not in shape.members:
            yield f"there is no {name}; there are: {', '.join(shape.members)}"
        elif value is not None and shape.members[name].type_name not in ("structure", "list", "map"):
            yield from check_json(shape.members[name], value)
    yield from (f"{name} is required" for name in shape.required_members if name not in values)


def check_json(shape: Any, value: Any) -> Iterator[str]:
    """Checks a parsed value, or a word of the command line, against a shape."""
    if shape.type_name == "structure" and isinstance(value, dict):
        yield from (f"there is no {name}" for name in value if name not in shape.members)
        yield from (f"{name} is required" for name in shape.required_members if name not in value)
        for name in value.keys() & shape.members.keys():
            yield from check_json(shape.members[name], value[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for element in value:
            yield from check_json(shape.member, element)
    elif shape.type_name == "map" and isinstance(value, dict):
        for element in value.values():
            yield from check_json(shape.value, element)
    elif shape.type_name in ("structure", "list", "map"):
        yield f"{value!r} is not a {shape.type_name}"
    elif isinstance(value, str) and PLACEHOLDER.search(value):
        return
    elif shape.type_name in ("integer", "long", "float", "double"):
        if not re.fullmatch(r"-?\d+(\.\d+)?", str(value)):
            yield f"{value!r} is not a number"
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{value!r} is not one of {', '.join(shape.enum)}"


# ── sam ──────────────────────────────────────────────────────────────────────────────────────────


def check_sam(words: list[str], _: argparse.Namespace) -> Iterator[str]:
    command = (*words[1:], "")[0]
    help_text = sam_help(command)
    if help_text is None:
        yield f"sam has no command {command}"
        return
    known = set(re.findall(r"--[\w-]+", help_text))
    used = options(words)
    yield from (f"sam {command} has no option {option}" for option in used if option not in known)
    # sam does not read AWS_REGION.
    if used and "--region" in known and not {"--region", "--config-env"} & set(used):
        yield f"sam {command} needs --region"


@cache
def sam_help(command: str) -> str | None:
    run = subprocess.run(
        [Path(sys.executable).with_name("sam"), command, "--help"],
        env=os.environ | {"SAM_CLI_TELEMETRY": "0"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return run.stdout if run.returncode == 0 else None


CHECKS: dict[str, Callable[[list[str], argparse.Namespace], Iterator[str]]] = {
    "aws": check_aws,
    "cargo": check_cargo,
    "event-ingest-backfill": check_backfill,
    "event-ingest-keys": check_keys,
    "make": check_make,
    "sam": check_sam,
    "tool": check_tool,
}


def problems(settings: argparse.Namespace) -> Iterator[Problem]:
    for path in sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}):
        document = read_document(path)
        yield from check_links(document)
        for script in document.scripts:
            syntax = list(check_syntax(script))
            yield from syntax or check_commands(script, settings)
    yield from check_references()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target" / "debug"
    parser.add_argument("--keys", type=Path, default=built / "event-ingest-keys", help="default: %(default)s")
    parser.add_argument("--backfill", type=Path, default=built / "event-ingest-backfill", help="default: %(default)s")
    settings = parser.parse_args()
    settings.keys, settings.backfill = settings.keys.resolve(), settings.backfill.resolve()
    found = sorted({(str(problem.path), problem.line, str(problem)) for problem in problems(settings)})
    for *_, text in found:
        print(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
