"""Workloads in policy: what is accepted, what agents are told, and that none obtains more than its labels entitle it to."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, authorize
from handclasp.access.policy import EMPTY, diff, parse_policy
from handclasp.access.workloads import FILLERS, KINDS, check_selector, fill, for_agent, jwt_workload
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import Names
from support.access import FakePlan, FakeProfile, certificate, circumstances, or_refused, plan

WEB = "spiffe://td/prod/web"
PODS = "spiffe://td/k8s/{cluster}/{k8s:ns}/{k8s:sa}"
POLICY = """
version: 1
workloads:
  - name: web
    agents: {role: web}
    selectors: ["unix:user:www-data", "unix:path:/usr/sbin/nginx"]
    identity: spiffe://td/prod/web
    dns: [web.example.org]
    ttl: 1h
    hint: external
    federates_with: [partner.example]
    jwt: true
  - name: pods
    agents: {kind: node, cluster: a}
    selectors: ["k8s:pod-label:app.kubernetes.io/name:web"]
    identity: "spiffe://td/k8s/{cluster}/{k8s:ns}/{k8s:sa}"
"""

GOOD = [
    "unix:uid:0", "unix:uid:1000", "unix:gid:33", "unix:user:www-data", "unix:user:build$", "unix:group:_ssh", "unix:path:/usr/sbin/nginx",
    "unix:path:/opt/my app/bin:1", f"unix:sha256:{'0' * 64}", "systemd:id:nginx.service", "systemd:id:getty@tty1.service", "k8s:ns:prod",
    "k8s:sa:web", "k8s:sa:a.b-c", "k8s:pod-name:web-7f9-x2", "k8s:pod-uid:0b2c-ff", "k8s:node-name:ip-10-0-0-1.ec2.internal",
    "k8s:pod-label:app:web", "k8s:pod-label:app:", "k8s:pod-label:app.kubernetes.io/name:web", "k8s:container-name:app",
    "k8s:container-image:ghcr.io/acme/web:1.2", "docker:label:com.docker.compose.service:web", "docker:label:team:a b:c",
    "docker:image:nginx:1.27",
]  # fmt: skip
BAD = [
    "", ":", "unix", "unix:uid", "unix:uid:", "unix:uid:-1", "unix:uid:01", "unix:uid:1 ", "unix:pid:1", "unix:user:", "unix:user:a:b",
    "unix:user:a/b", "unix:path:nginx", "unix:path:/a/../b", "unix:path:/a/./b", "unix:path://a", "unix:path:/a\n", "unix:sha256:abc",
    f"unix:sha256:{'A' * 64}", "systemd:id:nginx", "systemd:id:../x.service", "systemd:name:x.service", "k8s:ns:", "k8s:ns:Prod",
    "k8s:ns:a.b", "k8s:ns:*", "k8s:sa:a/b", "k8s:pod-label:app", "k8s:pod-label:-a:b", "k8s:pod-label:a:b c", "k8s:label:a:b",
    "docker:label:a", "docker:label:a:\x00", "docker:name:x", "spiffe:id:x", "unix:uid:1\n",
]  # fmt: skip


@pytest.mark.parametrize("selector", GOOD)
def test_selectors_that_a_process_can_have(selector: str) -> None:
    check_selector(selector)


@pytest.mark.parametrize("selector", BAD)
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(HandclaspError) as refused:
        check_selector(selector)
    assert refused.value.kind is Kind.BAD_POLICY


@given(st.text(max_size=80) | st.tuples(st.sampled_from(KINDS), st.text(max_size=60)).map(":".join))
def test_no_text_makes_the_check_of_selectors_fail_otherwise(text: str) -> None:
    with or_refused(Kind.BAD_POLICY):
        check_selector(text)
        assert "\n" not in text


MISTAKES = [
    ("agents: {role: web}", "agents: {}", 5, "labels"),
    ("agents: {role: web}", "agents: {role: 1}", 5, "labels"),
    ('["unix:user:www-data", "unix:path:/usr/sbin/nginx"]', "[]", 6, "with something in it"),
    ('    selectors: ["unix:user:www-data", "unix:path:/usr/sbin/nginx"]\n', "", 4, "selectors must be a list"),
    ("unix:user:www-data", "unix:name:www-data", 6, "it begins with one of"),
    ("identity: spiffe://td/prod/web", "identity: prod/web", 7, "spiffe://"),
    ("identity: spiffe://td/prod/web", "identity: spiffe://td/*/web", 7, "one identity"),
    ("identity: spiffe://td/prod/web", "identity: spiffe://td/agent/web", 7, "below /agent"),
    ("identity: spiffe://td/prod/web", 'identity: "spiffe://td/x-{k8s:ns}"', 7, "one whole segment"),
    ("identity: spiffe://td/prod/web", 'identity: "spiffe://td/{k8s:ns}{k8s:sa}"', 7, "one whole segment"),
    ("identity: spiffe://td/prod/web", 'identity: "spiffe://td/{unix:path}"', 7, "cannot fill"),
    ("identity: spiffe://td/prod/web", 'identity: "spiffe://td/{k8s:pod-label:app}"', 7, "cannot fill"),
    ("identity: spiffe://td/prod/web", 'identity: "spiffe://{k8s:ns}/web"', 7, ""),
    ("dns: [web.example.org]", 'dns: ["*.example.org"]', 8, "a pattern cannot be one"),
    ("dns: [web.example.org]", 'dns: ["{k8s:ns}.example.org"]', 8, "only the agent's labels"),
    ("dns: [web.example.org]", "dns: [UNDER_SCORE]", 8, ""),
    ("ttl: 1h", "ttl: 1 hour", 9, ""),
    ("hint: external", "hint: 7", 10, "a text"),
    ("federates_with: [partner.example]", "federates_with: [UPPER]", 11, ""),
    ("jwt: true", "jwt: yes", 12, "true or false"),
    ("jwt: true", "jwts: true", 12, "not known here"),
    ("jwt: true", "profile: agent", 12, "agents enrol"),
    ("name: pods", "name: web", 13, "given twice"),
]


@pytest.mark.parametrize(("before", "after", "line", "words"), MISTAKES)
def test_each_mistake_is_told_with_its_line(before: str, after: str, line: int, words: str) -> None:
    assert before in POLICY
    with pytest.raises(HandclaspError) as refused:
        parse_policy(POLICY.replace(before, after, 1))
    assert refused.value.kind is Kind.BAD_POLICY
    told = [text for text in refused.value.detail.splitlines() if text.startswith(f"policy.yaml:{line}:")]
    assert told, refused.value.detail
    assert any(words in text for text in told), told


def test_a_change_of_a_workload_is_shown_and_its_order_is_none() -> None:
    old, new = parse_policy(POLICY), parse_policy(POLICY.replace("jwt: true", "jwt: false"))
    assert [(change.change, change.subject) for change in diff(old, new)] == [("changed", "workload web")]
    swapped = POLICY.replace('["unix:user:www-data", "unix:path:/usr/sbin/nginx"]', '["unix:path:/usr/sbin/nginx", "unix:user:www-data"]')
    assert diff(old, parse_policy(swapped)) == []
    assert [change.change for change in diff(old, parse_policy("version: 1\n"))] == ["removed", "removed"]


def test_an_agent_is_told_its_own_workloads_with_its_labels_filled_in() -> None:
    workloads = parse_policy(POLICY).workloads
    assert for_agent(workloads, {}) == []
    assert for_agent(workloads, {"role": "db"}) == []
    (web,) = for_agent(workloads, {"role": "web", "zone": "1"})
    assert msgspec.to_builtins(web) == {
        "name": "web",
        "selectors": ["unix:user:www-data", "unix:path:/usr/sbin/nginx"],
        "identity": WEB,
        "dns": ["web.example.org"],
        "profile": "workload",
        "ttl": "1h",
        "hint": "external",
        "federates_with": ["partner.example"],
        "jwt": True,
    }
    (pods,) = for_agent(workloads, {"kind": "node", "cluster": "a"})
    assert pods.identity == "spiffe://td/k8s/a/{k8s:ns}/{k8s:sa}"


@pytest.mark.parametrize("value", ["a/b", "*", "..", "{k8s:ns}", "", "a,b", "a b"])
def test_a_label_that_is_no_segment_makes_no_workload(value: str) -> None:
    text = POLICY.replace("agents: {kind: node, cluster: a}", "agents: {kind: node}")
    assert for_agent(parse_policy(text).workloads, {"kind": "node", "cluster": value}) == []


CASES = [
    ({"role": "web"}, plan(WEB), True),
    ({"role": "web"}, plan(WEB, dns=("web.example.org",)), True),
    ({"role": "web"}, plan(WEB, dns=("db.example.org",)), False),
    ({"role": "web"}, plan(WEB, profile="server"), False),
    ({"role": "web"}, plan(WEB, ttl=3601), False),
    ({"role": "web"}, plan("spiffe://td/prod/db"), False),
    ({"role": "web"}, plan("spiffe://td/prod/web/x"), False),
    ({"role": "web"}, plan("spiffe://other/prod/web"), False),
    ({}, plan(WEB), False),
    ({"role": "db"}, plan(WEB), False),
    ({"kind": "node", "cluster": "a"}, plan("spiffe://td/k8s/a/prod/web"), True),
    ({"kind": "node", "cluster": "a"}, plan("spiffe://td/k8s/b/prod/web"), False),
    ({"kind": "node", "cluster": "a"}, plan("spiffe://td/k8s/a/prod"), False),
    ({"kind": "node", "cluster": "a"}, plan("spiffe://td/k8s/a/prod/web/x"), False),
    ({"kind": "node"}, plan("spiffe://td/k8s/a/prod/web"), False),
]


@pytest.mark.parametrize(("labels", "wanted", "allowed"), CASES)
def test_what_an_agent_may_obtain_for_workloads(labels: dict[str, str], wanted: FakePlan, allowed: bool) -> None:
    agent = certificate("spiffe://td/agent/a", profile="agent", labels=labels, is_agent=True, granted_by="enrolment:x")
    answer = authorize(agent, wanted, circumstances(), parse_policy(POLICY))
    assert isinstance(answer, Allowed) is allowed, answer
    holder = certificate("spiffe://td/prod/other", labels=labels)  # the same labels without being an agent
    assert not isinstance(authorize(holder, wanted, circumstances(), parse_policy(POLICY)), Allowed)


def test_a_workloads_certificate_is_renewed_while_its_entry_is_there() -> None:
    policy = parse_policy(POLICY)
    holder = certificate(WEB, granted_by="workload:web")
    origin = policy.grant_named("workload:web")
    assert authorize(holder, plan(WEB), circumstances("renew", origin=origin), policy) == Allowed("workload:web")
    changed = parse_policy(POLICY.replace("prod/web", "prod/www"))
    refused = authorize(holder, plan(WEB), circumstances("renew", origin=changed.grant_named("workload:web")), changed)
    assert not isinstance(refused, Allowed)
    gone = parse_policy("version: 1\n")
    assert not isinstance(authorize(holder, plan(WEB), circumstances("renew", origin=gone.grant_named("workload:web")), gone), Allowed)


def test_a_deny_rule_beats_a_workload() -> None:
    policy = parse_policy(POLICY + "deny:\n  - {name: no, identities: [spiffe://td/prod/web]}\n")
    agent = certificate("spiffe://td/agent/a", profile="agent", labels={"role": "web"}, is_agent=True)
    assert not isinstance(authorize(agent, plan(WEB), circumstances(), policy), Allowed)


def test_only_workloads_that_say_so_have_jwts() -> None:
    workloads = parse_policy(POLICY).workloads
    found = jwt_workload(workloads, WEB, {"role": "web"})
    assert found is not None
    assert found.name == "web"
    assert jwt_workload(workloads, WEB, {"role": "db"}) is None
    assert jwt_workload(workloads, "spiffe://td/k8s/a/prod/web", {"kind": "node", "cluster": "a"}) is None
    entry = '{name: w, agents: {r: w}, selectors: ["unix:uid:1"], identity: "spiffe://td/{k8s:ns}/{k8s:sa}", jwt: true}'
    anything = parse_policy(f"version: 1\nworkloads: [{entry}]\n").workloads
    assert jwt_workload(anything, "spiffe://td/a/b", {"r": "w"}) is not None
    assert jwt_workload(anything, "spiffe://td/agent/b", {"r": "w"}) is None


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ({"k8s:ns": "prod", "k8s:sa": "web"}, "spiffe://td/k8s/a/prod/web"),
        ({"k8s:ns": "prod"}, None),
        ({"k8s:ns": "prod", "k8s:sa": "a/b"}, None),
        ({"k8s:ns": "..", "k8s:sa": "web"}, None),
        ({"k8s:ns": "", "k8s:sa": "web"}, None),
        ({"k8s:ns": "{k8s:sa}", "k8s:sa": "web"}, None),
    ],
)
def test_an_identity_is_filled_from_whole_segments_only(selectors: dict[str, str], expected: str | None) -> None:
    assert fill("spiffe://td/k8s/a/{k8s:ns}/{k8s:sa}", selectors) == expected


# --- never beyond the entitlement -------------------------------------------------------------------------------------------------------

_words = st.sampled_from(["a", "b", "prod", "agent", "web", "x.y", "a-b", "_"])
_hole = st.sampled_from([*sorted("{" + name + "}" for name in FILLERS), "{cluster}", "{role}"])
_templates = st.lists(_words | _hole, min_size=1, max_size=4).map(lambda parts: "spiffe://td/" + "/".join(parts))
_labels = st.dictionaries(st.sampled_from(["role", "cluster", "zone"]), _words | st.sampled_from(["*", "a/b", "**", ""]), max_size=3)
_asked = st.lists(_words | st.sampled_from(["k8s", "v1"]), min_size=1, max_size=5).map(lambda parts: "spiffe://td/" + "/".join(parts))


@settings(max_examples=400)
@given(_templates, _labels, _labels, _asked)
def test_an_agent_never_obtains_anything_outside_its_entitlement(
    template: str, needed: dict[str, str], labels: dict[str, str], asked: str
) -> None:
    """Whatever a policy says: what is allowed is named by a workload whose labels the agent has, segment by segment."""
    entry = {"name": "w", "agents": needed, "selectors": ["unix:uid:1"], "identity": template}
    policy = EMPTY
    with or_refused(Kind.BAD_POLICY):
        policy = parse_policy(msgspec.json.encode({"version": 1, "workloads": [entry]}).decode())
    agent = certificate("spiffe://td/agent/a", profile="agent", labels=labels, is_agent=True)
    answer = authorize(agent, FakePlan(Names(asked), FakeProfile()), circumstances(), policy)
    segments, pattern = asked.split("/")[3:], template.split("/")[3:]
    entitled = (
        bool(policy.workloads)
        and needed.items() <= labels.items()
        and segments[0] != "agent"
        and len(segments) == len(pattern)
        and all(_is_covered(piece, segment, labels) for piece, segment in zip(pattern, segments, strict=True))
    )
    assert isinstance(answer, Allowed) is entitled
    told = for_agent(policy.workloads, labels)
    # What the agent is told, filled with anything that a process can say, is allowed, but for names of agents: the two cannot drift apart.
    for workload in told:
        filled = fill(workload.identity, dict.fromkeys(FILLERS, "v1"))
        assert filled is not None
        answer = authorize(agent, FakePlan(Names(filled), FakeProfile()), circumstances(), policy)
        assert isinstance(answer, Allowed) or filled.split("/")[3] == "agent"


def _is_covered(piece: str, segment: str, labels: dict[str, str]) -> bool:
    if not piece.startswith("{"):
        return piece == segment
    return ":" in piece or labels.get(piece[1:-1]) == segment


_keys = st.sampled_from([
    "name", "agents", "selectors", "identity", "dns", "ttl", "hint", "jwt", "evidence", "ca", "claims", "accounts", "certificates",
    "labels", "from", "once", "issuer", "cluster", "subject",
])  # fmt: skip
_values = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["x509", "aws", "oidc", "kubernetes", "{a}"])


@given(st.recursive(_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=6), max_leaves=12))
def test_no_section_makes_the_parser_fail_otherwise(section: object) -> None:
    for name in ("workloads", "enrolment"):
        text = msgspec.json.encode({"version": 1, name: section}).decode()
        with or_refused(Kind.BAD_POLICY):
            parse_policy(text)
