"""Generates the parts of the documentation that the code already knows, and checks that they are up to date.

``python tools/docs.py write`` writes them, ``check`` prints a diff and fails when one is stale. Pages: the command line, the settings, the
REST API, the kinds of error, the types of log entry, the presets of the agent, and the map of the rooms inside ``docs/architecture.md``.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "handclasp"
DOCS = ROOT / "docs"
NOTE = "<!-- Written by tools/docs.py from the code. Change the code and run `make docs`. -->\n"
BEGIN, END = "<!-- begin: drawn from the code by tools/docs.py -->", "<!-- end -->"


def cell(text: object) -> str:
    """Return text fit for one cell of a table, or for one line of a page."""
    return re.sub(r"\s+", " ", str(text)).strip().replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, nothing when it has no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(title: str, introduction: str, *parts: str) -> str:
    """Return a whole generated page."""
    return "\n".join([f"# {title}\n", NOTE, introduction.strip() + "\n", *(part for part in parts if part)]).rstrip() + "\n"


# --- presets ------------------------------------------------------------------------------------------------------------------------------


def presets_page() -> str:
    """Return docs/reference/presets.md."""
    module = importlib.import_module("handclasp.agent.presets")
    found = [module.load_preset(name) for name in module.preset_names()]
    introduction = """What each preset of a [target](../targets.md) fills in, and what the service's own configuration must say for it.
Whatever a target says itself counts more; its `directory` is put in everywhere. `handclasp agent presets NAME` shows the same."""
    rows = [[f"[`{one.name}`](#{one.name})", one.title, "yes" if one.tried else ""] for one in found]
    overview = table(["preset", "for", "rotated under traffic in our tests"], rows)
    return page("Presets for targets", introduction, overview, *map(_preset, found))


def _preset(preset: Any) -> str:
    filled, _, rest = preset.as_text().partition("# The service's own configuration:\n")
    target = filled.split("\n", 2)[2].strip()
    snippet = rest.split("\n\n# * ")[0].rstrip()
    notes = "\n".join(f"* {note}" for note in preset.notes)
    return f"## {preset.name}\n\n{preset.title}.\n\n```yaml\n{target}\n```\n\n```text\n{snippet}\n```\n\n{notes}\n"


# --- the command line ---------------------------------------------------------------------------------------------------------------------


def root_command() -> click.Command:
    """Return the ``handclasp`` command."""
    command: click.Command = importlib.import_module("handclasp.cli.main").handclasp
    return command


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Give a command and everything below it, in the order it lists them, but not what is hidden."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from commands(child, click.Context(child, info_name=name, parent=context))


def command_tree() -> list[tuple[click.Command, click.Context]]:
    """Return every command with its context."""
    root = root_command()
    return list(commands(root, click.Context(root, info_name="handclasp")))


def _prose(text: str) -> str:
    """Return a help text as Markdown; click marks paragraphs that keep their lines with a backspace."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "\b":
            paragraphs.append("```text\n" + "\n".join(lines[1:]) + "\n```")
        else:
            paragraphs.append(_plain(cell(paragraph).replace("\\|", "|")))
    return "\n\n".join(paragraphs) + "\n"


def _command(command: click.Command, context: click.Context, shared: set[str]) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}\n", _prose(command.help or command.short_help or ""), f"```text\n{usage}\n```\n"]
    if isinstance(command, click.Group):
        children = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        rows = [
            (f"[`{name}`](#{slug(f'{context.command_path} {name}')})", _plain(child.get_short_help_str(200)))
            for name, child in children
            if child and not child.hidden
        ]
        parts.append(table(["command", "what it does"], rows))
    records = [(param, param.get_help_record(context)) for param in command.get_params(context) if "--help" not in param.opts]
    home = str(Path.home())
    rows = [
        (f"`{record[0]}`", record[1].replace(home, "~"))
        for param, record in records
        if record and (context.parent is None or not set(param.opts) <= shared | {"--json"})
    ]
    parts.append(table(["option", "meaning"], rows))
    example = getattr(command, "example", "")
    if example:
        parts.append(f"```sh\n{example.strip()}\n```\n")
    return "\n".join(part for part in parts if part)


