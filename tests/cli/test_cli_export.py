"""``handclasp cert export``: where it may be written, and what stdout can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.fake_api import FakeApi


@pytest.mark.parametrize(("out", "words"), [(".", "is a directory"), ("not/there.csv", "there is no directory not")])
def test_a_place_that_cannot_be_written_is_said_in_its_own_name(api: FakeApi, run: Any, tmp_path: Path, out: str, words: str) -> None:
    result = run("cert", "export", "--format", "csv", "--out", out)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "hint: give --out the name of a file" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_table_and_json_are_not_both_written_to_stdout(api: FakeApi, run: Any) -> None:
    result = run("cert", "export", "--format", "csv", "--json")
    assert (result.exit_code, api.asked) == (2, [])
