"""What tests of the command line share: an environment without settings, a clock that stands still, and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from handclasp.cli import terminal
from handclasp.cli.main import handclasp
from support.fake_api import FakeApi

NOW = 1_767_225_600_000  # 2026-01-01T00:00:00Z

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    import os

    for name in list(os.environ):
        if name.startswith("HANDCLASP_") and name != "HANDCLASP_TEST_RUN":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line believe that it is the first second of 2026."""
    monkeypatch.setattr(terminal, "clock", lambda: NOW)


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line believe that a person is looking, on a terminal of 120 columns without colour."""
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """Put a simulator in the place of the API client."""
    fake = FakeApi()
    monkeypatch.setattr("handclasp.cli.connection.make_client", fake.client)
    return fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty directory and return its result; an exception that the program does not handle fails the test."""
    monkeypatch.chdir(tmp_path)

    def run_command(*args: str, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner(catch_exceptions=False).invoke(handclasp, list(args), input=stdin, env=env, prog_name="handclasp")

    return run_command
