"""Reading ownership: owners, everything that says who owns an identity, and the lists of what needs a person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, func, or_, select

from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.ownership.assign import Assigner
from handclasp.ownership.book import OwnershipBook
from handclasp.ownership.nearest import Nearest
from handclasp.ownership.rules import Evidence, Judgement, rank
from handclasp.ownership.shown import said_of, show_candidate, show_row
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire.ownership import Assignment, Assignments, Owner, Ownership, OwnershipItem, OwnershipTest, Sweep

NEEDS = {
    "owner": "nobody owns it; the best guesses first",
    "new_owner": "its owner is in no directory any more",
    "confirmation": "its confirmation is over",
    "decision": "evidence that is equally strong says different owners",
    "look": "weaker evidence says another owner",
}
"""What a list of identities that need a person is about."""

Place = tuple[int, int, int]
"""Where the next page begins: part of the list, its order there, identity."""


class OwnershipViews:
    """Queries. For one event loop; any number of calls at once."""

    def __init__(self, store: Store, book: OwnershipBook, assigner: Assigner, clock: Clock) -> None:
        self._store = store
        self._book = book
        self._assigner = assigner
        self._clock = clock
        self._nearest: tuple[str, Nearest] = ("", Nearest(()))

    async def owners(
        self, limit: int, after: str | None, *, kind: str | None = None, left: bool | None = None, q: str | None = None
    ) -> list[Owner]:
        """Return owners by name from behind ``after``."""
        table = tables.owner.c
        query = select(tables.owner)
        if after is not None:
            query = query.where(table.name > after)
        if kind is not None:
            query = query.where(table.kind == kind)
        if left is not None:
            query = query.where(table.left_at.is_not(None) if left else table.left_at.is_(None))
        if q is not None:
            text = q.lower()
            query = query.where(
                or_(func.lower(table.name).contains(text, autoescape=True), func.lower(table.title).contains(text, autoescape=True))
            )
        rows = await self._store.rows(query.order_by(table.name).limit(limit))
        counts = await self._counts([row.name for row in rows])
        return [_owner(row, counts.get(row.name, 0)) for row in rows]

    async def owner(self, name: str) -> Owner:
        """Return one owner, with what it has to confirm. Raises ``not_found``."""
        row = await self._store.row(select(tables.owner).where(tables.owner.c.name == name))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no owner {name[:200]}", hint="handclasp owner list")
        held = tables.assignment.c
        overdue = select(func.count().label("number")).where(held.owner == name, held.evidence == "confirmed", held.due_at <= self._clock())
        found = await self._store.row(overdue)
        return _owner(row, (await self._counts([name])).get(name, 0), int(found.number) if found is not None else 0)

    async def _counts(self, names: Sequence[str]) -> dict[str, int]:
        tally = tables.tally.c
        rows = await self._store.rows(select(tally.bucket, tally.number).where(tally.kind == "owner", tally.bucket.in_(names)))
        return {row.bucket: row.number for row in rows}

    async def ownership(self) -> Ownership:
        """Return the rules in force, and how the whole stands."""
        document = await self._book.document()
        progress = await self._assigner.progress()
        held, waiting = tables.assignment.c, tables.assignment_due
        overdue = select(func.count().label("number")).where(held.due_at <= self._clock())
        contested = select(func.count().label("number")).where(held.stands == "contested")
        numbers = [
            await self._store.row(query) for query in (overdue, contested, select(func.count().label("number")).select_from(waiting))
        ]
        counts = [int(row.number) if row is not None else 0 for row in numbers]
        return Ownership(
            text=document.text,
            sha256=document.sha256,
            applied_at=rfc3339(document.applied_at) if document.applied_at is not None else None,
            applied_by=document.applied_by,
            sweep=Sweep(done=progress[0], total=progress[1]) if progress is not None else None,
            waiting=counts[2],
            unowned=(await self._counts([""])).get("", 0),
            overdue=counts[0],
            contested=counts[1],
        )

    async def assignments(self, name: str) -> Assignments:
        """Return everything that says who owns an identity. Raises ``not_found``."""
        identity = await self._store.row(select(tables.identity).where(tables.identity.c.name == name))
        if identity is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no identity {name[:300]}", hint="handclasp identity list")
        return Assignments(
            identity=name,
            owner=identity.owner,
            tier=identity.tier,
            environment=identity.environment,
            owner_left=await self._has_left(identity.owner),
            known=True,
            items=await said_of(self._store, identity.id),
        )

    async def test(self, wanted: OwnershipTest) -> Assignments:
        """Say who would own an identity; writes nothing. Raises ``bad_policy`` for rules that are none."""
        book = await self._book.current()
        if wanted.text is not None:
            book = type(book)(await self._book.read(wanted.text), book.known, book.version)
        evidence = Evidence(places=(wanted.facts,)) if wanted.facts is not None else None
        identity = await self._store.row(select(tables.identity.c.id).where(tables.identity.c.name == wanted.identity))
        judgement = await self._assigner.judge(wanted.identity, evidence, book)
        return await self._judged(wanted.identity, judgement, known=identity is not None)

    async def _judged(self, name: str, judgement: Judgement, *, known: bool) -> Assignments:
        return Assignments(
            identity=name,
            owner=judgement.owner,
            tier=judgement.tier,
            environment=judgement.environment,
            owner_left=await self._has_left(judgement.owner),
            known=known,
            items=[show_candidate(one) for one in judgement.candidates],
        )

    async def _has_left(self, owner: str | None) -> bool:
        if owner is None:
            return False
        row = await self._store.row(select(tables.owner.c.left_at).where(tables.owner.c.name == owner))
        return row is not None and row.left_at is not None

    # --- what needs a person ----------------------------------------------------------------------------------------------------------

    async def needing(self, what: str, limit: int, after: Place | None) -> tuple[list[OwnershipItem], Place | None]:
        """Return a page of identities that need a person (``what`` is one of NEEDS), and where the next begins."""
        if what == "owner":
            found = await self._unowned(limit + 1, after)
        elif what == "new_owner":
            found = await self._with_owner_that_left(limit + 1, after)
        else:
            found = await self._held(what, limit + 1, after)
        items = await self._items([identity for identity, _ in found[:limit]], guess=what == "owner")
        return items, found[limit - 1][1] if len(found) > limit else None

    async def _unowned(self, limit: int, after: Place | None) -> list[tuple[Row[Any], Place]]:
        """First those with a guess, the surest first; then the others, in the order in which they came."""
        identity, held = tables.identity, tables.assignment.c
        found: list[tuple[Row[Any], Place]] = []
        if after is None or after[0] == 0:
            query = select(identity, held.confidence).join(tables.assignment, held.identity_id == identity.c.id)
            query = query.where(held.stands == "guess")
            if after is not None:
                _, sure, one = after
                query = query.where(or_(held.confidence < sure, (held.confidence == sure) & (held.identity_id > one)))
            rows = await self._store.rows(query.order_by(held.confidence.desc(), held.identity_id).limit(limit))
            found = [(row, (0, row.confidence, row.id)) for row in rows]
        if len(found) < limit:
            guessed = select(held.identity_id).where(held.stands == "guess", held.identity_id == identity.c.id).exists()
            begin = after[2] if after is not None and after[0] == 1 else 0
            rest = select(identity).where(identity.c.owner.is_(None), identity.c.id > begin, ~guessed).order_by(identity.c.id)
            found += [(row, (1, 0, row.id)) for row in await self._store.rows(rest.limit(limit - len(found)))]
        return found

    async def _with_owner_that_left(self, limit: int, after: Place | None) -> list[tuple[Row[Any], Place]]:
        identity, owner = tables.identity, tables.owner.c
        query = select(identity).join(tables.owner, owner.name == identity.c.owner).where(owner.left_at.is_not(None))
        query = query.where(identity.c.id > (after[2] if after is not None else 0)).order_by(identity.c.id)
        return [(row, (0, 0, row.id)) for row in await self._store.rows(query.limit(limit))]

    async def _held(self, what: str, limit: int, after: Place | None) -> list[tuple[Row[Any], Place]]:
        identity, held = tables.identity, tables.assignment.c
        if what == "confirmation":
            order, where = held.due_at, held.due_at <= self._clock()
        else:
            order, where = held.confidence, held.stands == {"decision": "contested", "look": "disputed"}[what]
        query = select(identity, order.label("place")).join(tables.assignment, held.identity_id == identity.c.id).where(where)
        if after is not None:
            query = query.where(or_(order > after[1], (order == after[1]) & (held.identity_id > after[2])))
        rows = await self._store.rows(query.order_by(order, held.identity_id).limit(limit))
        return [(row, (0, row.place, row.id)) for row in rows]

    async def _items(self, identities: Sequence[Row[Any]], *, guess: bool) -> list[OwnershipItem]:
        held = tables.assignment.c
        rows = await self._store.rows(select(tables.assignment).where(held.identity_id.in_([row.id for row in identities])))
        by_identity: dict[int, list[Row[Any]]] = defaultdict(list)
        for row in sorted(rows, key=rank):
            by_identity[row.identity_id].append(row)
        nearest = await self._names() if guess else None
        items = []
        for identity in identities:
            said = by_identity[identity.id]
            guesses = [show_row(row) for row in said if row.owner and row.evidence != "denied"]
            if nearest is not None:
                guesses = _with_near(guesses, nearest.of(identity.name), {row.owner for row in said if row.evidence == "denied"})
            until = next((row.due_at for row in said if row.due_at is not None), None)
            items.append(
                OwnershipItem(
                    identity=identity.name,
                    owner=identity.owner,
                    tier=identity.tier,
                    environment=identity.environment,
                    guesses=guesses,
                    confirm_by=rfc3339(until) if until is not None else None,
                )
            )
        return items

    async def _names(self) -> Nearest:
        book = await self._book.current()
        if self._nearest[0] != book.version:
            self._nearest = (book.version, Nearest(sorted(book.known.owners)))
        return self._nearest[1]


def _with_near(guesses: list[Assignment], near: Iterable[tuple[str, str, int]], denied: set[str]) -> list[Assignment]:
    """Put the surest guess first, and names that are nearly an owner's behind what evidence says."""
    ordered = sorted(guesses, key=lambda one: -one.confidence)
    known = {one.owner for one in ordered} | denied
    return ordered + [
        Assignment(
            evidence="name",
            rule="",
            owner=owner,
            tier=None,
            environment=None,
            detail=f"{part!r} is nearly its name",
            confidence=sure,
            at=None,
        )
        for owner, part, sure in near
        if owner not in known
    ]


def _owner(row: Row[Any], identities: int, overdue: int = 0) -> Owner:
    return Owner(
        name=row.name,
        kind=row.kind,
        title=row.title,
        contact=row.contact,
        escalation=row.escalation,
        directory=row.directory,
        left_at=rfc3339(row.left_at) if row.left_at is not None else None,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
        identities=identities,
        overdue=overdue,
    )
