"""Plans: what they refuse, what dates they give, and that their bytes are those cryptography's builder would make."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import os

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.clock import to_datetime
from handclasp.errors import Kind
from handclasp.pki import der, keys
from handclasp.pki.lint import lint
from handclasp.pki.names import Names
from handclasp.pki.plan import Issuer, Plan, encode_tbs, make_plan, new_serial
from handclasp.pki.profiles import BUILT_IN, EXTENDED_KEY_USAGES, KEY_USAGE_BITS, Profile
from support.authorities import NOW, authority, csr_of, key_of, make_authority, plan_of, serial
from support.errors import refused

_ID = "spiffe://example.org/prod/web"
_SPIFFE = Names(spiffe=_ID)
_OPEN = Profile("open")


def test_a_serial_is_its_instance_and_136_random_bits():
    assert new_serial(1, lambda n: b"\xff" * n) == (1 << 136) | (2**136 - 1)
    assert new_serial(0, lambda n: b"\x80" + b"\x00" * (n - 1)) == 1 << 135
    assert new_serial(127, os.urandom) >> 136 == 127
    for instance in (-1, 128):
        with refused(Kind.INTERNAL):
            new_serial(instance, os.urandom)


def test_a_plan_is_redeemed_once():
    plan = plan_of()
    assert plan.redeem() == plan.tbs
    with refused(Kind.INTERNAL):
        plan.redeem()


@pytest.mark.parametrize(
    ("case", "names", "profile", "kind"),
    [
        ("no name at all", Names(), _OPEN, Kind.BAD_NAME),
        ("a workload needs a SPIFFE ID", Names(dns=("a.example.org",)), BUILT_IN["workload"], Kind.BAD_NAME),
        ("a workload has no e-mail address", Names(_ID, email=("a@example.org",)), BUILT_IN["workload"], Kind.BAD_NAME),
        ("a server has no e-mail address", Names(email=("a@example.org",)), BUILT_IN["server"], Kind.BAD_NAME),
        ("a client has no IP address", Names(ip=("10.0.0.1",)), BUILT_IN["client"], Kind.BAD_NAME),
        ("an agent has no DNS name", Names(_ID, dns=("a.example.org",)), BUILT_IN["agent"], Kind.BAD_NAME),
        ("another trust domain", Names("spiffe://example.net/prod/web"), _OPEN, Kind.NAME_NOT_ALLOWED),
        ("a longer trust domain", Names("spiffe://example.org.evil/prod"), _OPEN, Kind.NAME_NOT_ALLOWED),
        ("outside the zones", Names(dns=("a.example.net",)), _OPEN, Kind.NAME_NOT_ALLOWED),
        ("one name inside, one outside", Names(dns=("a.example.org", "b.test")), _OPEN, Kind.NAME_NOT_ALLOWED),
        ("a mailbox outside the zones", Names(email=("a@example.net",)), _OPEN, Kind.NAME_NOT_ALLOWED),
    ],
)
def test_names_are_held_against_profile_and_authority(case, names, profile, kind):
    made = make_authority(dns_zones=("example.org",))
    with refused(kind):
        plan_of(names, made=made, profile=profile)
    plan_of(Names(_ID, ("a.example.org", "*.example.org"), ("10.0.0.1",), ("a@example.org",)), made=made, profile=_OPEN)


def test_the_key_type_must_be_in_the_profile():
    profile = dataclasses.replace(_OPEN, key_types=frozenset({"p384"}))
    with refused(Kind.BAD_KEY, "p256"):
        plan_of(profile=profile)
    plan_of(profile=profile, csr=csr_of("p384"))


@pytest.mark.parametrize("ttl", [9.9, 86400.1, 0.0, -1.0, math.inf, math.nan])
def test_lifetimes_outside_the_profile_are_refused(ttl):
    with refused(Kind.LIFETIME_NOT_ALLOWED):
        plan_of(ttl=ttl)


def test_dates_are_whole_seconds_backdated_and_never_more_than_granted():
    plan = plan_of()
    assert (plan.lifetime, plan.clamped) == (3600, False)
    assert plan.not_before == (NOW - 60_000) // 1000 * 1000
    assert plan.not_after == (NOW + 3_600_000) // 1000 * 1000
    short = plan_of(ttl=20)
    assert short.not_after - NOW <= 20_000 < short.not_after - NOW + 1000
    assert short.not_before < NOW - 59_000


def test_a_plan_is_clamped_to_its_authority_or_refused():
    made = make_authority(lifetime=600)
    plan = plan_of(made=made)
    assert plan.clamped
    assert plan.not_after == made.issuer.not_after
    assert plan.lifetime == (plan.not_after - NOW) / 1000 < 600.001
    with refused(Kind.LIFETIME_NOT_ALLOWED, "too soon"):
        plan_of(made=made, now=made.issuer.not_after - 9000)
    with refused(Kind.LIFETIME_NOT_ALLOWED):
        plan_of(made=made, now=made.issuer.not_after + 1000)
    with refused(Kind.LIFETIME_NOT_ALLOWED, "not valid before"):
        plan_of(made=made, now=made.issuer.not_before - 1)
    young = plan_of(made=made, now=made.issuer.not_before + 10_000, ttl=20)
    assert young.not_before == made.issuer.not_before


def test_the_shard_is_in_the_distribution_point():
    plan = plan_of()
    assert plan.crl_shard == plan.serial % 8
    assert f"http://ca.example.org/crl/issuing-1/{plan.crl_shard}.crl".encode() in plan.tbs


# --- the differential test --------------------------------------------------------------------------------------------------------------

_label = st.text(alphabet="abcxyz019", min_size=1, max_size=12)
_dns = st.lists(_label, min_size=1, max_size=7).map(lambda labels: ".".join([*labels, "example", "org"]))
_names = st.builds(
    Names,
    spiffe=st.none() | st.lists(_label, min_size=1, max_size=12).map(lambda path: "spiffe://example.org/" + "/".join(path)),
    dns=st.lists(_dns, max_size=12, unique=True).map(tuple),
    ip=st.lists(st.ip_addresses().map(str), max_size=4, unique=True).map(tuple),
    email=st.lists(_dns.map(lambda host: "a.b@" + host), max_size=3, unique=True).map(tuple),
).filter(lambda names: not names.is_empty)
_usage = st.sets(st.sampled_from(sorted(KEY_USAGE_BITS)), min_size=1).map(frozenset)
_extended = st.permutations(sorted(EXTENDED_KEY_USAGES)).flatmap(lambda order: st.integers(1, 2).map(lambda count: tuple(order[:count])))
_profiles = st.builds(Profile, name=st.just("p"), key_usage=_usage, extended_key_usage=_extended)
_text = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
_issuers = st.builds(
    Issuer,
    name=st.just("i"),
    trust_domain=st.just("example.org"),
    subject_der=st.lists(_text, min_size=1, max_size=3).map(
        lambda texts: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:16]) for text in texts]).public_bytes()
    ),
    key_id=st.binary(min_size=1, max_size=32),
    signature_algorithm=st.just(keys.signature_algorithm(key_of("p256", 2))),
    not_after=st.just(2**42),
    crl_base=st.sampled_from(["", "http://ca.example.org/crl/x", "http://[::1]:8080/" + "p" * 200]),
    crl_shards=st.integers(1, 1000),
    aia_url=st.sampled_from(["", "http://ca.example.org/ca/x.cer", "http://h/" + "p" * 300]),
)
# GeneralizedTime begins in 2050; both forms, and the second around the change.
_time = (st.integers(0, 4_000_000_000) | st.sampled_from([2_524_607_999, 2_524_608_000])).map(lambda seconds: seconds * 1000)


def _built(number: int, names: Names, profile: Profile, issuer: Issuer, begin: int, end: int, key_type: str) -> bytes:
    """The same content by cryptography's builder."""
    public = key_of(key_type).public_key()
    subject = []
    if names.spiffe is None and names.dns and len(names.dns[0]) <= 64:
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, names.dns[0]))
    general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(names.spiffe)] if names.spiffe else []
    general += [x509.DNSName(name) for name in names.dns]
    general += [x509.IPAddress(ipaddress.ip_address(address)) for address in names.ip]
    general += [x509.RFC822Name(address) for address in names.email]
    usages = {"client_auth": ExtendedKeyUsageOID.CLIENT_AUTH, "server_auth": ExtendedKeyUsageOID.SERVER_AUTH}
    wanted = {usage: usage in profile.key_usage for usage in KEY_USAGE_BITS}
    usage = x509.KeyUsage(**wanted, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False)
    parent = _name(issuer.subject_der)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(parent)
        .public_key(public)
        .serial_number(number)
        .not_valid_before(to_datetime(begin))
        .not_valid_after(to_datetime(end))
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([usages[usage] for usage in profile.extended_key_usage]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(keys.key_id(keys.spki_der(public))), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(issuer.key_id, None, None), critical=False)
        .add_extension(x509.SubjectAlternativeName(general), critical=not subject)
    )
    if issuer.crl_base:
        url = x509.UniformResourceIdentifier(f"{issuer.crl_base}/{number % issuer.crl_shards}.crl")
        builder = builder.add_extension(x509.CRLDistributionPoints([x509.DistributionPoint([url], None, None, None)]), critical=False)
    if issuer.aia_url:
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(issuer.aia_url))
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    signer = key_of("p256", 2)
    return builder.sign(signer, keys.signing_hash(signer)).tbs_certificate_bytes


