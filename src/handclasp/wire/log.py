"""Entries of the log and their proofs."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from handclasp.wire.base import Request, Response


class LogEntry(Response, kw_only=True):
    """One entry of the log, with its place in it."""

    index: int
    leaf_hash: str
    entry: dict[str, Any]


class LogEntryList(Response, kw_only=True):
    """One page of entries in log order."""

    items: list[LogEntry]
    next_cursor: str | None = None


class LogProof(Response, kw_only=True):
    """An inclusion proof that can be checked without the server: C2SP tlog-proof text, and the entry it is about."""

    index: int
    tree_size: int
    leaf_hash: str
    path: list[str]
    checkpoint: str
    entry: str
    proof: str


class ErasePersonal(Request, kw_only=True):
    """Erase the salted personal data of one entry; the log itself keeps verifying."""

    index: Annotated[int, Meta(ge=0)]
