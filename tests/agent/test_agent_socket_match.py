"""Which workloads a process is, how tokens are judged, and what ``socket:`` in agent.yaml may say."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent.config import parse_config
from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.socket.jwt import verify_jwt_svid
from handclasp.agent.socket.match import could_be, entitled, fill, fits, kinds_of, missing, unfilled
from handclasp.errors import HandclaspError, Kind
from support.workload import DOMAIN, WEB, workload

K8S = "spiffe://example.org/k8s/{k8s:ns}/{k8s:sa}"
POD = ["k8s:ns:shop", "k8s:sa:web", "unix:uid:0"]


@pytest.mark.parametrize(
    ("selectors", "identity"),
    [
        (POD, "spiffe://example.org/k8s/shop/web"),
        (["k8s:ns:shop"], None),
        ([*POD, "k8s:ns:other"], None),
        (["k8s:ns:a/b", "k8s:sa:web"], None),
        (["k8s:ns:..", "k8s:sa:web"], None),
        (["k8s:ns:{k8s:sa}", "k8s:sa:web"], None),
        (["k8s:ns:*", "k8s:sa:web"], None),
        (["k8s:ns:", "k8s:sa:web"], None),
        (["k8s:ns:ä", "k8s:sa:web"], None),
        (["k8s:ns:x\n", "k8s:sa:web"], None),
    ],
)
def test_placeholders_take_one_whole_segment_or_nothing(selectors: list[str], identity: str | None) -> None:
    assert fill(K8S, selectors) == identity
    assert [one.identity for one in entitled([workload("w", K8S, selectors[0])], selectors)] == ([identity] if identity else [])


@given(st.text(max_size=30))
def test_no_value_makes_more_than_its_segment(value: str) -> None:
    identity = fill(K8S, [f"k8s:ns:{value}", "k8s:sa:web"])
    assert identity is None or (identity.split("/")[4:] == [value, "web"] and fits(K8S, identity))


def test_every_selector_is_needed_and_no_selectors_are_nobody() -> None:
    one, two, nobody = workload("one", WEB, "unix:uid:0"), workload("two", WEB, "unix:uid:0", "k8s:ns:shop"), workload("x", WEB)
    assert [item.workload.name for item in entitled([two, one, nobody], ["unix:uid:0"])] == ["one"]
    assert missing(two, ["unix:uid:0"]) == ["k8s:ns:shop"]
    assert missing(nobody, ["unix:uid:0"])
    assert unfilled(workload("w", K8S, "unix:uid:0"), ["k8s:ns:a"]) == ["k8s:sa"]
    assert kinds_of([two, workload("w", K8S, "unix:path:/x:y")]) == {"unix:uid", "k8s:ns", "k8s:sa", "unix:path"}
    assert could_be([two], ["unix:uid:0"], ["k8s"])
    assert could_be([workload("w", K8S, "unix:uid:0")], ["unix:uid:0"], ["k8s"])
    assert not could_be([two], ["unix:uid:1"], ["k8s"])
    assert not could_be([two], ["unix:uid:0"], [])
    assert not could_be([nobody], ["unix:uid:0"], ["k8s"])


@pytest.mark.parametrize(
    ("identity", "fit"),
    [
        ("spiffe://example.org/k8s/a/b", True),
        ("spiffe://example.org/k8s/a", False),
        ("spiffe://example.org/k8s/a/b/c", False),
        ("spiffe://example.org/k8s/./b", False),
        ("spiffe://other.org/k8s/a/b", False),
    ],
)
def test_what_was_in_use_has_to_fit_the_policy(identity: str, fit: bool) -> None:
    assert fits(K8S, identity) is fit


# --- tokens -----------------------------------------------------------------------------------------------------------------------------

NOW = int(time.time() * 1000)
EC, RSA = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
P384 = ec.generate_private_key(ec.SECP384R1())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        return {"kty": "RSA", "use": "jwt-svid", "kid": kid, "n": number(numbers.n), "e": number(numbers.e), **more}
    size = (key.key_size + 7) // 8
    x, y = (b64(value.to_bytes(size, "big")) for value in (numbers.x, numbers.y))
    return {"kty": "EC", "use": "jwt-svid", "kid": kid, "crv": f"P-{key.key_size}", "x": x, "y": y, **more}


BROKEN: list[dict[str, Any]] = [{"kty": "EC", "kid": "bad"}, {"kty": "oct", "kid": "oct", "k": "AAAA"}]
KEYS = {DOMAIN: [jwk(EC, "ec"), jwk(RSA, "rsa"), jwk(P384, "p384"), jwk(RSA, "rs256", alg="RS256"), *BROKEN]}
CLAIMS = {"sub": WEB, "aud": ["me"], "exp": NOW // 1000 + 60}


def sign(key: Any, claims: Any = CLAIMS, digest: Any = None, pad: Any = None, **header: Any) -> str:
    digest = digest or hashes.SHA256()
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    if isinstance(key, rsa.RSAPrivateKey):
        return f"{signed}.{b64(key.sign(signed.encode(), pad or padding.PKCS1v15(), digest))}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(digest)))
    size = (key.key_size + 7) // 8
    return f"{signed}.{b64(r.to_bytes(size, 'big') + s.to_bytes(size, 'big'))}"


PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


@pytest.mark.parametrize(
    "token",
    [
        sign(EC, alg="ES256", kid="ec"),
        sign(EC, alg="ES256", kid="ec", typ="JOSE"),
        sign(RSA, alg="RS256", kid="rsa"),
        sign(RSA, digest=hashes.SHA512(), alg="RS512", kid="rsa"),
        sign(RSA, pad=PSS, alg="PS256", kid="rsa"),
        sign(P384, digest=hashes.SHA384(), alg="ES384", kid="p384"),
        sign(EC, {**CLAIMS, "aud": "me", "nbf": NOW // 1000 + 30}, alg="ES256", kid="ec"),
    ],
)
def test_good_tokens_count(token: str) -> None:
    assert verify_jwt_svid(token, "me", KEYS.get, NOW).identity == WEB


GOOD = sign(EC, alg="ES256", kid="ec")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (f"{b64(b'{}')}.{GOOD.split('.')[1]}.", "algorithm"),
        (sign(EC, alg="none", kid="ec"), "algorithm"),
        (sign(EC, alg="HS256", kid="oct"), "algorithm"),
        (sign(EC, alg=["ES256"], kid="ec"), "algorithm"),
        (sign(EC, alg="ES256"), "which key"),
        (sign(EC, alg="ES256", kid="ec", typ="wit+jwt"), "type"),
        (sign(EC, alg="ES256", kid="ec", crit=["x"]), "extensions"),
        (sign(EC, alg="ES256", kid="unknown"), "does not have the key"),
        (sign(EC, alg="ES256", kid="rsa"), "another algorithm"),
        (sign(RSA, alg="RS256", kid="ec"), "another algorithm"),
        (sign(EC, alg="ES384", kid="ec"), "another algorithm"),
        (sign(RSA, alg="RS512", digest=hashes.SHA512(), kid="rs256"), "another algorithm"),
        (sign(RSA, alg="RS256", kid="rsa", pad=PSS), "signature"),
        (sign(EC, alg="ES256", kid="bad"), "signature"),
        (sign(EC, alg="ES256", kid="oct"), "signature"),
        (sign(ec.generate_private_key(ec.SECP256R1()), alg="ES256", kid="ec"), "signature"),
        (GOOD[:-2], "another algorithm"),
        (GOOD + "=", "compact"),
        (GOOD.replace(".", "..", 1), "compact"),
        ("a" * 20000, "too long"),
        (sign(EC, {**CLAIMS, "sub": "spiffe://other.org/x"}, alg="ES256", kid="ec"), "no bundle"),
        (sign(EC, {**CLAIMS, "sub": "spiffe://example.org"}, alg="ES256", kid="ec"), "SPIFFE ID"),
        (sign(EC, {**CLAIMS, "sub": "root"}, alg="ES256", kid="ec"), "SPIFFE ID"),
        (sign(EC, {**CLAIMS, "sub": 7}, alg="ES256", kid="ec"), "SPIFFE ID"),
        (sign(EC, {**CLAIMS, "aud": ["me2"]}, alg="ES256", kid="ec"), "audience"),
        (sign(EC, {**CLAIMS, "aud": None}, alg="ES256", kid="ec"), "audience"),
        (sign(EC, {**CLAIMS, "exp": NOW // 1000 - 61}, alg="ES256", kid="ec"), "ended"),
        (sign(EC, {**CLAIMS, "exp": "9999999999"}, alg="ES256", kid="ec"), "claim exp"),
        (sign(EC, {**CLAIMS, "exp": True}, alg="ES256", kid="ec"), "claim exp"),
        (sign(EC, {"sub": WEB, "aud": "me"}, alg="ES256", kid="ec"), "claim exp"),
        (sign(EC, {**CLAIMS, "nbf": NOW // 1000 + 120}, alg="ES256", kid="ec"), "not count yet"),
        (sign(EC, [1], alg="ES256", kid="ec"), "compact"),
    ],
)  # fmt: skip
def test_bad_tokens_do_not(token: str, reason: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        verify_jwt_svid(token, "me", KEYS.get, NOW)
    assert caught.value.kind is Kind.NOT_AUTHENTICATED
    assert reason in caught.value.detail


@given(st.one_of(st.text(max_size=100), st.lists(st.binary(max_size=40).map(b64), min_size=3, max_size=3).map(".".join)))
def test_nothing_but_a_refusal_comes_of_any_token(token: str) -> None:
    with pytest.raises(HandclaspError):
        verify_jwt_svid(token, "me", KEYS.get, NOW)


VALUES = st.none() | st.integers() | st.text(max_size=8) | st.just("AQAB")


@given(st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg"]), VALUES | st.sampled_from(["EC", "RSA", "P-256"])))
def test_nor_of_any_key(key: dict[str, Any]) -> None:
    with pytest.raises(HandclaspError):
        verify_jwt_svid(GOOD, "me", lambda _: [{**key, "kid": "ec"}], NOW)


# --- settings ---------------------------------------------------------------------------------------------------------------------------


def section(text: str) -> SocketSettings:
    config = parse_config(f"version: 1\nsocket: {text}\n", "agent.yaml", Path("/etc/handclasp"))
    assert config.identities == ()
    found = config.section("socket")
    assert isinstance(found, SocketSettings)
    return found


def test_a_socket_needs_no_settings_and_takes_many() -> None:
    assert section("{}") == SocketSettings()
    full = section(
        '{path: w.sock, mode: "0660", group: root, wait: 5s, keep: 1h, connections_per_user: 7, attestors: {hash_limit_mb: 1, kubernetes: '
        "{kubelet: 'https://n1:10250', token_file: token, ca_file: /ca.pem, server_name: n1}, docker: {socket: /d.sock}}, "
        "sds: {certificate: a, bundle: b, all_bundles: c, spiffe_validator: false, crl: true}}"
    )
    assert (full.path, full.mode, full.group, full.wait, full.keep, full.connections) == (
        Path("/etc/handclasp/w.sock"),
        0o660,
        0,
        5,
        3600,
        7,
    )
    assert full.kubelet is not None
    assert (full.kubelet.url, full.kubelet.token_file, full.kubelet.server_name) == ("https://n1:10250", Path("/etc/handclasp/token"), "n1")
    assert (full.docker, full.hash_limit) == (Path("/d.sock"), 1 << 20)
    assert (full.sds.certificate, full.sds.spiffe, full.sds.crl) == ("a", False, True)
    usual = section("{attestors: {kubernetes: {}, docker: {}}}")
    assert usual.kubelet is not None
    assert (usual.kubelet.url, usual.docker) == ("https://127.0.0.1:10250", Path("/var/run/docker.sock"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "a mapping is expected"),
        ("{pathh: x}", "pathh is not known here"),
        ("{mode: '0999'}", "a mode such as 0660"),
        ("{mode: '0066'}", "a mode such as 0660"),
        ("{group: nobody-at-all}", "there is no group"),
        ("{path: /" + "x" * 100 + "}", "too long for a socket"),
        ("{wait: 0s}", "between 500ms and 24h"),
        ("{attestors: {kubernetes: {kubelet: 'ftp://x'}}}", "an address such as"),
        ("{attestors: {kubernetes: {kubelet: 'http://x:10255', token_file: t}}}", "not sent without TLS"),
        ("{attestors: {windows: {}}}", "windows is not known here"),
        ("{sds: {certificate: ALL}}", "must be different"),
    ],
)
def test_a_mistake_in_the_section_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        section(text)
    assert caught.value.kind is Kind.BAD_SETTING
    assert words in caught.value.detail
    assert "agent.yaml:2" in caught.value.detail
