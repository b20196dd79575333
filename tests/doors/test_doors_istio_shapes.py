"""The texts of Istio's protocol: identities, certificate requests, chains."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from handclasp.doors.istio.shapes import account_of, chain_of, check_asks_only_for, identity_of
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.csr import parse_csr
from support.access import or_refused
from support.mesh import pilot_csr, request, uri, ztunnel_csr

KEY = ec.generate_private_key(ec.SECP256R1())
IDENTITY = "spiffe://example.org/ns/prod/sa/web"


def test_an_identity_and_its_account_are_one() -> None:
    assert identity_of("example.org", "prod", "web") == IDENTITY
    assert account_of(IDENTITY, "example.org") == ("prod", "web")
    assert account_of("spiffe://example.org/ns/prod/sa/web.v2", "example.org") == ("prod", "web.v2")


@pytest.mark.parametrize(
    "text",
    [
        "", "spiffe://example.org", "spiffe://example.org/ns/prod/sa/", "spiffe://example.org/ns//sa/web", "spiffe://example.org/ns/prod/sa/web/",
        "spiffe://example.org/x/ns/prod/sa/web", "spiffe://other.org/ns/prod/sa/web", "spiffe://example.org/ns/prod/sa/*",
        "spiffe://example.org/sa/web/ns/prod", "spiffe://example.org/ns/Prod/sa/web", "SPIFFE://example.org/ns/prod/sa/web",
        "spiffe://example.org/ns/prod/sa/w%65b", "spiffe://example.org/ns/../sa/web", " spiffe://example.org/ns/prod/sa/web",
    ],
)  # fmt: skip
def test_what_is_no_such_identity_is_nobodys(text: str) -> None:
    assert account_of(text, "example.org") is None


@given(st.text())
def test_only_what_an_account_writes_is_read_as_one(text: str) -> None:
    found = account_of(text, "example.org")
    assert found is None or identity_of("example.org", *found) == text


def test_both_clients_ask_for_no_more_than_they_may() -> None:
    for _, csr in (ztunnel_csr(IDENTITY, KEY), pilot_csr(IDENTITY, KEY), (KEY, request(KEY))):
        check_asks_only_for(parse_csr(csr), IDENTITY)
    with pytest.raises(HandclaspError) as caught:
        check_asks_only_for(parse_csr(ztunnel_csr(IDENTITY, KEY)[1]), IDENTITY + "x")
    assert caught.value.kind is Kind.NAME_NOT_ALLOWED


@given(st.lists(st.sampled_from(["web", "", "acme"]), max_size=3), st.sampled_from(["2.5.4.3", "2.5.4.10", "2.5.4.11", "2.5.4.5"]))
def test_a_subject_that_says_anything_is_refused(texts: list[str], oid: str) -> None:
    attributes = [x509.NameAttribute(x509.ObjectIdentifier(oid), text) for text in texts if text]
    csr = parse_csr(request(KEY, uri(IDENTITY), subject=x509.Name(attributes)))
    if attributes:
        with pytest.raises(HandclaspError):
            check_asks_only_for(csr, IDENTITY)
    else:
        check_asks_only_for(csr, IDENTITY)


@given(st.binary(max_size=60))
def test_no_extension_does_more_than_be_refused(data: bytes) -> None:
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), data)
    or_refused(lambda: check_asks_only_for(parse_csr(request(KEY, uri(IDENTITY), (extension, False))), IDENTITY))
    with pytest.raises(HandclaspError):
        check_asks_only_for(parse_csr(request(KEY, (extension, False))), IDENTITY)


def test_a_chain_has_one_certificate_in_each_element_and_all_roots_in_the_last() -> None:
    def block(letter: str) -> str:
        return f"-----BEGIN CERTIFICATE-----\n{letter * 8}\n-----END CERTIFICATE-----\n"

    leaf, one, two, roots = block("A"), block("B"), block("C"), block("D") + block("E")
    assert chain_of(leaf, one + two, roots) == [leaf, one, two, roots]
    assert chain_of(leaf, "", roots) == [leaf, roots]
