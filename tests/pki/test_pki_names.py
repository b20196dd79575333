"""Names: what a certificate may carry, in one form only."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import names as n
from support.errors import allowing

_GOOD = [
    (n.check_spiffe_id, "spiffe://example.org/prod/web", None),
    (n.check_spiffe_id, "spiffe://a/b", None),
    (n.check_spiffe_id, "spiffe://td_1-x.example/A.b-c_d/...", None),
    (n.check_spiffe_id, "spiffe://" + "a" * 255 + "/x", None),
    (n.check_spiffe_id, "spiffe://td/" + "a" * 2036, None),
    (n.check_trust_domain, "example.org", None),
    (n.check_trust_domain, "_a.b-c", None),
    (n.check_dns, "Example.ORG", "example.org"),
    (n.check_dns, "localhost", None),
    (n.check_dns, "*.example.org", None),
    (n.check_dns, "*.Svc.cluster.local", "*.svc.cluster.local"),
    (n.check_dns, "xn--bcher-kva.example", None),
    (n.check_dns, "1.2.3.x4", None),
    (n.check_dns, "a" * 63 + ".org", None),
    (n.check_dns, ".".join(["a" * 61] * 4) + ".abcde", None),
    (n.check_ip, "10.0.0.1", None),
    (n.check_ip, "2001:DB8:0:0::1", "2001:db8::1"),
    (n.check_ip, "127.0.0.1", None),
    (n.check_email, "Jane.Doe+x@Example.org", "Jane.Doe+x@example.org"),
]
_BAD = [
    (n.check_spiffe_id, "spiffe://example.org"),
    (n.check_spiffe_id, "spiffe://example.org/"),
    (n.check_spiffe_id, "spiffe:///web"),
    (n.check_spiffe_id, "SPIFFE://example.org/web"),
    (n.check_spiffe_id, "spiffe://Example.org/web"),
    (n.check_spiffe_id, "spiffe://example.org//web"),
    (n.check_spiffe_id, "spiffe://example.org/web/"),
    (n.check_spiffe_id, "spiffe://example.org/./web"),
    (n.check_spiffe_id, "spiffe://example.org/a/../b"),
    (n.check_spiffe_id, "spiffe://example.org/.."),
    (n.check_spiffe_id, "spiffe://example.org/a%2fb"),
    (n.check_spiffe_id, "spiffe://example.org:8443/web"),
    (n.check_spiffe_id, "spiffe://user@example.org/web"),
    (n.check_spiffe_id, "spiffe://example.org/web?x"),
    (n.check_spiffe_id, "spiffe://example.org/web#x"),
    (n.check_spiffe_id, "spiffe://example.org/we b"),
    (n.check_spiffe_id, "spiffe://example.org/web\n"),
    (n.check_spiffe_id, "spiffe://example.org/wéb"),
    (n.check_spiffe_id, "spiffe://../web"),
    (n.check_spiffe_id, "https://example.org/web"),
    (n.check_spiffe_id, "spiffe://" + "a" * 256 + "/x"),
    (n.check_spiffe_id, "spiffe://td/" + "a" * 2037),
    (n.check_spiffe_id, "spiffe://example.org/*"),
    (n.check_trust_domain, ""),
    (n.check_trust_domain, ".."),
    (n.check_trust_domain, "a/b"),
    (n.check_trust_domain, "Example.org"),
    (n.check_trust_domain, "spiffe://example.org"),
    (n.check_dns, ""),
    (n.check_dns, "."),
    (n.check_dns, "example.org."),
    (n.check_dns, ".example.org"),
    (n.check_dns, "a..b"),
    (n.check_dns, "-a.org"),
    (n.check_dns, "a-.org"),
    (n.check_dns, "a_b.org"),
    (n.check_dns, "bücher.example"),
    (n.check_dns, "\u017f.example"),  # lower-cases to an ASCII letter in some functions
    (n.check_dns, "\u212a.example"),  # the Kelvin sign, lower-cased, is a plain k
    (n.check_dns, "xn--.example"),
    (n.check_dns, "xn--abc-.example"),
    (n.check_dns, "xn--zzzzzzzzzzzzzz.example"),
    (n.check_dns, "10.0.0.1"),
    (n.check_dns, "1"),
    (n.check_dns, "*"),
    (n.check_dns, "*.org"),
    (n.check_dns, "a.*.org"),
    (n.check_dns, "w*.example.org"),
    (n.check_dns, "*.*.example.org"),
    (n.check_dns, "a" * 64 + ".org"),
    (n.check_dns, ".".join(["a" * 61] * 4) + ".abcdef" * 2),
    (n.check_dns, "a.org\x00.evil.example"),
    (n.check_dns, "a.org\n"),
    (n.check_ip, ""),
    (n.check_ip, "10.0.0.1/8"),
    (n.check_ip, "010.0.0.1"),
    (n.check_ip, "fe80::1%eth0"),
    (n.check_ip, "::ffff:10.0.0.1"),
    (n.check_ip, "0.0.0.0"),
    (n.check_ip, "::"),
    (n.check_ip, "224.0.0.1"),
    (n.check_ip, "4.4"),
    (n.check_email, "jane"),
    (n.check_email, "@example.org"),
    (n.check_email, "jane@"),
    (n.check_email, "a..b@example.org"),
    (n.check_email, '"a b"@example.org'),
    (n.check_email, "jane@*.example.org"),
    (n.check_email, "a@b@example.org"),
    (n.check_email, "é@example.org"),
    (n.check_email, "x" * 65 + "@example.org"),
    (n.check_email, "Jane <jane@example.org>"),
]


@pytest.mark.parametrize(("check", "text", "canonical"), _GOOD)
def test_a_good_name_comes_back_in_its_canonical_form(check, text, canonical):
    assert check(text) == (canonical or text)
    assert check(check(text)) == check(text)


@pytest.mark.parametrize(("check", "text"), _BAD)
def test_a_bad_name_is_refused(check, text):
    with pytest.raises(HandclaspError) as caught:
        check(text)
    assert caught.value.kind is Kind.BAD_NAME


def test_wildcards_are_refused_where_they_are_not_wanted():
    with pytest.raises(HandclaspError):
        n.check_dns("*.example.org", wildcard=False)


def test_the_identity_is_the_spiffe_id_or_the_first_name():
    cases = [
        (n.Names(), ""),
        (n.Names("spiffe://a/b", ("x.org",)), "spiffe://a/b"),
        (n.Names(None, ("x.org", "y.org"), ("10.0.0.1",)), "dns:x.org"),
        (n.Names(ip=("10.0.0.1",), email=("a@b.org",)), "ip:10.0.0.1"),
        (n.Names(email=("a@b.org",)), "email:a@b.org"),
    ]
    for names, identity in cases:
        assert names.identity == identity
        assert names.is_empty == (identity == "")
    assert n.trust_domain_of("spiffe://example.org/a/b") == "example.org"
    assert n.Names("spiffe://a/b", ("x.org",)).kinds == {"spiffe", "dns"}


def test_names_are_checked_deduplicated_and_limited():
    names = n.make_names("spiffe://a/b", ["B.org", "a.org", "b.org"], ["10.0.0.1", "10.0.0.1"], ["x@A.org", "x@a.org"])
    assert names == n.Names("spiffe://a/b", ("b.org", "a.org"), ("10.0.0.1",), ("x@a.org",))
    n.make_names(None, [f"h{i}.org" for i in range(100)])
    with pytest.raises(HandclaspError):
        n.make_names(None, [f"h{i}.org" for i in range(101)])


def test_a_san_with_unsupported_names_is_refused():
    uri = x509.UniformResourceIdentifier
    bad = [
        [uri("spiffe://a/b"), uri("spiffe://a/c")],
        [uri("spiffe://a/b"), uri("spiffe://a/b")],
        [uri("https://example.org")],
        [x509.DirectoryName(x509.Name([]))],
        [x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))],
        [x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")],
        [x509.DNSName("bad_name.org")],
        [x509.RFC822Name("x")],
        [x509.IPAddress(ipaddress.ip_address("0.0.0.0"))],
    ]
    for san in bad:
        with pytest.raises(HandclaspError) as caught:
            n.names_from_san(x509.SubjectAlternativeName(san))
        assert caught.value.kind is Kind.BAD_NAME


def test_zones_hold_themselves_and_what_is_below():
    zones = ["example.org", "corp.test"]
    for name, inside in (
        ("example.org", True),
        ("a.b.example.org", True),
        ("*.example.org", True),
        ("badexample.org", False),
        ("example.org.evil.net", False),
        ("org", False),
        ("corp.test", True),
    ):
        assert n.in_dns_zone(name, zones) is inside
    assert not n.in_dns_zone("a.org", [])


@given(st.text(max_size=80), st.sampled_from(["", "spiffe://", "spiffe://a/", "*.", "xn--", "a@"]))
def test_every_check_only_ever_raises_bad_name_and_is_stable(text, prefix):
    for check in (n.check_spiffe_id, n.check_trust_domain, n.check_dns, n.check_ip, n.check_email):
        with allowing(Kind.BAD_NAME):
            good = check(prefix + text)
            assert check(good) == good
            assert good.isascii()
            assert good.isprintable()
            assert " " not in good


def test_a_common_name_is_read_for_showing_only():
    def name(*values: tuple[str, str]) -> bytes:
        oids = {"CN": x509.NameOID.COMMON_NAME, "O": x509.NameOID.ORGANIZATION_NAME}
        return x509.Name([x509.NameAttribute(oids[kind], value) for kind, value in values]).public_bytes()

    assert n.common_name(name(("O", "x"), ("CN", "wéb"), ("CN", "other"))) == "wéb"
    assert n.common_name(name(("CN", "a\nb"))) is None
    assert n.common_name(name(("O", "x"))) is None
    assert n.common_name(b"") is None
    assert n.common_name(b"\x30\x00") is None


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(0, 255))
def test_no_subject_makes_the_reader_of_common_names_raise(data, at, value):
    n.common_name(data)
    changed = bytearray(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web")]).public_bytes())
    changed[at % len(changed)] = value
    n.common_name(bytes(changed))