def cli_page() -> str:
    """Return docs/reference/cli.md."""
    tree = command_tree()
    shared = {option for param in tree[0][0].params for option in param.opts} - {"--version", "--json"}
    names = ", ".join(f"`{option}`" for option in sorted(shared))
    introduction = f"""
Every command takes `--help` and `--json`, and every command that talks to a server takes {names}; these are listed once, at the top.
Data goes to stdout, words to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 stopped with Ctrl-C. With `--json`
the answer is one JSON value with stable keys, and so is a failure.
"""
    return page("The command line", introduction, *(_command(command, context, shared) for command, context in tree))


# --- settings, kinds, log entries ---------------------------------------------------------------------------------------------------------


def settings() -> Sequence[Any]:
    """Return the server's settings."""
    found: Sequence[Any] = importlib.import_module("handclasp.server.settings").SETTINGS
    return found


def _value(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{value}`".replace(str(Path.home()), "~")


def settings_page() -> str:
    """Return docs/reference/settings.md."""
    introduction = """
A setting is given by its flag, by its environment variable, or in the configuration file, and the first of these that is there
wins. Settings are read and checked once, at start: a server with a bad setting does not start, and says which one.
"""
    rows = []
    for setting in settings():
        kind = setting.type if isinstance(setting.type, str) else getattr(setting.type, "__name__", str(setting.type))
        flag, variable = (f"`{text}`" if text else "" for text in (setting.flag, setting.env))
        rows.append((f"`{setting.name}`", kind, _value(setting.default), flag, variable, setting.help))
    return page("Settings of the server", introduction, table(["setting", "type", "default", "flag", "environment", "meaning"], rows))


def kinds() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the kinds of error by group, ``(group, [(kind, comment)])``, as the comments in errors.py say it."""
    path = SOURCE / "errors.py"
    with path.open("rb") as file:
        comments = {token.start[0]: token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT}
    body = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == "Kind").body
    members = {node.lineno: node.value.value for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)}
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for line in range(body[0].lineno, body[-1].lineno + 1):
        comment = re.sub(r"\s*noqa.*", "", comments[line].string.lstrip("# ")) if line in comments else ""
        if line in members:
            if not groups:
                groups.append(("Kinds", []))
            groups[-1][1].append((members[line], comment))
        elif comment:
            groups.append((comment.rstrip("."), []))
    return groups


def kinds_page() -> str:
    """Return docs/reference/kinds.md."""
    introduction = """
Every refusal and every failure has one kind: `kind` in the problem document (RFC 9457) of the API, in brackets at the end of the
line that the command line prints, and `why.kind` in the log entry of a refusal. A program may branch on it: a released kind never
changes its meaning. What to do about each is in [troubleshooting](../troubleshooting.md).
"""
    parts = []
    for group, members in kinds():
        rows = [(f"`{kind}`", comment, f"[what to do](../troubleshooting.md#{slug(kind)})") for kind, comment in members]
        commented = any(comment for _, comment in members)
        head = ["kind", "meaning", "help"] if commented else ["kind", "help"]
        parts.append(f"## {group}\n\n" + table(head, rows if commented else [(kind, link) for kind, _, link in rows]))
    return page("Kinds of error", introduction, *parts)


def log_entries_page() -> str:
    """Return docs/reference/log-entries.md."""
    types: Mapping[str, str] = importlib.import_module("handclasp.log.entries").ENTRY_TYPES
    introduction = """
Each entry of the log is canonical JSON (RFC 8785) with `v` (the schema version), `type`, `at` (RFC 3339, UTC), `who`, `what`, and
where they apply `why`, `from` and `personal`. A type that was ever written keeps its meaning. How the log is read and verified is
told in [the guide to the log](../log.md).
"""
    return page("Types of log entry", introduction, table(["type", "meaning"], [(f"`{name}`", text) for name, text in types.items()]))


# --- the REST API -------------------------------------------------------------------------------------------------------------------------

METHODS = ("get", "put", "post", "patch", "delete")


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of the server."""
    document: dict[str, Any] = importlib.import_module("handclasp.api.openapi").document(importlib.import_module("handclasp.api.table").API)
    return document


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Give ``(METHOD, path, operation)`` for everything in an OpenAPI document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield method.upper(), path, item[method]


def _type(schema: Any) -> str:
    """Return a schema in a few words, with a link where it has a name."""
    if not isinstance(schema, Mapping) or not schema:
        return "any"
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return f"[{name}](#{slug(name)})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"map to {_type(schema['additionalProperties'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _content(body: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{_type(media.get('schema', {}))}" + ("" if name == "application/json" else f" (`{name}`)")
        for name, media in body.get("content", {}).items()
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### {method} {path}\n"]
    parts += [cell(operation[key]) + "\n" for key in ("summary", "description") if operation.get(key)]
    for key, value in operation.items():
        if key.startswith("x-"):
            words = value if isinstance(value, str) else ", ".join(f"`{item}`" for item in value)
            label = key.removeprefix("x-").removeprefix("handclasp-").replace("-", " ").capitalize()
            parts.append(f"{label}: {cell(words) or 'none'}\n")
    parameters = [item for item in operation.get("parameters", []) if "name" in item]
    rows = [(f"`{item['name']}`", item["in"], _type(item.get("schema")), item.get("description", "")) for item in parameters]
    parts.append(table(["parameter", "in", "type", "meaning"], rows))
    if operation.get("requestBody"):
        parts.append(f"Body: {_content(operation['requestBody'])}\n")
    responses = operation.get("responses", {}).items()
    failures = {status: answer for status, answer in responses if "application/problem+json" in answer.get("content", {})}
    answers = [(status, _content(answer), answer.get("description", "")) for status, answer in responses if status not in failures]
    parts.append(table(["status", "answer", "meaning"], answers))
    if failures:
        told = [f"{status}: {answer['description'].removeprefix('One of the kinds ').rstrip('.')}" for status, answer in failures.items()]
        parts.append(f"Failures: {cell('; '.join(told))}.\n")
    return "\n".join(part for part in parts if part)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = []
    for field, value in schema.get("properties", {}).items():
        note = value.get("description", "") if isinstance(value, Mapping) else ""
        default = (
            f" Default: `{value['default']}`." if isinstance(value, Mapping) and value.get("default") not in (None, "", [], {}) else ""
        )
        rows.append((f"`{field}`", _type(value), "yes" if field in required else "", note + default))
    description = cell(re.sub(r":\w+:`([^`]*)`", r"`\1`", schema.get("description", ""))).replace("``", "`")
    return "\n".join(
        part for part in (f"### {name}\n", description + "\n", table(["field", "type", "required", "meaning"], rows)) if part.strip()
    )


def api_page() -> str:
    """Return docs/reference/api.md."""
    document = openapi()
    introduction = """
The HTTPS listener serves this; the document itself (OpenAPI 3.1) is at `/v1/openapi.json`. A caller shows an access token or an
OIDC token as `Authorization: Bearer …`, or a client certificate. Times are RFC 3339 in UTC, durations are text such as `90s` or
`24h`, certificates are PEM, fingerprints are lower-case hex SHA-256 of the DER. Lists take `limit` and `cursor`; pass `next_cursor`
back until it is null. Errors are problem documents (RFC 9457) with a [kind](kinds.md).
"""
    endpoints = [_operation(*operation) for operation in operations(document)]
    schemas = [_schema(name, schema) for name, schema in sorted(document.get("components", {}).get("schemas", {}).items())]
    return page("The REST API", introduction, "## Endpoints\n", *endpoints, "## Types\n", *schemas)


# --- the map of the rooms -----------------------------------------------------------------------------------------------------------------


def _floors() -> list[list[str]]:
    """Return the floors as pyproject.toml declares them to import-linter, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.split(r"\s*[|:]\s*", layer) for layer in layers]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Give the names of rooms that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "handclasp" else [f"handclasp.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("handclasp."))


def rooms() -> dict[str, tuple[str, list[str]]]:
    """Return for each room its docstring and the rooms it imports, read from the source."""
    found = {}
    known = {room for floor in _floors() for room in floor}
    for name in known:
        path = SOURCE / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        trees = {file: ast.parse(file.read_text()) for file in files}
        front = trees.get(path / "__init__.py" if path.is_dir() else files[0])
        edges = {room for tree in trees.values() for room in _imports(tree)} & known
        found[name] = (ast.get_docstring(front) or "" if front else "", sorted(edges - {name}))
    return found


def _plain(text: str) -> str:
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", text).replace("``", "`")


def architecture_map() -> str:
    """Return the part of docs/architecture.md that is drawn from the code: the floors, the edges, and what each room is for."""
    floors, found = _floors(), rooms()
    ground = set(floors[-1])
    graph = ["```mermaid", "flowchart TD"]
    for number, floor in zip(range(len(floors) - 1, -1, -1), floors, strict=True):
        graph += [f'  subgraph floor{number}[" "]', "    direction LR", *(f"    {room}" for room in floor), "  end"]
    graph += [f"  {room} --> {other}" for floor in floors for room in floor for other in found[room][1] if other not in ground]
    graph += [
        "```",
        "",
        f"Every room may also import the ground floor ({', '.join(f'`{room}`' for room in floors[-1])}); those arrows are left out.",
        "",
    ]
    parts = []
    for floor in floors:
        for room in floor:
            docstring, edges = found[room]
            kind = "/" if (SOURCE / room).is_dir() else ".py"
            parts += [
                f"### {room}{kind}\n",
                _plain(docstring) + "\n",
                f"Imports: {', '.join(f'`{edge}`' for edge in edges) or 'nothing of ours'}.\n",
            ]
    return "\n".join([*graph, *parts]).rstrip() + "\n"


def architecture_page() -> str:
    """Return docs/architecture.md with the drawn part brought up to date and the written part as it is."""
    before, rest = (DOCS / "architecture.md").read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{architecture_map()}\n{END}{after}"


# --- running ------------------------------------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/settings.md": settings_page,
    "reference/api.md": api_page,
    "reference/kinds.md": kinds_page,
    "reference/log-entries.md": log_entries_page,
    "reference/presets.md": presets_page,
    "architecture.md": architecture_page,
}


def stale(name: str) -> str:
    """Return the diff between a page and what it should be; empty when it is up to date."""
    path = DOCS / name
    old = path.read_text() if path.exists() else ""
    label = f"docs/{name}"
    return "".join(difflib.unified_diff(old.splitlines(True), PAGES[name]().splitlines(True), label, f"{label} (from the code)"))


def main(arguments: Sequence[str]) -> int:
    """Run ``write`` or ``check``; return the exit code."""
    if list(arguments) not in (["write"], ["check"]):
        sys.stderr.write("usage: tools/docs.py write|check\n")
        return 2
    sys.path.insert(0, str(ROOT / "src"))
    failed = False
    for name in PAGES:
        diff = stale(name)
        if diff and arguments[0] == "write":
            (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
            (DOCS / name).write_text(PAGES[name]())
            sys.stderr.write(f"wrote docs/{name}\n")
        elif diff:
            sys.stderr.write(diff)
            failed = True
    if failed:
        sys.stderr.write("The documentation is not what the code says: run `make docs`.\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