def _name(subject: bytes) -> x509.Name:
    """Return a Name of common names as cryptography's object."""
    values = [der.children(der.children(attributes)[0])[1] for attributes in der.children(subject)]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value[der.read(value)[1] :].decode()) for value in values])


@settings(max_examples=300)
@given(
    st.integers(1, 2**159 - 1),
    _names,
    _profiles,
    _issuers,
    _time,
    _time,
    st.sampled_from(["p256", "p384", "ed25519", "rsa2048", "ml-dsa-44"]),
)
def test_the_bytes_are_those_of_the_builder(number, names, profile, issuer, one, other, key_type):
    begin, end = sorted((one, other + 1000))
    tbs = encode_tbs(
        serial=number,
        names=names,
        profile=profile,
        issuer=issuer,
        not_before=begin,
        not_after=end,
        spki=keys.spki_der(key_of(key_type).public_key()),
        crl_shard=number % issuer.crl_shards,
    )
    assert tbs == _built(number, names, profile, issuer, begin, end, key_type)


_plain_ip = st.ip_addresses().filter(
    lambda address: not (address.is_unspecified or address.is_multicast or getattr(address, "ipv4_mapped", None))
)


@settings(max_examples=150)
@given(
    _names,
    st.lists(_plain_ip.map(str), max_size=3, unique=True),
    st.floats(10, 86400),
    st.integers(0, 2**33),
    st.sampled_from([NOW, NOW + 999]),
)
def test_every_plan_that_is_made_passes_lint_and_keeps_its_promises(names, addresses, ttl, offset, base):
    made = authority()
    now = base + offset
    names = dataclasses.replace(names, ip=tuple(addresses))
    if names.is_empty:
        return
    plan = make_plan(profile=_OPEN, names=names, csr=csr_of(), issuer=made.issuer, now=now, ttl=ttl, serial=serial())
    lint(plan.tbs, plan)
    assert isinstance(plan, Plan)
    assert plan.not_after <= now + ttl * 1000
    assert plan.not_after <= made.issuer.not_after
    assert plan.not_before <= now < plan.not_after
