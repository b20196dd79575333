"""The API client against a server in this process: answers, refusals, retries, trust."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp import wire
from handclasp.client.api import ApiClient, _retry_after
from handclasp.client.csr import new_request
from handclasp.client.first_contact import fetch_bundle, parse_fingerprint, split_pem
from handclasp.errors import HandclaspError, Kind
from support.errors import allowing
from support.fake_server import DOMAIN, FakeAuthority, FakeServer, Fault, fingerprint, pem

WEB = f"spiffe://{DOMAIN}/prod/web"


def issue(server: FakeServer, client: ApiClient, identity: str = WEB) -> tuple[wire.Issued, bytes]:
    key, csr = new_request("p256", identity=identity)
    return client.issue(wire.IssueRequest(csr=csr, identity=identity)), key


def refusal(client: ApiClient, method: str = "GET", path: str = f"/v1/bundles/{DOMAIN}.pem") -> HandclaspError:
    with pytest.raises(HandclaspError) as caught, client:
        client.raw(path, method=method)
    return caught.value


def test_issue_then_renew_with_the_certificate_itself(tmp_path: Path) -> None:
    with FakeServer() as server, ApiClient(server.url, ca=server.ca_file(tmp_path), token=server.token()) as client:
        issued, key = issue(server, client)
        (tmp_path / "cert").write_text(issued.certificate + issued.chain)
        (tmp_path / "key").write_bytes(key)
        with client.with_credential((tmp_path / "cert", tmp_path / "key")) as holder:
            _, csr = new_request("p256", identity=WEB)
            renewed = holder.renew(issued.sha256, wire.RenewRequest(csr=csr))
        assert renewed.identity == WEB
        assert renewed.sha256 != issued.sha256
        assert server.seen[-1].token == ""
        server.assert_content()


def test_refusals_keep_the_servers_kind_detail_and_hint(tmp_path: Path) -> None:
    with FakeServer() as server:
        error = refusal(ApiClient(server.url, ca=server.ca_file(tmp_path)), path="/v1/nothing")
    assert (error.kind, error.hint) == (Kind.NOT_FOUND, "look at the reference")
    assert "/v1/nothing" in error.detail


@pytest.mark.parametrize(
    ("case", "method", "fault", "requests", "works"),
    [
        ("a busy server is tried again", "GET", Fault("/", 2, 503), 3, True),
        ("a limited client waits as long as it is told", "GET", Fault("/", 1, 429, "rate_limited", "7"), 2, True),
        ("a closed connection is tried again", "GET", Fault("/", 1, 0), 2, True),
        ("after four attempts it is enough", "GET", Fault("/", 9, 503), 4, False),
        ("what may have worked is not repeated", "POST", Fault("/", 1, 503), 1, False),
        ("a lost answer to a POST is not repeated", "POST", Fault("/", 1, 0), 1, False),
        ("a refusal is final", "GET", Fault("/", 1, 403, "not_allowed"), 1, False),
        ("a wait of an hour is left to the caller", "GET", Fault("/", 1, 503, "unavailable", "3600"), 1, False),
    ],
)
def test_retries(tmp_path: Path, case: str, method: str, fault: Fault, requests: int, works: bool) -> None:
    slept: list[float] = []
    with FakeServer(faults=[fault]) as server, ApiClient(server.url, ca=server.ca_file(tmp_path), sleep=slept.append) as client:
        try:
            client.raw(f"/v1/bundles/{DOMAIN}.pem", method=method)
            worked = True
        except HandclaspError:
            worked = False
        assert (worked, len(server.seen)) == (works, requests), case
        assert len(slept) == requests - 1
        if fault.retry_after and slept:
            assert slept[0] >= float(fault.retry_after)


def test_documents_are_asked_for_again_only_when_they_changed(tmp_path: Path) -> None:
    with FakeServer() as server, ApiClient(server.url, ca=server.ca_file(tmp_path)) as client:
        first = client.bundle(DOMAIN)
        again = client.bundle(DOMAIN, etag=first.etag)
        assert first.changed
        assert first.text == server.bundle
        assert (again.text, again.etag, again.changed) == ("", first.etag, False)
        server.extra_roots.append(FakeAuthority().root)
        assert client.bundle(DOMAIN, etag=first.etag).changed


def test_one_connection_serves_many_calls_and_a_dropped_one_is_replaced(tmp_path: Path) -> None:
    with FakeServer() as server, ApiClient(server.url, ca=server.ca_file(tmp_path)) as client:
        for _ in range(3):
            client.bundle(DOMAIN)
        (idle,) = client._connections._idle
        assert idle.sock is not None
        idle.sock.shutdown(2)
        client.raw("/v1/bundles")
        assert len(client._connections._idle) == 1


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with FakeServer() as server:
        ca = server.ca_file(tmp_path)
    error = refusal(ApiClient(server.url, ca=ca, attempts=1))
    assert error.kind is Kind.UNAVAILABLE
    assert "HANDCLASP_URL" in error.hint


def test_a_server_of_another_authority_is_refused() -> None:
    with FakeServer() as server:
        error = refusal(ApiClient(server.url, ca=pem(FakeAuthority().root)))
        assert error.kind is Kind.VERIFY_FAILED
        assert "HANDCLASP_CA" in error.hint
        assert server.seen == []


def test_a_server_under_a_name_that_its_certificate_lacks(tmp_path: Path) -> None:
    with FakeServer() as server:
        error = refusal(ApiClient(f"https://[::ffff:127.0.0.1]:{server.port}", ca=server.ca_file(tmp_path), attempts=1))
    assert error.kind is Kind.VERIFY_FAILED
    assert "HANDCLASP_URL" in error.hint, "the bundle is right, so another one is no advice"


def test_a_refused_certificate_is_told_as_that(tmp_path: Path) -> None:
    certificate, key = FakeAuthority("Foreign").credential(spiffe=WEB)
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    with FakeServer() as server:
        error = refusal(ApiClient(server.url, ca=server.ca_file(tmp_path), credential=(tmp_path / "c", tmp_path / "k")))
        # The alert may be lost with the connection (TLS 1.3); then it is said that this may have been the reason.
        assert error.kind is Kind.NOT_AUTHENTICATED or (error.kind is Kind.UNAVAILABLE and "refused our certificate" in error.hint)
        assert server.seen == []


def test_credential_files_are_followed_and_half_a_change_is_not_taken(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c", tmp_path / "k"
    with FakeServer() as server:
        client = ApiClient(server.url, ca=server.ca_file(tmp_path), credential=(certificate, key))
        sets = [server.authority.credential(spiffe=WEB) for _ in range(2)]
        certificate.write_bytes(sets[0][0])
        key.write_bytes(sets[0][1])
        client.raw("/v1/bundles")
        certificate.write_bytes(sets[1][0])  # the key is still the old one
        client.raw("/v1/bundles")
        key.write_bytes(sets[1][1])
        client.raw("/v1/bundles")
        client.close()
        peers = [seen.peer for seen in server.seen]
    assert peers[0] == peers[1] != peers[2]


@pytest.mark.parametrize("url", ["http://x", "https://", "https://x/path", "https://user@x", "https://x:99999", "ftp://x", "x"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        ApiClient(url)
    assert caught.value.kind is Kind.BAD_SETTING


def test_first_contact_by_fingerprint() -> None:
    with FakeServer() as server:
        assert fetch_bundle(server.url, server.root_fingerprint).trust_domain == DOMAIN
        with ApiClient(server.url, ca=server.root_fingerprint) as client:
            assert client.bundle(DOMAIN).text == server.bundle
            client.close()
            client.bundle(DOMAIN)
        assert server.count("/v1/bundles") == 6, "the bundle is fetched once for each client"


def test_first_contact_refuses_another_root() -> None:
    with FakeServer() as server, pytest.raises(HandclaspError) as caught:
        fetch_bundle(server.url, "sha256:" + "0" * 64)
    assert caught.value.kind is Kind.VERIFY_FAILED


def test_first_contact_is_not_fooled_by_someone_who_shows_the_genuine_root_beside_his_own() -> None:
    genuine = FakeAuthority("Genuine")
    with (
        FakeServer(authority=FakeAuthority("Attacker"), extra_roots=[genuine.root]) as attacker,
        pytest.raises(HandclaspError) as caught,
    ):
        fetch_bundle(attacker.url, f"sha256:{fingerprint(genuine.root)}")
    assert caught.value.kind is Kind.VERIFY_FAILED


@given(st.text(max_size=80))
def test_no_fingerprint_crashes(text: str) -> None:
    with allowing(Kind.BAD_SETTING):
        assert len(parse_fingerprint(text)) == 32


@given(st.text(max_size=60))
def test_no_pem_and_no_retry_after_crashes(text: str) -> None:
    with allowing(Kind.BAD_CERTIFICATE):
        split_pem(f"-----BEGIN CERTIFICATE-----{text}-----END CERTIFICATE-----")
    wait = _retry_after(text)
    assert wait is None or 0 <= wait <= 86400


@given(st.binary(max_size=200))
def test_no_answer_crashes(data: bytes) -> None:
    with allowing(Kind.UNAVAILABLE):
        ApiClient("https://x").decode(data, wire.Issued)


@given(st.integers(100, 599).filter(lambda status: status not in (200, 201, 202, 204, 304)), st.binary(max_size=100))
def test_no_problem_document_crashes(status: int, data: bytes) -> None:
    from handclasp.client.connections import Reply

    problem = msgspec.json.encode({"type": "", "title": "t", "status": status, "kind": "what is that", "detail": "d"})
    for body in (data, problem):
        with pytest.raises(HandclaspError):
            ApiClient("https://x")._refuse(Reply(status, {}, body))
