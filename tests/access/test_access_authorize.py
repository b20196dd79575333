"""The choke point: who may have what, and that nothing ever adds up to more."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from handclasp.access.authorize import Allowed, Refused, authorize, check_scope
from handclasp.access.grants import ACTIONS, Grant, joint_grant, split_grant
from handclasp.access.patterns import DnsPatterns, IdentityPatterns
from handclasp.access.policy import EMPTY, DenyRule, Policy
from handclasp.access.principals import ServerPrincipal
from handclasp.errors import Kind
from handclasp.pki.names import Names
from support.access import BARE, NOW, POLICY, WEB, certificate, circumstances, make_grant, oidc, plan, token


def check(answer: Allowed | Refused, expected: str) -> None:
    got = answer.grant if isinstance(answer, Allowed) else answer.kind.value
    assert got == expected, answer


TOKENS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ("exactly what it is for", {}, {}, {}, "token:a"),
    ("another name", {}, {"spiffe": "spiffe://td/prod/db"}, {}, "name_not_allowed"),
    ("a second name that is not granted", {}, {"dns": ("web.example.org",)}, {}, "name_not_allowed"),
    ("a second name that is granted", {"dns": ["web.example.org"]}, {"dns": ("web.example.org",)}, {}, "token:a"),
    ("an address that is not granted", {}, {"ip": ("10.0.0.1",)}, {}, "name_not_allowed"),
    ("an address that is granted", {"ip": ["10.0.0.0/24"]}, {"ip": ("10.0.0.1",)}, {}, "token:a"),
    ("a mailbox that is not granted", {}, {"email": ("a@example.org",)}, {}, "name_not_allowed"),
    ("a mailbox that is granted", {"email": ["*@example.org"]}, {"email": ("a@example.org",)}, {}, "token:a"),
    ("no name at all", {"identities": ["spiffe://td/**"]}, {"spiffe": None}, {}, "name_not_allowed"),
    ("another profile", {}, {"profile": "server"}, {}, "profile_not_allowed"),
    ("no profile in the grant", {"profiles": frozenset()}, {}, {}, "profile_not_allowed"),
    ("exactly as long as allowed", {"max_ttl": 3600.0}, {"ttl": 3600}, {}, "token:a"),
    ("a millisecond longer", {"max_ttl": 3600.0}, {"ttl": 3600.001}, {}, "lifetime_not_allowed"),
    ("from inside the network", {"sources": ["10.0.0.0/8"]}, {}, {}, "token:a"),
    ("from outside the network", {"sources": ["10.0.0.0/8"]}, {}, {"source": "192.0.2.1"}, "not_allowed"),
    ("from nobody knows where", {"sources": ["10.0.0.0/8"]}, {}, {"source": None}, "not_allowed"),
    ("through a dual-stack socket", {"sources": ["10.0.0.0/8"]}, {}, {"source": "::ffff:10.0.0.1"}, "token:a"),
    ("after it expired", {}, {}, {"now": NOW + 1000}, "token_expired"),
    ("to renew", {"actions": ACTIONS}, {}, {"action": "renew"}, "not_allowed"),
    ("to revoke", {}, {}, {"action": "revoke"}, "not_allowed"),
    ("to do what does not exist", {"actions": ACTIONS | {"sign"}}, {}, {"action": "sign"}, "not_allowed"),
    ("an agent's profile", {"profiles": frozenset({"agent"})}, {"profile": "agent"}, {}, "name_not_allowed"),
    ("an agent's name in another profile", {"identities": ["spiffe://td/**"]}, {"spiffe": "spiffe://td/agent/a"}, {}, "name_not_allowed"),
    ("a denied name", {"identities": ["spiffe://td/**"]}, {"spiffe": "spiffe://td/prod/ledger"}, {}, "name_not_allowed"),
    ("a denied host", {"dns": ["admin.example.org"]}, {"dns": ("admin.example.org",)}, {}, "name_not_allowed"),
    ("a wildcard over a denied host", {"dns": ["*.example.org"]}, {"dns": ("*.example.org",)}, {}, "name_not_allowed"),
]


@pytest.mark.parametrize(("grant", "asked", "around", "expected"), [case[1:] for case in TOKENS], ids=[case[0] for case in TOKENS])
def test_a_token_asks(grant: dict[str, Any], asked: dict[str, Any], around: dict[str, Any], expected: str) -> None:
    check(authorize(token(make_grant(**grant)), plan(**asked), circumstances(**around), POLICY), expected)


def test_a_token_is_bound_to_its_csr() -> None:
    bound = token(csr_sha256=b"x" * 32)
    check(authorize(bound, plan(), circumstances(csr_sha256=b"x" * 32), EMPTY), "token:a")
    check(authorize(bound, plan(), circumstances(csr_sha256=b"y" * 32), EMPTY), "not_allowed")
    check(authorize(bound, plan(), circumstances(csr_sha256=None), EMPTY), "not_allowed")


def test_a_token_for_the_api_obtains_no_certificate() -> None:
    admin = token(scopes=frozenset({"admin"}))
    check(authorize(admin, plan(), circumstances(), POLICY), "not_allowed")
    assert isinstance(check_scope(admin, "log:read"), Allowed)
    assert isinstance(check_scope(token(scopes=frozenset({"log:read"})), "log:write"), Refused)
    assert isinstance(check_scope(token(), "log:read"), Refused)
    assert isinstance(check_scope(certificate(), "agents:report"), Refused)
    assert isinstance(check_scope(certificate(is_agent=True), "agents:report"), Allowed)
    assert isinstance(check_scope(oidc(), "agents:report"), Refused)


def test_only_a_token_without_a_grant_of_its_own_is_looked_up_in_the_policy() -> None:
    check(authorize(token(BARE, name="bare"), plan(), circumstances(), POLICY), "policy:by-token+token:a")
    check(authorize(token(BARE, name="other"), plan(), circumstances(), POLICY), "not_allowed")
    check(authorize(token(make_grant(), name="bare"), plan("spiffe://td/prod/db"), circumstances(), POLICY), "name_not_allowed")
    check(
        authorize(token(make_grant(agent=True), name="bare", agent=True), plan("spiffe://td/prod/db"), circumstances(), POLICY),
        "name_not_allowed",
    )


def test_an_enrolment_token_without_names_enrols_and_is_not_looked_up_in_the_policy() -> None:
    enrol = token(Grant("token:a", agent=True), name="bare", agent=True)
    check(authorize(enrol, plan("spiffe://td/agent/a", profile="agent"), circumstances(), POLICY), "token:a")
    check(authorize(enrol, plan(), circumstances(), POLICY), "profile_not_allowed")


def test_a_token_without_a_grant_keeps_its_own_limits() -> None:
    short = token(Grant("token:a", max_ttl=60.0), name="bare")
    check(authorize(short, plan(), circumstances(), POLICY), "lifetime_not_allowed")
    check(authorize(short, plan(ttl=60), circumstances(), POLICY), "policy:by-token+token:a")
    elsewhere = token(make_grant(identities=[], profiles=frozenset(), sources=["192.0.2.0/24"]), name="bare")
    check(authorize(elsewhere, plan(), circumstances(), POLICY), "not_allowed")
    other = token(make_grant(identities=[], profiles=frozenset({"server"})), name="bare")
    check(authorize(other, plan(), circumstances(), POLICY), "profile_not_allowed")


ENROL = make_grant(identities=["spiffe://td/prod/*"], agent=True)
AGENT = "spiffe://td/agent/host-1"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"spiffe": AGENT, "profile": "agent"}, "token:a"),
        ({"spiffe": "spiffe://other/agent/host-1", "profile": "agent"}, "name_not_allowed"),
        ({"spiffe": "spiffe://td/agent/a/b", "profile": "agent"}, "name_not_allowed"),
        ({"spiffe": "spiffe://td/agent", "profile": "agent"}, "name_not_allowed"),
        ({"spiffe": WEB, "profile": "agent"}, "name_not_allowed"),
        ({"spiffe": None, "dns": ("a.example.org",), "profile": "agent"}, "name_not_allowed"),
        ({"spiffe": AGENT, "dns": ("a.example.org",), "profile": "agent"}, "name_not_allowed"),
        ({"spiffe": WEB}, "token:a"),
    ],
)
def test_an_enrolment_token(asked: dict[str, Any], expected: str) -> None:
    check(authorize(token(ENROL, agent=True), plan(**asked), circumstances(), EMPTY), expected)


def test_an_enrolment_token_that_lists_agents_enrols_these_only() -> None:
    named = token(make_grant(identities=["spiffe://td/agent/host-1", WEB], agent=True), agent=True)
    check(authorize(named, plan(AGENT, profile="agent"), circumstances(), EMPTY), "token:a")
    check(authorize(named, plan("spiffe://td/agent/host-2", profile="agent"), circumstances(), EMPTY), "name_not_allowed")


def test_an_agent_obtains_what_its_enrolment_allows() -> None:
    agent = certificate(AGENT, profile="agent", is_agent=True)
    asked = plan()
    check(authorize(agent, asked, circumstances(origin=ENROL), EMPTY), "token:a")
    check(authorize(agent, plan("spiffe://td/test/web"), circumstances(origin=ENROL), EMPTY), "name_not_allowed")
    check(authorize(agent, asked, circumstances(origin=None), EMPTY), "not_allowed")
    check(
        authorize(agent, asked, circumstances(origin=make_grant("token:b", identities=["spiffe://td/**"], agent=True)), EMPTY),
        "not_allowed",
    )
    check(authorize(agent, asked, circumstances(origin=make_grant(identities=["spiffe://td/**"])), EMPTY), "not_allowed")
    check(authorize(certificate(), asked, circumstances(origin=ENROL), EMPTY), "not_allowed")
    # An agent makes no agents, and revokes nothing by its enrolment.
    check(authorize(agent, plan("spiffe://td/agent/host-2", profile="agent"), circumstances(origin=ENROL), EMPTY), "not_allowed")
    check(authorize(agent, asked, circumstances("revoke", origin=ENROL), EMPTY), "not_allowed")
    check(authorize(agent, asked, circumstances("revoke", origin=dataclasses.replace(ENROL, actions=ACTIONS)), EMPTY), "not_allowed")
    check(authorize(agent, plan(AGENT, profile="agent"), circumstances("renew", origin=ENROL), EMPTY), "token:a")


def test_agents_by_their_labels() -> None:
    asked, around = plan("spiffe://td/prod/db"), circumstances()
    agent = certificate(AGENT, profile="agent", is_agent=True, labels={"role": "web", "zone": "a", "more": "x"})
    check(authorize(agent, asked, around, POLICY), "policy:deploy")
    check(authorize(dataclasses.replace(agent, labels={"role": "web"}), asked, around, POLICY), "not_allowed")
    check(authorize(dataclasses.replace(agent, is_agent=False), asked, around, POLICY), "not_allowed")


def test_a_certificate_by_its_identity() -> None:
    deployer = certificate("spiffe://td/deployer")
    check(authorize(deployer, plan("spiffe://td/prod/db"), circumstances(), POLICY), "policy:deploy")
    check(authorize(deployer, plan("spiffe://td/prod/db", ttl=7201), circumstances(), POLICY), "lifetime_not_allowed")
    check(authorize(deployer, plan("spiffe://td/prod/db", ttl=999_999), circumstances("revoke"), POLICY), "policy:deploy")
    check(authorize(deployer, plan("spiffe://td/test/db"), circumstances("revoke"), POLICY), "name_not_allowed")
    check(authorize(certificate("spiffe://td/deployer2"), plan("spiffe://td/prod/db"), circumstances(), POLICY), "not_allowed")
    # What is denied is not obtained, but it can be revoked.
    check(authorize(deployer, plan("spiffe://td/prod/ledger"), circumstances(), POLICY), "name_not_allowed")
    check(authorize(deployer, plan("spiffe://td/prod/ledger"), circumstances("revoke"), POLICY), "policy:deploy")


def test_oidc_by_issuer_and_claims() -> None:
    asked = plan("spiffe://td/ci/build", dns=("build.ci.example.org",))
    claims = {"repo": "acme/web", "ref": "refs/heads/main", "job": "build"}
    check(authorize(oidc(**claims), asked, circumstances(), POLICY), "policy:ci")
    check(authorize(oidc(**claims | {"ref": "refs/tags/1"}), asked, circumstances(), POLICY), "not_allowed")
    check(authorize(oidc(**claims | {"job": "other"}), asked, circumstances(), POLICY), "name_not_allowed")
    check(authorize(oidc(**claims | {"job": "*"}), asked, circumstances(), POLICY), "name_not_allowed")
    check(authorize(oidc("https://evil.example.org", **claims), asked, circumstances(), POLICY), "not_allowed")
    check(authorize(oidc(repo="acme/web"), asked, circumstances(), POLICY), "not_allowed")


def test_a_token_that_serves_once_must_be_told_apart() -> None:
    asked = plan("spiffe://td/ci/build")
    job = oidc("https://once.example.org", repo="acme/web", job="build")
    assert authorize(job, asked, circumstances(), POLICY) == Allowed("policy:ci", single_use=True)
    check(authorize(dataclasses.replace(job, jti=None), asked, circumstances(), POLICY), "not_authenticated")


# --- renewal ----------------------------------------------------------------------------------------------------------------------------


def renew(principal: Any, asked: Any, origin: Grant | None, policy: Policy = EMPTY) -> Allowed | Refused:
    return authorize(principal, asked, circumstances("renew", origin=origin), policy)


def test_a_certificate_renews_itself_by_the_grant_it_began_with() -> None:
    check(renew(certificate(), plan(), make_grant()), "token:a")


# Regression: policy tightening never reached renewing certificates in another product (renewal copied names and did not ask policy again).
@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "not_allowed"),
        (make_grant("token:b"), "not_allowed"),
        (make_grant(renew=False), "not_allowed"),
        (make_grant(identities=["spiffe://td/prod/db"]), "name_not_allowed"),
        (make_grant(profiles=frozenset({"server"})), "profile_not_allowed"),
        (make_grant(max_ttl=60.0), "lifetime_not_allowed"),
        (make_grant(sources=["192.0.2.0/24"]), "not_allowed"),
    ],
)
def test_a_renewal_is_under_todays_policy(origin: Grant | None, expected: str) -> None:
    check(renew(certificate(), plan(), origin), expected)
    denied = Policy(deny=(DenyRule("no", IdentityPatterns([WEB]), DnsPatterns()),))
    check(renew(certificate(), plan(), make_grant(), denied), "name_not_allowed")


def test_without_a_grant_that_is_known_renewal_is_refused_not_allowed_by_default() -> None:
    check(renew(certificate(granted_by=""), plan(), None, POLICY), "not_allowed")


# Regression, CVE-2026-39388: a session was renewed with a different valid certificate.
def test_a_renewal_changes_neither_identity_nor_names_nor_profile() -> None:
    wide = make_grant(identities=["spiffe://td/**"], dns=["*.example.org"], profiles=frozenset({"workload", "server"}))
    check(renew(certificate(), plan("spiffe://td/prod/db"), wide), "name_not_allowed")
    check(renew(certificate(), plan(dns=("new.example.org",)), wide), "name_not_allowed")
    check(renew(certificate(names=Names(WEB, dns=("old.example.org",))), plan(dns=("old.example.org",)), wide), "token:a")
    check(renew(certificate(names=Names(WEB, dns=("old.example.org",))), plan(), wide), "token:a")
    check(renew(certificate(), plan(profile="server"), wide), "profile_not_allowed")
    check(renew(certificate("dns:a.example.org", names=Names(dns=("a.example.org",))), plan(None, dns=("a.example.org",)), wide), "token:a")
    check(renew(oidc(), plan(), wide, POLICY), "not_allowed")
    check(renew(token(wide), plan(), wide, POLICY), "not_allowed")


JOINT = "policy:web+token:a"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Grant("token:a"), JOINT),
        (None, "not_allowed"),  # the token is gone, or was revoked
        (Grant("token:b"), "not_allowed"),
        (Grant("token:a", renew=False), "not_allowed"),
        (Grant("token:a", max_ttl=3600.0), JOINT),
        (Grant("token:a", max_ttl=60.0), "lifetime_not_allowed"),
        (make_grant(identities=[], profiles=frozenset(), sources=["192.0.2.0/24"]), "not_allowed"),
        (Grant("token:a", profiles=frozenset({"server"})), "profile_not_allowed"),
    ],
)
def test_what_a_token_obtained_by_a_policy_grant_stays_within_the_limits_of_both(limits: Grant | None, expected: str) -> None:
    """Regression: only the policy's grant was recorded, and the token's limits and its revocation were forgotten at renewal."""
    grant = make_grant("policy:web", max_ttl=7200.0)
    known = circumstances("renew", origin=grant, origin_token=limits)
    check(authorize(certificate(granted_by=JOINT), plan(), known, EMPTY), expected)
    gone = circumstances("renew", origin=None, origin_token=limits)
    check(authorize(certificate(granted_by=JOINT), plan(), gone, EMPTY), "not_allowed")
    narrow = circumstances("renew", origin=make_grant("policy:web", max_ttl=60.0), origin_token=Grant("token:a"))
    check(authorize(certificate(granted_by=JOINT), plan(), narrow, EMPTY), "lifetime_not_allowed")


def test_a_token_does_not_slip_into_a_line_that_began_without_one() -> None:
    known = circumstances("renew", origin=make_grant("policy:web"), origin_token=Grant("token:a"))
    check(authorize(certificate(granted_by="policy:web"), plan(), known, EMPTY), "not_allowed")
    assert split_grant(joint_grant("policy:web", "token:a")) == ("policy:web", "token:a")
    assert split_grant("token:a") == ("token:a", "")


def test_a_superseded_certificate_does_nothing_but_repeat_its_renewal() -> None:
    """Regression: a stolen certificate went on issuing and reporting after its owner had renewed it."""
    for is_agent in (False, True):
        old = certificate("spiffe://td/own/a", is_agent=is_agent, superseded_at=NOW)
        same = plan("spiffe://td/own/a")
        check(authorize(old, same, circumstances("renew"), POLICY), "policy:renewers")
        for action in ("issue", "revoke"):
            check(authorize(old, same, circumstances(action), POLICY), "superseded")
        check(authorize(dataclasses.replace(old, grace_is_over=True), same, circumstances("renew"), POLICY), "superseded")
    agent = certificate("spiffe://td/agent/a", is_agent=True, superseded_at=NOW)
    assert isinstance(check_scope(agent, "agents:report"), Allowed)
    answer = check_scope(dataclasses.replace(agent, grace_is_over=True), "agents:report")
    assert isinstance(answer, Refused)
    assert answer.kind is Kind.SUPERSEDED


def test_a_renewal_by_policy_and_after_the_claims_are_gone() -> None:
    own = certificate("spiffe://td/own/a")
    check(renew(own, plan("spiffe://td/own/a"), None, POLICY), "policy:renewers")
    check(renew(own, plan("spiffe://td/own/b"), None, POLICY), "name_not_allowed")
    job = certificate("spiffe://td/ci/build", granted_by="policy:ci")
    origin = POLICY.grant_named("policy:ci")
    check(renew(job, plan("spiffe://td/ci/build"), origin, POLICY), "policy:ci")
    check(renew(job, plan("spiffe://td/ci/other"), origin, POLICY), "name_not_allowed")


def test_the_server_has_its_own_names_and_nothing_else() -> None:
    server = ServerPrincipal("td", dns=("ca.example.org",), ip=("10.0.0.1",))
    own = plan(None, profile="server", dns=("ca.example.org",), ip=("10.0.0.1",))
    check(authorize(server, own, circumstances(), EMPTY), "server")
    for asked in (plan(), plan(None, profile="client", dns=("ca.example.org",)), plan(None, profile="server", email=("a@example.org",))):
        check(authorize(server, asked, circumstances(), POLICY), "not_allowed")
    for extra in ({"dns": ("web.example.org",)}, {"ip": ("10.0.0.2",)}, {"dns": ("*.example.org",)}):
        check(authorize(server, plan(None, profile="server", **extra), circumstances(), POLICY), "name_not_allowed")
    check(authorize(server, own, circumstances("revoke"), POLICY), "not_allowed")
    denied = Policy(deny=(DenyRule("no", IdentityPatterns(), DnsPatterns(["ca.example.org"])),))
    check(authorize(server, own, circumstances(), denied), "name_not_allowed")
    assert isinstance(check_scope(server, "log:read"), Refused)


def test_the_servers_own_spiffe_id_is_nobody_elses() -> None:
    """It says which server a bundle endpoint is: whoever else had it could stand in its place."""
    server = ServerPrincipal("td", dns=("ca.example.org",))
    own = plan("spiffe://td/handclasp/server", dns=("ca.example.org",))
    check(authorize(server, own, circumstances(), EMPTY), "server")
    check(authorize(server, plan("spiffe://td/handclasp/server", profile="server"), circumstances(), POLICY), "not_allowed")
    for other in ("spiffe://td/handclasp/other", "spiffe://other/handclasp/server", "spiffe://td/prod/web"):
        check(authorize(server, plan(other), circumstances(), POLICY), "not_allowed")
    check(authorize(server, plan("spiffe://td/handclasp/server", dns=("web.example.org",)), circumstances(), POLICY), "name_not_allowed")
    wide = make_grant(identities=["spiffe://td/**"], dns=["*.example.org"])
    for taken in ("spiffe://td/handclasp/server", "spiffe://td/handclasp/other"):
        check(authorize(token(wide), plan(taken), circumstances(), Policy(grants=(wide,))), "name_not_allowed")
        check(renew(certificate(taken), plan(taken), wide, Policy(grants=(wide,))), "name_not_allowed")


def test_a_grant_that_leaves_no_choice_names_the_names() -> None:
    assert make_grant(dns=["web.example.org", "*.example.org"]).only_names == Names(WEB, dns=("web.example.org",))
    assert make_grant(identities=["spiffe://td/*"]).only_names is None
    assert make_grant(identities=[WEB, "spiffe://td/a"]).only_names is None
    assert BARE.only_names is None


# Regression, CVE-2026-30836: an authorization switch without a case for one kind of request let it pass.
def test_what_is_not_a_known_principal_is_refused() -> None:
    check(authorize(object(), plan(), circumstances(), POLICY), "not_allowed")  # type: ignore[arg-type]


# Regression, GHSA-g892-p242-8g86: the rule for addresses was applied to the parameters and not to the names in the CSR.
def test_every_kind_of_name_in_the_final_plan_counts() -> None:
    for extra in ({"dns": ("a.example.org",)}, {"ip": ("10.0.0.1",)}, {"email": ("a@example.org",)}):
        for principal in (token(), oidc(), certificate("spiffe://td/deployer")):
            assert isinstance(authorize(principal, plan(**extra), circumstances(), POLICY), Refused)


# Regression: any holder of a token could revoke any serial.
def test_nothing_revokes_without_a_grant_that_says_revoke() -> None:
    for principal in (token(), certificate(), oidc(repo="acme/web", ref="refs/heads/main", job="web"), certificate("spiffe://td/own/a")):
        check(authorize(principal, plan(), circumstances("revoke", origin=make_grant()), POLICY), "not_allowed")


def test_a_refusal_names_what_was_nearest() -> None:
    answer = authorize(certificate("spiffe://td/deployer"), plan("spiffe://td/prod/db", ttl=9000), circumstances(), POLICY)
    assert answer == Refused(Kind.LIFETIME_NOT_ALLOWED, "policy:deploy allows 7200 seconds at most", longest=7200)
    answer = authorize(token(), plan("spiffe://td/prod/ledger"), circumstances(), POLICY)
    assert answer == Refused(Kind.NAME_NOT_ALLOWED, "spiffe://td/prod/ledger is denied by rule frozen: change freeze")


def test_the_lifetime_limit_of_an_enrolment_token_is_for_what_its_agents_obtain() -> None:
    enrolment = make_grant(identities=["spiffe://td/prod/web"], agent=True, max_ttl=20)
    agent = plan("spiffe://td/agent/host", profile="agent", ttl=86400)
    assert isinstance(authorize(token(grant=enrolment, agent=True), agent, circumstances(), POLICY), Allowed)
    workload = authorize(token(grant=enrolment, agent=True), plan("spiffe://td/prod/web", ttl=60), circumstances(), POLICY)
    assert isinstance(workload, Refused)
    assert workload.longest == 20
