"""The commands that the console shows are commands: each is read by the program's own parser."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from handclasp.cli.main import handclasp
from handclasp.console import render
from handclasp.console.pages import new_source
from handclasp.inventory import steps

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PUT_IN = re.compile(r'" ~ (?:\([^{}]*?\)|[\w.]+) ~ "')
_AT_END = re.compile(r'" ~ [\w.]+(?=[),])')


def commands(text: str) -> list[str]:
    """Return the commands in a template; what is put in when it is shown is ``x``, a trust domain ``example.org``."""
    text = re.sub(r"\{\{ [\w.]+ \}\}", "x", text).replace('" ~ domain ~ "', "example.org")
    text = _AT_END.sub('x"', _PUT_IN.sub("x", text))
    lines = (line for string in _STRING.findall(text) for line in string.replace("\\n", "\n").split("\n"))
    shown = [one for line in lines if line.startswith("handclasp ") for one in line.split(" && ")]
    return shown + re.findall(r"<code>(handclasp [^<]*)</code>", text)


SHOWN = [
    *((path.name, line) for path in sorted(render.TEMPLATES.glob("*.html")) for line in commands(path.read_text())),
    *(("steps.py", re.sub(r"\{[^}]*\}", "x", line)) for line in re.findall(r'"(handclasp [^"]*)"', Path(steps.__file__).read_text())),
]


def test_there_are_many() -> None:
    assert len(SHOWN) > 25
    assert {"overview.html", "sources.html", "steps.py"} <= {name for name, _ in SHOWN}


def parse(line: str) -> str:
    """Have the program's own parser read a command; return what it has against it, but for files that are not here."""
    words = shlex.split(line)[1:]
    command: click.Command = handclasp
    context = click.Context(handclasp, info_name="handclasp")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        if found is None:
            return f"no command {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    try:
        command.parse_args(context, words)
    except click.UsageError as error:
        return "" if "does not exist" in error.format_message() else error.format_message()
    return ""


@pytest.mark.parametrize(("name", "line"), SHOWN)
def test_each_is_understood(name: str, line: str) -> None:
    assert parse(line) == "", f"{name}: {line}"


def test_what_is_no_command_is_noticed() -> None:
    assert parse("handclasp source add network web --run")
    assert parse("handclasp no-such")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"name": "web", "allow": "10.0.0.0/24 a.example.org", "ports": "443\n25/smtp", "every": "1h", "loopback": "1"},
         "handclasp source add network web --allow 10.0.0.0/24 --allow a.example.org --port 443 --port 25/smtp --loopback --every 1h"),
        ({"kind": "files", "name": "etc", "paths": "/etc /srv/*", "agents": "role=web", "excludes": "*.bak", "allow": "web-1"},
         "handclasp source add files etc --path /etc --path '/srv/*' --exclude '*.bak' --agent role=web --allow web-1"),
        ({}, "handclasp source add network NAME"),
    ],
)  # fmt: skip
def test_the_form_of_a_source_shows_its_command(given: dict[str, str], wanted: str) -> None:
    assert new_source.command(new_source.request(given.get("kind", "network"), given)) == wanted
    assert parse(wanted) == ""
