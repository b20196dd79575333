"""A made-up estate in rows: identities, certificates issued and found, where they stand and are seen; and the same as plain facts, so that
what a search must find can be told without one."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, insert

from handclasp.inventory.names import own_name
from handclasp.pki import ca
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from support.authorities import YEAR, key_of, serial

NOW = 1_800_000_000_000
HOUR, DAY = 3_600_000, 86_400_000
PROFILES, KEYS = ("workload", "server", "agent"), ("p256", "p384", "rsa2048")
STATES_OF_FOUND = ("unissued", "foreign", "expired_served", "past")
STATES_OF_ISSUED = ("seen", "gone", "old_served", "revoked_served", "unseen")


@dataclass
class Fact:
    """One certificate, with everything that a filter may ask about."""

    sha256: bytes
    origin: str
    not_after: int
    names: list[str]
    identity: str | None
    owner: str | None
    tier: str | None
    environment: str | None
    state: str
    key_type: str
    key: bytes
    serial: bytes
    issuer: str
    profile: str | None = None
    authority: str | None = None
    standing: str | None = None
    sources: set[str] = field(default_factory=set)
    ca: bool = False
    triage: str | None = None
    subject: str = ""


class Estate:
    """Makes rows from a seed. Some ends are the same, some texts hold what SQL would take for its own."""

    def __init__(self, seed: int, issued: int = 160, found: int = 90, identities: int = 30) -> None:
        self.random = random.Random(seed)
        self.facts: list[Fact] = []
        self.rows: dict[Any, list[dict[str, Any]]] = {}
        self._authorities()
        self.identities = [self._identity(number) for number in range(1, identities + 1)]
        for number in range(issued):
            self._issued(number)
        for number in range(found):
            self._found(number)

    def _add(self, table: Any, **row: Any) -> dict[str, Any]:
        self.rows.setdefault(table, []).append(row)
        return row

    def _digest(self, *parts: object) -> bytes:
        return hashlib.sha256(repr(parts).encode()).digest()

    def _authorities(self) -> None:
        for number, name in ((1, "prod-issuing"), (2, "dev-issuing")):
            der = ca.self_signed_root(
                key_of("p256", number), common_name=f"Example {name}", trust_domain="example.org", now=NOW, lifetime=YEAR, serial=serial(),
                backdate=0,
            )  # fmt: skip
            self._add(
                tables.authority, id=number, name=name, kind="issuing", trust_domain="example.org", sha256=self._digest(name), der=der,
                chain=b"", key_uri=None, dns_zones="[]", crl_shards=1, crl_base="", state="active", created_at=1,
            )  # fmt: skip
        for number, name, ours in ((1, "CN=Foreign CA,O=Acme", None), (2, "CN=100%_sure,O=R3", None), (3, "CN=Example dev-issuing", 2)):
            self._add(tables.issuer, id=number, name=name, key_id=b"", authority_id=ours)
        for number, name in ((1, "edge"), (2, "files")):
            self._add(tables.source, id=number, name=name, kind="network", every=0, created_at=1, created_by="test")
            for place in (1, 2):
                self._add(
                    tables.location, id=number * 10 + place, source_id=number, key=f"{name}:{place}", kind="endpoint",
                    shown=f"{name}-{place}:443",
                    host=f"{name}-{place}", first_seen_at=1, seen_at=NOW - HOUR, tried_at=NOW - HOUR,
                    problem="refused" if place == 2 else None,
                )  # fmt: skip

    def _identity(self, number: int) -> dict[str, Any]:
        pick = self.random.choice
        name = pick(
            [
                f"spiffe://example.org/{pick(['prod', 'dev'])}/{pick(['web', 'Web_1', 'ledger', 'a-b'])}-{number}",
                f"dns:{pick(['api', 'www', '*'])}{number}.{pick(['prod', 'dev'])}.example.org",
            ]
        )
        owner, tier = pick(["team-web", "team-ledger", None]), pick(["1", "2", None])
        row = self._add(tables.identity, id=number, name=name, owner=owner, tier=tier, environment=pick(["prod", None]), created_at=1)
        names = {own_name(name).lower(), f"host{number}.{pick(['corp', 'prod'])}.example.com", f"50%_{number}.example.net"}
        for text in sorted(names):
            known = self.rows.setdefault(tables.name, [])
            self._add(tables.name, id=len(known) + 1, text=text, reversed=text[::-1])
            self._add(tables.identity_name, name_id=len(known), identity_id=number)
        return {**row, "names": names}

    def _common(self, kind: str, number: int) -> dict[str, Any]:
        sha256 = self._digest(kind, number)
        end = NOW + self.random.choice([-30 * DAY, -DAY, HOUR, DAY, 30 * DAY, self.random.randrange(-DAY, DAY)])
        serial = (b"\0" if sha256[1] >= 0x80 else b"") + sha256[1:16]
        return {
            "sha256": sha256,
            "serial": serial,
            "not_after": end,
            "not_before": end - 40 * DAY,
            "spki_sha256": self._digest("key", kind, number),
        }

    def _issued(self, number: int) -> None:
        pick, common = self.random.choice, self._common("issued", number)
        who, authority = pick(self.identities), pick([1, 2])
        superseded, revoked = pick([None, None, self._digest("next")]), pick([None, None, None, NOW - HOUR])
        row = self._add(
            tables.certificate, **common, der=b"", authority_id=authority, identity_id=who["id"], profile=pick(PROFILES),
            names='{"dns": []}',
            key_type=pick(KEYS), renew_after=common["not_after"], renew_before=common["not_after"], line=common["sha256"], generation=0,
            predecessor=None, superseded_by=superseded, superseded_at=None, granted_by="policy:web", obtained_by="token:a (a)",
            revoked_at=revoked, revocation_reason=None, crl_shard=0, log_index=number,
        )  # fmt: skip
        self._add(tables.key, spki_sha256=row["spki_sha256"], identity_id=who["id"], first_seen_at=1)
        ended = row["not_after"] <= NOW
        state = "revoked" if revoked else "expired" if ended else "superseded" if superseded else "valid"
        name = self.rows[tables.authority][authority - 1]["name"]
        fact = self._fact(row, "issued", who, state, f"CN=Example {name}", profile=row["profile"], authority=name)
        self._seen(row, fact, STATES_OF_ISSUED)

    def _found(self, number: int) -> None:
        pick, common = self.random.choice, self._common("found", number)
        ca = self.random.random() < 0.2
        who = None if ca else pick(self.identities)
        issuer, ours = pick([1, 2, 3]), pick([None, None, 1])
        subject = f"CN={pick(['Root of 100%', 'Proxy', 'Legacy web'])} {number}"
        row = self._add(
            tables.found, **common, der=None, issuer_id=issuer, identity_id=who["id"] if who else None, subject=subject, names="{}",
            key_type=pick(KEYS), signature="", usages="[]", is_ca=int(ca), authority_id=ours, first_seen_at=1, problem=None,
            triage=pick(["unmanaged", "claimed", "dismissed"]),
        )  # fmt: skip
        authority = "prod-issuing" if ours else None
        state = "expired" if row["not_after"] <= NOW else "valid"
        named = self.rows[tables.issuer][issuer - 1]["name"]
        fact = self._fact(row, "found", who, state, named, authority=authority, ca=ca, triage=row["triage"], subject=subject if ca else "")
        if not ca:
            self._seen(row, fact, STATES_OF_FOUND)

    def _fact(self, row: dict[str, Any], origin: str, who: dict[str, Any] | None, state: str, issuer: str, **more: Any) -> Fact:
        of = who or {"name": None, "owner": None, "tier": None, "environment": None, "names": []}
        fact = Fact(
            row["sha256"], origin, row["not_after"], sorted(of["names"]), of["name"], of["owner"], of["tier"], of["environment"], state,
            row["key_type"], row["spki_sha256"], row["serial"], issuer, **more,
        )  # fmt: skip
        self.facts.append(fact)
        return fact

    def _seen(self, row: dict[str, Any], fact: Fact, states: tuple[str, ...]) -> None:
        if self.random.random() < 0.4:
            return
        fact.standing = self.random.choice(states)
        place = self.random.choice([11, 12, 21, 22])
        ended = self.random.choice([None, NOW - DAY])
        if ended is None:
            fact.sources.add("edge" if place < 20 else "files")
        number = len(self.rows.setdefault(tables.sighting, [])) + 1
        self._add(
            tables.sighting, id=number, location_id=place, sha256=row["sha256"], role="served", first_seen_at=NOW - 2 * DAY,
            last_seen_at=ended or NOW - HOUR, ended_at=ended,
        )  # fmt: skip
        self._add(
            tables.standing, sha256=row["sha256"], origin=fact.origin, state=fact.standing, since_at=NOW - DAY, due_at=None,
            identity_id=row["identity_id"], not_after=row["not_after"], open=int(ended is None), first_seen_at=NOW - 2 * DAY,
            last_seen_at=ended or NOW - HOUR,
        )  # fmt: skip

    async def store(self, store: Store) -> None:
        """Put the rows in the database, and what followers of the log would keep beside them."""
        for number in {row["identity_id"] for row in self.rows[tables.certificate]}:
            mine = [row for row in self.rows[tables.certificate] if row["identity_id"] == number]
            newest = max(mine, key=lambda row: row["not_after"])
            due = min(newest["renew_before"], newest["revoked_at"] or newest["renew_before"])
            self._add(
                tables.summary, identity_id=number, issued=len(mine), newest=newest["sha256"], newest_not_before=newest["not_before"],
                newest_not_after=newest["not_after"], newest_renew_before=due, newest_origin="issued",
            )  # fmt: skip
        order = [table for table in tables.metadata.sorted_tables if table in self.rows]
        changes = [_insert(table, self.rows[table]) for table in order]
        await store.ledger.commit(Write([], changes))

    def describe(self) -> str:
        """What it holds, for a failing test."""
        return json.dumps({table.name: len(rows) for table, rows in self.rows.items()})


def _insert(table: Any, rows: list[dict[str, Any]]) -> Change:
    """Insert the columns that the rows have; the others get their defaults."""
    values = {name: bindparam(f"b_{name}") for name in rows[0]}
    return Change(insert(table).values(values), rows=[{f"b_{name}": value for name, value in row.items()} for row in rows])
