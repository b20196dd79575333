"""Saved views: searches that somebody keeps under a name, for everybody."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.filters import LISTS, parse_all
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.inventory import View, ViewRequest

MAX_VIEWS = 1000


class Views:
    """Keeps views. A view is no decision, so the log does not have it."""

    def __init__(self, store: Store, clock: Clock, new_id: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def every(self) -> list[View]:
        """Return all views by name."""
        view = tables.saved_view
        rows = await self._store.rows(select(view).order_by(view.c.name).limit(MAX_VIEWS))
        return [
            View(id=r.id, name=r.name, list=r.list, query=r.query, created_by=r.created_by, created_at=rfc3339(r.created_at)) for r in rows
        ]

    async def save(self, request: ViewRequest, by: str) -> View:
        """Keep a view, durable on return. Raises ``bad_request`` for what its list does not have, ``conflict`` for a name in use."""
        if request.list not in LISTS:
            raise HandclaspError(Kind.BAD_REQUEST, f"{request.list[:100]!r} is not a list", hint=f"one of {', '.join(LISTS)}")
        if any(not character.isprintable() for character in request.name):
            raise HandclaspError(Kind.BAD_REQUEST, "the name of a view has printable characters only")
        now = self._clock()
        query = canonical(request.list, request.query, now)
        existing = await self.every()
        if len(existing) >= MAX_VIEWS:
            raise HandclaspError(Kind.CONFLICT, f"there are {MAX_VIEWS} views already", hint="handclasp view remove NAME")
        if any(one.name == request.name for one in existing):
            raise self._taken()
        view = View(id=self._new_id(), name=request.name, list=request.list, query=query, created_by=by, created_at=rfc3339(now))
        row = insert(tables.saved_view).values(id=view.id, name=view.name, list=view.list, query=query, created_by=by, created_at=now)
        try:
            await self._store.ledger.commit(Write([], [Change(row)]))
        except (IntegrityError, HandclaspError) as error:  # somebody else took the name at this moment
            if isinstance(error, HandclaspError) and error.kind is not Kind.CONFLICT:
                raise
            raise self._taken() from error
        return view

    @staticmethod
    def _taken() -> HandclaspError:
        return HandclaspError(Kind.CONFLICT, "there is a view of this name", hint="remove it first, or take another name")

    async def remove(self, view_id: str) -> View:
        """Forget a view, and return what it was; durable on return. Raises ``not_found``."""
        missing = HandclaspError(Kind.NOT_FOUND, "there is no such view", hint="handclasp view list")
        view = tables.saved_view
        known = next((one for one in await self.every() if one.id == view_id), None)
        if known is None:
            raise missing
        await self._store.ledger.commit(Write([], [Change(delete(view).where(view.c.id == view_id), expect=1, conflict=missing)]))
        return known


def canonical(which: str, query: str, now: int) -> str:
    """Return a view's filters as a URL has them, checked. Raises ``bad_request``."""
    try:
        pairs = parse_qsl(query.removeprefix("?"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=50, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "query: it cannot be read", hint="as in a URL: state=valid&expires_before=7d") from error
    given = dict(pairs)
    if len(given) != len(pairs):
        raise HandclaspError(Kind.BAD_REQUEST, "query: a filter is given twice")
    parse_all(which, given, now)
    return urlencode(sorted(given.items()))
