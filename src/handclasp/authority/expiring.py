"""Authorities that end soon: said in the log, in time to do something about it."""

from __future__ import annotations

from sqlalchemy import insert, select, update

from handclasp.authority.authorities import Authorities
from handclasp.authority.facts import Authority
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import Entry, make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

_DAY = 86_400_000


async def warn_expiring(store: Store, authorities: Authorities, now: int, longest_lifetime: float) -> list[str]:
    """Write ``authority.expiring`` for each active authority that ends soon, at most once a day each; return the names written.

    Soon is nearer than three times ``longest_lifetime`` (seconds, of any profile: from then on renewals are cut short before anyone has
    had time to act) or than a fifth of the authority's life. Safe to call from several processes: one of them writes. Raises
    ``unavailable``.
    """
    written = []
    for authority in authorities.all():
        left = authority.not_after - now
        if authority.state != "active" or left >= max(3000 * longest_lifetime, 0.2 * (authority.not_after - authority.not_before)):
            continue
        today = await _claim_today(store, f"authority.expiring:{authority.name}", now)
        if today is not None and await _commit_unless_taken(store, Write([_entry(authority, now)], [today])):
            written.append(authority.name)
    return written


def _entry(authority: Authority, now: int) -> Entry:
    left = max(authority.not_after - now, 0) // 1000
    what = {"authority": authority.name, "kind": authority.kind, "not_after": rfc3339(authority.not_after), "seconds_left": left}
    return make_entry("authority.expiring", at=now, who={"kind": "server"}, what=what, subjects=[f"authority:{authority.name}"])


async def _claim_today(store: Store, mark: str, now: int) -> Change | None:
    """Return the change that claims today for ``mark``; None when it is claimed."""
    table = tables.meta
    day = str(now // _DAY)
    conflict = HandclaspError(Kind.CONFLICT, "another process wrote it")
    row = await store.row(select(table.c.value).where(table.c.name == mark))
    if row is None:
        return Change(insert(table).values(name=mark, value=day), expect=1, conflict=conflict)
    if row.value == day:
        return None
    return Change(update(table).where(table.c.name == mark, table.c.value == row.value).values(value=day), expect=1, conflict=conflict)


async def _commit_unless_taken(store: Store, write: Write) -> bool:
    try:
        await store.ledger.commit(write)
    except HandclaspError as error:
        if error.kind is Kind.CONFLICT:
            return False
        raise
    return True
