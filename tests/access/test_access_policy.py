"""Policy files: read whole, every mistake with its line, compared by meaning, tested by cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.cases import run_cases
from handclasp.access.policy import EMPTY, Policy, diff, parse_policy
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.profiles import all_profiles, load_profiles
from support.access import or_refused

GOOD = """\
version: 1
oidc:
  - name: ci
    issuer: https://oidc.example.org
    audience: handclasp
    single_use: true
grants:
  - name: web
    principals:
      - certificate: spiffe://td/deployer
      - oidc: ci
        claims: {repo: acme/web, protected: true}
    identities: [spiffe://td/prod/web, "spiffe://td/ci/*"]
    dns: [web.example.org]
    profiles: [workload]
    max_ttl: 24h
    from: [10.0.0.0/8]
    actions: [issue, renew]
  - name: people
    principals: [{certificate: "email:*@example.org"}, {token: helper}]
    email: ["*@example.org"]
    profiles: [client]
    renew: false
deny:
  - {name: frozen, identities: [spiffe://td/prod/ledger], reason: change freeze}
"""


def test_a_policy_is_read() -> None:
    policy = parse_policy(GOOD)
    web, people = policy.grants
    assert web.name == "policy:web"
    assert web.max_ttl == 86400
    assert web.actions == {"issue", "renew"}
    assert web.renew
    assert web.single_use_jwt
    assert web.sources.texts == ("10.0.0.0/8",)
    assert not people.renew
    assert not people.single_use_jwt
    assert policy.grant_named("policy:web") is web
    assert policy.grant_named("policy:other") is None
    assert policy.oidc[0].single_use
    assert policy.text == GOOD
    assert parse_policy("version: 1") == Policy(text="version: 1", sha256=parse_policy("version: 1").sha256)


MISTAKES = [
    ("an unknown key, which may be a misspelt limit", "    max_ttl: 24h", "    max_tll: 24h", 16, "'max_tll' is not known"),
    ("a bad pattern", "spiffe://td/ci/*", "spiffe://*/ci", 13, "the trust domain is always literal"),
    ("a bad range", "10.0.0.0/8", "10.0.0.1/8", 17, "not an address or range"),
    ("a bad duration", "24h", "24", 16, "is a duration such as"),
    ("no lifetime", "24h", "0s", 16, "longer than nothing"),
    ("an unknown action", "[issue, renew]", "[issue, sign]", 18, "'sign' is not one of"),
    ("an empty list of networks, which would mean anywhere", "[10.0.0.0/8]", "[]", 17, "from must be a list"),
    ("no profiles", "    profiles: [client]\n", "", 19, "profiles must be a list"),
    ("no principals", '[{certificate: "email:*@example.org"}, {token: helper}]', "[]", 20, "principals must be"),
    ("no claims, which would mean everybody at that issuer", "{repo: acme/web, protected: true}", "{}", 12, "at least one claim"),
    ("an issuer that is not there", "oidc: ci", "oidc: cd", 11, "not under oidc"),
    ("two kinds of principal in one", "{token: helper}", "{token: helper, certificate: spiffe://td/a}", 20, "exactly one of"),
    ("a principal of no kind", "{token: helper}", "{anyone: true}", 20, "exactly one of"),
    ("no labels", "{token: helper}", "{agent: {}}", 20, "labels"),
    ("a label that is not text", "{token: helper}", "{agent: {a: 1}}", 20, "labels"),
    ("a placeholder where nothing fills it", "{token: helper}", "{certificate: 'spiffe://td/{x}'}", 20, "nothing here to fill"),
    ("a placeholder in a deny rule", "spiffe://td/prod/ledger", "'spiffe://td/{x}'", 25, "has no placeholders"),
    ("a name twice", "name: people", "name: web", 19, "given twice"),
    ("a name that is none", "name: people", "name: a b", 19, "a name is needed"),
    ("a grant without names", '    email: ["*@example.org"]\n', "", 19, "allows nothing"),
    ("a deny rule without names", "identities: [spiffe://td/prod/ledger], ", "", 25, "names identities or dns"),
    ("renew that is not true or false", "renew: false", "renew: nope", 23, "true or false"),
    ("another version", "version: 1", "version: 2", 1, "version must be 1"),
    ("an issuer without a scheme", "https://oidc.example.org", "oidc.example.org", 4, "https://"),
    ("a text where a list belongs", "[web.example.org]", "web.example.org", 14, "dns must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "message"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_a_mistake_is_told_with_its_line(old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    with pytest.raises(HandclaspError) as caught:
        parse_policy(GOOD.replace(old, new, 1), "p.yaml")
    assert caught.value.kind is Kind.BAD_POLICY
    assert any(text.startswith(f"p.yaml:{line}:") and message in text for text in caught.value.detail.splitlines()), caught.value.detail


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(HandclaspError) as caught:
        parse_policy(GOOD.replace("24h", "24").replace("[issue, renew]", "[sign]").replace("name: people", "name: web"))
    assert len(caught.value.detail.splitlines()) == 3


def test_a_policy_with_placeholders_is_not_for_tokens() -> None:
    text = GOOD.replace('email: ["*@example.org"]', 'email: ["{user}@example.org"]')
    with pytest.raises(HandclaspError, match="a token has no claims"):
        parse_policy(text)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: data.decode("latin-1"))))
def test_any_text_is_a_policy_or_a_refusal(text: str) -> None:
    for parse in (parse_policy, lambda cases: run_cases(EMPTY, cases)):
        with or_refused(Kind.BAD_POLICY):
            parse(text)


@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 12),
    st.sampled_from(["", " ", "{", "}", "[", "]", ":", "- ", "null", "*", "&a ", "1", "\n", "!", "'"]),
)
def test_a_damaged_policy_is_a_policy_or_a_refusal(at: int, cut: int, put: str) -> None:
    with or_refused(Kind.BAD_POLICY):
        parse_policy(GOOD[:at] + put + GOOD[at + cut :])


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.just("a"), lambda inner: st.lists(inner, max_size=2), max_leaves=4),
    st.data(),
)
def test_any_type_anywhere_is_a_refusal(value: object, data: st.DataObject) -> None:
    import json

    key = data.draw(st.sampled_from(["oidc", "grants", "deny"]))
    fields = ["name", "principals", "identities", "profiles", "claims", "issuer", "from", "renew", "max_ttl", "reason"]
    part = data.draw(st.dictionaries(st.sampled_from(fields), st.just(value), max_size=4))
    with pytest.raises(HandclaspError) as caught:
        parse_policy(json.dumps({"version": 1, key: [part, value]}))
    assert caught.value.kind is Kind.BAD_POLICY


# --- diff -------------------------------------------------------------------------------------------------------------------------------


def test_no_difference_in_meaning_is_no_change() -> None:
    policy = parse_policy(GOOD)
    assert diff(policy, policy) == []
    assert diff(policy, parse_policy("# a comment\n" + GOOD.replace("[issue, renew]", "[renew, issue]").replace("24h", "1d"))) == []
    assert diff(policy, parse_policy(GOOD.replace("    profiles: [client]\n", "    profiles: [client]\n    actions: [issue]\n"))) == []


def test_a_difference_is_told() -> None:
    policy = parse_policy(GOOD)
    assert [(change.change, change.subject) for change in diff(EMPTY, policy)] == [
        ("added", "grant web"), ("added", "grant people"), ("added", "deny frozen"), ("added", "oidc ci"),
    ]  # fmt: skip
    assert {change.change for change in diff(policy, EMPTY)} == {"removed"}
    (change,) = diff(policy, parse_policy(GOOD.replace("renew: false", "renew: true")))
    assert (change.change, change.subject) == ("changed", "grant people")
    assert change.before == (
        '{"actions":["issue"],"email":["*@example.org"],"principals":[{"certificate":"email:*@example.org"},{"token":"helper"}],'
        '"profiles":["client"],"renew":false}'
    )
    assert change.after == change.before.replace("false", "true")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("acme/web", "acme/*"),
        ("protected: true", 'protected: "true"'),
        ("10.0.0.0/8", "0.0.0.0/0"),
        ("single_use: true", "single_use: false"),
        ("audience: handclasp", "audience: other"),
        ("24h", "25h"),
        ("spiffe://td/prod/ledger", "spiffe://td/prod/other"),
        ("spiffe://td/deployer", "spiffe://td/*"),
    ],
)
def test_nothing_that_matters_escapes_the_comparison(old: str, new: str) -> None:
    assert len(diff(parse_policy(GOOD), parse_policy(GOOD.replace(old, new)))) == 1


# --- cases ------------------------------------------------------------------------------------------------------------------------------

CASES = """\
version: 1
cases:
  - name: ci may have its name
    principal: {oidc: {issuer: ci, claims: {repo: acme/web, protected: true, sub: x}}}
    request: {identity: spiffe://td/ci/a, profile: workload, ttl: 1h, source: 10.0.0.1}
    expect: allow
  - name: ci by the issuer's URL, for too long
    principal: {oidc: {issuer: "https://oidc.example.org", claims: {repo: acme/web, protected: true}}}
    request: {identity: spiffe://td/ci/a, ttl: 25h, source: 10.0.0.1}
    expect: deny
    reason: lifetime_not_allowed
  - name: from elsewhere
    principal: {certificate: spiffe://td/deployer}
    request: {identity: spiffe://td/ci/a, dns: [web.example.org]}
    expect: deny
    reason: not_allowed
  - name: the deployer renews nothing of its own
    principal: {certificate: spiffe://td/deployer, granted_by: policy:web}
    request: {identity: spiffe://td/ci/a, action: renew, source: 10.0.0.1}
    expect: deny
  - name: what ci obtained may be renewed
    principal: {certificate: spiffe://td/ci/a, profile: workload, granted_by: policy:web}
    request: {identity: spiffe://td/ci/a, action: renew, source: 10.0.0.1}
    expect: allow
  - name: a token never gets past a deny rule
    principal: {token: {allow: ["spiffe://td/**"], profiles: [workload], max_ttl: 2h, cidr: [10.0.0.0/8], agent: false}}
    request: {identity: spiffe://td/prod/ledger, source: 10.0.0.1}
    expect: deny
    reason: name_not_allowed
  - name: a token by its name
    principal: {token: {name: helper}}
    request: {email: [a@example.org], profile: client}
    expect: allow
  - name: an agent has no grant here
    principal: {agent: {role: web}}
    request: {identity: spiffe://td/prod/web}
    expect: deny
"""


def test_cases_come_out_as_expected() -> None:
    results = run_cases(parse_policy(GOOD), CASES)
    assert [result.name for result in results if not result.ok] == []
    assert len(results) == 8
    assert results[0].reason == "policy:web"


def test_a_case_that_comes_out_otherwise_says_how() -> None:
    (first, second, *_) = run_cases(EMPTY, CASES.replace("ttl: 25h", "ttl: 23h"))
    assert (first.ok, first.expected, first.got) == (False, "allow", "deny (not_allowed)")
    assert (second.ok, second.expected) == (False, "deny (lifetime_not_allowed)")


WIDE = """
version: 1
grants:
  - {name: wide, principals: [{token: any}], identities: ["spiffe://td/**"], profiles: [workload, mine, gone], max_ttl: 100h}
  - {name: short, principals: [{token: short}], identities: ["spiffe://td/**"], profiles: [workload], max_ttl: 10m}
  - {name: shortest, principals: [{token: shortest}], identities: ["spiffe://td/**"], profiles: [workload], max_ttl: 1s}
"""
MINE = "version: 1\nprofiles: {mine: {extend: workload, max_lifetime: 90h}}\n"


@pytest.mark.parametrize(
    ("token", "request_", "got"),
    [
        ("any", "", "allow"),
        ("any", "ttl: 24h", "allow"),
        ("any", "ttl: 25h", "deny (lifetime_not_allowed)"),
        ("any", "ttl: 1s", "deny (lifetime_not_allowed)"),
        ("any", "profile: gone", "deny (unknown_profile)"),
        ("any", "profile: mine, ttl: 90h", "allow"),
        ("any", "profile: mine, ttl: 91h", "deny (lifetime_not_allowed)"),
        ("any", "profile: gone, action: renew", "deny (unknown_profile)"),
        ("short", "", "allow"),
        ("short", "ttl: 11m", "deny (lifetime_not_allowed)"),
        ("shortest", "", "deny (lifetime_not_allowed)"),
    ],
)
def test_a_case_comes_out_as_the_server_would_answer(token: str, request_: str, got: str) -> None:
    """Regression: profiles that do not exist and lifetimes beyond a profile's came out as allowed."""
    request = ", ".join(filter(None, ["identity: spiffe://td/a", request_]))
    text = f"version: 1\ncases: [{{name: a, principal: {{token: {{name: {token}}}}}, request: {{{request}}}, expect: allow}}]\n"
    (result,) = run_cases(parse_policy(WIDE), text, profiles=all_profiles(load_profiles(MINE)))
    assert result.got == got, result.reason


def test_without_custom_profiles_there_are_the_built_in_ones() -> None:
    text = (
        "version: 1\ncases: [{name: a, principal: {token: {name: any}}, request: {identity: spiffe://td/a, profile: mine}, expect: deny}]\n"
    )
    (result,) = run_cases(parse_policy(WIDE), text)
    assert result.got == "deny (unknown_profile)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("expect: allow", "expect: maybe", "c.yaml:6: expect is allow or deny"),
        ("reason: lifetime_not_allowed", "reason: unlucky", "c.yaml:11: reason is the kind"),
        ("identity: spiffe://td/ci/a, profile", "identity: ci, profile", "c.yaml:5:"),
        ("ttl: 25h", "ttl: long", "c.yaml:9: 'long' is not a duration"),
        ("{agent: {role: web}}", "{nobody: 1}", "c.yaml:35: a principal is exactly one of"),
        ('["spiffe://td/**"]', '["spiffe://*"]', "c.yaml:26:"),
        ("source: 10.0.0.1", "form: 10.0.0.1", "c.yaml:5: 'form' is not known"),
    ],
)  # fmt: skip
def test_a_mistake_in_cases_is_told_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        run_cases(parse_policy(GOOD), CASES.replace(old, new, 1), "c.yaml")
    assert caught.value.kind is Kind.BAD_POLICY
    assert message in caught.value.detail
