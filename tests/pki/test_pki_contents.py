"""What files hold: every format, and every file that lies about being one."""

from __future__ import annotations

import base64
import os
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.pki import der as asn1
from handclasp.pki import keys, keystores
from handclasp.pki.contents import Contents, interesting, read_contents
from handclasp.pki.contents.model import MAX_DER, is_ca
from handclasp.pki.contents.pkcs12 import MAX_ITERATIONS
from support.certfiles import Maker, der, key_pem, p12, pem

MAKER = Maker()
LEAF, KEY = MAKER.leaf()
SPKI = keys.spki_sha256(KEY.public_key())
CHAIN = [der(LEAF), der(MAKER.root)]
PASSWORD = "kept-well"
P12 = p12("web", KEY, LEAF, [MAKER.root], PASSWORD)
JKS = keystores.jks_keystore(key_pem(KEY), CHAIN, "web", PASSWORD, now=1_700_000_000_000, random=os.urandom)
TRUST = keystores.jks_truststore([der(MAKER.root)], PASSWORD, now=1_700_000_000_000)


def read(data: bytes, name: str = "", *passwords: str) -> Contents:
    found = read_contents(bytearray(data), name, passwords)
    assert found is not None
    return found


def test_pem_leaf_chain_and_key_in_any_order() -> None:
    for data in (key_pem(KEY) + pem(LEAF, MAKER.root), pem(LEAF, MAKER.root) + b"\nsome words\n" + key_pem(KEY)):
        found = read(data)
        assert [(one.der, one.chain, one.anchor) for one in found.entries] == [(CHAIN[0], (CHAIN[1],), False)]
        assert [(one.spki_sha256, one.encrypted) for one in found.keys] == [(SPKI, False)]


def test_several_leaves_each_have_their_own_chain() -> None:
    other, _ = MAKER.leaf("other.elsewhere.test")
    found = read(pem(LEAF, MAKER.root, other, LEAF))
    assert [(one.der, one.chain) for one in found.entries] == [(CHAIN[0], (CHAIN[1],)), (der(other), ()), (CHAIN[0], ())]


def test_a_bundle_holds_anchors_each_once() -> None:
    other = Maker("Other CA").root
    found = read(pem(MAKER.root, other, MAKER.root))
    assert [(one.der, one.anchor) for one in found.entries] == [(der(MAKER.root), True), (der(other), True)]


def test_an_authority_with_its_key_is_no_anchor() -> None:
    assert [one.anchor for one in read(pem(MAKER.root) + key_pem(MAKER.key)).entries] == [False]


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_key_that_is_encrypted_says_so_and_nothing_else(form: PrivateFormat) -> None:
    found = read(key_pem(KEY, b"secret", form))
    assert [(one.spki_sha256, one.encrypted) for one in found.keys] == [(None, True)]


