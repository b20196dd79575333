"""Certificates through real HTTP: issued, in batches, renewed over mutual TLS, revoked, listed page by page while new ones arrive."""

from __future__ import annotations

import threading
from functools import cache

from cryptography import x509

from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.live import Client, Holder, Live

PREFIX = "spiffe://example.org/cert"


@cache
def csr_for(name: str) -> str:
    """A CSR without names, always the same for one name: a key may stand in many certificates, but of one identity only."""
    assert name
    return new_request("p256", identity=None)[1]


def renew(live: Live, holder: Holder, csr: str | None = None, **body: object):
    with live.client(None, holder) as client:
        return client("POST", f"/v1/certificates/{holder.sha256}:renew", {"csr": csr or new_request("p256", identity=None)[1], **body})


def test_everything_needed_comes_with_the_certificate(live: Live, admin: Client) -> None:
    identity = f"{PREFIX}/whole"
    created = live.create_token(allow=[identity], allow_dns=["web.example.org"], profiles=["workload"], owner="team-web", uses=2)
    key, csr = new_request("p256", identity=None)
    with live.client(created["token"]) as client:
        issued = client("POST", "/v1/certificates", {"csr": csr, "identity": identity, "dns": ["web.example.org"], "ttl": "30m"}).ok(201)
    leaf = x509.load_pem_x509_certificate(issued["certificate"].encode())
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [identity]
    assert san.get_values_for_type(x509.DNSName) == ["web.example.org"]
    assert f"{leaf.serial_number:x}" == issued["serial"]
    assert issued["not_before"] < issued["renew_after"] <= issued["renew_before"] < issued["not_after"]
    assert issued["bundle"] == (live.data / "ca.pem").read_text()
    shown = admin.get(f"/v1/certificates/{issued['sha256']}")
    assert shown["certificate"] == issued["certificate"]
    assert (shown["identity"], shown["dns"], shown["state"], shown["generation"]) == (identity, ["web.example.org"], "valid", 0)
    assert shown["granted_by"] == f"token:{created['id']}"
    assert admin.get("/v1/certificates", serial=issued["serial"])["items"][0]["sha256"] == issued["sha256"]
    listed = admin.get("/v1/identities", identity=identity)["items"]
    assert [(item["owner"], item["certificates"], item["newest"]) for item in listed] == [("team-web", 1, issued["sha256"])]
    entry = admin.get(f"/v1/log/entries/{issued['log_entry']}")["entry"]
    assert (entry["type"], entry["what"]["sha256"], entry["who"]["id"]) == ("certificate.issued", issued["sha256"], created["id"])
    assert key not in b"".join(data for _, data in live.written())


def test_a_token_that_names_one_identity_needs_only_a_csr(live: Live) -> None:
    with live.client(live.token(allow=[f"{PREFIX}/only"], profiles=["workload"], uses=1)) as client:
        assert client("POST", "/v1/certificates", {"csr": csr_for("csr")}).ok(201)["identity"] == f"{PREFIX}/only"
        client("POST", "/v1/certificates", {"csr": csr_for("csr")}).refused(Kind.TOKEN_SPENT)


REFUSALS = [
    ("a name outside the grant", {"identity": f"{PREFIX}/other"}, Kind.NAME_NOT_ALLOWED),
    ("a DNS name outside the grant", {"identity": f"{PREFIX}/refused", "dns": ["x.example.org"]}, Kind.NAME_NOT_ALLOWED),
    ("another trust domain", {"identity": "spiffe://example.com/cert/refused"}, Kind.UNKNOWN_AUTHORITY),
    ("a bad name", {"identity": "spiffe://example.org/../x"}, Kind.BAD_NAME),
    ("an unknown profile", {"identity": f"{PREFIX}/refused", "profile": "none"}, Kind.UNKNOWN_PROFILE),
    ("another profile", {"identity": f"{PREFIX}/refused", "profile": "client"}, Kind.PROFILE_NOT_ALLOWED),
    ("too long a life", {"identity": f"{PREFIX}/refused", "ttl": "23h"}, Kind.LIFETIME_NOT_ALLOWED),
    ("longer than any", {"identity": f"{PREFIX}/refused", "ttl": "900d"}, Kind.LIFETIME_NOT_ALLOWED),
    ("a life that is none", {"identity": f"{PREFIX}/refused", "ttl": "soon"}, Kind.BAD_REQUEST),
]  # fmt: skip


def test_what_a_token_does_not_allow(live: Live, admin: Client) -> None:
    created = live.create_token(allow=[f"{PREFIX}/refused"], profiles=["workload"], max_ttl="2h")
    with live.client(created["token"]) as client:
        for sentence, body, kind in REFUSALS:
            answer = client("POST", "/v1/certificates", {"csr": csr_for("allow"), **body})
            assert answer.kind == kind, f"{sentence}: {answer.status} {answer.text}"
    entries = admin.get("/v1/log/entries", type="issuance.refused", limit=200)["items"]
    logged = [item["entry"]["why"]["kind"] for item in entries if item["entry"]["who"].get("id") == created["id"]]
    decisions = [kind.value for _, _, kind in REFUSALS if kind is not Kind.BAD_REQUEST]
    assert logged[::-1] == decisions, "each refusal is in the log once"


