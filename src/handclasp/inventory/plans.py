"""From what filters mean to how each table is read: ``certificate`` (issued here) and ``found`` (never issued here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, and_, exists, false, func, literal, or_, select
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.visitors import replacement_traverse

from handclasp.inventory.conditions import (
    Condition,
    among,
    holds,
    identity_exists,
    matches,
    name_exists,
    of_identity,
    one_of,
    seen_by,
    stands,
    value,
)
from handclasp.inventory.filters import Filters
from handclasp.inventory.resolve import Meaning
from handclasp.inventory.states import FOREIGN, OLD_SERVED, REVOKED_SERVED, SEEN, UNISSUED, UNSEEN
from handclasp.inventory.walk import Plan
from handclasp.store import tables

_FOUND_STATES = ("valid", "expired")
_ONLY_ISSUED, _ONLY_FOUND = (SEEN, UNSEEN, OLD_SERVED, REVOKED_SERVED), (FOREIGN, UNISSUED)
"""What only those can be that were issued here, and what only others: see :func:`handclasp.inventory.states.judge`."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes the plans for one question."""

    filters: Filters
    meaning: Meaning
    now: int
    sqlite: bool
    many: int = 0
    """How many certificates the listed identities have, as far as that is counted."""
    population: int = 0
    """How many identities there are, about."""

    def plans(self) -> list[Plan]:
        """Return the plans whose results together are what fits."""
        if self.meaning.nothing:
            return []
        plans, f, meaning = [*self._issued(), *self._found()], self.filters, self.meaning
        for number, plan in enumerate(plans):
            plan.kind = (number, plan.origin, f.names, meaning.met, meaning.ids is None, f.state, f.standing, f.sort)
            if plan.instead is not None:
                plan.instead.kind = plan.kind
        return plans

    # --- issued ---------------------------------------------------------------------------------------------------------------------------

    def _issued(self) -> list[Plan]:
        f, meaning, certificate = self.filters, self.meaning, tables.certificate
        impossible = f.origin == "found" or f.ca is True or f.triage is not None or f.standing in _ONLY_FOUND
        if impossible or (f.issuer is not None and not meaning.authorities):
            return []
        c = certificate.c
        conditions = self._common(certificate)
        if meaning.authority is not None:
            conditions.append(value(c.authority_id) == meaning.authority)
        if f.issuer is not None:
            conditions.append(value(c.authority_id).in_(meaning.authorities))
        if f.profile is not None:
            conditions.append(c.profile == f.profile)
        conditions += self._issued_state()
        by_text = f.q is not None and "q" in meaning.met
        if by_text and meaning.q_authorities:
            assert f.q is not None
            return self._driven(certificate, "issued", [*conditions, self._text(certificate)], ids=False)
        return self._driven(certificate, "issued", conditions, ids=True)

    def _issued_state(self) -> list[Condition]:
        c, state = tables.certificate.c, self.filters.state
        live: list[Condition] = [c.revoked_at.is_(None)]  # and its end lies ahead: see _ends
        if state == "valid":
            return [*live, c.superseded_by.is_(None)]
        if state == "superseded":
            return [*live, c.superseded_by.is_not(None)]
        if state == "expired":
            return live
        return [c.revoked_at.is_not(None)] if state == "revoked" else []

    # --- found ----------------------------------------------------------------------------------------------------------------------------

    def _found(self) -> list[Plan]:
        f, meaning, found = self.filters, self.meaning, tables.found
        c = found.c
        impossible = f.origin == "issued" or f.profile is not None or f.standing in _ONLY_ISSUED
        if impossible or (f.state is not None and f.state not in _FOUND_STATES):
            return []
        conditions = self._common(found)
        if meaning.authority is not None:
            conditions.append(self._ours(meaning.authority))
        if f.issuer is not None:
            conditions.append(or_(value(c.issuer_id).in_(meaning.issuers), self._ours(*meaning.authorities)))
        if f.ca is not None:
            conditions.append(c.is_ca == int(f.ca))
        if f.triage is not None:
            conditions.append(c.triage == f.triage)
        if f.q is None or "q" not in meaning.met:
            return self._driven(found, "found", conditions, ids=True)
        # Identities that have the text in a name or owner, and besides them: issuers that have it, and what has no identity.
        plans = self._driven(found, "found", conditions, ids=True) if meaning.ids else []
        nameless = and_(c.identity_id.is_(None), holds(func.lower(c.subject), f.q, self.sqlite))
        plans.append(Plan("found", found, found, [*conditions, nameless, *self._ends(found)], few=True))
        if meaning.q_issuers or meaning.q_authorities:
            signed = or_(value(c.issuer_id).in_(meaning.q_issuers), self._ours(*meaning.q_authorities))
            plans += self._driven(found, "found", [*conditions, signed], ids=False)
        return plans

    def _ours(self, *authorities: int) -> Condition:
        """Signed by an authority of ours: its key verifies the signature, or the certificate says so."""
        if not authorities:
            return false()
        c, issuer = tables.found.c, tables.issuer.c
        query = select(literal(1)).where(issuer.id == c.issuer_id, issuer.authority_id.in_(authorities))
        named = exists(query.correlate_except(tables.issuer))
        return or_(c.authority_id.in_(authorities), named)

    # --- both -----------------------------------------------------------------------------------------------------------------------------

    def _common(self, table: Table) -> list[Condition]:
        """Return the conditions that both tables have, those that an index covers first."""
        f, meaning, c = self.filters, self.meaning, table.c
        conditions: list[Condition] = []
        if f.key_type is not None:
            conditions.append(c.key_type == f.key_type)
        own = of_identity(f, meaning.met)
        if own:
            conditions.append(identity_exists(c.identity_id, *own))
        if f.name is not None and "name" not in meaning.met:
            name = tables.name.c
            conditions.append(name_exists(c.identity_id, matches(name.text, name.reversed, f.name, self.sqlite)))
        if f.q is not None and not meaning.direct and "q" not in meaning.met:
            conditions.append(self._text(table))
        if f.key is not None:
            conditions.append(c.spki_sha256 == f.key)
        if meaning.source is not None:
            conditions.append(seen_by(c.sha256, meaning.source))
        return conditions

    def _text(self, table: Table) -> Condition:
        """Return that a row has the text somewhere, asked of each row by itself."""
        f, meaning, c = self.filters, self.meaning, table.c
        assert f.q is not None
        ways: list[Condition] = []
        if table is tables.certificate:
            if meaning.q_authorities:
                ways.append(value(c.authority_id).in_(meaning.q_authorities))
        else:
            if meaning.q_issuers:
                ways.append(value(c.issuer_id).in_(meaning.q_issuers))
            if meaning.q_authorities:
                ways.append(self._ours(*meaning.q_authorities))
            if not of_identity(f):  # with such a filter it has an identity
                ways.append(and_(c.identity_id.is_(None), holds(func.lower(c.subject), f.q, self.sqlite)))
        if meaning.q_owners:
            ways.append(identity_exists(c.identity_id, tables.identity.c.owner.in_(meaning.q_owners), by_row=not self.sqlite))
        if "q" in meaning.met and meaning.ids is not None:
            ways.append(among(value(c.identity_id), meaning.ids, self.sqlite))
        else:
            alone = self.sqlite or not ways  # joined, not asked row by row: that lets the rows of months be put in order first
            ways.append(name_exists(c.identity_id, holds(tables.name.c.text, f.q, self.sqlite), by_row=not alone))
        return or_(*ways)

    def _driven(self, table: Table, origin: str, conditions: list[Condition], *, ids: bool) -> list[Plan]:
        """Return the plan that reads least: by what few things have, else by standing, else along the index of ends."""
        f, meaning, c = self.filters, self.meaning, table.c
        exact, standing = self._exact(table), self._standing(c.sha256)
        listed, ends = meaning.ids if ids else None, self._ends(table)
        if exact is not None:
            return [Plan(origin, table, table, [*conditions, *standing, *ends, exact, *self._only(table, listed)], few=True)]
        if listed is not None and not listed:
            return []
        if listed is not None and len(listed) == 1:
            few, fixed = self.many <= FEW_CERTIFICATES, [c.identity_id == listed[0], *ends]
            return [Plan(origin, table, table, [*conditions, *standing], fixed, few)]
        if listed is not None:
            walk = Plan(origin, table, table, [*self._only(table, listed), *conditions, *standing], [*self._rare(table), *ends])
            if self._walks(table, len(listed)):
                return [walk]
            wanted = among(c.identity_id, listed, self.sqlite)
            return [Plan(origin, table, table, [*conditions, *standing], [wanted, *ends], few=True, instead=walk)]
        if f.standing is not None and not self._mostly(table):  # also unseen: who should have been seen by now has a row
            return [self._by_standing(table, origin, conditions)]
        if f.issuer is not None and table is tables.found and not meaning.authorities and len(meaning.issuers) == 1:
            return [Plan(origin, table, table, conditions, [c.issuer_id == meaning.issuers[0], *ends])]
        return [Plan(origin, table, table, [*conditions, *standing], [*self._rare(table), *ends])]

    def _walks(self, table: Table, listed: int) -> bool:
        """Tell whether it is cheaper to walk until a page is full than to sort all certificates of so many identities."""
        if self.many > FEW_CERTIFICATES:
            return True
        costs, ahead, revoked = _COSTS[self.sqlite], self._ahead(), bool(self._rare(table))
        months = 1 if table is tables.found else costs.months_ahead if ahead else costs.months
        sort = listed * months * costs.identity + self.many * (_AHEAD if ahead else 1.0) * costs.row
        population = max(self.population, listed)
        there = population * self.many / listed * (_AHEAD if ahead else _REVOKED if revoked else 1.0)
        full = _PAGE * population / listed / (1.0 if revoked else _FITTING)
        return min(there, full) * costs.walked < sort and sort > _CHEAP

    def _ahead(self) -> bool:
        """Tell whether only ends that lie ahead are looked at: of all certificates that are kept these are few."""
        f = self.filters
        return f.state in ("valid", "superseded") or (f.expires_after is not None and f.expires_after >= self.now)

    def _rare(self, table: Table) -> list[Condition]:
        """Return the condition of the index to walk, where there is one for what is rare."""
        if table is not tables.certificate or self.filters.state != "revoked":
            return []
        return [table.c.revoked_at.is_not(None), table.c.not_after > 0]  # a bound, or SQLite takes the index by shards

    def _mostly(self, table: Table) -> bool:
        """Tell whether most of a table stands so, and other filters are met by what its index of ends covers."""
        f = self.filters
        return table is tables.found and f.standing == "foreign" and (f.key_type is not None or f.triage is not None)

    def _standing(self, sha256: ColumnElement[bytes]) -> list[Condition]:
        wanted = self.filters.standing
        return [] if wanted is None else [stands(sha256, tables.standing.c.state == wanted)]

    def _ends(self, table: Table) -> list[Condition]:
        """Return between which ends a walk goes."""
        f, c = self.filters, table.c.not_after
        ends: list[Condition] = []
        if f.state in ("valid", "superseded"):
            ends.append(c > self.now)
        if f.state == "expired":
            ends.append(c <= self.now)
        if f.expires_after is not None:
            ends.append(c >= f.expires_after)
        if f.expires_before is not None:
            ends.append(c < f.expires_before)
        return ends

    def _only(self, table: Table, ids: list[int] | None) -> list[Condition]:
        return [] if ids is None else [one_of(table.c.identity_id, ids, self.sqlite)]

    def _exact(self, table: Table) -> Condition | None:
        """Return a condition that an index answers with a few rows, where there is one."""
        f, meaning, c = self.filters, self.meaning, table.c
        if meaning.direct:
            return c.sha256.in_(meaning.direct)
        if f.serial is not None:
            return c.serial == f.serial
        if f.sha256 is not None:
            return c.sha256.between(*f.sha256)
        if f.key is not None:
            if table is tables.found:
                return c.spki_sha256 == f.key
            holder = select(tables.key.c.identity_id).where(tables.key.c.spki_sha256 == f.key)
            return c.identity_id == holder.scalar_subquery()  # a key belongs to one identity
        return None

    def _by_standing(self, table: Table, origin: str, conditions: list[Condition]) -> Plan:
        """Walk along the certificates that stand so: those that are to be looked at are few."""
        standing = tables.standing
        same = table.c.sha256 == standing.c.sha256
        if not self.sqlite:  # the end too: it says in which month to look
            same = and_(same, table.c.not_after == standing.c.not_after)
        joined = standing.join(table, same)
        # What is asked of the identity can be told before the certificate is looked up: its standing has the same.
        conditions = [_with(condition, table.c.identity_id, standing.c.identity_id) for condition in conditions]
        fixed = [standing.c.state == self.filters.standing, standing.c.origin == origin, *self._ends(standing)]
        return Plan(origin, standing, joined, conditions, fixed)