def test_other_labels() -> None:
    old = pem(LEAF).replace(b" CERTIFICATE", b" X509 CERTIFICATE")
    trusted = asn1.sequence(asn1.sequence(asn1.oid("1.3.6.1.5.5.7.3.1")))
    block = base64.encodebytes(CHAIN[1] + trusted)
    found = read(old + b"-----BEGIN TRUSTED CERTIFICATE-----\n" + block + b"-----END TRUSTED CERTIFICATE-----\n")
    assert [(one.der, one.chain) for one in found.entries] == [(CHAIN[0], (CHAIN[1],))]
    assert read_contents(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n") is None


def test_a_block_that_is_cut_off_does_not_hide_the_next() -> None:
    found = read(pem(LEAF)[:200] + b"\n" + pem(MAKER.root))
    assert [one.der for one in found.entries] == [CHAIN[1]]
    assert not read(pem(LEAF).replace(b"MII", b"M-I")).entries


def test_der_and_what_only_begins_like_it() -> None:
    assert [one.der for one in read(CHAIN[0], "web.crt").entries] == [CHAIN[0]]
    assert read_contents(asn1.sequence(asn1.integer(7)), "data.bin") is None
    assert read(asn1.sequence(asn1.integer(7)), "web.der").problem


def test_pkcs12_with_a_password_without_and_locked() -> None:
    locked = read(P12, "web.p12", "wrong")
    assert locked.locked
    assert not locked.entries
    opened = read(P12, "web.p12", "wrong", PASSWORD)
    assert [(one.der, one.chain, one.alias) for one in opened.entries] == [(CHAIN[0], (CHAIN[1],), "web")]
    assert [(one.spki_sha256, one.encrypted) for one in opened.keys] == [(SPKI, True)]
    assert [one.encrypted for one in read(p12("web", KEY, LEAF, [], ""), "web.p12").keys] == [False]
    trust = read(keystores.pkcs12_truststore([der(MAKER.root)], PASSWORD), "trust.p12", PASSWORD)
    assert [(one.der, one.anchor) for one in trust.entries] == [(CHAIN[1], True)]


def test_pkcs12_that_wants_too_much_work_is_not_tried() -> None:
    # The MAC's iterations come last in the file (RFC 7292 section 4).
    pfx = asn1.children(P12)
    mac = asn1.children(pfx[2])
    costly = asn1.sequence(pfx[0], pfx[1], asn1.sequence(mac[0], mac[1], asn1.integer(MAX_ITERATIONS + 1)))
    found = read(costly, "web.p12", PASSWORD)
    assert found.locked
    assert "hashed" in found.notes[0]


def test_pkcs12_that_says_its_work_in_small_portions_is_not_tried() -> None:
    pfx = asn1.children(P12)
    mac = asn1.children(pfx[2])
    half = asn1.sequence(asn1.octet_string(b"salt"), asn1.integer(MAX_ITERATIONS // 2))
    costly = asn1.sequence(pfx[0], pfx[1], asn1.sequence(mac[0], mac[1], asn1.integer(1)), half, half)
    assert "hashed" in read(costly, "web.p12", PASSWORD).notes[0]


def test_without_passwords_no_key_is_derived_whatever_pkcs12_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file can want 2**31 rounds inside what is encrypted, or in BER, where nobody sees it before: a server never begins with that."""

    def never(*_: Any) -> Any:
        raise AssertionError("a key was derived")

    monkeypatch.setattr("handclasp.pki.contents.pkcs12.pkcs12.load_pkcs12", never)
    _, start, end = asn1.read(P12)
    ber = b"\x30\x80" + P12[start:end] + b"\0\0"
    for data in (P12, ber):
        found = read_contents(data, "web.p12")
        assert found is not None
        assert (found.locked, found.entries, found.problem) == (True, [], "")
    unlocked = read_contents(p12("web", KEY, LEAF, [], ""), "web.p12")
    assert unlocked is not None
    assert ([one.der for one in unlocked.entries], [one.spki_sha256 for one in unlocked.keys]) == ([CHAIN[0]], [None])
    leaf, root = _bag("web", CHAIN[0]), _bag("", CHAIN[1])
    found = read_contents(_pfx(leaf, root), "web.p12")
    assert found is not None
    assert [(one.der, one.anchor, one.alias) for one in found.entries] == [(CHAIN[0], False, "web"), (CHAIN[1], True, "")]
    assert not found.locked


def _bag(name: str, certificate: bytes) -> bytes:
    value = asn1.sequence(asn1.oid("1.2.840.113549.1.9.22.1"), asn1.explicit(0, asn1.octet_string(certificate)))
    text = asn1.set_(asn1.tlv(0x1E, name.encode("utf-16-be")))
    attributes = asn1.set_(asn1.sequence(asn1.oid("1.2.840.113549.1.9.20"), text)) if name else b""
    return asn1.sequence(asn1.oid("1.2.840.113549.1.12.10.1.3"), asn1.explicit(0, value), attributes)


def _pfx(*bags: bytes) -> bytes:
    """Return a PKCS#12 file without encryption (RFC 7292 section 4)."""

    def data(content: bytes) -> bytes:
        return asn1.sequence(asn1.oid("1.2.840.113549.1.7.1"), asn1.explicit(0, asn1.octet_string(content)))

    return asn1.sequence(asn1.integer(3), data(asn1.sequence(data(asn1.sequence(*bags)))))


def test_pem_of_nothing_but_beginnings_is_one_pass() -> None:
    """Each of them used to be searched to the end of the file: a minute for 4 MiB."""

    class Counted(bytearray):
        searched = 0

        def find(self, what: Any, start: Any = 0, end: Any = None) -> int:  # type: ignore[override]
            stop = len(self) if end is None else end
            place = super().find(what, start, stop)
            Counted.searched += (place if place >= 0 else stop) - start
            return place

    data = Counted(b"-----BEGIN CERTIFICATE-----\n" * 4000 + b"-----END CERTIFICATE-----\n" + pem(LEAF))
    found = read_contents(data)
    assert found is not None
    assert CHAIN[0] in [one.der for one in found.entries]
    assert Counted.searched < 4 * len(data)


def test_jks_is_read_without_its_password() -> None:
    found = read(JKS, "web.jks")
    assert (found.format, [(one.der, one.chain, one.alias) for one in found.entries]) == ("jks", [(CHAIN[0], (CHAIN[1],), "web")])
    assert [(one.spki_sha256, one.encrypted) for one in found.keys] == [(SPKI, True)]
    assert [(one.der, one.anchor) for one in read(TRUST).entries] == [(CHAIN[1], True)]
    assert [one.der for one in read(P12, "web.jks", PASSWORD).entries] == [CHAIN[0]]


def test_jceks_stops_at_a_secret_key() -> None:
    head, entry = b"\xce\xce\xce\xce" + struct.pack(">II", 2, 2), TRUST[12:-20]
    found = read(head + entry + struct.pack(">IH", 3, 1) + b"s" + bytes(8) + b"\xac\xed\x00\x05" + bytes(50))
    assert [one.der for one in found.entries] == [CHAIN[1]]
    assert found.notes


@pytest.mark.parametrize(
    "data",
    [
        b"\xfe\xed\xfe\xed" + struct.pack(">II", 2, 0xFFFFFFFF),
        b"\xfe\xed\xfe\xed" + struct.pack(">IIIH", 2, 1, 1, 65535) + b"a",
        b"\xfe\xed\xfe\xed" + struct.pack(">IIIHQI", 2, 1, 1, 0, 0, 0xFFFFFFFF),
        b"\xfe\xed\xfe\xed" + struct.pack(">IIIHQII", 2, 1, 1, 0, 0, 0, 0xFFFFFFFF),
        b"\xfe\xed\xfe\xed" + struct.pack(">II", 77, 1),
        b"\xfe\xed\xfe\xed",
    ],
)
def test_keystores_that_lie_about_their_lengths(data: bytes) -> None:
    found = read(data)
    assert found.problem
    assert not found.entries


def test_kubeconfigs() -> None:
    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    text = f"""
apiVersion: v1
kind: Config
clusters: [{{name: a, cluster: {{certificate-authority-data: {b64(pem(MAKER.root))}, server: "https://a"}}}}]
users:
- name: admin
  user:
    client-certificate-data: {b64(pem(LEAF))}
    client-key-data: {b64(key_pem(KEY))}
- name: other
  user: {{client-certificate: /etc/kubernetes/pki/other.crt, client-key: 'pki/other.key'}}
"""
    found = read(text.encode(), "admin.conf")
    assert found.format == "kubeconfig"
    assert [(one.der, one.anchor, one.alias) for one in found.entries] == [
        (CHAIN[0], False, "client-certificate"),
        (CHAIN[1], True, "certificate-authority"),
    ]
    assert [one.spki_sha256 for one in found.keys] == [SPKI]
    assert found.references == ["/etc/kubernetes/pki/other.crt", "pki/other.key"]
    as_json = '{"users":[{"user":{"client-certificate-data":"%s"}}]}' % b64(pem(LEAF))  # noqa: UP031
    assert [one.der for one in read(as_json.encode()).entries] == [CHAIN[0]]


def test_what_is_looked_at() -> None:
    assert interesting("web.pem", b"")
    assert interesting("cacerts", b"")
    assert interesting("notes.txt", b"see below\n-----BEGIN CERTIFICATE-----")
    assert interesting("blob", b"\xfe\xed\xfe\xed")
    assert not interesting("notes.txt", b"nothing here")


def test_a_certificate_that_is_too_large_is_left_out() -> None:
    block = base64.encodebytes(asn1.sequence(bytes(MAX_DER)))
    found = read(b"-----BEGIN CERTIFICATE-----\n" + block + b"-----END CERTIFICATE-----\n" + pem(LEAF))
    assert [one.der for one in found.entries] == [CHAIN[0]]
    assert found.notes


def test_a_bomb_of_blocks_costs_one_pass() -> None:
    data = b"-----BEGIN CERTIFICATE-----\n" * 150_000
    assert read_contents(bytearray(data)) is None
    assert len(read(pem(LEAF) * 12_000).entries) == 1  # the same one again and again


GOOD = [P12, JKS, TRUST, CHAIN[0], key_pem(KEY) + pem(LEAF, MAKER.root), keystores.pkcs12_truststore([der(MAKER.root)], PASSWORD)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_nothing_escapes_from_damaged_files(good: bytes, data: st.DataObject) -> None:
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found = read_contents(damaged, data.draw(st.sampled_from(["a.p12", "a.crt", "a"])), [PASSWORD])
    assert found is None or isinstance(found.entries, list)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\xfe\xed\xfe\xed\x00\x00\x00\x02", b"\xce\xce\xce\xce\x00\x00\x00\x02", b"\x30", b"-----BEGIN "]),
)
def test_nothing_escapes_from_noise(noise: bytes, head: bytes) -> None:
    read_contents(bytearray(head + noise), "a.der", [PASSWORD])
    is_ca(noise)
