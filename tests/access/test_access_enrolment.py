"""Rules of enrolment: what is accepted in the policy, which name and labels facts make, and what authorization lets evidence have."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, Refused, authorize
from handclasp.access.enrolment import EnrolmentRule
from handclasp.access.policy import Policy, diff, parse_policy
from handclasp.access.principals import EvidencePrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.chains import fingerprint
from support.access import NOW, FakePlan, certificate, circumstances, plan
from support.evidence import ACCOUNT, INSTANCE, REGION, Cloud, DeviceAuthority, indented

AUTHORITY, CLOUD = DeviceAuthority(NOW), Cloud(NOW)
ANCHOR = fingerprint(AUTHORITY.certificate.public_bytes(Encoding.DER)).hex()
POLICY = f"""
version: 1
oidc:
  - {{name: ci, issuer: "https://ci.example.org", audience: handclasp}}
clusters:
  - {{name: prod-a, issuer: "https://kubernetes.default.svc.cluster.local", jwks_url: "https://10.0.0.1:6443/openid/v1/jwks"}}
enrolment:
  - name: runners
    evidence: oidc
    issuer: ci
    claims: {{pool: ["build", "test"], sub: "runner:*"}}
    identity: "spiffe://td/agent/ci-{{runner}}"
    labels: {{role: build, pool: "{{pool}}"}}
    from: [10.0.0.0/8]
    ttl: 12h
  - name: racks
    evidence: x509
    ca: |
{indented(AUTHORITY.pem)}
    subject: {{organization: Example}}
    dns: ["*.rack.example.org"]
    identity: "spiffe://td/agent/{{dns}}"
  - name: nodes
    evidence: kubernetes
    cluster: prod-a
    service_accounts: [handclasp/agent]
    audience: handclasp
    identity: "spiffe://td/agent/{{cluster}}-{{node}}"
    labels: {{cluster: "{{cluster}}"}}
  - name: instances
    evidence: aws
    accounts: ["{ACCOUNT}"]
    regions: [{REGION}]
    max_age: 15m
    certificates: |
{indented(CLOUD.pem)}
    identity: "spiffe://td/agent/aws-{{account}}-{{instance}}"
    labels: {{zone: "{{zone}}"}}
