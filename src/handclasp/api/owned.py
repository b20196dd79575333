"""Which identity a call is about, and what is known of its owner: what :mod:`handclasp.access.owned` has to be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from handclasp.access.owned import Owned, Said
from handclasp.api.paging import read_sha256
from handclasp.store import tables
from handclasp.store.database import Store


async def identity_of_call(store: Store, path: Mapping[str, Any], body: Mapping[str, Any]) -> Owned | None:
    """Return the one identity that a call is about; None when it is about more than one, or about none that is known.

    It is named by the path (a certificate's fingerprint, or the identity), else by ``identity`` in the body. Raises ``bad_request`` for
    what is no fingerprint.
    """
    row = await _by_certificate(store, read_sha256(path["sha256"])) if "sha256" in path else await _by_name(store, path, body)
    if row is None:
        return None
    said = tables.assignment.c
    # ``stands`` is empty but for what gives the owner, or for the best guess: one row.
    query = select(said.owner, said.evidence, said.stands).where(said.identity_id == row.id, said.stands != "")
    return Owned(row.owner, [Said(one.owner, one.evidence, one.stands) for one in await store.rows(query)])


async def _by_certificate(store: Store, sha256: bytes) -> Any:
    identity = tables.identity.c
    for table in (tables.certificate, tables.found):
        query = select(identity.id, identity.owner).join_from(tables.identity, table, identity.id == table.c.identity_id)
        row = await store.row(query.where(table.c.sha256 == sha256))
        if row is not None:
            return row
    return None


async def _by_name(store: Store, path: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
    name = path["identity"] if "identity" in path else body.get("identity")
    # A rotation takes patterns, and "dns:*.example.org" is the name of one identity and a pattern that covers those of others.
    if not isinstance(name, str) or "*" in name:
        return None
    return await store.row(select(tables.identity.c.id, tables.identity.c.owner).where(tables.identity.c.name == name))
