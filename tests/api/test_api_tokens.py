"""Tokens through real HTTP: from made to revoked, bound to a network or to one CSR, and never giving away more than one has."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.live import Client, Live

PREFIX = "spiffe://example.org/token"


def test_the_life_of_a_token(live: Live, admin: Client) -> None:
    created = live.create_token(
        name="life", owner="team-life", allow=[f"{PREFIX}/life"], profiles=["workload"], uses=2, max_ttl="1h", expires="5m"
    )
    path = f"/v1/tokens/{created['id']}"
    shown = admin.get(path)
    assert "token" not in shown
    assert (shown["state"], shown["uses"], shown["used"], shown["last_used_at"]) == ("active", 2, 0, None)
    assert (shown["owner"], shown["max_ttl"], shown["expires_at"]) == ("team-life", "1h", created["expires_at"])
    csr = new_request("p256", identity=None)[1]
    with live.client(created["token"]) as client:
        for used in (1, 2):
            client("POST", "/v1/certificates", {"csr": csr}).ok(201)
            shown = admin.get(path)
            assert (shown["used"], shown["state"]) == (used, "active" if used == 1 else "spent")
            assert shown["last_used_at"] is not None
        client("POST", "/v1/certificates", {"csr": csr}).refused(Kind.TOKEN_SPENT)
        admin("POST", f"{path}:revoke").ok()
        client("POST", "/v1/certificates", {"csr": csr}).refused(Kind.TOKEN_REVOKED)
    admin("POST", f"{path}:revoke").refused(Kind.CONFLICT)
    assert admin.get(path)["state"] == "revoked"
    assert [item["id"] for item in admin.get("/v1/tokens", owner="team-life")["items"]] == [created["id"]]
    assert admin.get("/v1/tokens", owner="team-life", state="active")["items"] == []
    types = [item["entry"]["type"] for item in admin.get("/v1/log/entries", subject=f"token:{created['id']}")["items"]]
    assert types == ["token.revoked", "token.created"]


def test_a_hundred_at_once_with_a_token_for_one(live: Live) -> None:
    token = live.token(allow=[f"{PREFIX}/race"], profiles=["workload"], uses=1)
    csr = new_request("p256", identity=None)[1]

    def issue_some(_: int) -> list[str]:
        with live.client(token) as client:
            return [client("POST", "/v1/certificates", {"csr": csr}).kind for _ in range(10)]

    with ThreadPoolExecutor(10) as pool:
        kinds = [kind for some in pool.map(issue_some, range(10)) for kind in some]
    assert sorted(set(kinds)) == ["", "token_spent"]
    assert kinds.count("") == 1


def test_nobody_gives_away_a_scope_they_do_not_hold(live: Live) -> None:
    token = live.token("tokens:write", "log:read")
    with live.client(token) as client:
        for scopes in (["admin"], ["policy:write"], ["log:read", "certificates:revoke"]):
            client("POST", "/v1/tokens", {"name": "wider", "scopes": scopes}).refused(Kind.NOT_ALLOWED, scopes[-1])
        client("POST", "/v1/tokens", {"name": "wider", "scopes": ["root"]}).refused(Kind.BAD_REQUEST)
    narrower = live.create_token("log:read", by=token)
    with live.client(narrower["token"]) as client:
        client.get("/v1/log/entries", limit=1)
        client("POST", "/v1/tokens", {"name": "again", "scopes": ["log:read"]}).refused(Kind.NOT_ALLOWED, "tokens:write")


NONSENSE = [
    ("both uses at once", {"scopes": ["log:read"], "allow": [f"{PREFIX}/x"], "profiles": ["workload"]}),
    ("names without profiles", {"allow": [f"{PREFIX}/x"]}),
    ("an agent's profile without being for agents", {"allow": [f"{PREFIX}/x"], "profiles": ["agent"]}),
    ("labels of no agent", {"allow": [f"{PREFIX}/x"], "profiles": ["workload"], "labels": {"a": "b"}}),
    ("a placeholder", {"allow": [f"{PREFIX}/{{sub}}"], "profiles": ["workload"]}),
    ("a star within a segment", {"allow": [f"{PREFIX}/a*b"], "profiles": ["workload"]}),
    ("any trust domain", {"allow": ["spiffe://*/x"], "profiles": ["workload"]}),
    ("no network", {"allow": [f"{PREFIX}/x"], "profiles": ["workload"], "cidr": ["10.0.0.0/33"]}),
    ("a hash that is none", {"allow": [f"{PREFIX}/x"], "profiles": ["workload"], "csr_hash": "ab"}),
    ("a life of ten years", {"scopes": ["log:read"], "expires": "3650d"}),
    ("no life", {"scopes": ["log:read"], "expires": "0s"}),
]  # fmt: skip


def test_requests_that_make_no_sense(admin: Client) -> None:
    for sentence, body in NONSENSE:
        answer = admin("POST", "/v1/tokens", {"name": "nonsense", **body})
        assert answer.kind == "bad_request", f"{sentence}: {answer.status} {answer.text}"
    assert admin.get("/v1/tokens", name="nonsense")["items"] == []


def test_from_one_network_only(live: Live) -> None:
    csr = new_request("p256", identity=None)[1]
    with live.client(live.issuing_token(f"{PREFIX}/net", cidr=["10.0.0.0/8", "2001:db8::/32"])) as client:
        client("POST", "/v1/certificates", {"csr": csr}).refused(Kind.NOT_ALLOWED, "127.0.0.1")
    with live.client(live.issuing_token(f"{PREFIX}/net", cidr=["127.0.0.0/30"])) as client:
        client("POST", "/v1/certificates", {"csr": csr}).ok(201)


def test_the_api_is_for_that_network_only_too(live: Live, admin: Client) -> None:
    elsewhere = live.token("inventory:read", "certificates:revoke", cidr=["10.0.0.0/8"])
    with live.client(elsewhere) as client:
        client("GET", "/v1/certificates").refused(Kind.NOT_ALLOWED, "is not to be used from 127.0.0.1")
        client("POST", f"/v1/certificates/{'0' * 64}:revoke", {"reason": "superseded"}).refused(Kind.NOT_ALLOWED)
        client("GET", "/v1/whoami").refused(Kind.NOT_FOUND)
    [one] = admin.get("/v1/log/entries", type="access.refused", limit=1)["items"]
    assert one["entry"]["who"]["id"] in elsewhere
    with live.client(live.issuing_token(f"{PREFIX}/net", cidr=["10.0.0.0/8"])) as client:
        client("GET", f"/v1/certificates/{'0' * 64}:renewal-info").refused(Kind.NOT_ALLOWED, "is not to be used from")
    with live.client(live.token("inventory:read", cidr=["127.0.0.0/30"])) as client:
        client("GET", "/v1/certificates").ok()


def test_for_one_csr_only(live: Live) -> None:
    _, csr = new_request("p256", identity=None)
    der = x509.load_pem_x509_csr(csr.encode()).public_bytes(Encoding.DER)
    token = live.issuing_token(f"{PREFIX}/bound", csr_hash=hashlib.sha256(der).hexdigest())
    with live.client(token) as client:
        other = new_request("p256", identity=None)[1]
        client("POST", "/v1/certificates", {"csr": other}).refused(Kind.NOT_ALLOWED, "CSR")
        client("POST", "/v1/certificates", {"csr": csr}).ok(201)


def test_pages_of_tokens(live: Live, admin: Client) -> None:
    made = [live.create_token("log:read", name="paged")["id"] for _ in range(7)]
    pages = list(admin.pages("/v1/tokens", name="paged", limit=3))
    assert [len(page) for page in pages] == [3, 3, 1]
    assert sorted(item["id"] for page in pages for item in page) == sorted(made)
    admin("GET", "/v1/tokens/zzzzzzzzzzzzzzzz").refused(Kind.NOT_FOUND)
