"""Test data of the inventory: an installation of a given size, made in minutes, straight into the tables.

``python -m bench.inventory_data DATABASE_URL --certificates 1000000`` fills a database that ``handclasp init`` made (or an empty one).
The shape is that of a company with a mesh: certificates mostly live for hours and are mostly expired and superseded, ten to an identity;
namespaces own services, teams own namespaces; one certificate in twenty was found and not issued here. What depends on other rows (newest
certificate, standing, counters) is what the inventory itself would have written, and counters are kept by the
database's triggers. The log is not made: rows point to places it does not have.

The same size, seed and time give the same rows.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.inventory_load import Loader, open_loader
from handclasp.clock import system_clock
from handclasp.inventory.states import Facts, Graces, judge
from handclasp.store.counters import COUNTED
from handclasp.store.migrate import upgrade
from handclasp.store.partitions import Month, Partitions

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
PER_IDENTITY = 10
FOUND_SHARE = 0.05
NAMESPACES, TEAMS, FOREIGN_ISSUERS = 100, 200, 18
HISTORY_DAYS = 390
"""How far back identities go that are no more: thirteen months, so that a table by months has that many."""

_SERVICES = (
    "api", "web", "checkout", "ledger", "search", "cart", "auth", "billing", "mail", "stream", "ingest", "report", "quote", "price",
    "stock", "media", "session", "profile", "notify", "export",
)  # fmt: skip
_TEAMS = ("payments", "platform", "storefront", "identity", "data", "risk", "mobile", "logistics", "support", "network")
_LIFETIMES = ((0.55, HOUR), (0.25, 24 * HOUR), (0.15, 30 * DAY), (0.05, 90 * DAY))
_KEY_TYPES = ("p256",) * 14 + ("ed25519",) * 3 + ("rsa2048",) * 2 + ("p384",)
_LOCATION_KINDS = ("endpoint",) * 5 + ("kubernetes",) * 2 + ("file",) * 2 + ("mesh",)

CERTIFICATE = (
    "sha256", "serial", "der", "authority_id", "identity_id", "profile", "names", "spki_sha256", "key_type", "not_before", "not_after",
    "renew_after", "renew_before", "line", "generation", "predecessor", "superseded_by", "superseded_at", "granted_by", "obtained_by",
    "revoked_at", "revocation_reason", "crl_shard", "log_index",
)  # fmt: skip
FOUND = (
    "sha256", "der", "serial", "issuer_id", "identity_id", "subject", "names", "spki_sha256", "key_type", "signature", "usages", "is_ca",
    "not_before", "not_after", "authority_id", "first_seen_at", "triage", "triage_by", "triage_at", "triage_reason",
)  # fmt: skip
COLUMNS: dict[str, tuple[str, ...]] = {
    "certificate": CERTIFICATE,
    "found": FOUND,
    "identity": ("id", "name", "owner", "tier", "environment", "created_at"),
    "summary": ("identity_id", "issued", "newest", "newest_not_before", "newest_not_after", "newest_renew_before", "newest_origin"),
    "name": ("id", "text", "reversed"),
    "identity_name": ("name_id", "identity_id"),
    "issuer": ("id", "name", "key_id", "authority_id"),
    "owner": ("name", "kind", "title", "contact", "created_at", "updated_at"),
    "assignment": ("identity_id", "evidence", "owner", "tier", "environment", "rule", "detail", "confidence", "at", "stands"),
    "source": ("id", "name", "kind", "every", "runs", "created_at", "created_by", "success_at"),
    "location": (
        "id", "source_id", "key", "kind", "unit", "shown", "host", "content", "first_seen_at", "seen_at", "tried_at", "gone_at",
    ),
    "sighting": ("id", "location_id", "sha256", "role", "chain", "how", "first_seen_at", "last_seen_at", "ended_at"),
    "standing": (
        "sha256", "origin", "state", "since_at", "due_at", "identity_id", "not_after", "open", "first_seen_at", "last_seen_at", "version",
    ),
    "tally": ("kind", "bucket", "number"),
}  # fmt: skip
"""The columns that are filled, in the order of the rows that :class:`World` makes."""


@dataclass(slots=True)
class _Person:
    """One identity while its rows are made."""

    id: int
    name: str
    namespace: int
    number: int
    owner: str | None
    tier: str | None
    environment: str
    dns: str | None
    born: int = 0
    issued: int = 0
    newest: tuple[Any, ...] | None = None


@dataclass
class World:
    """All rows of one installation, in batches of a table each."""

    certificates: int
    now: int
    seed: int = 4
    authorities: Sequence[int] = (2,)
    first_ids: dict[str, int] = field(default_factory=dict)
    """The highest row numbers that are taken already, by table."""
    tallies: Counter[tuple[str, str]] = field(default_factory=Counter)
    _random: random.Random = field(init=False)
    _rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    _counter: int = 0
    _templates: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._templates = [template(usage, self._random) for usage in range(4)]

    def batches(self, size: int = 20_000) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        """Yield ``(table, rows)``; whoever refers to a row comes after it or in the same batch's neighbourhood, in no stricter order."""
        self._rows = {table: [] for table in COLUMNS}
        self._small_tables()
        found = int(self.certificates * FOUND_SHARE)
        for _ in self._issued(self.certificates - found):
            yield from self._full(size)
        for _ in self._found(found):
            yield from self._full(size)
        by_triggers = {counted.kind for counted in COUNTED}
        for (kind, bucket), number in self.tallies.items():
            if kind not in by_triggers:  # those count the rows themselves, as they are loaded
                self._rows["tally"].append((kind, bucket, number))
        yield from self._full(0)

    def _full(self, size: int) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        for table, rows in self._rows.items():
            if len(rows) > size:
                self._rows[table] = []
                yield table, rows

    def _next(self, table: str) -> int:
        self.first_ids[table] = self.first_ids.get(table, 0) + 1
        return self.first_ids[table]

    def _bytes(self, what: str) -> bytes:
        self._counter += 1
        return hashlib.sha256(f"{self.seed}:{what}:{self._counter}".encode()).digest()

    def _der(self, serial: bytes) -> bytes:
        kind = self._templates[serial[5] & 3]
        at = kind.index(_SERIAL)
        return kind[:at] + serial + kind[at + len(serial) :]

    # --- what there is few of ---

    def _small_tables(self) -> None:
        rows, now = self._rows, self.now
        for number in range(TEAMS):
            team = f"team-{_TEAMS[number % len(_TEAMS)]}-{number // len(_TEAMS):02}"
            rows["owner"].append((team, "team", team.title(), f"#{team}", now - 300 * DAY, now - DAY))
        for number, authority in enumerate(self.authorities):
            rows["issuer"].append((self._next("issuer"), f"CN=issuing-{number},O=example.org", self._bytes("key id")[:20], authority))
        for number in range(FOREIGN_ISSUERS):
            name = f"CN=Foreign CA {number:02},O={_TEAMS[number % len(_TEAMS)].title()} Trust"
            rows["issuer"].append((self._next("issuer"), name, self._bytes("key id")[:20], None))
        self.first_issuer = self.first_ids["issuer"] - FOREIGN_ISSUERS + 1
        self.own_issuer = self.first_issuer - len(self.authorities)
        self.first_source = self.first_ids.get("source", 0) + 1
        for kind in ("network", "kubernetes", "files", "istio"):
            for number in range(3):
                rows["source"].append(
                    (self._next("source"), f"{kind}-{number}", kind, DAY, "server", now - 200 * DAY, "token:bench", now - HOUR)
                )

    # --- what was issued ---

    def _issued(self, wanted: int) -> Iterator[None]:
        made = 0
        while made < wanted:
            person = self._person()
            lifetime = self._lifetime()
            ended = self._random.random() < 0.35
            newest_end = self.now + int(lifetime * (0.35 + 0.6 * self._random.random()))
            if ended:  # an identity that is no more
                newest_end = self.now - int(self._random.random() ** 1.5 * HISTORY_DAYS * DAY) - 1000
            count = min(wanted - made, 1 + int(self._random.expovariate(1 / PER_IDENTITY)), 2 + HISTORY_DAYS * DAY // lifetime)
            self._line(person, lifetime, newest_end // 1000 * 1000, count)
            made += count
            self._close(person)
            yield

    def _lifetime(self) -> int:
        left = self._random.random()
        for share, lifetime in _LIFETIMES:
            left -= share
            if left < 0:
                return lifetime
        return _LIFETIMES[-1][1]

    def _person(self) -> _Person:
        number = self._next("identity")
        namespace = number % NAMESPACES
        service = f"{_SERVICES[number // NAMESPACES % len(_SERVICES)]}-{number // NAMESPACES:05}"
        team, environment = (
            f"{_TEAMS[namespace % len(_TEAMS)]}-{namespace // len(_TEAMS):02}",
            ("prod", "prod", "staging", "dev")[namespace % 4],
        )
        kind = self._random.random()
        dns = f"{service}.{team}.{environment}.example.org" if kind > 0.55 else None
        name = f"dns:{dns}" if kind > 0.85 else f"spiffe://example.org/{environment}/ns/{team}/sa/{service}"
        owned = self._random.random() < 0.85
        owner = f"team-{_TEAMS[namespace % len(_TEAMS)]}-{number % (TEAMS // len(_TEAMS)):02}" if owned else None
        return _Person(number, name, namespace, number, owner, str(1 + number % 4) if owned else None, environment, dns)

    def _line(self, person: _Person, lifetime: int, newest_end: int, count: int) -> None:
        """Make the certificates of one line, oldest first: each renewed at about six tenths of its life."""
        step = int(lifetime * 0.6)
        key_type = self._random.choice(_KEY_TYPES)
        names = json.dumps({"dns": [person.dns]} if person.dns else {}, separators=(",", ":"))
        authority = self._random.choice(self.authorities)
        serials = [b"\x3f" + self._bytes("serial")[:19] for _ in range(count)]
        ders = [self._der(serial) for serial in serials]
        prints = [hashlib.sha256(der).digest() for der in ders]
        granted, shard = f"token:bench{person.namespace:02}", person.id % 16
        add = self._rows["certificate"].append
        for place in range(count):
            end = newest_end - (count - 1 - place) * step // 1000 * 1000
            begin = end - lifetime
            newest = place == count - 1
            revoked = self._random.random() < 0.004
            superseded_at = None if newest else begin + step
            predecessor = prints[place - 1] if place else None
            add(
                (prints[place], serials[place], ders[place], authority, person.id, "workload", names, self._bytes("key"), key_type, begin,
                 end, begin + step // 2, begin + step, prints[0], place, predecessor, None if newest else prints[place + 1], superseded_at,
                 granted, granted, begin + MINUTE if revoked else None, 1 if revoked else None, shard, self._counter)
            )  # fmt: skip
            self.tallies["issued" if place == 0 else "renewed", hour(begin)] += 1
            if place == 0:
                person.born = begin
            if newest or (place == count - 2 and self._random.random() < 0.3):
                self._see_issued(person, prints[place], begin, end, superseded_at, revoked)
        person.issued = count
        person.newest = (prints[-1], newest_end - lifetime, newest_end, newest_end - lifetime + step, "issued")

    def _see_issued(self, person: _Person, sha256: bytes, begin: int, end: int, superseded_at: int | None, revoked: bool) -> None:
        """Let one in two of what is current be seen somewhere, and a few of what should not be seen any more."""
        chance, now = self._random.random(), self.now
        open_ = end > now and superseded_at is None and chance < 0.5
        stale = (end <= now or superseded_at is not None or revoked) and chance < 0.02
        ended = not open_ and not stale and chance < 0.55
        if not (open_ or stale or ended):
            never = Facts("issued", end, superseded_at=superseded_at, revoked_at=begin + MINUTE if revoked else None, issued_at=begin)
            self._stand(sha256, never, person.id, 0)
            return
        last = now if open_ or stale else max(begin + MINUTE, min(now - HOUR, end))
        places = self._see(sha256, begin + MINUTE, last, open_=open_ or stale)
        facts = Facts(
            "issued", end, begin + MINUTE, places if open_ or stale else 0, used_at=last, superseded_at=superseded_at,
            revoked_at=begin + MINUTE if revoked else None, issued_at=begin,
        )  # fmt: skip
        self._stand(sha256, facts, person.id, last)

    # --- what was found ---

    def _found(self, wanted: int) -> Iterator[None]:
        made = 0
        while made < wanted:
            person = self._person()
            person.dns = f"legacy-{person.id}.corp.example.net"
            person.name, person.owner = f"dns:{person.dns}", person.owner if person.id % 3 == 0 else None
            count = min(wanted - made, 1 + int(self._random.expovariate(0.5)))
            for place in range(count):
                self._found_one(person, place, last=place == count - 1)
            made += count
            self._close(person)
            yield

    def _found_one(self, person: _Person, place: int, *, last: bool) -> None:
        now, chance = self.now, self._random.random()
        lifetime = 90 * DAY if chance < 0.7 else 365 * DAY
        end = now + int(lifetime * (0.05 + 0.9 * self._random.random())) - (0 if last else lifetime * (1 + self._random.randrange(3)))
        end = end // 1000 * 1000
        begin = end - lifetime
        ours = self.authorities[0] if chance < 0.01 else None
        serial = b"\x3e" + self._bytes("serial")[:19]
        der = self._der(serial)
        sha256, seen = hashlib.sha256(der).digest(), max(begin, now - 200 * DAY) + HOUR
        issuer = self.own_issuer if ours is not None else self.first_issuer + person.id % FOREIGN_ISSUERS
        triage = "unmanaged" if chance < 0.8 else ("claimed", "dismissed", "investigate")[place % 3]
        said = (None, None, None) if triage == "unmanaged" else ("token:bench", now - DAY, "known to the team")
        self._rows["found"].append(
            (sha256, der, serial, issuer, person.id, f"CN={person.dns}", json.dumps({"dns": [person.dns]}, separators=(",", ":")),
             self._bytes("key"), "rsa2048" if chance < 0.6 else "p256", "rsa-sha256", '["server_auth"]', 0, begin, end, ours, seen,
             triage, *said)
        )  # fmt: skip
        open_ = last or chance < 0.05
        until = now if open_ else max(seen, min(now - HOUR, end))
        places = self._see(sha256, seen, until, open_=open_)
        self._stand(sha256, Facts("found", end, seen, places if open_ else 0, used_at=until, ours=ours is not None), person.id, until)
        person.born = min(person.born or seen, seen)
        if person.newest is None or end > person.newest[2]:
            person.newest = (sha256, begin, end, None, "found")

    # --- where it was seen ---

    def _see(self, sha256: bytes, first: int, last: int, *, open_: bool) -> int:
        """Put it at one to three locations of its own; return at how many."""
        places = 1 + (self._random.random() < 0.3) + (self._random.random() < 0.1)
        for _ in range(places):
            number = self._next("location")
            kind = _LOCATION_KINDS[number % len(_LOCATION_KINDS)]
            host = f"node-{number % 4000:04}.example.org"
            place = f"{kind}:{host}:{number}"
            source = self.first_source + number % 12
            gone = None if open_ else last + HOUR
            self._rows["location"].append(
                (
                    number,
                    source,
                    place,
                    kind,
                    f"unit-{number % 500}",
                    f"{host}/{number}",
                    host,
                    self._bytes("content"),
                    first,
                    last,
                    last,
                    gone,
                )
            )
            self._rows["sighting"].append(
                (
                    self._next("sighting"),
                    number,
                    sha256,
                    "served" if kind in ("endpoint", "mesh") else "stored",
                    "[]",
                    "{}",
                    first,
                    last,
                    gone,
                )
            )
        return places

    def _stand(self, sha256: bytes, facts: Facts, identity: int, last: int) -> None:
        """Judge it as the inventory does; nothing is said of most of what was never seen."""
        stands = judge(facts, self.now, Graces())
        if stands is None:
            return
        first = facts.first_seen_at or 0
        self._rows["standing"].append(
            (sha256, facts.origin, stands.state, first or self.now, stands.due_at, identity, facts.not_after, facts.open, first, last, 1)
        )

    def _close(self, person: _Person) -> None:
        """Write what is known of an identity when its certificates are made."""
        rows = self._rows
        rows["identity"].append((person.id, person.name, person.owner, person.tier, person.environment, person.born or self.now))
        assert person.newest is not None
        sha256, begin, end, renew_before, origin = person.newest
        rows["summary"].append((person.id, person.issued, sha256, begin, end, renew_before, origin))
        texts = [person.name.removeprefix("dns:").lower(), *([person.dns] if person.dns and person.name.startswith("spiffe:") else [])]
        for text in texts:
            name_id = self._next("name")
            rows["name"].append((name_id, text, text[::-1]))
            rows["identity_name"].append((name_id, person.id))
        if person.owner is not None:
            rows["assignment"].append(
                (
                    person.id,
                    "namespace",
                    person.owner,
                    person.tier,
                    person.environment,
                    "namespaces",
                    f"namespace {person.namespace}",
                    80,
                    self.now - DAY,
                    "owner",
                )
            )


def hour(at: int) -> str:
    """Return the bucket of a time, as counters name it."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%dT%H")


_SERIAL = b"\x3f" + b"\xa5" * 19


def template(number: int, source: random.Random) -> bytes:
    """Return the DER of a certificate, of a size that is usual, with a serial number that is easily found and replaced."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.derive_private_key(source.getrandbits(200) + 1, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"template-{number}")])
    issuer = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "example.org"), x509.NameAttribute(NameOID.COMMON_NAME, "issuing")])
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    names = [x509.UniformResourceIdentifier(f"spiffe://example.org/prod/ns/template-{number}/sa/web")]
    names_dns = [x509.DNSName(f"web-{part}.template-{number}.svc.cluster.example.org") for part in range(1 + number)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    points = [x509.DistributionPoint([x509.UniformResourceIdentifier("http://ca.example.org/crl/issuing/00.crl")], None, None, None)]
    builder = (
        x509.CertificateBuilder(issuer, name, key.public_key(), int.from_bytes(_SERIAL), begin, begin + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([*names, *names_dns]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.CRLDistributionPoints(points), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


async def fill(url: str, certificates: int, *, seed: int = 4, now: int | None = None) -> dict[str, int]:
    """Fill the database at ``url``, which may have been initialised, and return the number of rows of each table."""
    now = now or system_clock()
    await upgrade(url)
    if not url.startswith("sqlite:"):
        first = Month.of(now - HISTORY_DAYS * DAY - _LIFETIMES[-1][1])
        await Partitions(url).make(first, HISTORY_DAYS // 30 + 8)
    loader: Loader = await open_loader(url)
    try:
        authorities, first_ids = await loader.facts()
        world = World(certificates, now, seed, authorities or (2,), first_ids)
        counts: Counter[str] = Counter()
        await loader.begin(COLUMNS)
        for table, rows in world.batches():
            await loader.add(table, COLUMNS[table], rows)
            counts[table] += len(rows)
        await loader.finish()
        return dict(counts)
    finally:
        await loader.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.inventory_data", description="Fill a database with an inventory to measure.")
    parser.add_argument("url", help="sqlite:///PATH or postgresql://…")
    parser.add_argument("--certificates", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    began = time.monotonic()
    for table, number in asyncio.run(fill(arguments.url, arguments.certificates, seed=arguments.seed)).items():
        print(f"{table:16} {number:12,}")
    print(f"{time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
