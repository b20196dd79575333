"""Revocation lists and bundles: what other readers see in them."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from handclasp.clock import to_datetime
from handclasp.errors import Kind
from handclasp.pki import bundles, chains, keys
from handclasp.pki.crl import REASONS, Revoked, build_crl, read_crl, verify_crl
from support.authorities import NOW, authority, key_of, plan_of
from support.errors import allowing, refused
from support.needs import needs

_DAY = 86_400_000
_URL = "http://ca.example.org/crl/issuing-1/3.crl"


def _build(entries=(), *, key_type="p256", number=7, url: str | None = _URL) -> bytes:
    made = authority(key_type)
    return build_crl(made.certificate, made.key, entries, number, NOW, NOW + _DAY, url)


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
def test_a_list_of_each_key_type_is_read_and_verified_by_cryptography(key_type):
    made = authority(key_type)
    data = _build([Revoked(5, NOW - 5000, 1), Revoked(3, NOW - 9000, 0)], key_type=key_type)
    crl = x509.load_der_x509_crl(data)
    assert crl.is_signature_valid(made.key.public_key())
    verify_crl(data, made.certificate)
    with refused(Kind.VERIFY_FAILED):
        verify_crl(data, made.root)
    assert crl.issuer == chains.load(made.certificate).subject
    assert [entry.serial_number for entry in crl] == [3, 5]
    entry = crl.get_revoked_certificate_by_serial_number(5)
    assert entry is not None
    assert entry.revocation_date_utc == to_datetime((NOW - 5000) // 1000 * 1000)
    assert [item.value.reason for item in entry.extensions] == [x509.ReasonFlags.key_compromise]  # type: ignore[attr-defined]
    first = crl.get_revoked_certificate_by_serial_number(3)
    assert first is not None
    assert len(first.extensions) == 0
    head = read_crl(data)
    assert (head.number, head.url, head.count) == (7, _URL, 2)
    assert (head.this_update, head.next_update) == (NOW // 1000 * 1000, (NOW + _DAY) // 1000 * 1000)
    assert head.issuer_der == made.issuer.subject_der


def test_the_distribution_point_is_critical_and_claims_nothing_more():
    crl = x509.load_der_x509_crl(_build())
    point = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert point.critical
    value = point.value
    assert value.full_name == [x509.UniformResourceIdentifier(_URL)]
    flags = (value.only_contains_ca_certs, value.only_contains_user_certs, value.only_contains_attribute_certs, value.indirect_crl)
    assert flags == (False, False, False, False)
    assert value.only_some_reasons is None
    assert len(list(crl)) == 0
    assert read_crl(_build(url=None)).url is None
    assert crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == authority().issuer.key_id


@given(
    st.lists(
        st.builds(Revoked, st.integers(1, 2**159 - 1), st.integers(0, 4_000_000_000_000), st.sampled_from(sorted(REASONS.values()))),
        max_size=12,
    )
)
def test_the_entries_are_those_of_cryptographys_builder(entries):
    entries = list({entry.serial: entry for entry in entries}.values())
    flags = {1: "key_compromise", 2: "ca_compromise", 3: "affiliation_changed", 4: "superseded", 5: "cessation_of_operation"}
    flags |= {9: "privilege_withdrawn", 10: "aa_compromise"}
    made = authority()
    listed = []
    for entry in sorted(entries, key=lambda item: item.serial):
        builder = x509.RevokedCertificateBuilder().serial_number(entry.serial).revocation_date(to_datetime(entry.at // 1000 * 1000))
        if entry.reason:
            builder = builder.add_extension(x509.CRLReason(getattr(x509.ReasonFlags, flags[entry.reason])), critical=False)
        listed.append(builder.build())
    url = [x509.UniformResourceIdentifier(_URL)]
    other = (
        x509.CertificateRevocationListBuilder(
            chains.load(made.certificate).subject, to_datetime(NOW // 1000 * 1000), to_datetime((NOW + _DAY) // 1000 * 1000), [], listed
        )
        .add_extension(x509.AuthorityKeyIdentifier(made.issuer.key_id, None, None), critical=False)
        .add_extension(x509.CRLNumber(7), critical=False)
        .add_extension(x509.IssuingDistributionPoint(url, None, False, False, None, False, False), critical=True)
        .sign(made.key, keys.signing_hash(made.key))
    )
    assert x509.load_der_x509_crl(_build(entries)).tbs_certlist_bytes == other.tbs_certlist_bytes


def test_a_serial_stands_once_with_its_earliest_date():
    crl = x509.load_der_x509_crl(_build([Revoked(9, NOW, 4), Revoked(9, NOW - 60_000, 1)]))
    assert [entry.revocation_date_utc for entry in crl] == [to_datetime((NOW - 60_000) // 1000 * 1000)]


def test_impossible_lists_are_refused():
    made = authority()
    with refused(Kind.BAD_KEY):
        build_crl(made.certificate, made.root_key, [], 1, NOW, NOW + 1, None)
    for number, end in ((-1, NOW + _DAY), (2**160, NOW + _DAY), (1, NOW)):
        with refused(Kind.INTERNAL):
            build_crl(made.certificate, made.key, [], number, NOW, end, None)
    for reason in (6, 7, 8, 11):
        with refused(Kind.INTERNAL):
            _build([Revoked(1, NOW, reason)])


def test_openssl_refuses_a_revoked_certificate(tmp_path):
    needs("openssl")
    made = authority()
    plan, other = plan_of(), plan_of()
    good, bad = made.sign(plan), made.sign(other)
    shard = build_crl(made.certificate, made.key, [Revoked(other.serial, NOW, 1)], 1, NOW, NOW + _DAY, made.issuer.crl_url(other.crl_shard))
    clear = build_crl(made.certificate, made.key, [], 1, NOW, NOW + _DAY, made.issuer.crl_url(plan.crl_shard))
    for name, data in (("root", made.root), ("issuing", made.certificate), ("good", good), ("bad", bad)):
        (tmp_path / name).write_text(chains.to_pem(data))

    def verify(leaf: str, crl: bytes) -> str:
        pem = base64.encodebytes(crl).decode()
        (tmp_path / "crl").write_text(f"-----BEGIN X509 CRL-----\n{pem}-----END X509 CRL-----\n")
        command = ["openssl", "verify", "-attime", str(NOW // 1000), "-extended_crl", "-crl_check", "-CRLfile", "crl"]
        done = subprocess.run(
            [*command, "-CAfile", "root", "-untrusted", "issuing", leaf], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    assert "good: OK" in verify("good", clear)
    assert "certificate revoked" in verify("bad", shard)
    if plan.crl_shard != other.crl_shard:  # another shard's list says nothing about this certificate
        assert "bad: OK" not in verify("bad", clear)


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(1, 255))
def test_broken_lists_raise_only_our_errors(data, at, change):
    mutated = bytearray(_CRL)
    mutated[at % len(mutated)] ^= change
    for candidate in (data, bytes(mutated)):
        with allowing(Kind.BAD_CERTIFICATE):
            read_crl(candidate)
        with allowing(Kind.BAD_CERTIFICATE, Kind.VERIFY_FAILED):
            verify_crl(candidate, authority().certificate)
            pytest.fail("a changed list was accepted")


_CRL = _build([Revoked(5, NOW, 1), Revoked(6, NOW)])


# --- bundles ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
def test_a_spiffe_bundle_carries_each_root(key_type):
    root = authority(key_type).root
    data = bundles.spiffe_bundle([root], 3, 300)
    document = json.loads(data)
    assert (len(document["keys"]), document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (1, 3, 300)
    key = document["keys"][0]
    assert key["use"] == "x509-svid"
    assert key["x5c"] == [base64.b64encode(root).decode()]
    assert key["kty"] == {"p": "EC", "r": "RSA", "e": "OKP", "m": "AKP"}[key_type[0]]
    for member in ("x", "y", "n", "e", "pub"):
        assert "=" not in key.get(member, "")


def test_the_numbers_of_a_key_are_those_of_the_key():
    key = json.loads(bundles.spiffe_bundle([authority().root], 1, 1))["keys"][0]
    numbers = key_of("p256", 1).public_key().public_numbers()  # type: ignore[union-attr]
    for member, value in (("x", numbers.x), ("y", numbers.y)):  # type: ignore[union-attr]
        raw = base64.urlsafe_b64decode(key[member] + "=")
        assert len(raw) == 32
        assert int.from_bytes(raw, "big") == value
