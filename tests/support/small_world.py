"""A small installation as the API shows it, the same in each run: what transcripts are about."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from handclasp import wire
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.states import STATES
from handclasp.inventory.steps import describe
from handclasp.wire import inventory
from handclasp.wire.ownership import Assignment
from support.fake_api import FakeApi

A, B = "a1" * 32, "b2" * 32
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
TOKEN_ID = "k3v6q2mzt4w7ay5d"


def certificate(sha256: str, identity: str, **changes: Any) -> wire.Certificate:
    fields: dict[str, Any] = {
        "sha256": sha256,
        "serial": "2af1",
        "identity": identity,
        "dns": ["web.example.org"],
        "ip": [],
        "email": [],
        "profile": "workload",
        "authority": "issuing",
        "not_before": "2025-12-31T23:29:00Z",
        "not_after": "2026-01-01T00:30:00Z",
        "renew_after": "2026-01-01T00:05:00Z",
        "renew_before": "2026-01-01T00:15:00Z",
        "state": "active",
        "key_sha256": "cc" * 32,
        "key_type": "p256",
        "line": "dd" * 32,
        "generation": 3,
        "predecessor": None,
        "superseded_by": None,
        "revoked_at": None,
        "revocation_reason": None,
        "granted_by": f"token:{TOKEN_ID}",
        "obtained_by": f"token:{TOKEN_ID} (web-bootstrap)",
        "log_entry": 41,
        "certificate": PEM,
    }
    return wire.Certificate(**{**fields, **changes})


def token(**changes: Any) -> wire.Token:
    fields: dict[str, Any] = {
        "id": TOKEN_ID,
        "name": "web-bootstrap",
        "owner": "team-web",
        "allow": ["spiffe://example.org/prod/web"],
        "allow_dns": ["web.example.org"],
        "allow_ip": [],
        "allow_email": [],
        "profiles": ["workload"],
        "max_ttl": "24h",
        "uses": 1,
        "used": 0,
        "created_at": "2025-12-31T23:58:00Z",
        "expires_at": "2026-01-01T00:08:00Z",
        "last_used_at": None,
        "revoked_at": None,
        "cidr": ["10.0.0.0/8"],
        "csr_hash": None,
        "renew": True,
        "agent": False,
        "labels": {},
        "scopes": [],
        "state": "active",
    }
    return wire.Token(**{**fields, **changes})


def entry(index: int, type_: str, **parts: Any) -> wire.LogEntry:
    return wire.LogEntry(
        index=index, leaf_hash="ee" * 32, entry={"v": 1, "type": type_, "at": "2025-12-31T23:59:00Z", "who": {"kind": "token"}, **parts}
    )


def populate(api: FakeApi) -> None:
    """Put the installation behind ``api``."""
    web, db = "spiffe://example.org/prod/web", "spiffe://example.org/prod/db"
    api.pages("/v1/certificates", [certificate(A, web), certificate(B, db, state="revoked", revoked_at="2025-12-31T22:00:00Z")])
    api.on("GET", f"/v1/certificates/{A}", certificate(A, web))
    api.on(
        "POST",
        f"/v1/certificates/{A}:revoke",
        wire.Revoked(revoked=[A, B], reason="key_compromise", revoked_at="2026-01-01T00:00:00Z", log_entry=44),
    )
    identity = {"owner": "team-web", "tier": "1", "environment": "prod", "created_at": "2025-06-01T00:00:00Z"}
    api.pages(
        "/v1/identities",
        [
            wire.Identity(identity=web, certificates=3, newest=A, newest_not_after="2026-01-01T00:30:00Z", **identity),
            wire.Identity(
                identity=web + "-canary", owner=None, tier=None, environment=None, created_at="2025-06-01T00:00:00Z", certificates=0,
                newest=None, newest_not_after=None,
            ),
        ],
    )  # fmt: skip
    _inventory(api, web)
    _tokens(api)
    _documents(api)
    _authorities(api)
    _log(api)
    report = [wire.AgentIdentity(identity=web, state="ok"), wire.AgentIdentity(identity=db, state="overdue")]
    api.pages(
        "/v1/agents",
        [
            wire.Agent(
                identity="spiffe://example.org/agent/host-1", hostname="host-1", version="0.1.0", labels={"role": "web"},
                enrolled_at="2025-12-01T00:00:00Z", last_contact="2025-12-31T23:59:30Z", address="10.0.0.7", state="ok", identities=report,
            )
        ],
    )  # fmt: skip


def _inventory(api: FakeApi, web: str) -> None:
    """What is known of one identity and of one place, how all stand, and a view."""
    identity = wire.Identity(
        identity=web, owner="team-web", tier="1", environment="prod", created_at="2025-06-01T00:00:00Z", certificates=3, newest=A,
        newest_not_after="2026-01-01T00:30:00Z", newest_origin="issued", state="overdue",
    )  # fmt: skip
    sighting = wire.Sighting(
        id=7, sha256=A, location=17, shown="web-1:443", kind="endpoint", host="web-1", source="edge", role="served", chain=[], how={},
        first_seen="2025-12-31T23:30:00Z", last_seen="2025-12-31T23:55:00Z", ended=None,
    )  # fmt: skip
    item = inventory.LineItem(certificate=certificate(A, web), sightings=[sighting])
    step = inventory.NextStep(kind="overdue", level="alarm", text="renewal is overdue", command="handclasp agent show host-1")
    why = Assignment(
        evidence="token", owner="team-web", tier=None, environment=None, rule="token:owner", detail="", confidence=90,
        at="2025-06-01T00:00:00Z",
    )  # fmt: skip
    may = inventory.MayIssue(grant="policy:web", who="agents with role=web", profiles=["workload"], max_ttl="24h", renew=True)
    detail = inventory.IdentityDetail(
        identity=identity, names=[web, "web.example.org"], evidence=[why], line=[item], served=[sighting], grants=[may],
        agents=["spiffe://example.org/agent/host-1"], next_steps=[step], log_subject=f"identity:{web}",
    )  # fmt: skip
    path = f"/v1/identities/{quote(web, safe='')}"
    api.on("GET", path, detail)
    api.on("GET", f"{path}:lineage", inventory.Lineage(identity=web, items=[item]))
    missing = HandclaspError(Kind.NOT_FOUND, "no identity of this name is known here", hint="handclasp identity list --q PART")
    api.on("GET", path.removesuffix("b"), missing)
    place = inventory.Location(
        id=17, source="edge", key="tls:web-1:443/", kind="endpoint", shown="web-1:443", host="web-1", state="read",
        first_seen="2025-12-01T00:00:00Z", last_seen="2025-12-31T23:55:00Z", last_tried="2025-12-31T23:55:00Z", sightings=[sighting],
    )  # fmt: skip
    api.pages("/v1/locations", [place])
    api.on("GET", "/v1/locations/17", place)
    counts = {"unissued": 1, "foreign": 12, "seen": 40}
    api.on("GET", "/v1/standings", inventory.Standings(items=[describe(state, counts.get(state, 0)) for state in STATES]))
    view = inventory.View(
        id="v1", name="web", list="identities", query="owner=team-web", created_by="token:a (a)", created_at="2025-12-01T00:00:00Z"
    )
    api.on("GET", "/v1/views", inventory.ViewList(items=[view]))
    more = {"created_by": "token:a (a)", "created_at": "2026-01-01T00:00:00Z"}
    api.on("POST", "/v1/views", lambda body, _: inventory.View(id="v2", name=body.name, list=body.list, query=body.query, **more))
    api.on("DELETE", "/v1/views/v1", view)
    api.on("POST", f"/v1/certificates/{B}:triage", wire.Done(log_entry=45))


def _tokens(api: FakeApi) -> None:
    api.pages(
        "/v1/tokens", [token(), token(id="z" * 16, name="ci\x1b[2J", owner=None, uses=0, used=7, state="expired", scopes=["log:read"])]
    )
    api.on("GET", f"/v1/tokens/{TOKEN_ID}", token(labels={"role": "web"}))
    api.on("POST", f"/v1/tokens/{TOKEN_ID}:revoke", wire.Done(log_entry=43))
    api.on("POST", "/v1/tokens/gone:revoke", HandclaspError(Kind.NOT_FOUND, "there is no token gone", hint="handclasp token list"))

    def create(body: wire.TokenRequest, _params: Any) -> wire.TokenCreated:
        return wire.TokenCreated(
            id=TOKEN_ID, name=body.name, token=f"hct_{TOKEN_ID}_secret", expires_at="2026-01-01T00:10:00Z", uses=body.uses, log_entry=42
        )

    api.on("POST", "/v1/tokens", create)


def _documents(api: FakeApi) -> None:
    changes = [
        wire.PolicyChange(change="added", subject="grant web", after="identities: [spiffe://example.org/prod/web]\nmax_ttl: 24h"),
        wire.PolicyChange(change="changed", subject="grant db", before="max_ttl: 1h", after="max_ttl: 2h"),
        wire.PolicyChange(change="removed", subject="grant old", before="max_ttl: 1h"),
    ]
    text = "version: 1\ngrants: []\n"
    applied = {"applied_at": "2025-12-31T00:00:00Z", "applied_by": "token:admin (admin)"}
    api.on("GET", "/v1/policy", wire.Policy(text=text, sha256="ab" * 32, **applied))
    for path in ("/v1/policy", "/v1/profiles"):
        api.on("POST", f"{path}:diff", wire.PolicyDiff(changes=changes, sha256="cd" * 32))
        api.on("PUT", path, wire.PolicyDiff(changes=changes, sha256="cd" * 32, applied=True, log_entry=45))
    profile = {"authority": "", "lifetime": "1h", "min_lifetime": "10s", "max_lifetime": "24h", "backdate": "1m", "built_in": True}
    workload = wire.Profile(
        name="workload", description="X.509-SVID of a workload", key_types=["p256", "ed25519"], usages=["client_auth", "server_auth"],
        names=["spiffe", "dns"], **profile,
    )  # fmt: skip
    api.on("GET", "/v1/profiles", wire.ProfileList(items=[workload]))


def _authorities(api: FakeApi) -> None:
    common = {
        "trust_domain": "example.org",
        "key_type": "p256",
        "state": "active",
        "certificate": PEM,
        "not_before": "2025-01-01T00:00:00Z",
    }
    root = wire.Authority(
        name="root", kind="root", subject="CN=example.org root", sha256=A, not_after="2035-01-01T00:00:00Z", dns_zones=[], crl_shards=1,
        **common,
    )  # fmt: skip
    issuing = wire.Authority(
        name="issuing", kind="issuing", subject="CN=example.org issuing", sha256=B, not_after="2027-01-01T00:00:00Z",
        dns_zones=["example.org"], crl_shards=16, **common,
    )  # fmt: skip
    api.on("GET", "/v1/authorities", wire.AuthorityList(items=[root, issuing]))
    api.on("GET", "/v1/authorities/root", root)
    api.on("GET", "/v1/bundles", {"items": [{"trust_domain": "example.org", "pem": PEM}]})
    api.on("GET", "/v1/bundles/example.org.pem", PEM)
    api.on("GET", "/v1/bundles/example.org", '{"keys": [], "spiffe_sequence": 1}')
    api.on("GET", "/v1/crls/example.org.pem", "-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n")


def _log(api: FakeApi) -> None:
    issued = entry(41, "certificate.issued", what={"sha256": A, "names": {"dns": ["web.example.org"]}}, why={"grant": f"token:{TOKEN_ID}"})
    api.pages("/v1/log/entries", [issued, entry(42, "token.created", what={"name": "ci\x1b[2J"})])
    api.on("GET", "/v1/log/entries/41", issued)
    api.on("POST", "/v1/log/personal:erase", wire.Done(log_entry=46))
    proof = wire.LogProof(
        index=41, tree_size=43, leaf_hash="ee" * 32, path=[], checkpoint="log\n43\nAA==\n", entry="{}", proof="c2sp.org/tlog-proof@v1\n"
    )
    api.on("GET", "/v1/log/proof", proof)
