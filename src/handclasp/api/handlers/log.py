"""The log: entries, proofs, the checkpoint, the tiles, cosignatures, and erasure of personal data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy import delete, select

from handclasp.api.paging import read_cursor, read_index, read_limit, read_sha256, read_text, read_time, write_cursor
from handclasp.api.routes import Call, Plain
from handclasp.api.services import Services
from handclasp.clock import parse_rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import SignedCheckpoint
from handclasp.log.entries import ENTRY_TYPES, make_entry, parse_entry, salted_hash
from handclasp.log.merkle import leaf_hash
from handclasp.log.proofs import Proof, checkpoint_at, make_proof
from handclasp.log.tiles import WIDTH, HashReader, split_tile, tile_width
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire import Done, LogEntry, LogEntryList, LogProof

_SCAN = 5000
"""Entries that one page may look through for a filter; then the page ends early, with a cursor to go on."""


async def list_entries(call: Call) -> LogEntryList:
    """List entries, newest first."""
    limit = read_limit(call.query)
    after = read_cursor(call.query, int)
    subject, wanted = read_text(call.query, "subject"), read_text(call.query, "type")
    if wanted is not None and wanted not in ENTRY_TYPES:
        raise HandclaspError(Kind.BAD_REQUEST, f"{wanted[:100]!r} is not a type of log entry", hint="one of " + ", ".join(ENTRY_TYPES))
    since, until = read_time(call.query, "since"), read_time(call.query, "until")
    filtered = wanted is not None or since is not None or until is not None
    entry, about = tables.log_entry, tables.log_subject
    query = select(entry.c.index.label("place"), entry.c.entry).order_by(entry.c.index.desc()).limit(_SCAN if filtered else limit + 1)
    if subject is not None:
        query = query.join(about, about.c.index == entry.c.index).where(about.c.subject == subject)
    if after is not None:
        query = query.where(entry.c.index < after[0])
    rows = await call.services.store.rows(query)
    items: list[LogEntry] = []
    found: list[tuple[int, bytes]] = []
    last, more = None, filtered and len(rows) == _SCAN
    for row in rows:
        if len(items) == limit:
            more = True
            break
        last, data = int(row.place), bytes(row.entry)
        item = to_entry(last, data)
        at = parse_rfc3339(item.entry["at"])
        if (wanted in (None, item.entry["type"])) and (since is None or at >= since) and (until is None or at <= until):
            items.append(item)
            found.append((last, data))
    await _check(call.services, found)
    return LogEntryList(items=items, next_cursor=write_cursor(last) if more and last is not None else None)


async def _check(services: Services, entries: Sequence[tuple[int, bytes]]) -> None:
    """Compare entries from the database with the tree that was signed, as far as that goes; raise ``tampered`` for one that differs."""
    if entries:
        await asyncio.to_thread(_compare, services, entries)


def _compare(services: Services, entries: Sequence[tuple[int, bytes]]) -> None:
    try:
        size = services.cosignatures.newest().checkpoint.size
    except HandclaspError as error:
        if error.kind is Kind.NOT_FOUND:
            return  # nothing is signed yet
        raise
    signed: dict[int, list[bytes]] = {}
    for index, data in entries:
        if index >= size:
            continue
        tile = index // WIDTH
        if tile not in signed:
            signed[tile] = _leaves(services, tile, size)
        if leaf_hash(data) != signed[tile][index % WIDTH]:
            raise _altered(f"entry {index} of the log in the database is not the one that was signed")


def _leaves(services: Services, tile: int, size: int) -> list[bytes]:
    try:
        return split_tile(services.tiles.read_tile(0, tile, tile_width(0, tile, size)))
    except HandclaspError as error:
        if error.kind is Kind.NOT_FOUND:
            raise _altered(f"a tile of the log is missing: {error.detail}") from error
        raise


def _altered(detail: str) -> HandclaspError:
    return HandclaspError(Kind.TAMPERED, detail, hint="find out with: handclasp audit verify")


def to_entry(index: int, data: bytes) -> LogEntry:
    """Return stored bytes as the wire has them."""
    return LogEntry(index=index, leaf_hash=leaf_hash(data).hex(), entry=parse_entry(data))


async def show_entry(call: Call) -> LogEntry:
    """Show one entry, with the personal data that has not been erased."""
    index = read_index(call.path["index"])
    data = await _entry(call, index)
    await _check(call.services, [(index, data)])
    shown = to_entry(index, data)
    personal = tables.log_personal.c
    rows = await call.services.store.rows(select(personal.field, personal.salt, personal.value).where(personal.index == index))
    for row in rows:
        hashed = shown.entry.get("personal", {}).get(row.field)
        if hashed is None or salted_hash(bytes(row.salt), row.value) != hashed["salted"]:
            raise _altered(f"the personal data of entry {index} ({row.field}) is not what its hash was made of")
        hashed |= {"salt": bytes(row.salt).hex(), "value": row.value}
    return shown


async def _entry(call: Call, index: int) -> bytes:
    row = await call.services.store.row(select(tables.log_entry.c.entry).where(tables.log_entry.c.index == index))
    if row is None:
        raise HandclaspError(Kind.NOT_FOUND, f"the log has no entry {index}")
    return bytes(row.entry)


async def checkpoint(call: Call) -> Plain:
    """Serve the newest checkpoint (C2SP tlog-checkpoint)."""
    newest = await asyncio.to_thread(call.services.cosignatures.newest)
    return Plain(str(newest).encode(), "text/plain; charset=utf-8")


async def prove(call: Call) -> LogProof:
    """Prove that an entry is in the log: by index, or the entry that issued the certificate with a fingerprint."""
    index = await _wanted_index(call)
    data = await _entry(call, index)
    wanted = _wanted_size(call, index)
    newest = await _checkpoint_with(call, index)
    await _check(call.services, [(index, data)])
    proven, proof = await asyncio.to_thread(_proof_at, call.services, index, wanted, newest, data)
    return LogProof(
        index=index,
        tree_size=proven.checkpoint.size,
        leaf_hash=leaf_hash(data).hex(),
        path=[node.hex() for node in proof.path],
        checkpoint=str(proven),
        entry=data.decode(),
        proof=str(proof),
    )


def _proof_at(services: Services, index: int, size: int | None, newest: SignedCheckpoint, data: bytes) -> tuple[SignedCheckpoint, Proof]:
    """Return the proof, and the checkpoint it is against: the newest, or the log's own at an earlier size."""
    reader = HashReader(services.tiles, newest.checkpoint.size)
    against = newest if size is None else checkpoint_at(size, newest, services.log_signer, reader)
    return against, make_proof(index, against, reader, data)