def test_a_batch_of_a_thousand_with_good_and_bad(live: Live, admin: Client) -> None:
    identity = f"{PREFIX}/batch"
    token = live.token(allow=[identity], profiles=["workload"], uses=0)
    good = {"csr": csr_for("bad"), "identity": identity}
    bad = {3: {**good, "identity": f"{PREFIX}/not-mine"}, 500: {**good, "csr": "nonsense"}, 999: {**good, "ttl": "soon"}}
    with live.client(token) as client:
        results = client("POST", "/v1/certificates:batch", {"requests": [bad.get(n, good) for n in range(1000)]}).ok()["results"]
        assert len(results) == 1000
        for number, result in enumerate(results):
            assert (result["problem"] is None) is (number not in bad), result
            assert (result["issued"] is None) is (number in bad)
        kinds = [results[number]["problem"]["kind"] for number in bad]
        assert kinds == ["name_not_allowed", "bad_csr", "bad_request"]
        assert len({result["issued"]["sha256"] for result in results if result["issued"]}) == 997
        client("POST", "/v1/certificates:batch", {"requests": []}).refused(Kind.BAD_REQUEST)
        client("POST", "/v1/certificates:batch", {"requests": [{"csr": "x"}] * 1001}).refused(Kind.BAD_REQUEST)
    assert admin.get("/v1/identities", identity=identity)["items"][0]["certificates"] == 997


def test_a_batch_spends_no_more_uses_than_there_are(live: Live) -> None:
    token = live.token(allow=[f"{PREFIX}/few"], profiles=["workload"], uses=3)
    with live.client(token) as client:
        results = client("POST", "/v1/certificates:batch", {"requests": [{"csr": csr_for("are")}] * 10}).ok()["results"]
    assert sum(result["issued"] is not None for result in results) == 3
    assert {result["problem"]["kind"] for result in results if result["problem"]} == {"token_spent"}


def test_renewal_over_mutual_tls(live: Live, admin: Client) -> None:
    first = live.holder(f"{PREFIX}/renewed", ttl="20m")
    key, csr = new_request("p256", identity=None)
    second = live.keep(renew(live, first, csr).ok(201), key)
    shown = admin.get(f"/v1/certificates/{second.sha256}")
    assert (shown["generation"], shown["predecessor"], shown["identity"]) == (1, first.sha256, f"{PREFIX}/renewed")
    before = admin.get(f"/v1/certificates/{first.sha256}")
    assert (before["state"], before["superseded_by"], before["line"]) == ("superseded", second.sha256, shown["line"])
    renew(live, second, csr).refused(Kind.REUSED_KEY)
    wrong_names = new_request("p256", identity=f"{PREFIX}/somebody-else")[1]
    renew(live, second, wrong_names).refused(Kind.NAME_NOT_ALLOWED)
    other = live.holder(f"{PREFIX}/renewed-other")
    with live.client(None, other) as client:
        body = {"csr": new_request("p256", identity=None)[1]}
        client("POST", f"/v1/certificates/{second.sha256}:renew", body).refused(Kind.NOT_ALLOWED)
        client("POST", f"/v1/certificates/{'0' * 64}:renew", body).refused(Kind.NOT_FOUND)
    admin("POST", f"/v1/certificates/{second.sha256}:renew", body).refused(Kind.NOT_ALLOWED, "mutual TLS")
    with live.client(None, second) as client:
        assert client("POST", "/v1/certificates", {"csr": csr_for("tls")}).status in (400, 403), "a certificate is not a token"


def test_renewal_ends_with_the_token_that_began_the_line(live: Live, admin: Client) -> None:
    created = live.create_token(allow=[f"{PREFIX}/ended"], profiles=["workload"])
    holder = live.holder(f"{PREFIX}/ended", token=created["token"])
    key, csr = new_request("p256", identity=None)
    holder = live.keep(renew(live, holder, csr).ok(201), key)
    admin("POST", f"/v1/tokens/{created['id']}:revoke").ok()
    renew(live, holder).refused(Kind.NOT_ALLOWED)


def test_revocation_by_holder_and_by_scope(live: Live, admin: Client) -> None:
    mine, theirs = live.holder(f"{PREFIX}/mine"), live.holder(f"{PREFIX}/theirs")
    with live.client(None, mine) as client:
        client("POST", f"/v1/certificates/{theirs.sha256}:revoke", {}).refused(Kind.NOT_ALLOWED)
        client("POST", f"/v1/certificates/{mine.sha256}:revoke", {"reason": "because"}).refused(Kind.BAD_REQUEST, "because")
        done = client("POST", f"/v1/certificates/{mine.sha256}:revoke", {"reason": "cessation_of_operation", "comment": "moved"}).ok()
        assert (done["revoked"], done["reason"]) == ([mine.sha256], "cessation_of_operation")
    with live.client(live.token("certificates:revoke")) as client:
        again = client("POST", f"/v1/certificates/{mine.sha256}:revoke", {}).ok()
        assert (again["revoked"], again["log_entry"], again["revoked_at"]) == ([], None, done["revoked_at"])
        client("POST", f"/v1/certificates/{theirs.sha256.upper()}:revoke", {}).ok()
    shown = admin.get(f"/v1/certificates/{mine.sha256}")
    assert (shown["state"], shown["revocation_reason"]) == ("revoked", "cessation_of_operation")
    renew(live, theirs).refused(Kind.REVOKED)


