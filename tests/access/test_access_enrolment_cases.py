"""``handclasp policy test`` with evidence and workloads."""

from __future__ import annotations

from handclasp.access.cases import run_cases
from handclasp.access.policy import parse_policy
from support.evidence import ACCOUNT, INSTANCE, REGION, Cloud, indented

POLICY = f"""
version: 1
oidc: [{{name: ci, issuer: "https://ci.example.org", audience: handclasp}}]
enrolment:
  - {{name: runners, evidence: oidc, issuer: ci, claims: {{pool: build}}, identity: "spiffe://td/agent/ci-{{runner}}", ttl: 12h}}
  - name: instances
    evidence: aws
    accounts: ["{ACCOUNT}"]
    certificates: |
{indented(Cloud(1_800_000_000_000).pem)}
    identity: "spiffe://td/agent/{{instance}}"
workloads:
  - {{name: web, agents: {{role: web}}, selectors: ["unix:uid:33"], identity: spiffe://td/prod/web}}
"""
CASES = f"""
version: 1
cases:
  - name: a runner becomes its agent
    principal: {{evidence: {{rule: runners, facts: {{pool: build, runner: r1}}}}}}
    request: {{identity: spiffe://td/agent/ci-r1, profile: agent}}
    expect: allow
  - name: of another pool it does not
    principal: {{evidence: {{rule: runners, facts: {{pool: prod, runner: r1}}}}}}
    request: {{identity: spiffe://td/agent/ci-r1, profile: agent}}
    expect: deny
    reason: not_allowed
  - name: nor another's
    principal: {{evidence: {{rule: runners, facts: {{pool: build, runner: r1}}}}}}
    request: {{identity: spiffe://td/agent/ci-r2, profile: agent}}
    expect: deny
    reason: name_not_allowed
  - name: nor for longer
    principal: {{evidence: {{rule: runners, facts: {{pool: build, runner: r1}}}}}}
    request: {{identity: spiffe://td/agent/ci-r1, profile: agent, ttl: 13h}}
    expect: deny
    reason: lifetime_not_allowed
  - name: nor anything but an agent
    principal: {{evidence: {{rule: runners, facts: {{pool: build, runner: r1}}}}}}
    request: {{identity: spiffe://td/prod/web}}
    expect: deny
  - name: an instance
    principal: {{evidence: {{rule: instances, facts: {{account: "{ACCOUNT}", region: {REGION}, instance: {INSTANCE}}}}}}}
    request: {{identity: spiffe://td/agent/{INSTANCE}, profile: agent}}
    expect: allow
  - name: a rule that is not there
    principal: {{evidence: {{rule: gone}}}}
    request: {{identity: spiffe://td/agent/a, profile: agent}}
    expect: deny
  - name: a labelled agent serves web
    principal: {{agent: {{role: web}}}}
    request: {{identity: spiffe://td/prod/web}}
    expect: allow
  - name: another agent does not
    principal: {{agent: {{role: db}}}}
    request: {{identity: spiffe://td/prod/web}}
    expect: deny
  - name: a workload's certificate is renewed
    principal: {{certificate: spiffe://td/prod/web, granted_by: "workload:web"}}
    request: {{identity: spiffe://td/prod/web, action: renew}}
    expect: allow
"""


def test_cases_of_evidence_and_of_workloads() -> None:
    results = run_cases(parse_policy(POLICY), CASES)
    assert [result for result in results if not result.ok] == []
    assert {result.reason for result in results if result.got == "allow"} == {
        "enrolment:runners", "enrolment:instances", "workload:web",
    }  # fmt: skip
