"""Whole conversations: each file in ``transcripts/`` is what a person types and exactly what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from handclasp.cli import terminal
from support import small_world, transcripts
from support.fake_api import FakeApi

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_transcript(path: Path, api: FakeApi, run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_world.populate(api)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "policy.yaml").write_text((Path(__file__).parent / "policy.yaml").read_text())
    (tmp_path / "cases.yaml").write_text((Path(__file__).parent / "cases.yaml").read_text())
    for exchange in transcripts.read(path):
        monkeypatch.setattr(terminal, "is_terminal", lambda _stream, at=exchange.at_terminal: at)
        result = run(*exchange.arguments)
        stdout = "\n".join(line.rstrip(" ") for line in result.stdout.split("\n"))
        assert (stdout, result.stderr, result.exit_code) == exchange.told(), f"{path.name}:{exchange.line}"