"""
FACTS: dict[str, dict[str, Any]] = {
    "runners": {"iss": "https://ci.example.org", "pool": "build", "sub": "runner:7", "runner": "r7"},
    "racks": {"anchor": ANCHOR, "organization": "Example", "dns": "r1.rack.example.org"},
    "nodes": {"cluster": "prod-a", "namespace": "handclasp", "service_account": "agent", "node": "n1"},
    "instances": {"account": ACCOUNT, "region": REGION, "instance": INSTANCE, "zone": "eu-central-1a"},
}
IDENTITIES = {
    "runners": "spiffe://td/agent/ci-r7",
    "racks": "spiffe://td/agent/r1.rack.example.org",
    "nodes": "spiffe://td/agent/prod-a-n1",
    "instances": f"spiffe://td/agent/aws-{ACCOUNT}-{INSTANCE}",
}
PARSED = parse_policy(POLICY)


def rule(name: str, policy: Policy = PARSED) -> EnrolmentRule:
    found = policy.enrolment_named(name)
    assert found is not None
    return found


def principal(name: str, **changes: Any) -> EvidencePrincipal:
    facts = {key: value for key, value in {**FACTS[name], **changes.pop("facts", {})}.items() if value is not None}
    known: dict[str, Any] = {"method": rule(name).method, "rule": name, "subject": "s", "facts": facts, "expires_at": NOW + 1000}
    return EvidencePrincipal(**(known | changes))


def test_each_rule_makes_one_name_and_its_labels() -> None:
    assert {name: rule(name).identity_for(facts) for name, facts in FACTS.items()} == IDENTITIES
    assert rule("runners").labels_for(FACTS["runners"]) == {"role": "build", "pool": "build"}
    assert rule("nodes").labels_for(FACTS["nodes"]) == {"cluster": "prod-a"}
    assert [rule(name).once for name in FACTS] == [False, False, False, True]  # what anybody may have copied serves once
    assert rule("runners").wants == {"pool", "sub", "runner"}


MISTAKES = [
    ("evidence: oidc", "evidence: tpm", "evidence is one of"),
    ("issuer: ci", "issuer: other", "'other' is not under oidc:"),
    ('    claims: {pool: ["build", "test"], sub: "runner:*"}\n', "", "at least one claim"),
    ('sub: "runner:*"', 'sub: "run*"', "* stands for"),
    ("spiffe://td/agent/ci-{runner}", "spiffe://td/ci-{runner}", "an agent's identity is"),
    ("spiffe://td/agent/ci-{runner}", "spiffe://td/agent/a/{runner}", "an agent's identity is"),
    ("spiffe://td/agent/ci-{runner}", "spiffe://{runner}/agent/a", "an agent's identity is"),
    ("spiffe://td/agent/ci-{runner}", "spiffe://td/agent/{pool}-{runner}", "cut in two ways"),
    ("spiffe://td/agent/ci-{runner}", "spiffe://td/agent/*", ""),
    ("spiffe://td/agent/ci-{runner}", "spiffe://td/agent/{run ner}", "name of a claim"),
    ("spiffe://td/agent/ci-{runner}", "spiffe://td/agent/{runner", "a placeholder is written"),
    ('pool: "{pool}"}', 'pool: "{po ol}"}', "name of a claim"),
    ("from: [10.0.0.0/8]", "from: [10.0.0.0/33]", "not an address or range"),
    ("ttl: 12h", "ttl: never", ""),
    ("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATES----", "no PEM certificate"),
    ("subject: {organization: Example}", "subject: {email: x}", "is not looked at"),
    ('dns: ["*.rack.example.org"]', 'dns: ["*.*.example.org"]', ""),
    ("{dns}", "{hostname}", "not a fact of x509"),
    ("cluster: prod-a\n", "cluster: prod-b\n", "not under clusters:"),
    ("[handclasp/agent]", "[agent]", "NAMESPACE/NAME"),
    ("    service_accounts: [handclasp/agent]\n", "", "service_accounts must be a list"),
    ("{cluster}-{node}", "{namespace}-{node}", "cut in two ways"),
    ("{cluster}-{node}", "{cluster}{node}", "between two placeholders"),
    (f'accounts: ["{ACCOUNT}"]', "accounts: [alias]", "12 digits"),
    (f'accounts: ["{ACCOUNT}"]', f"accounts: [{ACCOUNT}]", "list of texts"),
    (f"regions: [{REGION}]", "regions: [Frankfurt]", "a region is written"),
    ("max_age: 15m", "max-age: 15m", "not known here"),
    ("{account}-{instance}", "{account}x{instance}", "between two placeholders"),
    ("{account}-{instance}", "{region}-{zone}", "cut in two ways"),
    ("name: racks", "name: runners", "given twice"),
]


@pytest.mark.parametrize(("before", "after", "words"), MISTAKES)
def test_each_mistake_is_told_at_its_line(before: str, after: str, words: str) -> None:
    assert before in POLICY
    with pytest.raises(HandclaspError) as refused:
        parse_policy(POLICY.replace(before, after, 1))
    assert refused.value.kind is Kind.BAD_POLICY
    at = POLICY[: POLICY.index(before)].count("\n") + 1
    near = [text for text in refused.value.detail.splitlines() if int(text.split(":")[1]) in range(at - 4, at + 2)]
    assert any(words in text for text in near), refused.value.detail


def test_a_weak_or_other_key_of_the_cloud_is_refused() -> None:
    with pytest.raises(HandclaspError, match="no RSA key"):
        parse_policy(POLICY.replace(indented(CLOUD.pem), indented(AUTHORITY.pem)))


def test_changes_of_rules_are_shown() -> None:
    found = diff(PARSED, parse_policy(POLICY.replace("max_age: 15m", "once: false").replace("pool: [", "pool: [other, ")))
    assert [(change.change, change.subject) for change in found] == [("changed", "enrolment runners"), ("changed", "enrolment instances")]
    assert "BEGIN" not in str(found)  # certificates are shown by their fingerprint


# --- what authorization makes of it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FACTS))
def test_evidence_gives_the_agent_of_its_rule_its_own_certificate(name: str) -> None:
    answer = authorize(principal(name), plan(IDENTITIES[name], profile="agent"), circumstances(), PARSED)
    assert answer == Allowed(f"enrolment:{name}")


REFUSED: list[tuple[str, FakePlan, dict[str, Any], dict[str, Any]]] = [
    ("nodes", plan("spiffe://td/agent/prod-a-n2", profile="agent"), {}, {}),
    ("nodes", plan("spiffe://td/agent/prod-a-n1"), {}, {}),
    ("nodes", plan("spiffe://td/prod/web"), {}, {}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent", dns=("n1.example.org",)), {}, {}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {"action": "renew"}, {}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {"action": "revoke"}, {}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {}, {"facts": {"node": None}}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {}, {"facts": {"cluster": "prod-b"}}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {}, {"facts": {"service_account": "other"}}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {}, {"method": "oidc"}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {}, {"rule": "gone"}),
    ("nodes", plan(IDENTITIES["nodes"], profile="agent"), {}, {"expires_at": NOW}),
    ("runners", plan(IDENTITIES["runners"], profile="agent"), {"source": "192.0.2.1"}, {}),
    ("runners", plan(IDENTITIES["runners"], profile="agent"), {"source": None}, {}),
    ("runners", plan(IDENTITIES["runners"], profile="agent", ttl=12 * 3600 + 1), {}, {}),
    ("runners", plan(IDENTITIES["runners"], profile="agent"), {}, {"facts": {"pool": "prod"}}),
    ("runners", plan(IDENTITIES["runners"], profile="agent"), {}, {"facts": {"iss": "https://other.example.org"}}),
    ("racks", plan(IDENTITIES["racks"], profile="agent"), {}, {"facts": {"anchor": "00" * 32}}),
    ("racks", plan(IDENTITIES["racks"], profile="agent"), {}, {"facts": {"organization": None}}),
    ("racks", plan("spiffe://td/agent/r1.example.org", profile="agent"), {}, {"facts": {"dns": "r1.example.org"}}),
    ("instances", plan(IDENTITIES["instances"], profile="agent"), {}, {"facts": {"account": "210987654321"}}),
    ("instances", plan(IDENTITIES["instances"], profile="agent"), {}, {"facts": {"region": "us-east-1"}}),
    ("instances", plan(IDENTITIES["instances"], profile="agent"), {}, {"facts": {"zone": None}}),
]


@pytest.mark.parametrize(("name", "wanted", "around", "changes"), REFUSED)
def test_evidence_gives_nothing_else(name: str, wanted: FakePlan, around: dict[str, Any], changes: dict[str, Any]) -> None:
    action = around.pop("action", "issue") if "action" in around else "issue"
    answer = authorize(principal(name, **changes), wanted, circumstances(action, **around), PARSED)
    assert isinstance(answer, Refused), answer


@pytest.mark.parametrize("value", ["a/b", "..", ".", "*", "a*", "{node}", "a,b", "a+b", "a b", "a\n", "ä", "", "x" * 256, 7, ["a"], None])
def test_facts_with_metacharacters_make_no_name(value: Any) -> None:
    answer = authorize(principal("nodes", facts={"node": value}), plan(IDENTITIES["nodes"], profile="agent"), circumstances(), PARSED)
    assert isinstance(answer, Refused)
    with pytest.raises(HandclaspError) as refused:
        rule("nodes").identity_for(FACTS["nodes"] | {"node": value})
    assert refused.value.kind is Kind.NOT_ALLOWED


@given(st.dictionaries(st.sampled_from(["cluster", "namespace", "service_account", "node"]), st.text(max_size=12)))
def test_whatever_the_facts_are_the_name_is_one_of_the_rule(facts: dict[str, str]) -> None:
    grant = rule("nodes").grant_for(FACTS["nodes"] | facts)
    if grant is None:
        return
    (identity,) = grant.identities.texts
    head, _, name = identity.rpartition("/")
    assert (head, name) == ("spiffe://td/agent", f"prod-a-{(FACTS['nodes'] | facts)['node']}")
    assert not set(name) & set("/*{}, +")


def test_an_agents_renewal_is_judged_by_the_rule_as_it_is() -> None:
    identity = IDENTITIES["instances"]
    agent = certificate(identity, profile="agent", granted_by="enrolment:instances", is_agent=True)

    def renewed(text: str) -> Allowed | Refused:
        policy = parse_policy(text)
        found = policy.enrolment_named("instances")
        origin = found.grant_for(FACTS["instances"]) if found is not None else None
        return authorize(agent, plan(identity, profile="agent"), circumstances("renew", origin=origin), policy)

    assert renewed(POLICY) == Allowed("enrolment:instances")
    for before, after in [
        ("name: instances", "name: machines"),
        (f'accounts: ["{ACCOUNT}"]', 'accounts: ["210987654321"]'),
        ("agent/aws-", "agent/ec2-"),
        (f"regions: [{REGION}]", "regions: [us-east-1]"),
        ('zone: "{zone}"', 'zone: "{image}"'),
        ("max_age: 15m", "from: [192.0.2.0/24]"),
        ("max_age: 15m", "ttl: 10m"),
    ]:
        assert isinstance(renewed(POLICY.replace(before, after)), Refused), after
    # An agent by evidence obtains nothing for others by its own rule.
    policy, origin = parse_policy(POLICY), rule("instances").grant_for(FACTS["instances"])
    assert isinstance(authorize(agent, plan("spiffe://td/prod/web"), circumstances(origin=origin), policy), Refused)
    assert isinstance(authorize(agent, plan(identity, profile="agent"), circumstances(origin=origin), policy), Refused)
