"""What everybody who verifies certificates needs: bundles, authorities, CRLs on both listeners; and agents' reports."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.errors import Kind
from support.live import Client, Live
from support.needs import needs
from support.waiting import eventually

PREFIX = "spiffe://example.org/trust"


def test_bundles_in_every_form_hold_the_same_roots(live: Live, nobody: Client) -> None:
    pem = (live.data / "ca.pem").read_text()
    roots = x509.load_pem_x509_certificates(pem.encode())
    assert nobody.get("/v1/bundles")["items"] == [{"trust_domain": "example.org", "pem": pem}]
    assert nobody("GET", "/v1/bundles/example.org.pem").text == pem
    answer = nobody("GET", "/v1/bundles/example.org")
    bundle = answer.json
    assert answer.headers["content-type"] == "application/json"
    assert bundle["spiffe_refresh_hint"] > 0
    assert bundle["spiffe_sequence"] >= 0
    anchors = [key for key in bundle["keys"] if key["use"] == "x509-svid"]
    for key, root in zip(anchors, roots, strict=True):
        assert (key["use"], key["kty"], key["crv"]) == ("x509-svid", "EC", "P-256")
        assert "kid" not in key
        assert [base64.b64decode(der) for der in key["x5c"]] == [root.public_bytes(Encoding.DER)]
    for path in ("/v1/bundles/example.com", "/v1/bundles/example.com.pem", "/v1/crls/example.com.pem"):
        nobody("GET", path).refused(Kind.NOT_FOUND)


def test_who_has_it_need_not_fetch_it_again(nobody: Client, live: Live) -> None:
    eventually(lambda: "jwt-svid" in nobody("GET", "/v1/bundles/example.org").text, 20, "the last thing that a new bundle waits for")
    with live.plain() as plain:
        for client, path in (
            (nobody, "/v1/bundles/example.org"),
            (nobody, "/v1/bundles/example.org.pem"),
            (nobody, "/v1/crls/example.org.pem"),
            (plain, "/crl/issuing/0.crl"),
            (plain, "/ca/issuing.cer"),
        ):
            first = client("GET", path)
            assert first.status == 200, path
            tag = first.headers["etag"]
            for given in (tag, f"W/{tag}", f'"other", {tag}'):
                again = client("GET", path, headers={"If-None-Match": given})
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag), path
            assert client("GET", path, headers={"If-None-Match": '"other"'}).body == first.body


def test_authorities(live: Live, admin: Client) -> None:
    listed = {item["name"]: item for item in admin.get("/v1/authorities")["items"]}
    assert set(listed) == {"root", "issuing"}
    assert (listed["issuing"]["kind"], listed["issuing"]["state"], listed["issuing"]["trust_domain"]) == (
        "issuing",
        "active",
        "example.org",
    )
    assert admin.get("/v1/authorities/root") == listed["root"]
    admin("GET", "/v1/authorities/none").refused(Kind.NOT_FOUND)
    with live.plain() as plain:
        for name, item in listed.items():
            der = plain("GET", f"/ca/{name}.cer")
            assert der.headers["content-type"] == "application/pkix-cert"
            assert der.body == x509.load_pem_x509_certificate(item["certificate"].encode()).public_bytes(Encoding.DER)


def test_a_revocation_is_published_where_the_certificate_says_and_openssl_believes_it(live: Live, admin: Client, tmp_path: Path) -> None:
    needs("openssl")
    good, bad = live.holder(f"{PREFIX}/good"), live.holder(f"{PREFIX}/bad")
    leaf = x509.load_pem_x509_certificate(bad.issued["certificate"].encode())
    [point] = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    url = point.full_name[0].value
    base = live.facts["http"]
    assert url.startswith(f"{base}/crl/issuing/")
    path = url.removeprefix(base)
    with live.plain() as plain:
        before = plain("GET", path).headers["etag"]
        admin("POST", f"/v1/certificates/{bad.sha256}:revoke", {"reason": "affiliation_changed"}).ok()
        eventually(lambda: plain("GET", path).headers["etag"] != before, what="a new CRL with the revocation")
        crl = x509.load_der_x509_crl(plain("GET", path).body)
    revoked = crl.get_revoked_certificate_by_serial_number(leaf.serial_number)
    assert revoked is not None
    reason = revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.affiliation_changed
    (tmp_path / "crls.pem").write_text(admin("GET", "/v1/crls/example.org.pem").text)
    for holder, code in ((good, 0), (bad, 2)):
        (tmp_path / "chain.pem").write_text(holder.issued["chain"])
        command = ["openssl", "verify", "-crl_check_all", "-extended_crl", "-CRLfile", "crls.pem", "-CAfile", live.facts["ca_file"]]
        done = subprocess.run(
            [*command, "-untrusted", "chain.pem", str(holder.cert_file)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert ("certificate revoked" in done.stderr) == (code == 2)


BAD_CRLS = [
    "/crl/issuing/16.crl", "/crl/issuing/-1.crl", "/crl/issuing/00.crl", "/crl/issuing/" + "9" * 5000 + ".crl",
    "/crl/issuing/" + "9" * 30 + ".crl", "/crl/none/0.crl", "/crl/issuing/%D9%A1.crl", "/crl/issuing/0", "/ca/none.cer", "/ca/%00.cer",
    "/ca/../data/keys/root.key",
]  # fmt: skip


def test_the_plain_listener_has_only_what_must_be_reachable_without_tls(live: Live) -> None:
    with live.plain() as plain:
        assert plain.get("/healthz")["status"] == plain.get("/readyz")["status"] == "ok"
        for path in (*BAD_CRLS, "/v1/bundles", "/v1/tokens", "/metrics", "/v1/openapi.json", "/log/checkpoint"):
            plain("GET", path, headers={"Authorization": f"Bearer {live.admin_token}"}).refused(Kind.NOT_FOUND)
        plain("POST", "/crl/issuing/0.crl", b"").refused(Kind.METHOD_NOT_ALLOWED)


def test_agents_report_and_are_listed(live: Live, admin: Client) -> None:
    names = [f"spiffe://example.org/agent/trust-{number}" for number in range(3)]
    agents = [live.holder(name, profile="agent", token=live.token(agent=True, labels={"role": "web"})) for name in names]
    identity = {"identity": f"{PREFIX}/web", "state": "ok", "targets": [{"name": "files", "state": "ok"}], "rotations": 3}
    for number, agent in enumerate(agents):
        with live.client(None, agent) as client:
            states = [{**identity, "state": "failed"}] if number == 1 else [identity]
            report = {"hostname": f"host{number}", "version": "1.0", "identities": states if number != 2 else []}
            client("PUT", "/v1/agents/self", report).ok()
            client("PUT", "/v1/agents/self", {**report, "surprise": 1}).refused(Kind.BAD_REQUEST)
    listed = [item for page in admin.pages("/v1/agents", limit=2) for item in page]
    mine = {item["identity"]: item for item in listed if item["identity"] in names}
    assert [item["identity"] for item in listed] == sorted(item["identity"] for item in listed)
    assert [mine[name]["state"] for name in names] == ["ok", "attention", "ok"]
    assert [mine[name]["hostname"] for name in names] == ["host0", "host1", "host2"]
    assert mine[names[0]]["labels"] == {"role": "web"}
    assert mine[names[0]]["identities"][0]["rotations"] == 3
    assert mine[names[0]]["address"] == "127.0.0.1"
    with live.client(None, live.holder(f"{PREFIX}/no-agent")) as client:
        client("PUT", "/v1/agents/self", {"hostname": "h", "version": "1"}).refused(Kind.NOT_ALLOWED)
