"""Places for agents of several users."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.places import open_up


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory that root alone can write to, below one that everybody can get through."""
    open_up(tmp_path)
    return tmp_path