def test_a_compromised_key_goes_with_all_its_certificates(live: Live, admin: Client) -> None:
    token = live.issuing_token(f"{PREFIX}/stolen")
    csr = new_request("p256", identity=None)[1]
    with live.client(token) as client:
        both = [client("POST", "/v1/certificates", {"csr": csr}).ok(201)["sha256"] for _ in range(2)]
        done = admin("POST", f"/v1/certificates/{both[0]}:revoke", {"reason": "key_compromise"}).ok()
        assert set(done["revoked"]) == set(both)
        client("POST", "/v1/certificates", {"csr": csr}).refused(Kind.BLOCKED_KEY)
    other = live.issuing_token(f"{PREFIX}/thief")
    with live.client(other) as client:
        client("POST", "/v1/certificates", {"csr": csr}).refused(Kind.BLOCKED_KEY)


def test_a_key_has_one_identity(live: Live) -> None:
    csr = new_request("p256", identity=None)[1]
    with live.client(live.issuing_token(f"{PREFIX}/first")) as client:
        client("POST", "/v1/certificates", {"csr": csr}).ok(201)
    with live.client(live.issuing_token(f"{PREFIX}/second")) as client:
        client("POST", "/v1/certificates", {"csr": csr}).refused(Kind.REUSED_KEY)


def test_walking_2500_rows_while_new_ones_arrive(live: Live, admin: Client) -> None:
    identity = f"{PREFIX}/walked"
    token = live.token(allow=[identity], profiles=["workload"], uses=0)
    request = {"csr": csr_for("walked"), "identity": identity, "ttl": "12h"}
    with live.client(token) as client:
        there: set[str] = set()
        for size in (1000, 1000, 500):
            results = client("POST", "/v1/certificates:batch", {"requests": [request] * size}).ok()["results"]
            there |= {result["issued"]["sha256"] for result in results}
    assert len(there) == 2500
    stop = threading.Event()
    arrived = 0

    def keep_issuing() -> None:
        nonlocal arrived
        with live.client(token) as client:
            while not stop.is_set():  # some sort before the place the walk has reached, some after it
                body = {**request, "ttl": "12h" if arrived % 2 else "6h"}
                client("POST", "/v1/certificates", body).ok(201)
                arrived += 1

    thread = threading.Thread(target=keep_issuing)
    thread.start()
    try:
        pages = list(admin.pages("/v1/certificates", identity=identity, limit=100))
    finally:
        stop.set()
        thread.join()
    seen = [item["sha256"] for page in pages for item in page]
    assert arrived > 0
    assert len(seen) == len(set(seen)), "a row was shown twice"
    assert there <= set(seen), "a row was passed over"
    assert all(len(page) == 100 for page in pages[:-1])
    ends = [item["not_after"] for page in pages for item in page]
    assert ends == sorted(ends, reverse=True)


def test_filters_narrow_and_never_widen(live: Live, admin: Client) -> None:
    one, two = live.holder(f"{PREFIX}/filter/one"), live.holder(f"{PREFIX}/filter/two")
    admin("POST", f"/v1/certificates/{two.sha256}:revoke", {}).ok()
    for filters, expected in (
        ({"identity": f"{PREFIX}/filter/one"}, [one.sha256]),
        ({"identity": f"{PREFIX}/filter/one", "state": "revoked"}, []),
        ({"identity": f"{PREFIX}/filter/two", "state": "revoked"}, [two.sha256]),
        ({"identity": f"{PREFIX}/filter/one", "profile": "workload", "authority": "issuing", "state": "valid"}, [one.sha256]),
        ({"identity": f"{PREFIX}/filter/one", "profile": "agent"}, []),
        ({"identity": f"{PREFIX}/filter/one", "authority": "root"}, []),
        ({"identity": f"{PREFIX}/filter"}, []),
        ({"identity": f"{PREFIX}/filter/%"}, []),
    ):
        assert [item["sha256"] for item in admin.get("/v1/certificates", **filters)["items"]] == expected, filters
    found = [item["identity"] for item in admin.get("/v1/identities", q="CERT/FILTER/")["items"]]
    assert found == [f"{PREFIX}/filter/one", f"{PREFIX}/filter/two"]
    assert admin.get("/v1/identities", q="cert/filter_")["items"] == [], "the pattern characters of SQL are ordinary ones"
    names = [item["identity"] for page in admin.pages("/v1/identities", limit=1, q="cert/filter") for item in page]
    assert names == found
