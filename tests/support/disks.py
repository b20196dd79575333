"""Disks that are full or read-only: small file systems in memory where this process may mount them; otherwise such tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _mount(*words: str) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", *words], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")


@contextmanager
def _mounted(place: Path, size: str) -> Iterator[None]:
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def small_disk(place: Path, size: str = "256k") -> Iterator[None]:
    """Make ``place`` a disk of that size."""
    place.mkdir(exist_ok=True)
    with _mounted(place, size):
        yield


@contextmanager
def filled(place: Path) -> Iterator[None]:
    """Fill the disk of ``place`` to the last byte."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (4096, 1):
            try:
                while stream.write(b"x" * size):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Let ``place`` be on a disk that cannot be written any more, with everything that it holds."""
    kept = place.with_name(f"{place.name}.copy")
    shutil.copytree(place, kept, symlinks=True)
    try:
        with _mounted(place, "16m"):
            shutil.copytree(kept, place, symlinks=True, dirs_exist_ok=True)
            _mount("-o", "remount,ro", str(place))
            yield
    finally:
        shutil.rmtree(kept)
