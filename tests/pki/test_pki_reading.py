"""Reading what others made: ours and strange ones, and bytes that are none; nothing raises."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from handclasp.clock import from_datetime
from handclasp.pki import der, keys
from handclasp.pki.reading import MAX_TEXT, NOT_ONE, name_text, plain, read_certificate
from support.authorities import NOW, make_authority
from support.inventory import foreign

CN, OU, O_ = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME


def parts_of(certificate: bytes) -> list[bytes]:
    return der.children(der.children(certificate)[0])


def with_part(certificate: bytes, index: int, part: bytes) -> bytes:
    """The same certificate with one part replaced; its signature does not verify any more."""
    _, algorithm, signature = der.children(certificate)
    parts = parts_of(certificate)
    parts[index] = part
    return der.sequence(der.sequence(*parts), algorithm, signature)


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048", "ed25519"])
def test_it_reads_what_another_reader_reads(key_type: str) -> None:
    data = foreign("db.example.net", key_type=key_type, subject={CN: 'db, "one" +1', OU: "payments", O_: "#Some Ltd "})
    reading, other = read_certificate(data), x509.load_der_x509_certificate(data)
    assert reading.problem is None
    assert reading.sha256 == hashlib.sha256(data).digest()
    assert (reading.subject, reading.issuer) == (other.subject.rfc4514_string(), other.issuer.rfc4514_string())
    assert reading.serial == other.serial_number.to_bytes((other.serial_number.bit_length() + 8) // 8, "big")
    assert reading.not_before == from_datetime(other.not_valid_before_utc)
    assert reading.not_after == from_datetime(other.not_valid_after_utc)
    spki = other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert reading.spki_sha256 == hashlib.sha256(spki).digest()
    assert (reading.key_type, reading.signature) == (key_type, "ecdsa-sha256")
    assert (reading.dns, reading.names, reading.is_ca) == (["db.example.net"], {"dns": ["db.example.net"]}, False)
    assert reading.identity == "dns:db.example.net"


def test_authorities_have_no_identity_and_name_their_keys() -> None:
    made = make_authority()
    reading = read_certificate(made.certificate)
    assert reading.is_ca
    assert reading.identity == ""
    issuer = x509.load_der_x509_certificate(made.root).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert reading.authority_key_id == issuer.digest


@pytest.mark.parametrize(
    ("made", "identity"),
    [
        ({"uri": "spiffe://example.net/ns/a/sa/b", "name": ""}, "spiffe://example.net/ns/a/sa/b"),
        ({"name": "Web.Example.NET"}, "dns:web.example.net"),
        ({"name": "", "subject": {CN: "host.example.net"}}, "dns:host.example.net"),
        ({"name": "", "subject": {CN: "John Smith"}}, ""),
        ({"name": "", "subject": {CN: "Administrator"}}, ""),
        ({"uri": "https://example.net/x", "name": ""}, ""),
        ({"name": "a.example.net", "ca": True}, ""),
    ],
)
def test_whose_it_is(made: dict[str, Any], identity: str) -> None:
    assert read_certificate(foreign(**made)).identity == identity


def test_strange_ones_are_read_as_far_as_they_can_be() -> None:
    data = foreign("a.example.net")
    negative = read_certificate(with_part(data, 1, b"\x02\x01\x80"))
    assert (negative.serial, negative.problem) == (b"\x80", None)
    dateless = read_certificate(with_part(data, 4, der.sequence(der.tlv(0x17, b"991399999999Z"), der.tlv(0x17, b"x"))))
    assert (dateless.not_before, dateless.not_after, dateless.dns) == (0, 0, ["a.example.net"])
    assert dateless.problem == "its dates cannot be read"
    endless = read_certificate(with_part(data, 4, der.sequence(der.tlv(0x17, b"500101000000Z"), der.tlv(0x18, b"99991231235959Z"))))
    assert endless.not_before < 0
    assert endless.not_after == 253402300799000
    keyless = read_certificate(with_part(data, 6, der.sequence(der.NULL)))
    assert (keyless.key_type, keyless.problem) == ("", "its key cannot be read")
    old = parts_of(data)[1:7]
    _, algorithm, signature = der.children(data)
    version1 = read_certificate(der.sequence(der.sequence(*old), algorithm, signature))
    assert (version1.dns, version1.is_ca, version1.problem) == ([], False, None)


def test_a_nul_in_a_name_is_shown_and_not_kept() -> None:
    san = der.sequence(der.implicit(2, b"bank.example\x00.evil.example"), der.implicit(6, b"spiffe://x/\xff"))
    block = der.explicit(3, der.sequence(der.extension("2.5.29.17", san)))
    reading = read_certificate(with_part(foreign("a.example.net"), 7, block))
    assert reading.dns == ["bank.example\\x00.evil.example"]
    assert reading.uris == ["spiffe://x/\\xff"]
    assert reading.identity == ""


def test_a_broken_extension_takes_no_other_with_it() -> None:
    fine, broken = der.extension("2.5.29.37", der.sequence(der.oid("1.3.6.1.5.5.7.3.2"))), der.extension("2.5.29.17", b"\x30\x05\x00")
    reading = read_certificate(with_part(foreign("a.example.net"), 7, der.explicit(3, der.sequence(broken, fine))))
    assert reading.usages == ["client_auth"]
    assert reading.problem == "its names cannot be read"


@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    reading = read_certificate(data)
    assert reading.sha256 == hashlib.sha256(data).digest()
    assert reading.problem is not None or reading.issuer_der


_GOOD = foreign("a.example.net", now=NOW)


@given(st.integers(0, len(_GOOD) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_damaged_certificate_is_read_without_an_error(at: int, noise: bytes, cut: bool) -> None:
    reading = read_certificate(_GOOD[:at] + noise + (b"" if cut else _GOOD[at + len(noise) :]))
    assert isinstance(reading.identity, str)
    for text in (reading.subject, reading.issuer, *reading.dns, *reading.uris, *reading.emails):
        assert "\0" not in text
        assert len(text) <= 6 * MAX_TEXT


@given(st.text(max_size=100))
def test_plain_text_prints(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(text) == text or not text.isprintable()


def test_the_systems_own_anchors_are_read() -> None:
    context = ssl.create_default_context()
    anchors = context.get_ca_certs(binary_form=True)
    for data in anchors:
        reading = read_certificate(data)
        assert reading.problem is None
        assert reading.is_ca
        assert reading.not_after


def test_no_certificate_at_all_says_so() -> None:
    assert read_certificate(b"").problem == NOT_ONE
    assert read_certificate(keys.spki_der(keys.generate("p256").public_key())).problem is not None
    with pytest.raises(ValueError, match="DER"):
        name_text(b"\x30")
