"""Client certificates: those of this server arrive with the request, all others are stopped, and a bearer token goes first."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from handclasp.errors import Kind
from support.fake_server import FakeAuthority
from support.live import Client, Holder, Live

PREFIX = "spiffe://example.org/tls"


def test_the_verified_certificate_arrives_with_each_request(live: Live, admin: Client) -> None:
    """The contract of PeerCertificateProtocol: which certificate it was is known on the first request and on those that follow."""
    holder, other = live.holder(f"{PREFIX}/one"), live.holder(f"{PREFIX}/two")
    with live.client(None, holder) as client:
        for _ in range(3):
            info = client.get(f"/v1/certificates/{holder.sha256}:renewal-info")
            assert (info["sha256"], info["state"]) == (holder.sha256, "valid")
            client("GET", f"/v1/certificates/{other.sha256}:renewal-info").refused(Kind.NOT_ALLOWED)
        answer = client("GET", f"/v1/certificates/{holder.sha256}:renewal-info")
        again = client("GET", f"/v1/certificates/{holder.sha256}:renewal-info", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status, again.body) == (304, b"")


def test_what_is_served_is_tls_1_3_and_nothing_to_resume(live: Live) -> None:
    with live.socket() as connection:
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() is None
        connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        assert connection.session is None or not connection.session.has_ticket
    old = live.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), live.socket(old):
        pass


def is_stopped(live: Live, context: ssl.SSLContext) -> bool:
    """Tell whether the handshake fails: by an alert or by the connection's end, which in TLS 1.3 a client sees when it reads."""
    try:
        with live.socket(context) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            return connection.recv(1) == b""
    except OSError:
        return True


def test_a_certificate_of_another_authority_is_stopped_in_the_handshake(live: Live, tmp_path: Path) -> None:
    stranger = FakeAuthority("Stranger")
    certificate, key = stranger.credential(spiffe=f"{PREFIX}/one", dns=["localhost"])
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    assert is_stopped(live, live.context(tmp_path / "cert.pem", tmp_path / "key.pem"))
    assert not is_stopped(live, live.context()), "the listener goes on"


def test_a_revoked_certificate_is_refused_at_once_also_on_an_open_connection(live: Live, admin: Client) -> None:
    holder = live.holder(f"{PREFIX}/revoked")
    path = f"/v1/certificates/{holder.sha256}:renewal-info"
    with live.client(None, holder) as client:
        client.get(path)
        admin("POST", f"/v1/certificates/{holder.sha256}:revoke", {"reason": "superseded"}).ok()
        assert client("GET", path).refused(Kind.REVOKED)["status"] == 403
    with live.client(None, holder) as client:
        client("GET", path).refused(Kind.REVOKED)
        client("GET", "/v1/bundles").ok()  # what is public stays public


def test_an_expired_certificate(live: Live, admin: Client) -> None:
    """On an open connection it is refused with its kind; a new connection is stopped in the handshake."""
    profiles = "version: 1\nprofiles:\n  blink:\n    extend: workload\n    min_lifetime: 1s\n    lifetime: 2s\n    renew_same_key: true\n"
    admin("PUT", "/v1/profiles", {"text": profiles}).ok()
    holder = live.holder(f"{PREFIX}/blink", profile="blink", ttl="2s")
    path = f"/v1/certificates/{holder.sha256}:renewal-info"
    with live.client(None, holder) as client:
        client.get(path)
        deadline = time.monotonic() + 20
        while (answer := client("GET", path)).status == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        answer.refused(Kind.NOT_AUTHENTICATED, "expired")
    assert is_stopped(live, live.context(holder.cert_file, holder.key_file))
    listed = admin.get("/v1/certificates", identity=f"{PREFIX}/blink")["items"]
    assert [item["state"] for item in listed] == ["expired"]
    assert admin.get("/v1/certificates", identity=f"{PREFIX}/blink", state="valid")["items"] == []


def test_a_bearer_token_goes_before_the_certificate(live: Live) -> None:
    agent = live.holder("spiffe://example.org/agent/bearer", profile="agent")
    report = {"hostname": "h", "version": "1"}
    with live.client(None, agent) as client:
        client("PUT", "/v1/agents/self", report).ok()
    with live.client(live.token("log:read"), agent) as client:
        client("PUT", "/v1/agents/self", report).refused(Kind.NOT_ALLOWED, "agents:report")
        client.get("/v1/log/entries", limit=1)
    for value in ("Bearer", "Bearer ", "Basic YTpi", "hct_x", "Bearer a b c", "Bearer hct_short", f"Bearer hct_{'a' * 16}_{'b' * 44}"):
        with live.client(None, agent) as client:
            answer = client("PUT", "/v1/agents/self", report, headers={"Authorization": value})
            assert answer.status == 401, f"{value}: a credential that is claimed and wrong is never passed over"


def test_a_long_bearer_token_is_refused_and_nothing_of_it_is_repeated(live: Live) -> None:
    with live.client() as client:
        for value, kind in (("a" * 20_000, Kind.TOKEN_UNKNOWN), ("a.b." + "c" * 20_000, Kind.TOO_LARGE), ("a.b.c", Kind.NOT_AUTHENTICATED)):
            answer = client("GET", "/v1/tokens", headers={"Authorization": f"Bearer {value}"})
            answer.refused(kind)
            assert value not in answer.text


def test_a_token_put_where_it_does_not_belong_is_not_kept(live: Live, admin: Client, issuer) -> None:
    """In a path, a query, a header of another name: nothing of it may be in an answer, in the log or in what the server prints."""
    token = live.token("log:read")
    with live.client() as nobody, live.client(token) as client:
        for caller in (nobody, client):
            for target in (
                f"/v1/tokens/{token}",
                f"/{token}",
                f"/v1/{token}:revoke",
                f"/v1/tokens?name={token}",
                f"/v1/bundles?token={token}",
            ):
                assert caller("GET", target, headers={"X-Token": token}).status in (400, 401, 403, 404)
            caller("POST", f"/v1/tokens/{token}:revoke", b"")
        jwt = issuer.token(sub="somebody")
        live.secrets.add(jwt.encode())
        nobody("GET", f"/v1/tokens/{jwt}").refused(Kind.NOT_AUTHENTICATED)
        refused = nobody("GET", "/v1/tokens", headers={"Authorization": f"Bearer {jwt}"})
        assert refused.status in (401, 403), "whether the policy of this moment knows its issuer or not"
    assert any("hct_" in item["entry"]["what"]["path"] for item in admin.get("/v1/log/entries", type="access.refused", limit=50)["items"])
    live.check_written()


def test_a_holder_file_is_what_openssl_calls_a_chain(live: Live, tmp_path: Path) -> None:
    import subprocess

    from support.needs import needs

    needs("openssl")
    holder: Holder = live.holder(f"{PREFIX}/chain")
    (tmp_path / "chain.pem").write_text(holder.issued["chain"])
    command = ["openssl", "verify", "-x509_strict", "-CAfile", live.facts["ca_file"], "-untrusted", "chain.pem", str(holder.cert_file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
