"""An installation with a day behind it, for the console's tests and pictures: made by the server's own rooms, by a clock that runs fast.

It has a bit of everything: lines of certificates, places that serve them, certificates that were found and never issued, owners and what
nobody owns, agents, a rotation, a policy, refusals.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from handclasp.access.principals import TokenPrincipal
from handclasp.api.internal import InternalApi
from handclasp.api.table import API
from handclasp.clock import rfc3339, system_clock, to_datetime
from handclasp.errors import HandclaspError
from handclasp.issuance.holders import holder_of
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate, Source
from handclasp.pki import keys
from handclasp.server.instance import Instance, open_instance
from handclasp.server.settings import Settings
from handclasp.server.setup import initialise
from handclasp.wire.observations import Covered, Observed, Seen, SeenKey, Sightings
from support.issuing import fresh_csr

DOMAIN = "example.org"
HOUR = 3_600_000
HERE = Source("rest", "10.20.0.7")
MARKUP = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
"""What a hostile certificate has in its names."""
LONG = f"{'w' * 63}.{'x' * 63}.example.com"
"""A name without a place to break."""

WORKLOADS = {
    "prod/payments/api": "payments",
    "prod/payments/ledger": "payments",
    "prod/payments/worker": "payments",
    "prod/shop/web": "shop",
    "prod/shop/cart": "shop",
    "prod/shop/search": "shop",
    "prod/identity/login": "identity",
    "prod/identity/mail": "",
    "staging/shop/web": "shop",
    "staging/payments/api": "payments",
    "prod/reports/nightly": "",
}
"""Path of the SPIFFE ID, and the owner of the token that it is obtained with."""
OWNERS = (
    {"name": "payments", "title": "Payments", "contact": "#payments-oncall", "escalation": "platform"},
    {"name": "shop", "title": "Shop", "contact": "shop@example.org", "escalation": "platform"},
    {"name": "identity", "title": "Identity and access", "contact": "#identity"},
    {"name": "platform", "title": "Platform", "contact": "platform@example.org"},
)
RULES = """\
version: 1
rules:
  - {name: paths, spiffe: "spiffe://example.org/*/{team}/*", owner: "{team}"}
  - {name: prod, spiffe: "spiffe://example.org/prod/**", environment: prod, tier: 1}
  - {name: staging, spiffe: "spiffe://example.org/staging/**", environment: staging, tier: 3}
"""
POLICY = """\
version: 1
grants:
  - name: shop-agents
    principals: [{agent: {role: shop}}]
    identities: ["spiffe://example.org/prod/shop/*"]
    profiles: [workload]
    max_ttl: 24h
deny:
  - {name: no-root, identities: ["spiffe://example.org/root/**"], reason: kept for the platform team}