def _wanted_size(call: Call, index: int) -> int | None:
    text = read_text(call.query, "size")
    if text is None:
        return None
    size = read_index(text)
    if size <= index:
        raise HandclaspError(
            Kind.NOT_FOUND, f"the log of {size} entries does not have entry {index}: it is newer", hint="use a checkpoint kept since"
        )
    return size


async def _wanted_index(call: Call) -> int:
    index, sha256 = read_text(call.query, "index"), read_text(call.query, "sha256")
    if (index is None) == (sha256 is None):
        raise HandclaspError(Kind.BAD_REQUEST, "say which entry: index=NUMBER, or sha256=FINGERPRINT of a certificate")
    if index is not None:
        return read_index(index)
    certificate = tables.certificate.c
    row = await call.services.store.row(select(certificate.log_index).where(certificate.sha256 == read_sha256(sha256 or "")))
    if row is None:
        raise HandclaspError(Kind.NOT_FOUND, "no certificate with this fingerprint was issued here")
    return int(row.log_index)


async def _checkpoint_with(call: Call, index: int) -> SignedCheckpoint:
    """Return a checkpoint that has the entry; one that was committed a moment ago is in the tree within a second."""
    for _ in range(40):
        newest = await asyncio.to_thread(call.services.cosignatures.newest)
        if newest.checkpoint.size > index:
            return newest
        await asyncio.sleep(0.05)
    raise HandclaspError(Kind.UNAVAILABLE, "this entry is not in a checkpoint yet", retry_after=1, hint="ask again in a second")


async def tile(call: Call) -> Plain:
    """Serve a file of the log (C2SP tlog-tiles)."""
    path = "tile/" + call.path["path"]
    data = await asyncio.to_thread(call.services.tiles.read, path)
    return Plain(data, "application/octet-stream", max_age=0 if ".p/" in path else 31_536_000)


async def cosign(call: Call) -> Plain:
    """Take witnesses' cosignatures of a checkpoint (C2SP tlog-cosignature); answer the checkpoint with all it has."""
    try:
        signed = await asyncio.to_thread(call.services.cosignatures.accept, call.body)
    except HandclaspError as error:
        if error.kind is not Kind.VERIFY_FAILED:
            raise
        # What was handed in is wrong, and not something in here, which is what this kind says to a caller.
        raise HandclaspError(Kind.BAD_REQUEST, error.detail, hint=error.hint) from error
    return Plain(str(signed).encode(), "text/plain; charset=utf-8")


async def erase_personal(call: Call) -> Done:
    """Erase the personal data of one entry. The entry and the tree stay as they are; only what its hashes stood for is gone."""
    index: int = call.body.index
    await _entry(call, index)
    now = call.services.clock()
    entry = make_entry("log.personal_erased", at=now, who=call.principal.to_log(), what={"index": index}, source=call.source.to_log())
    statement = delete(tables.log_personal).where(tables.log_personal.c.index == index)
    return Done(log_entry=await call.services.store.ledger.commit(Write([entry], [Change(statement)])))
