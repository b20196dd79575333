"""The way around the command line for ``agent run``: taken for exactly what the command line would do the same with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.cli.agents import run
from handclasp.cli.start import agent_options

WORDS = [
    "-c",
    "--config",
    "--state-dir",
    "--log-level",
    "a.yaml",
    "dir",
    "debug",
    "loud",
    "--config=b",
    "--log-level=info",
    "-cx",
    "--help",
    "",
    "=",
]


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_it_reads_what_the_command_line_would_read(words: list[str]) -> None:
    options = agent_options(["agent", "run", *words])
    if options is None:
        return
    with click.Context(click.Group()) as parent:
        params = run.make_context("run", list(words), parent=parent).params
    assert options == {name: value for name, value in params.items() if name in ("config", "state_dir", "log_level") and value is not None}


@pytest.mark.parametrize(
    "words", ["agent", "agent run", "agent run --help", "agent run -c", "agent status -c x", "agent run -c x --json", "up"]
)
def test_the_rest_is_the_command_lines(words: str) -> None:
    assert agent_options(words.split()) is None


def test_an_agent_is_without_the_command_line_and_fails_like_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "handclasp", "agent", "run", "-c", str(tmp_path / "none.yaml")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "(bad_setting)" in found.stderr
    never = {"click", "asyncio", *(f"handclasp.wire.{one}" for one in ("discovery", "inventory", "ownership"))}
    look = f"import sys, handclasp.cli.start, handclasp.cli.terminal, handclasp.agent.loop; print({never!r} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "set()\n"
