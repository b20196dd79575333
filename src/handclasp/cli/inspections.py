"""``handclasp cert inspect``: what a file or an endpoint shows, decoded for people."""

from __future__ import annotations

import re
from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.cli.terminal import When

_ENDPOINT = re.compile(r"(?:https://)?(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):([0-9]{1,5})/?")
_TIMES = {"not_before", "not_after", "this_update", "next_update"}
_HIDDEN = {"problems", "type"}


@click.command(
    "inspect",
    cls=Command,
    client=("ca",),
    example="handclasp cert inspect web.pem\nhandclasp cert inspect web.example.org:8443 --ca bundle.pem\n"
    "cat chain.pem | handclasp cert inspect -",
)
@click.argument("source", metavar="FILE|-|HOST:PORT", help="What to look at.")
@click.option("--servername", metavar="NAME", help="Name to ask the endpoint for (SNI), and to hold its certificate against.")
@click.option("--exit-code", is_flag=True, help="Exit 1 when there is a problem (for scripts).")
@pass_state
def inspect(state: State, source: str, servername: str | None, exit_code: bool) -> int:
    """Decode certificates, requests, revocation lists and keys: PEM, DER, or what an endpoint serves."""
    from pathlib import Path

    from handclasp.cli.describe import describe
    from handclasp.cli.files import read_bytes

    match = None if source == "-" or Path(source).exists() else _ENDPOINT.fullmatch(source)
    if match:
        from handclasp.cli.endpoint import describe_endpoint

        facts, items = describe_endpoint(match[1].strip("[]"), int(match[2]), servername, state.ca, terminal.clock())
    else:
        facts, items = {"problems": []}, describe(read_bytes(source), source, terminal.clock())
    if state.json:
        terminal.write_json({"source": source, **facts, "items": items})
    else:
        _write(facts, items)
    troubled = bool(facts["problems"]) or any(item["problems"] for item in items)
    return 1 if exit_code and troubled else 0


def _write(facts: dict[str, Any], items: list[dict[str, Any]]) -> None:
    if len(facts) > 1:
        terminal.write_fields([(name.replace("_", " "), value) for name, value in facts.items() if name != "problems"])
        _write_problems(facts["problems"])
    for number, item in enumerate(items):
        if number or len(facts) > 1:
            terminal.write("\n")
        fields: list[tuple[str, terminal.Cell]] = [("type", item["type"])]
        for name, value in item.items():
            if name not in _HIDDEN:
                fields.append((name.replace("_", " "), When(value) if value and name in _TIMES else value))
        terminal.write_fields(fields)
        _write_problems(item["problems"])


def _write_problems(problems: list[str]) -> None:
    for problem in problems:
        if terminal.is_terminal(terminal.out()):
            terminal.write(terminal.styled(f"problem: {terminal.visible(problem)}", "yellow", terminal.out()))
        else:
            terminal.write_fields([("problem", problem)])