"""


@dataclass
class Clock:
    """A clock that stands where it is put."""

    now: int

    def __call__(self) -> int:
        return self.now


@dataclass
class World:
    """What was made, by what tests want to open."""

    identity: str = ""
    issued: str = ""
    """A certificate that is valid."""
    revocable: str = ""
    foreign: str = ""
    unissued: str = ""
    hostile: str = ""
    token: str = ""
    rotation: str = ""
    agent: str = ""
    location: int = 0
    scan: str = ""
    more: dict[str, Any] = field(default_factory=dict)


def furnish(data: Path, *, hostile: bool = True, database: str = "") -> World:
    """Make the installation in ``data``; the server that is started on it then serves it."""
    return asyncio.run(_furnish(data, hostile, database))


async def _furnish(data: Path, hostile: bool, database: str) -> World:
    clock = Clock(system_clock() - 26 * HOUR)
    settings = Settings.load({"data": str(data), "trust_domain": DOMAIN, "database": database}, env={})
    await initialise(settings, clock=clock)
    instance = await open_instance(settings, clock=clock)
    try:
        return await _Builder(instance, clock).build(hostile)
    finally:
        await instance.close()


class _Builder:
    def __init__(self, instance: Instance, clock: Clock) -> None:
        self.instance = instance
        self.services = instance.services
        self.clock = clock
        self.api = InternalApi(API, instance.services)
        self.world = World()
        self.lines: dict[str, IssuedCertificate] = {}
        self.admin: Any = None

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        return await self.api.call(self.admin, method, path, query, body, HERE)

    async def build(self, hostile: bool) -> World:
        token = (self.instance.settings.data / "admin.token").read_text().strip()
        self.admin = await self.services.tokens.authenticate(token)
        await self.owners()
        await self.issue_all()
        for _ in range(4):
            self.clock.now += 6 * HOUR
            await self.renew_all()
        await self.agents()
        await self.discover(hostile)
        await self.decide()
        await self.settle()
        await self.look_up()
        return self.world

    async def owners(self) -> None:
        await self.call("PUT", "/v1/owners", {"directory": "backstage", "owners": [dict(one) for one in OWNERS]})
        await self.call("PUT", "/v1/ownership", {"text": RULES})
        await self.call("PUT", "/v1/policy", {"text": POLICY})

    async def principal(self, **wanted: Any) -> TokenPrincipal:
        known: dict[str, Any] = {"profiles": ["workload"], "uses": 0, "expires": "30d"}
        made = await self.call("POST", "/v1/tokens", known | wanted)
        self.world.token = made.id
        return await self.services.tokens.authenticate(made.token)

    async def issue_all(self) -> None:
        for path, owner in WORKLOADS.items():
            identity = f"spiffe://{DOMAIN}/{path}"
            name = path.replace("/", "-")
            more: dict[str, Any] = {"owner": owner} if owner else {}
            principal = await self.principal(name=name, allow=[identity], allow_dns=[f"{name}.example.org"], max_ttl="24h", **more)
            request = IssuanceRequest(principal, fresh_csr(), HERE, identity=identity, dns=[f"{name}.example.org"], ttl=8 * 3600)
            self.lines[path] = await self.services.issuance.issue(request)

    async def renew_all(self) -> None:
        """Renew what is due but for the nightly job, which nobody looks after; and refuse somebody."""
        for path, before in list(self.lines.items()):
            self.clock.now += 40_000
            if path.endswith("nightly"):
                continue
            holder = await holder_of(self.services, before.sha256)
            request = IssuanceRequest(holder, fresh_csr(), HERE, predecessor=before.sha256, ttl=8 * 3600)
            self.world.more[path] = before.sha256.hex()
            self.lines[path] = await self.services.issuance.issue(request)
        stranger = await holder_of(self.services, self.lines["staging/shop/web"].sha256)
        try:
            await self.services.issuance.issue(
                IssuanceRequest(stranger, fresh_csr(), HERE, identity=f"spiffe://{DOMAIN}/prod/payments/api")
            )
        except HandclaspError:
            return
        raise AssertionError("staging obtained what is production's")

    async def agents(self) -> None:
        for number, (host, workload) in enumerate((("shop-1", "prod/shop/web"), ("pay-1", "prod/payments/api"))):
            identity = f"spiffe://{DOMAIN}/agent/{host}"
            labels = {"role": host.partition("-")[0], "zone": "ab"[number]}
            principal = await self.principal(name=f"enrol-{host}", agent=True, labels=labels, profiles=["agent"], uses=1)
            issued = await self.services.issuance.issue(IssuanceRequest(principal, fresh_csr(), HERE, identity=identity, profile="agent"))
            holder = await holder_of(self.services, issued.sha256)
            held = self.lines[workload]
            failed = number == 1
            target = {
                "name": f"files /etc/{workload.rpartition('/')[2]}/tls",
                "state": "failed" if failed else "ok",
                "sha256": held.sha256.hex(),
            }
            if failed:
                target["last_failure"] = "reload: systemctl reload nginx: exit code 1"
            one = {
                "identity": f"spiffe://{DOMAIN}/{workload}",
                "sha256": held.sha256.hex(),
                "not_after": rfc3339(held.not_after),
                "renew_at": rfc3339(held.renew_after),
                "state": "failed" if failed else "ok",
                "rotations": 4,
                "last_success": rfc3339(self.clock.now),
                "targets": [target],
            }
            body = {"hostname": f"{host}.example.org", "version": "0.1.0", "identities": [one]}
            await self.api.call(holder, "PUT", "/v1/agents/self", None, body, HERE)
            self.world.agent = identity

    # --- what is seen ---------------------------------------------------------------------------------------------------------------

    async def discover(self, hostile: bool) -> None:
        web = {"name": "edge", "kind": "network", "scope": {"allow": ["10.20.0.0/24"]}, "settings": {}, "every": "1h", "runs": "collector"}
        await self.call("POST", "/v1/sources", web)
        files = {"name": "hosts", "kind": "files", "settings": {"paths": ["/etc/ssl", "/etc/nginx"]}, "every": "6h"}
        await self.call("POST", "/v1/sources", files)
        await self.call("POST", "/v1/sources", {"name": "lemur", "kind": "import"})
        for back in (20 * HOUR, 0):
            now, self.clock.now = self.clock.now, self.clock.now - back
            await self.record("edge", self.endpoints(now, first=bool(back)))
            await self.record("hosts", self.in_files(), covered=["/etc"])
            self.clock.now = now
        odd = [self.found("legacy.example.net", days=-3), self.found("partner.example.com", days=40, issuer="Partner Root")]
        if hostile:
            odd.append(self.found(LONG, days=90, issuer="I" * 64))
            odd.append(self.found(MARKUP, days=12, issuer=MARKUP))
            self.world.hostile = hashlib.sha256(odd[-1]).hexdigest()
        places = [self.place(f"tls:10.20.0.{90 + n}:443/", f"10.20.0.{90 + n}:443", one) for n, one in enumerate(odd)]
        places.append(
            Observed(key="tls:10.20.0.99:443/", kind="endpoint", shown="10.20.0.99:443", at=self.clock.now, problem="connection refused")
        )
        if hostile:
            places[-2].shown = f"{MARKUP}:443"
            places[-2].details = {"server": MARKUP}
        await self.record("edge", places)
        self.world.foreign = hashlib.sha256(odd[1]).hexdigest()

    def endpoints(self, now: int, *, first: bool) -> list[Observed]:
        """Everything that is served; the first time it was the certificates of then."""
        shown = []
        for number, path in enumerate(list(WORKLOADS)[:8]):
            name = path.replace("/", "-")
            sha256 = self.lines[path].sha256
            if first or path == "prod/shop/search":  # this one was never reloaded
                sha256 = bytes.fromhex(self.world.more[path])
            host, shown_as = f"10.20.0.{number + 10}", f"{name}.example.org"
            seen = Seen(sha256=sha256, role="served", how={"tls": "TLSv1.3", "sni": shown_as})
            one = Observed(
                key=f"tls:{host}:8443/{shown_as}",
                kind="endpoint",
                shown=f"{shown_as}:8443",
                host=host,
                at=self.clock.now,
                certificates=[seen],
                details={"protocol": "tls", "client_certificate": "required"},
            )
            shown.append(one)
        if not first:
            rogue = self.rogue()
            self.world.unissued = hashlib.sha256(rogue).hexdigest()
            shown.append(self.place("tls:10.20.0.66:8443/", "10.20.0.66:8443", rogue))
        return shown

    def in_files(self) -> list[Observed]:
        held = self.lines["prod/shop/web"]
        one = Observed(
            key="file:shop-1:/etc/nginx/tls/current.pem", kind="file", shown="shop-1:/etc/nginx/tls/current.pem", unit="/etc",
            host="shop-1", at=self.clock.now, certificates=[Seen(sha256=held.sha256)], private_key=SeenKey(),
            details={"mode": "0600", "user": "nginx"},
        )  # fmt: skip
        old = self.place("file:shop-1:/etc/ssl/old.pem", "shop-1:/etc/ssl/old.pem", self.old, kind="file", role="stored")
        return [one, old]

    @property
    def old(self) -> bytes:
        if "old" not in self.world.more:
            self.world.more["old"] = self.found("shop.example.org", days=200, issuer="Old Corporate CA")
        found: bytes = self.world.more["old"]
        return found

    def place(self, key: str, shown: str, der: bytes, *, kind: str = "endpoint", role: str = "served") -> Observed:
        unit = "/etc" if kind == "file" else ""
        return Observed(key=key, kind=kind, shown=shown, unit=unit, at=self.clock.now, certificates=[Seen(der=der, role=role)])

    async def record(self, source: str, observed: list[Observed], covered: list[str] | None = None) -> None:
        row = await self.services.discovery.sources.get(source)
        whole = [Covered(unit=unit, began_at=self.clock.now) for unit in covered or ()]
        await self.services.inventory.recorder.record(row.id, Sightings(observed=observed, covered=whole))

    def found(self, name: str, *, days: float, issuer: str = "Somebody Else") -> bytes:
        """A certificate that was not issued here."""
        return self._signed(name, days, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer[:64])]), keys.generate("p256"))

    def rogue(self) -> bytes:
        """A certificate that our authority's key signs, and that is never issued here."""
        authority = self.services.authorities.find("issuing")
        key: Any = self.services.authorities.crl_key(authority)
        return self._signed("", 0.5, authority.certificate.subject, key, uri=f"spiffe://{DOMAIN}/prod/payments/api")

    def _signed(self, name: str, days: float, issuer: x509.Name, key: Any, uri: str = "") -> bytes:
        """A certificate that ends after so many days; one that lives for a day began two hours ago, others a month ago."""
        alternative: x509.GeneralName | None = x509.UniformResourceIdentifier(uri) if uri else None
        if alternative is None and name.isascii() and all(letter.isalnum() or letter in ".-" for letter in name):
            alternative = x509.DNSName(name)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name[:64])] if name else []
        begin = self.clock.now - (2 * HOUR if days <= 1 and days > 0 else 30 * 24 * HOUR)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(issuer)
            .public_key(keys.generate("p256").public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(to_datetime(begin))
            .not_valid_after(to_datetime(self.clock.now + round(days * 24 * HOUR)))
        )
        if alternative is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    # --- what people did ------------------------------------------------------------------------------------------------------------

    async def decide(self) -> None:
        await self.settle()
        revoked = self.lines["prod/identity/login"].sha256.hex()
        await self.call("POST", f"/v1/certificates/{revoked}:revoke", {"reason": "key_compromise", "comment": "laptop stolen"})
        await self.call(
            "POST", f"/v1/certificates/{hashlib.sha256(self.old).hexdigest()}:triage", {"decision": "claimed", "reason": "moves in May"}
        )
        rotation = await self.call(
            "POST", "/v1/rotations", {"identity": f"spiffe://{DOMAIN}/prod/shop/**", "within": "2h", "reason": "new key policy"}
        )
        self.world.rotation = rotation.id
        view = {"name": "Ends this week", "list": "certificates", "query": "state=valid&expires_before=7d"}
        await self.call("POST", "/v1/views", view)
        scan = await self.call("POST", "/v1/sources/edge:run", {})
        self.world.scan = scan.id

    async def settle(self) -> None:
        """Let everything catch up that the leader does."""
        while await self.services.inventory.follower.step():
            pass
        await self.services.inventory.reconciler.step()

    async def look_up(self) -> None:
        self.world.identity = f"spiffe://{DOMAIN}/prod/payments/api"
        self.world.issued = self.lines["prod/payments/api"].sha256.hex()
        self.world.revocable = self.lines["staging/payments/api"].sha256.hex()
        places = await self.call("GET", "/v1/locations", host="10.20.0.10")
        self.world.location = places.items[0].id
