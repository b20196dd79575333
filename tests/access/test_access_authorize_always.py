"""The choke point, whatever is asked: what is allowed is covered by one grant, nothing adds up, deny wins, narrowing never widens."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, authorize
from handclasp.access.grants import ACTIONS, Grant
from handclasp.access.patterns import DnsPatterns, IdentityPatterns
from handclasp.access.policy import EMPTY, DenyRule, Policy
from handclasp.pki.names import Names
from support.access import BARE, NOW, POLICY, certificate, circumstances, make_grant, oidc, plan, token

SPIFFE = st.sampled_from([f"spiffe://td/{first}/{second}" for first in ("a", "b") for second in ("x", "y")])

SPIFFE_PATTERN = st.one_of(SPIFFE, st.sampled_from(["spiffe://td/a/*", "spiffe://td/*/x", "spiffe://td/**", "spiffe://td/{c}/x"]))

HOST = st.sampled_from(["a.example.org", "b.example.org", "*.example.org", "c.test"])

HOST_PATTERN = st.one_of(HOST, st.just("{c}.example.org"))

PROFILES = st.sampled_from(["workload", "server"])


def few(items: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(items, max_size=3)


GRANTS = st.builds(
    lambda **parts: make_grant(**parts),
    identities=few(SPIFFE_PATTERN),
    dns=few(HOST_PATTERN),
    ip=few(st.sampled_from(["10.0.0.0/8", "10.0.0.1"])),
    profiles=st.frozensets(PROFILES),
    max_ttl=st.sampled_from([None, 10.0, 100.0]),
    sources=few(st.sampled_from(["10.0.0.0/8", "192.0.2.1"])),
    actions=st.frozensets(st.sampled_from(sorted(ACTIONS))),
    renew=st.booleans(),
    principals=st.just(POLICY.grants[1].principals + POLICY.grants[0].principals),
)

PLANS = st.builds(
    lambda spiffe, dns, ip, profile, ttl: plan(spiffe, dns=tuple(dns), ip=tuple(ip), profile=profile, ttl=ttl),
    st.one_of(st.none(), SPIFFE),
    st.lists(HOST, max_size=2, unique=True),
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2"]), max_size=2, unique=True),
    PROFILES,
    st.sampled_from([1, 10, 11, 100, 101]),
)

CLAIM = st.sampled_from(["a", "b", "*", "", "a/x", "x", "+", "{c}"])

PRINCIPALS = st.one_of(
    CLAIM.map(lambda value: oidc(repo="acme/web", ref="refs/heads/main", c=value)),
    st.builds(
        lambda spiffe, claim, agent: certificate(
            spiffe, is_agent=agent, labels={"role": "web", "zone": "a", "c": claim}, granted_by="policy:g0"
        ),
        st.one_of(SPIFFE, st.just("spiffe://td/deployer")),
        CLAIM,
        st.booleans(),
    ),
)

DENY = st.lists(
    st.builds(lambda ids, dns: DenyRule("no", IdentityPatterns(ids), DnsPatterns(dns)), few(SPIFFE), few(HOST)),
    max_size=2,
).map(tuple)

AROUND = st.builds(
    lambda action, source: circumstances(action, source=source),
    st.sampled_from([*sorted(ACTIONS), "sign", ""]),
    st.sampled_from([None, "10.0.0.1", "192.0.2.1", "203.0.113.9"]),
)

GRANT_LISTS = st.lists(GRANTS, max_size=3).map(
    lambda grants: tuple(dataclasses.replace(grant, name=f"policy:g{number}") for number, grant in enumerate(grants))
)


def allowed(*arguments: Any) -> bool:
    return isinstance(authorize(*arguments), Allowed)


def every_name_is_covered(grant: Grant, names: Names, claim: str | None) -> bool:
    """Compare without any compiled pattern: what a name may look like, spelt out."""

    def covers(text: str, name: str) -> bool:
        if "{c}" in text:
            return claim in ("a", "b", "x") and text.replace("{c}", str(claim)) == name
        if text == name:
            return True
        if text == "*.example.org":
            return name in ("a.example.org", "b.example.org")
        return (
            (text == "spiffe://td/a/*" and name.startswith("spiffe://td/a/"))
            or (text == "spiffe://td/*/x" and name.startswith("spiffe://td/") and name.endswith("/x"))
            or (text == "spiffe://td/**" and name.startswith("spiffe://td/"))
        )

    spiffe = [] if names.spiffe is None else [names.spiffe]
    return all(any(covers(text, name) for text in grant.identities.texts) for name in spiffe) and all(
        any(covers(text, name) for text in grant.dns.texts) for name in names.dns
    )


@given(GRANT_LISTS, DENY, PRINCIPALS, PLANS, AROUND)
def test_what_is_allowed_is_covered_by_the_one_grant_that_is_named(grants: Any, deny: Any, principal: Any, asked: Any, around: Any) -> None:
    answer = authorize(principal, asked, around, Policy(grants, deny))
    if isinstance(answer, Allowed):
        grant = next(grant for grant in grants if grant.name == answer.grant)
        claim = principal.claims["c"] if principal.kind == "oidc" else principal.labels["c"]
        assert every_name_is_covered(grant, asked.names, claim)
        assert asked.profile.name in grant.profiles
        assert around.action in grant.actions
        assert allowed(principal, asked, around, Policy((grant,), deny))  # no other grant was needed


@given(GRANTS, GRANTS, PRINCIPALS, PLANS, AROUND)
def test_two_grants_never_add_up(one: Grant, two: Grant, principal: Any, asked: Any, around: Any) -> None:
    both = allowed(principal, asked, around, Policy((one, two)))
    assert both == (allowed(principal, asked, around, Policy((one,))) or allowed(principal, asked, around, Policy((two,))))


@given(GRANTS, PLANS, AROUND, GRANT_LISTS, st.booleans())
def test_a_token_never_gives_more_than_its_grant(grant: Grant, asked: Any, around: Any, others: Any, deny: bool) -> None:
    principal = token(dataclasses.replace(grant, name="token:a"), name="bare")
    rules = (DenyRule("no", IdentityPatterns(["spiffe://td/a/x"]), DnsPatterns()),) if deny else ()
    answer = authorize(principal, asked, around, Policy(others + POLICY.grants, rules))
    if isinstance(answer, Allowed):
        if not grant.has_names:
            assert answer.grant == "policy:by-token"
            return
        assert answer.grant == "token:a"
        assert around.action in grant.actions
        assert around.action != "renew"
        assert asked.profile.name in grant.profiles
        assert every_name_is_covered(grant, asked.names, None)
        assert around.action == "revoke" or grant.max_ttl is None or asked.not_after - NOW <= grant.max_ttl * 1000
        assert not grant.sources or grant.sources.covers(around.source or "")


@given(GRANT_LISTS, PRINCIPALS, PLANS, st.sampled_from(["issue", "renew"]), GRANTS)
def test_deny_always_beats_allow(grants: Any, principal: Any, asked: Any, action: str, own: Grant) -> None:
    names = asked.names
    rules = [DenyRule("no", IdentityPatterns([names.spiffe] if names.spiffe else []), DnsPatterns(names.dns))]
    if names.spiffe is None and not names.dns:
        return
    for who in (principal, token(own)):
        assert not allowed(who, asked, circumstances(action, origin=own), Policy(grants, tuple(rules)))


@given(PRINCIPALS, PLANS, AROUND)
def test_an_absent_rule_denies(principal: Any, asked: Any, around: Any) -> None:
    assert not allowed(principal, asked, around, EMPTY)
    assert not allowed(token(BARE), asked, around, EMPTY)
    empty = Grant("policy:empty", principals=POLICY.grants[1].principals, actions=ACTIONS)
    assert not allowed(principal, asked, around, Policy((empty,)))


def narrowed(grant: Grant, step: int) -> Grant:
    """Return the grant with one thing less."""
    drop: list[dict[str, Any]] = [
        {"identities": IdentityPatterns(grant.identities.texts[1:])},
        {"dns": DnsPatterns(grant.dns.texts[1:])},
        {"profiles": frozenset(sorted(grant.profiles)[1:])},
        {"max_ttl": 5.0},
        {"sources": type(grant.sources)(grant.sources.texts[1:] if len(grant.sources.texts) > 1 else ["198.51.100.1"])},
        {"actions": frozenset(sorted(grant.actions)[1:])},
        {"renew": False},
        {"principals": grant.principals[1:]},
    ]
    return dataclasses.replace(grant, **drop[step])


@given(GRANT_LISTS, DENY, PRINCIPALS, PLANS, AROUND, st.integers(0, 2), st.integers(0, 9))
def test_narrowing_a_policy_never_allows_more(
    grants: Any, deny: Any, principal: Any, asked: Any, around: Any, which: int, step: int
) -> None:
    wide = Policy(grants, deny)
    if step == 8:
        narrow = Policy(grants[:which] + grants[which + 1 :], deny)
    elif step == 9:
        narrow = Policy(grants, (*deny, DenyRule("more", IdentityPatterns(["spiffe://td/a/*"]), DnsPatterns())))
    elif which < len(grants):
        narrow = Policy((*grants[:which], narrowed(grants[which], step), *grants[which + 1 :]), deny)
    else:
        return
    before, after = (
        allowed(principal, asked, dataclasses.replace(around, origin=policy.grant_named("policy:g0")), policy) for policy in (wide, narrow)
    )
    assert before or not after
