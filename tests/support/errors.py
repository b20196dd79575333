"""What may be raised, and what must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from handclasp.errors import HandclaspError, Kind


@contextmanager
def allowing(*kinds: Kind) -> Iterator[None]:
    """Let the block raise our error of one of these kinds, or nothing; everything else gets through and fails the test."""
    try:
        yield
    except HandclaspError as error:
        if error.kind not in kinds:
            raise


@contextmanager
def refused(kind: Kind, *words: str) -> Iterator[None]:
    """Demand that the block raises our error of this kind, with each of these words in its detail."""
    with pytest.raises(HandclaspError) as caught:
        yield
    assert caught.value.kind is kind, caught.value
    for word in words:
        assert word in caught.value.detail
