"""Acting for an owner: a team has more over its own identities alone, and over none of which somebody else says that it is theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, check_scope
from handclasp.access.owned import OWN_SCOPES, Owned, Said, acting_for_owner, may_act_for_owners, undisputed_owner
from handclasp.access.principals import SCOPES, ConsoleUser, Principal, ServerPrincipal
from handclasp.access.roles import ROLES, SCOPES_OF
from support.access import certificate, oidc, token

OWNERS = ("payments", "search", "")
EVIDENCE = ("confirmed", "token", "workload", "namespace", "spiffe", "cloud", "catalogue", "host", "zone", "denied", "something new")
STANDS = ("owner", "disputed", "contested", "guess", "", "something new")

BEYOND_DISPUTE = {(evidence, "owner") for evidence in EVIDENCE} | {
    (evidence, stands) for evidence in ("confirmed", "token") for stands in ("disputed", "contested")
}

said = st.builds(Said, st.sampled_from(OWNERS), st.sampled_from(EVIDENCE), st.sampled_from(STANDS))
owned = st.builds(Owned, st.none() | st.sampled_from(OWNERS), st.lists(said, max_size=4))
teams = st.frozensets(st.sampled_from(OWNERS[:2]))
everybody = st.sampled_from([certificate("spiffe://td/prod/web"), oidc(), token(), ServerPrincipal("td")])


def user(role: str, of: frozenset[str]) -> ConsoleUser:
    return ConsoleUser("oidc:u-1", "Ann", role, SCOPES_OF[role], of)


def gained(principal: Principal, scope: str, identity: Owned | None) -> frozenset[str]:
    return acting_for_owner(principal, scope, identity).scopes - principal.scopes


@pytest.mark.parametrize(
    ("evidence", "stands", "theirs"),
    [
        ("workload", "owner", True),
        ("zone", "owner", True),
        ("confirmed", "disputed", True),
        ("confirmed", "contested", True),
        ("token", "contested", True),
        ("workload", "disputed", False),
        ("workload", "contested", False),
        ("confirmed", "guess", False),
        ("confirmed", "", False),
    ],
)
def test_what_is_beyond_dispute(evidence: str, stands: str, theirs: bool) -> None:
    identity = Owned("payments", [Said("payments", evidence, stands)])
    assert (undisputed_owner(identity) == "payments") is theirs
    assert bool(gained(user("team", frozenset({"payments"})), "owners:write", identity)) is theirs
    assert not gained(user("team", frozenset({"search"})), "owners:write", identity)


def test_what_says_that_somebody_else_owns_it_gives_nothing() -> None:
    """Also where rows disagree, as they may for a moment between two writes."""
    identity = Owned("payments", [Said("search", "confirmed", "owner")])
    assert undisputed_owner(identity) is None
    assert not gained(user("team", frozenset({"payments", "search"})), "owners:write", identity)


@given(role=st.sampled_from(ROLES), of=teams, scope=st.sampled_from([*SCOPES]), identity=st.none() | owned)
def test_nobody_has_more_than_over_their_own(role: str, of: frozenset[str], scope: str, identity: Owned | None) -> None:
    person = user(role, of)
    more = gained(person, scope, identity)
    assert more <= {scope}, "one call, one scope"
    if more:
        assert scope in OWN_SCOPES
        assert identity is not None
        assert identity.owner in of
        assert any(one.owner == identity.owner and (one.evidence, one.stands) in BEYOND_DISPUTE for one in identity.said)
    assert may_act_for_owners(person) is bool(of)


@given(principal=everybody, scope=st.sampled_from([*SCOPES]), identity=owned)
def test_only_people_act_for_owners(principal: Principal, scope: str, identity: Owned) -> None:
    assert acting_for_owner(principal, scope, identity) is principal
    assert not may_act_for_owners(principal)


@given(of=teams, scope=st.sampled_from(sorted(OWN_SCOPES)), identity=owned)
def test_a_team_may_use_what_it_gained_and_loses_nothing(of: frozenset[str], scope: str, identity: Owned) -> None:
    before = user("team", of)
    after = acting_for_owner(before, scope, identity)
    assert before.scopes <= after.scopes
    assert isinstance(check_scope(after, scope), Allowed) is (undisputed_owner(identity) in of)
    assert (after.to_log(), after.describe()) == (before.to_log(), before.describe()), "the log says who it was"


def test_scopes_of_owners_are_scopes_that_no_team_has() -> None:
    assert set(SCOPES) >= OWN_SCOPES
    assert not OWN_SCOPES & SCOPES_OF["team"]