def _with(condition: Condition, column: ColumnElement[Any], other: ColumnElement[Any]) -> Condition:
    """Return the condition over another column."""
    return replacement_traverse(condition, {}, lambda element, **_: other if element is column else None)


FEW_CERTIFICATES = 50_000
"""So many are sorted at most; of more, the index of ends is walked."""

_AHEAD, _REVOKED = 0.15, 0.01
"""What part of all certificates has not ended, or was revoked. Where these guesses are wrong, a list takes longer than it could."""
_PAGE, _FITTING = 50, 0.1
"""Items of a page, and what part of the certificates of listed identities is likely to meet the other filters."""
_CHEAP = 5_000.0
"""Microseconds for which nothing is weighed."""


@dataclass(frozen=True, slots=True)
class _Costs:
    """Microseconds, and partitions of ``certificate`` that are looked into."""

    identity: float
    """To look one identity up in the index of one partition."""
    row: float
    """To read one of its certificates."""
    walked: float
    """To pass one certificate on a walk that is somebody else's."""
    months_ahead: int = 1
    months: int = 1


_COSTS = {True: _Costs(1.0, 2.0, 0.5), False: _Costs(3.0, 2.0, 1.2, 6, 20)}
"""By database, SQLite and PostgreSQL: measured, with everything in memory."""
