"""Patterns: what they cover, what they never cover, and which are refused."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.patterns import (
    ANY_VALUE,
    ClaimPattern,
    DnsPatterns,
    EmailPatterns,
    IdentityPatterns,
    Networks,
    claim_value,
)
from handclasp.errors import HandclaspError, Kind
from support.access import or_refused

IDENTITIES = [
    ("a literal covers itself", "spiffe://td/prod/web", "spiffe://td/prod/web", True),
    ("a literal covers nothing longer", "spiffe://td/prod/web", "spiffe://td/prod/web/x", False),
    ("a literal is no prefix", "spiffe://td/prod/web", "spiffe://td/prod/web2", False),
    ("a dot is a dot", "spiffe://td/a.b/*", "spiffe://td/axb/c", False),
    ("a star is one segment", "spiffe://td/*/web", "spiffe://td/prod/web", True),
    ("a star is not two segments", "spiffe://td/*/web", "spiffe://td/a/b/web", False),
    ("a star is not none", "spiffe://td/prod/*", "spiffe://td/prod", False),
    ("a last star is one segment", "spiffe://td/prod/*", "spiffe://td/prod/a/b", False),
    ("two stars are one or more", "spiffe://td/prod/**", "spiffe://td/prod/a/b/c", True),
    ("two stars are not none", "spiffe://td/prod/**", "spiffe://td/prod", False),
    ("two stars stay in their path", "spiffe://td/prod/**", "spiffe://td/production/a", False),
    ("two stars stay in their trust domain", "spiffe://td/**", "spiffe://td.evil/a", False),
    ("a dot in the trust domain is a dot", "spiffe://t.d/*", "spiffe://txd/a", False),
    ("a segment is never ..", "spiffe://td/*/x", "spiffe://td/../x", False),
    ("case matters", "spiffe://td/Prod", "spiffe://td/prod", False),
]


@pytest.mark.parametrize(("pattern", "name", "covers"), [case[1:] for case in IDENTITIES], ids=[case[0] for case in IDENTITIES])
def test_identity_patterns(pattern: str, name: str, covers: bool) -> None:
    assert IdentityPatterns([pattern]).covers(name) is covers


BAD_IDENTITIES = [
    ("a wildcard in the trust domain", "spiffe://*/a"),
    ("a placeholder in the trust domain", "spiffe://{td}/a"),
    ("a part of a segment", "spiffe://td/web-*"),
    ("two stars in the middle", "spiffe://td/**/a"),
    ("no path", "spiffe://td"),
    ("another scheme", "https://td/a"),
    ("everything", "*"),
    ("nothing", ""),
    ("two placeholders in one segment, which could be cut in two ways", "spiffe://td/{a}-{b}"),
    ("a placeholder without a name", "spiffe://td/{}"),
    ("an open brace", "spiffe://td/{a"),
    ("a traversal", "spiffe://td/../a"),
    ("a control character", "spiffe://td/a\0"),
    ("an upper-case trust domain", "spiffe://TD/a"),
    ("too long", "spiffe://td/" + "a" * 3000),
]


@pytest.mark.parametrize("pattern", [case[1] for case in BAD_IDENTITIES], ids=[case[0] for case in BAD_IDENTITIES])
def test_a_bad_identity_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        IdentityPatterns([pattern])
    assert caught.value.kind is Kind.BAD_POLICY


DNS = [
    ("a literal, in any case", "Web.example.org", "web.example.org", True),
    ("a star is one label", "*.example.org", "web.example.org", True),
    ("a star is not two labels", "*.example.org", "a.b.example.org", False),
    ("a star is not none", "*.example.org", "example.org", False),
    ("a dot is a dot", "*.example.org", "webxexample.org", False),
    ("the wildcard name is covered by its literal text", "*.example.org", "*.example.org", True),
    ("a wildcard name is not covered by a shorter wildcard", "*.org", "*.example.org", False),
    ("a short name", "web", "web", True),
]


@pytest.mark.parametrize(("pattern", "name", "covers"), [case[1:] for case in DNS], ids=[case[0] for case in DNS])
def test_dns_patterns(pattern: str, name: str, covers: bool) -> None:
    assert DnsPatterns([pattern]).covers(name) is covers


@pytest.mark.parametrize("pattern", ["*", "web.*", "a.*.org", "we*.example.org", "{zone}", "a.{tld}", "**.example.org", "a..b", "a_b.org"])
def test_a_bad_dns_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        DnsPatterns([pattern])
    assert caught.value.kind is Kind.BAD_POLICY


def test_a_wildcard_name_is_not_given_by_a_placeholder() -> None:
    patterns = DnsPatterns(["{host}.example.org", "*.{ns}.example.org"])
    assert patterns.covers("web.example.org", {"host": "web"})
    assert not patterns.covers("*.example.org", {"host": "*"})
    assert patterns.covers("a.prod.example.org", {"ns": "prod"})
    assert not patterns.covers("*.prod.example.org", {"ns": "prod"})


def test_a_denied_host_is_found_under_a_wildcard_name() -> None:
    deny = DnsPatterns(["admin.example.org"])
    assert deny.touches("admin.example.org")
    assert deny.touches("*.example.org")
    assert not deny.touches("*.org")
    assert not deny.touches("web.example.org")
    assert DnsPatterns(["*.example.org"]).touches("*.example.org")


def test_addresses_and_mailboxes() -> None:
    assert Networks(["10.0.0.0/8"]).covers("10.1.2.3")
    assert not Networks(["10.0.0.0/8"]).covers("11.0.0.1")
    assert not Networks(["10.0.0.0/24"]).covers("10.0.1.0")
    assert not Networks(["10.0.0.0/8"]).covers("::ffff:10.0.0.1")
    assert Networks(["10.0.0.0/8"]).covers_source("::ffff:10.0.0.1")
    assert not Networks(["0.0.0.0/0"]).covers("::1")
    assert not Networks().covers("10.0.0.1")
    assert not Networks(["10.0.0.0/8"]).covers("10.0.0.1, 10.0.0.2")
    assert EmailPatterns(["*@example.org"]).covers("a@example.org")
    assert not EmailPatterns(["*@example.org"]).covers("a@sub.example.org")
    assert not EmailPatterns(["*@example.org"]).covers("a@evil.org@example.org")
    assert EmailPatterns(["a@example.org"]).covers("a@example.org")
    assert EmailPatterns(["{user}@example.org"]).covers("a@example.org", {"user": "a"})
    for bad in ("*", "a@*", "a@{d}", "a*@example.org"):
        with pytest.raises(HandclaspError):
            EmailPatterns([bad])
    for bad in ("10.0.0.1/8", "10.0.0.0/33", "example.org"):
        with pytest.raises(HandclaspError):
            Networks([bad])


def test_placeholders_are_filled_from_claims() -> None:
    patterns = IdentityPatterns(["spiffe://td/ns/{kubernetes.io.namespace}/sa-{name}"])
    claims = {"kubernetes.io": {"namespace": "prod"}, "name": "web"}
    assert patterns.covers("spiffe://td/ns/prod/sa-web", claims)
    assert not patterns.covers("spiffe://td/ns/prod/sa-db", claims)
    assert not patterns.covers("spiffe://td/ns/prod/sa-web")
    assert not patterns.covers("spiffe://td/ns/prod/sa-web", {"kubernetes.io": {"namespace": ["prod"]}, "name": "web"})
    assert patterns.covers("spiffe://td/ns/any/sa-thing", ANY_VALUE)
    assert not patterns.covers("spiffe://td/ns/any/other", ANY_VALUE)


def test_a_claim_that_is_in_two_places_is_in_none() -> None:
    assert claim_value({"a.b": "x"}, "a.b") == "x"
    assert claim_value({"a": {"b": "y"}}, "a.b") == "y"
    assert claim_value({"a.b": "x", "a": {"b": "y"}}, "a.b") is None


# Regression, GHSA-59w7-v8rr-pr4p: "*", "+", "/" and "," inside identity metadata widened a templated policy.
@pytest.mark.parametrize(
    "value", ["*", "**", "+", "a/b", "../a", "a,b", "{x}", ".", "..", "", "a\nb", "a\0", "a b", "é", ".*", "[^/]+", "a|b"]
)
def test_a_metacharacter_in_a_claim_matches_nothing(value: str) -> None:
    claims = {"x": value}
    identities = IdentityPatterns(["spiffe://td/{x}/web"])
    for name in ("spiffe://td/prod/web", "spiffe://td/a/web", f"spiffe://td/{value}/web", "spiffe://td/a/b/web"):
        assert not identities.covers(name, claims)
    assert not DnsPatterns(["{x}.example.org"]).covers(f"{value}.example.org", claims)
    assert not EmailPatterns(["{x}@example.org"]).covers(f"{value}@example.org", claims)


SEGMENT = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=6).filter(lambda text: text not in (".", ".."))
PATTERN_SEGMENT = st.one_of(SEGMENT, st.just("*"), st.just("{x}"))


def covers_by_the_book(pattern: list[str], path: list[str], claim: object) -> bool:
    """The same rules as the compiled patterns, written as a comparison of lists."""
    if pattern[-1:] == ["**"]:
        head = pattern[:-1]
        return len(path) > len(head) and covers_by_the_book(head, path[: len(head)], claim)
    if len(pattern) != len(path):
        return False
    return all(part in ("*", text) or (part == "{x}" and claim == text) for part, text in zip(pattern, path, strict=True))


@given(st.lists(PATTERN_SEGMENT, min_size=1, max_size=4), st.booleans(), st.data(), st.one_of(SEGMENT, st.text(max_size=5), st.none()))
def test_a_pattern_covers_what_the_rules_say_and_nothing_else(pattern: list[str], rest: bool, data: st.DataObject, claim: object) -> None:
    pattern = [*pattern, "**"] if rest else pattern
    like = [st.one_of(st.just(part), SEGMENT) if part[0] not in "*{" else SEGMENT for part in pattern]
    path = data.draw(st.one_of(st.tuples(*like).map(list), st.lists(SEGMENT, min_size=1, max_size=6)))
    compiled = IdentityPatterns(["spiffe://td/" + "/".join(pattern)])
    name = "spiffe://td/" + "/".join(path)
    assert compiled.covers(name, {"x": claim}) == covers_by_the_book(pattern, path, claim)
    assert not compiled.covers(name.replace("spiffe://td/", "spiffe://tdx/"), {"x": claim})


@given(st.text(), st.lists(SEGMENT, min_size=2, max_size=2))
def test_a_claim_never_covers_more_than_its_own_text(value: str, path: list[str]) -> None:
    name = f"spiffe://td/{path[0]}/{path[1]}"
    covered = IdentityPatterns(["spiffe://td/{x}/" + path[1]]).covers(name, {"x": value})
    assert covered == (value == path[0])


@pytest.mark.parametrize("kind", [IdentityPatterns, DnsPatterns, EmailPatterns, Networks])
@given(text=st.one_of(st.text(max_size=60), st.text("spife:/td*{}.@ab", max_size=40)))
def test_any_text_is_a_pattern_or_a_refusal(kind: type, text: str) -> None:
    with or_refused(Kind.BAD_POLICY):
        kind([text]).covers("spiffe://td/a")


CLAIMS = [
    ("the same text", "prod", "prod", True),
    ("another text", "prod", "production", False),
    ("true is true", True, True, True),
    ("true is not a text", True, "true", False),
    ("true is not 1", True, 1, False),
    ("1 is not true", 1, True, False),
    ("one of a list", ["a", "b"], "b", True),
    ("a claim that is a list", "admin", ["user", "admin"], True),
    ("a star is one part", "repo:acme/*:ref:refs/heads/main", "repo:acme/web:ref:refs/heads/main", True),
    ("a star does not pass a separator", "repo:acme/*:ref:refs/heads/main", "repo:acme/x:ref:evil:ref:refs/heads/main", False),
    ("two stars are the rest", "repo:acme/web:**", "repo:acme/web:ref:refs/heads/main", True),
    ("two stars are not none", "repo:acme/web:**", "repo:acme/web:", False),
    ("an absent claim", "a", None, False),
    ("a map", "a", {"a": "a"}, False),
]


@pytest.mark.parametrize(("pattern", "claim", "fits"), [case[1:] for case in CLAIMS], ids=[case[0] for case in CLAIMS])
def test_claim_patterns(pattern: object, claim: object, fits: bool) -> None:
    assert ClaimPattern(pattern).matches(claim) is fits


@pytest.mark.parametrize("pattern", ["", [], None, 1.5, {}, "a*", "**/a", [[]]])
def test_a_bad_claim_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(HandclaspError):
        ClaimPattern(pattern)
