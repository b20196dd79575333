"""What the server takes of an import: locations of one kind, seen at a time that has been."""

from __future__ import annotations

from typing import Any

from handclasp.discovery.desk import with_facts
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.observations import Sightings


def check_import(sightings: Sightings, facts: dict[str, Any], now: int) -> Sightings:
    """Return sightings as they are recorded; raise ``bad_request`` for what an import cannot say.

    Whoever imports says what exists: never that something is served now, that a unit was listed, or that a key lies there.
    """
    if sightings.covered:
        raise HandclaspError(Kind.BAD_REQUEST, "an import lists nothing whole")
    for one in sightings.observed:
        if one.kind != "import" or not one.key.startswith("import:"):
            raise HandclaspError(Kind.BAD_REQUEST, "what is imported is of the kind import, and its key begins with import:")
        if one.private_key is not None or any(seen.role != "listed" for seen in one.certificates):
            raise HandclaspError(Kind.BAD_REQUEST, "what is imported is listed: it is not served, stored or trusted, and has no key")
        one.at = min(one.at, now)
    return with_facts(sightings, facts)
