"""The lint finds every way in which the bytes could differ from the plan or break a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys
from handclasp.pki.lint import lint
from handclasp.pki.names import Names
from handclasp.pki.plan import Plan, encode_tbs
from handclasp.pki.profiles import BUILT_IN, Profile
from support.authorities import NOW, authority, csr_of, key_of, make_authority, plan_of
from support.errors import refused

_NAMES = Names("spiffe://example.org/prod/web", ("web.example.org",), ("10.0.0.1",))


def _tbs(plan: Plan, **changes: object) -> bytes:
    """Encode the plan with some values changed."""
    values = {
        "serial": plan.serial,
        "names": plan.names,
        "profile": plan.profile,
        "issuer": plan.issuer,
        "not_before": plan.not_before,
        "not_after": plan.not_after,
        "spki": csr_of().spki,
        "crl_shard": plan.crl_shard,
    }
    return encode_tbs(**{**values, **changes})  # type: ignore[arg-type]


def _issuer(plan: Plan, **changes: object):
    return dataclasses.replace(plan.issuer, **changes)


def _profile(plan: Plan, **changes: object) -> Profile:
    return dataclasses.replace(plan.profile, **changes)


_Change = Callable[[Plan], bytes]
_CASES: list[tuple[str, _Change, str]] = [
    ("another serial", lambda p: _tbs(p, serial=p.serial + 8), "serial"),
    ("another issuer", lambda p: _tbs(p, issuer=_issuer(p, subject_der=der.EMPTY_SEQUENCE)), "issuer"),
    ("another algorithm", lambda p: _tbs(p, issuer=_issuer(p, signature_algorithm=keys.signature_algorithm(key_of("p384")))), "algorithm"),
    ("a later end", lambda p: _tbs(p, not_after=p.not_after + 1000), "dates"),
    ("a much later end", lambda p: _tbs(p, not_after=p.not_after + 10**9), "longer than its profile"),
    ("more backdating", lambda p: _tbs(p, not_before=p.not_before - 3_600_000), "backdated"),
    ("dates in the wrong order", lambda p: _tbs(p, not_before=p.not_after, not_after=p.not_before), "before it begins"),
    ("another key", lambda p: _tbs(p, spki=csr_of("p384").spki), "public key"),
    ("a name too many", lambda p: _tbs(p, names=Names(_NAMES.spiffe, (*_NAMES.dns, "b.example.org"), _NAMES.ip)), "planned names"),
    ("a name missing", lambda p: _tbs(p, names=Names(_NAMES.spiffe, _NAMES.dns)), "planned names"),
    ("a name twice", lambda p: _tbs(p, names=Names(_NAMES.spiffe, _NAMES.dns * 2, _NAMES.ip)), "planned names"),
    ("no SPIFFE ID", lambda p: _tbs(p, names=Names(None, _NAMES.dns, _NAMES.ip)), "subject"),
    ("a name nobody can use", lambda p: _tbs(p, names=Names("spiffe://example.org/", _NAMES.dns, _NAMES.ip)), "SPIFFE ID"),
    (
        "another trust domain",
        lambda p: _tbs(p, names=Names("spiffe://example.net/prod/web", _NAMES.dns, _NAMES.ip)),
        "another trust domain",
    ),
    ("other key usage", lambda p: _tbs(p, profile=_profile(p, key_usage=frozenset({"key_agreement"}))), "keyUsage"),
    ("other extended key usage", lambda p: _tbs(p, profile=_profile(p, extended_key_usage=("server_auth",))), "extendedKeyUsage"),
    ("another authority key", lambda p: _tbs(p, issuer=_issuer(p, key_id=b"x" * 20)), "authorityKeyIdentifier"),
    ("another shard", lambda p: _tbs(p, crl_shard=p.crl_shard + 1), "cRLDistributionPoints"),
    ("no distribution point", lambda p: _tbs(p, issuer=_issuer(p, crl_base="")), "extensions"),
    ("no authority access", lambda p: _tbs(p, issuer=_issuer(p, aia_url="")), "extensions"),
    ("another authority access", lambda p: _tbs(p, issuer=_issuer(p, aia_url="http://evil.test/x")), "authorityInfoAccess"),
    ("an authority", lambda p: p.tbs.replace(_BASIC, _AUTHORITY), "cannot be read|no authority"),
    ("a SAN that is not critical", lambda p: _rebuilt(p, _uncritical), "critical"),
    ("an unknown extension", lambda p: _rebuilt(p, lambda items: [*items, der.extension("1.2.3.4", der.NULL)]), "extensions"),
    ("an extension twice", lambda p: _rebuilt(p, lambda items: [*items, items[0]]), "cannot be read"),
    ("a missing extension", lambda p: _rebuilt(p, lambda items: items[:-1]), "extensions"),
    (
        "an authority, well encoded",
        lambda p: _rebuilt(p, lambda items: [_CA if _is(item, "2.5.29.19") else item for item in items]),
        "no authority",
    ),
    ("version 1", lambda p: der.sequence(*der.children(p.tbs)[1:7]), "version 3"),
    ("no bytes", lambda p: b"", "cannot be read"),
    ("trailing bytes", lambda p: p.tbs + b"\x00", "cannot be read"),
    (
        "another subject",
        lambda p: _with(p, 5, der.sequence(der.set_(der.sequence(der.oid("2.5.4.3"), der.utf8_string("root"))))),
        "subject",
    ),
]
_BASIC = der.extension("2.5.29.19", der.EMPTY_SEQUENCE, critical=True)
_AUTHORITY = der.extension("2.5.29.19", der.EMPTY_SEQUENCE, critical=True)[:-2] + b"\x30\x01"
_CA = der.extension("2.5.29.19", der.sequence(der.TRUE), critical=True)


def _with(plan: Plan, position: int, part: bytes) -> bytes:
    parts = der.children(plan.tbs)
    parts[position] = part
    return der.sequence(*parts)


def _rebuilt(plan: Plan, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    extensions = der.children(der.children(der.children(plan.tbs)[7])[0])
    return _with(plan, 7, der.explicit(3, der.sequence(*change(extensions))))


def _is(extension: bytes, dotted: str) -> bool:
    return der.children(extension)[0] == der.oid(dotted)


def _uncritical(items: list[bytes]) -> list[bytes]:
    return [der.sequence(*(part for part in der.children(item) if part != der.TRUE)) if _is(item, "2.5.29.17") else item for item in items]


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
def test_a_good_plan_passes_for_each_key_type(key_type):
    plan = plan_of(_NAMES, csr=csr_of(key_type), made=authority())
    lint(plan.tbs, plan)


def test_a_good_plan_passes_with_and_without_optional_extensions_and_subject():
    for crl_base in ("", "http://ca.test/crl"):
        for aia_url in ("", "http://ca.test/ca.cer"):
            made = make_authority(crl_base=crl_base, aia_url=aia_url)
            for names in (Names(dns=("web.example.org",)), Names(ip=("10.0.0.1",)), Names(dns=("a." + "b" * 60 + ".example.org",))):
                plan = plan_of(names, made=made, profile=BUILT_IN["server"])
                lint(plan.tbs, plan)


@pytest.mark.parametrize(("case", "change", "words"), _CASES, ids=[case for case, _, _ in _CASES])
def test_each_deviation_is_found(case, change, words):
    plan = plan_of(_NAMES)
    with pytest.raises(HandclaspError) as caught:
        lint(change(plan), plan)
    assert caught.value.kind is Kind.LINT_FAILED
    assert any(word in caught.value.detail for word in words.split("|")), caught.value.detail


def test_all_problems_are_listed():
    plan = plan_of(_NAMES)
    with refused(Kind.LINT_FAILED, "serial", "dates", "keyUsage"):
        lint(
            _tbs(
                plan,
                serial=plan.serial + 8,
                not_after=plan.not_after + 1000,
                profile=_profile(plan, key_usage=frozenset({"key_agreement"})),
            ),
            plan,
        )


@pytest.mark.parametrize("number", [0, 1, 2**62, 2**159])
def test_serials_that_are_predictable_or_too_long_are_found(number):
    plan = plan_of(_NAMES)
    plan.serial, plan.crl_shard = number, number % 8
    with refused(Kind.LINT_FAILED, "serial"):
        lint(_tbs(plan), plan)


def test_a_plan_beyond_its_authority_is_found_even_when_the_bytes_agree():
    plan = plan_of(_NAMES)
    plan.issuer = _issuer(plan, not_after=NOW)
    with refused(Kind.LINT_FAILED, "outlives"):
        lint(_tbs(plan), plan)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_no_changed_byte_gets_through(at, change):
    plan = plan_of(_NAMES)
    data = bytearray(plan.tbs)
    data[at % len(data)] ^= change
    with refused(Kind.LINT_FAILED):
        lint(bytes(data), plan)


@given(st.data())
def test_the_short_way_for_bytes_judged_before_sees_every_changed_byte(data: st.DataObject) -> None:
    """The second certificate of an identity takes a shorter way through the lint, which must see as much."""
    plan = plan_of(names=_NAMES)
    lint(plan.tbs, plan)
    lint(plan.tbs, plan)
    position = data.draw(st.integers(0, len(plan.tbs) - 1))
    changed = bytearray(plan.tbs)
    changed[position] ^= data.draw(st.integers(1, 255))
    with refused(Kind.LINT_FAILED):
        lint(bytes(changed), plan)


def test_the_short_way_does_not_lead_from_one_identity_or_profile_to_another() -> None:
    plan = plan_of(names=_NAMES)
    lint(plan.tbs, plan)
    for other in (
        dataclasses.replace(plan, names=Names(_NAMES.spiffe, ("other.example.org",), _NAMES.ip)),
        dataclasses.replace(plan, profile=dataclasses.replace(plan.profile, extended_key_usage=("client_auth",))),
        dataclasses.replace(plan, issuer=dataclasses.replace(plan.issuer, key_id=b"\0" * 20)),
    ):
        with refused(Kind.LINT_FAILED):
            lint(plan.tbs, other)
