"""Who owns an identity: the order of evidence, what is a guess, what is contested; and that order is the only one that counts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.ownership.catalogue import Catalogue, Item
from handclasp.ownership.document import EMPTY, diff, parse_ownership
from handclasp.ownership.rules import EVIDENCE, Evidence, Judgement, Known, Said, evaluate
from support.errors import allowing, refused

RULES = """
version: 1
rules:
  - {name: label, workload_label: team, owner: "{value}"}
  - {name: ns-label, namespace_label: owner, is: "team-{team}", owner: "{team}"}
  - {name: prod, namespace: "*-prod", environment: prod}
  - {name: ns, namespace: "{team}-prod", owner: "{team}"}
  - {name: path, spiffe: "spiffe://example.org/ns/{team}/**", owner: "{team}"}
  - {name: tag, tag: Owner, owner: "{value}", tier: 1}
  - {name: services, spiffe: "spiffe://example.org/ns/*/sa/{service}", component: "{service}"}
  - {name: code, spiffe: "spiffe://example.org/ns/*/sa/{service}", path: "services/{service}/main.go"}
  - {name: hosts, host_group: db, owner: dba}
  - {name: zone, zone: "{team}.example.org", owner: "{team}"}
"""
PARSED = parse_ownership(RULES)
WEB = "spiffe://example.org/ns/payments/sa/web"
TEAMS = ("payments", "shop", "search", "dba", "core")
KNOWN = Known(
    frozenset(TEAMS),
    Catalogue(
        (
            Item("backstage", "component", "web", ("shop",), "2", "staging"),
            Item("code", "path", "*", ("core",), place=0),
            Item("code", "path", "/services/api/", ("search",), place=1),
        )
    ),
)


def judged(identity: str = WEB, evidence: Evidence | None = None, known: Known = KNOWN, rules: Any = PARSED) -> Judgement:
    return evaluate(identity, evidence or Evidence(), rules, known)


def place(**facts: Any) -> Evidence:
    return Evidence(places=(facts,))


@pytest.mark.parametrize(
    ("identity", "evidence", "owner", "how"),
    [
        (WEB, Evidence(said=(Said("confirmed", "core", "confirmed"),), tokens=(("boot", "shop"),)), "core", "confirmed"),
        (WEB, Evidence(tokens=(("boot", "Team Web"),)), "Team Web", "token"),
        (WEB, place(workload_labels={"team": "search"}, namespace_labels={"owner": "team-shop"}), "search", "workload"),
        (WEB, place(namespace_labels={"owner": "team-shop"}), "shop", "namespace"),
        (WEB, place(namespace="core-prod"), "core", "namespace"),
        (WEB, place(tags={"Owner": "core"}), "payments", "spiffe"),
        ("spiffe://example.org/x", place(tags={"Owner": "core"}, host_group="db"), "core", "cloud"),
        ("spiffe://example.org/ns/nobody/sa/web", Evidence(), "shop", "catalogue"),
        ("spiffe://example.org/ns/nobody/sa/api", Evidence(), "search", "catalogue"),
        ("spiffe://example.org/x", place(host_group="db"), "dba", "host"),
        ("spiffe://example.org/x", place(host_group="db", owner="@acme/core"), "core", "catalogue"),
        ("spiffe://example.org/x", place(host_group="db", owner="nobody"), "dba", "host"),
        ("spiffe://example.org/x", place(host_group="db", tags={"owner": "core"}), "core", "catalogue"),
        ("dns:a.b.search.example.org", Evidence(), "search", "zone"),
        ("dns:*.search.example.org", Evidence(), "search", "zone"),
        ("spiffe://example.org/x", Evidence(dns=("www.shop.example.org",)), "shop", "zone"),
        ("dns:search.example.org.evil.net", Evidence(), None, ""),
        ("spiffe://other.org/ns/payments/sa/db", Evidence(), None, ""),
    ],
)
def test_each_evidence(identity: str, evidence: Evidence, owner: str | None, how: str) -> None:
    found = judged(identity, evidence)
    assert found.owner == owner
    assert "".join(one.evidence for one in found.candidates if one.stands in ("owner", "disputed", "contested")) == how


def test_what_is_less_sure_gives_the_rest() -> None:
    found = judged(WEB, place(namespace="shop-prod"))
    assert (found.owner, found.tier, found.environment) == ("shop", "2", "prod")
    assert [one.stands for one in found.candidates if one.owner][:1] == ["disputed"]


def test_a_source_that_is_all_of_one_environment() -> None:
    found = judged("spiffe://example.org/x", place(environment="Staging", tier=1))
    assert (found.owner, found.tier, found.environment) == (None, "1", "staging")


def test_equal_evidence_that_disagrees_is_contested() -> None:
    two = Evidence(places=({"workload_labels": {"team": "shop"}}, {"workload_labels": {"team": "search"}}))
    found = judged(WEB, two)
    assert found.owner == "search"  # by name: not by the order in which places were seen
    assert found.candidates[0].stands == "contested"
    assert {one.owner for one in found.candidates} >= {"shop", "search", "payments"}


def test_an_owner_that_nobody_knows_is_a_guess() -> None:
    found = judged("spiffe://example.org/ns/kube-system/sa/x", Evidence(), Known(frozenset({"payments"})))
    assert found.owner is None
    assert [(one.owner, one.stands) for one in found.candidates] == [("kube-system", "guess")]
    taken = parse_ownership('version: 1\nrules: [{name: a, spiffe: "spiffe://example.org/ns/{t}/**", owner: "{t}", unknown: true}]')
    assert judged("spiffe://example.org/ns/kube-system/sa/x", rules=taken, known=Known()).owner == "kube-system"
    said = parse_ownership('version: 1\nrules: [{name: a, spiffe: "spiffe://example.org/**", owner: platform}]')
    assert judged("spiffe://example.org/ns/x", rules=said, known=Known()).owner == "platform"


@pytest.mark.parametrize("value", ["../../etc", "a b", "*", "{value}", "-x", "x" * 600, "a\nb", "payments/../shop", ""])
def test_no_value_becomes_an_owner_that_is_no_name(value: str) -> None:
    found = judged("spiffe://example.org/x", place(workload_labels={"team": value}))
    assert found.owner in (None, *TEAMS)
    assert found.owner is None


@pytest.mark.parametrize("facts", [{"workload_labels": "x"}, {"workload_labels": {"team": {"a": 1}}}, {"tags": [1]}, {"namespace": None}])
def test_facts_of_any_shape_do_no_harm(facts: dict[str, Any]) -> None:
    assert judged("spiffe://example.org/x", Evidence(places=(facts,))).owner is None


# --- always -----------------------------------------------------------------------------------------------------------------------------

LABELS = st.dictionaries(st.sampled_from(["team", "owner", "Owner"]), st.sampled_from([*TEAMS, "team-shop", "nobody", "*", ""]), max_size=2)
PLACES = st.fixed_dictionaries(
    {},
    optional={
        "workload_labels": LABELS,
        "namespace_labels": LABELS,
        "tags": LABELS,
        "namespace": st.sampled_from(["shop-prod", "core-prod", "x"]),
        "host_group": st.sampled_from(["db", "web"]),
        "owner": st.sampled_from(["core", "@acme/shop", "nobody", "a b"]) | st.integers(),
        "environment": st.sampled_from(["Prod", "dev", "a b"]),
        "tier": st.sampled_from([0, "1", "9"]),
    },
)
SAID = st.builds(
    Said,
    evidence=st.sampled_from(["denied"]),
    owner=st.sampled_from(TEAMS),
    rule=st.just("denied"),
)
EVIDENCES = st.builds(
    Evidence,
    said=st.lists(SAID, max_size=2, unique_by=lambda said: said.owner).map(tuple),
    tokens=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(TEAMS)), max_size=2).map(tuple),
    dns=st.lists(st.sampled_from(["a.shop.example.org", "core.example.org"]), max_size=2).map(tuple),
    places=st.lists(PLACES, max_size=4).map(tuple),
)
IDENTITIES = st.sampled_from([WEB, "spiffe://example.org/ns/nobody/sa/api", "dns:search.example.org", "spiffe://example.org/x"])
RANK = {name: rank for rank, name in enumerate(EVIDENCE)}


@given(IDENTITIES, EVIDENCES)
def test_nothing_stronger_than_the_winner_says_otherwise(identity: str, evidence: Evidence) -> None:
    found = judged(identity, evidence)
    denied = {said.owner for said in evidence.said}
    strong = [
        one for one in found.candidates if one.owner and one.evidence != "denied" and one.confidence >= 50 and one.owner not in denied
    ]
    if not strong:
        assert found.owner is None
        return
    best = min(RANK[one.evidence] for one in strong)
    winners = [one for one in found.candidates if one.stands in ("owner", "disputed", "contested")]
    assert [(one.owner, RANK[one.evidence]) for one in winners] == [(found.owner, best)]
    assert found.owner not in denied
    others = {one.owner for one in strong} - {found.owner}
    same = {one.owner for one in strong if RANK[one.evidence] == best} - {found.owner}
    assert winners[0].stands == ("contested" if same else "disputed" if others else "owner")


@given(IDENTITIES, EVIDENCES, st.randoms(use_true_random=False))
def test_the_order_in_which_evidence_comes_means_nothing(identity: str, evidence: Evidence, shuffle: random.Random) -> None:
    def shuffled(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(shuffle.sample(items, len(items)))

    other = Evidence(*(shuffled(getattr(evidence, name)) for name in ("said", "tokens", "dns", "places")))
    assert judged(identity, other) == judged(identity, evidence)


@given(IDENTITIES, EVIDENCES, st.sampled_from(TEAMS))
def test_what_a_person_confirmed_always_holds(identity: str, evidence: Evidence, owner: str) -> None:
    said = tuple(one for one in evidence.said if one.owner != owner)
    confirmed = Evidence((*said, Said("confirmed", owner, "confirmed")), evidence.tokens, evidence.dns, evidence.places)
    assert judged(identity, confirmed).owner == owner


@given(IDENTITIES, EVIDENCES)
def test_more_of_the_same_changes_nothing(identity: str, evidence: Evidence) -> None:
    twice = Evidence(evidence.said, evidence.tokens * 2, evidence.dns * 2, evidence.places * 2)
    assert judged(identity, twice) == judged(identity, evidence)


# --- the document -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 2\n", "version must be 1"),
        ("version: 1\nrules: [{name: a, owner: x}]", "exactly one of"),
        ("version: 1\nrules: [{name: a, namespace: x, spiffe: 'spiffe://a/b', owner: x}]", "exactly one of"),
        ("version: 1\nrules: [{name: a, namespace: x}]", "owner, tier or environment"),
        ("version: 1\nrules: [{name: a, namespace: x, owner: '{team}'}]", "nothing gives {team}"),
        ("version: 1\nrules: [{name: a, namespace: '{A}', owner: x}]", "not a name"),
        ("version: 1\nrules: [{name: a, namespace: '{a}{a}', owner: x}]", "twice"),
        ("version: 1\nrules: [{name: a, namespace: '***', owner: x}]", "at most two"),
        ("version: 1\nrules: [{name: a, spiffe: 'spiffe://{td}/x', owner: x}]", "literal"),
        ("version: 1\nrules: [{name: a, spiffe: x, owner: x}]", "write it as spiffe://"),
        ("version: 1\nrules: [{name: a, zone: 'A.org', owner: x}]", "lower case"),
        ("version: 1\nrules: [{name: a, zone: 'a.{b}', owner: x}]", "last label"),
        ("version: 1\nrules: [{name: a, zone: a.org, owner: 'a b'}]", "not the name of an owner"),
        ("version: 1\nrules: [{name: a, zone: a.org, tier: 4}]", "not a tier"),
        ("version: 1\nrules: [{name: a, zone: a.org, environment: P R}]", "not an environment"),
        ("version: 1\nrules: [{name: a, zone: a.org, owner: x, component: y}]", "only one of"),
        ("version: 1\nrules: [{name: a, zone: a.org, owner: x, confidence: 0}]", "1 to 100"),
        ("version: 1\nrules: [{name: a, zone: a.org, owner: x, is: y}]", "'is' is not known"),
        ("version: 1\nrules: [{name: a, zone: a.org, owner: x}, {name: a, zone: b.org, owner: x}]", "given twice"),
        ("version: 1\nthreshold: high\n", "whole number"),
        ("version: 1\nrules: &a [*a]\n", "anchors"),
    ],
)
def test_every_mistake_is_told_with_its_line(text: str, words: str) -> None:
    with refused(Kind.BAD_POLICY, "ownership.yaml:", words):
        parse_ownership(text)


def test_comparing_documents() -> None:
    assert diff(PARSED, parse_ownership("# a comment\n" + RULES)) == []
    other = parse_ownership(RULES.replace("owner: dba", "owner: core").replace("host_group: db", "host_group: db, confidence: 70"))
    assert [(one.change, one.subject) for one in diff(PARSED, other)] == [("changed", "rule hosts")]
    assert {one.change for one in diff(EMPTY, PARSED)} == {"added"}


@given(st.text(max_size=200) | st.text(alphabet="version: 1\nrules[]{},name\"'*&!-?|>owner", max_size=200))
def test_any_text_is_rules_or_a_bad_policy(text: str) -> None:
    with allowing(Kind.BAD_POLICY):
        parse_ownership(text)


@given(
    st.sampled_from(["namespace", "spiffe", "zone", "host"]),
    st.text(alphabet="ab{}*/.:spife-", max_size=30),
    st.text(alphabet="ab/.:spife-x", max_size=60),
)
def test_any_pattern_is_one_or_a_bad_policy(kind: str, pattern: str, value: str) -> None:
    from handclasp.ownership.patterns import spiffe_pattern, text_pattern, zone_pattern

    make = {"spiffe": spiffe_pattern, "zone": zone_pattern}.get(kind, text_pattern)
    try:
        found = make(pattern)
    except HandclaspError as error:
        assert error.kind is Kind.BAD_POLICY  # noqa: PT017
        return
    cut = found.match(value)
    assert cut is None or set(cut) == set(found.names)
