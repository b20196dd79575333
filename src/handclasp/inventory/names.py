"""What identities are searched by: every name that a certificate of theirs was seen or issued with, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from handclasp.inventory.rows import MAX_NAMES, bounded


def own_name(identity: str) -> str:
    """Return an identity's name without the kind that stands before all but SPIFFE IDs."""
    return identity if identity.startswith("spiffe://") else identity.partition(":")[2]


def name_rows(named: Iterable[tuple[str, Sequence[str]]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows for ``statements.add_name`` and ``statements.name_identity``, of identities with the names that they have besides
    their own."""
    texts: dict[str, None] = {}
    links: dict[tuple[str, str], None] = {}
    for identity, names in named:
        for name in (own_name(identity), *names[:MAX_NAMES]):
            if name:
                text = bounded(name.lower())
                texts[text] = None
                links[text, identity] = None
    rows = [{"text": text, "reversed": text[::-1]} for text in sorted(texts)]
    return rows, [{"text": text, "identity": identity} for text, identity in sorted(links)]
