"""The directory of a test, and who may go there."""

from __future__ import annotations

import tempfile
from pathlib import Path


def open_up(path: Path) -> None:
    """Let every user through to a test's directory; pytest lets nobody, and makes it somewhere below the temporary directory."""
    top = Path(tempfile.gettempdir()).resolve()
    for part in (path, *path.parents):
        if top in part.parents:
            part.chmod(0o711)
