"""Tokens, policy and profiles."""

from __future__ import annotations

from handclasp.api.paging import read_limit, read_text
from handclasp.api.routes import Call
from handclasp.clock import format_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import profiles as pki_profiles
from handclasp.wire import (
    Done,
    Policy,
    PolicyDiff,
    Profile,
    ProfileList,
    Token,
    TokenCreated,
    TokenList,
)


async def create_token(call: Call) -> TokenCreated:
    """Make a token."""
    return await call.services.tokens.create(call.body, call.principal)


async def list_tokens(call: Call) -> TokenList:
    """List tokens, newest first."""
    filters = {name: value for name in ("name", "owner", "state") if (value := read_text(call.query, name)) is not None}
    return await call.services.tokens.list(read_limit(call.query), read_text(call.query, "cursor"), filters)


async def show_token(call: Call) -> Token:
    """Show one token."""
    return await call.services.tokens.show(call.path["id"])


async def revoke_token(call: Call) -> Done:
    """Revoke a token: nothing more is issued with it, and nothing it issued is renewed by it."""
    return Done(log_entry=await call.services.tokens.revoke(call.path["id"], call.principal))


async def show_policy(call: Call) -> Policy:
    """Show the policy in force."""
    document = await call.services.rulebook.document("policy")
    applied_at = rfc3339(document.applied_at) if document.applied_at is not None else None
    return Policy(text=document.text, sha256=document.sha256, applied_at=applied_at, applied_by=document.applied_by)


async def apply_policy(call: Call) -> PolicyDiff:
    """Put a policy in force."""
    principal = call.principal
    return await call.services.rulebook.apply("policy", call.body.text, principal.to_log(), principal.describe())


async def diff_policy(call: Call) -> PolicyDiff:
    """Say what applying a policy would change."""
    return await call.services.rulebook.compare("policy", call.body.text, call.principal.to_log())


async def list_profiles(call: Call) -> ProfileList:
    """List profiles."""
    rules = await call.services.rulebook.current()
    return ProfileList(items=[_to_profile(profile) for _, profile in sorted(rules.profiles.items())])


async def show_profile(call: Call) -> Profile:
    """Show one profile."""
    profile = (await call.services.rulebook.current()).profiles.get(call.path["name"])
    if profile is None:
        raise HandclaspError(Kind.NOT_FOUND, "there is no profile of this name")
    return _to_profile(profile)


async def apply_profiles(call: Call) -> PolicyDiff:
    """Put profiles in force."""
    principal = call.principal
    return await call.services.rulebook.apply("profiles", call.body.text, principal.to_log(), principal.describe())


async def diff_profiles(call: Call) -> PolicyDiff:
    """Say what applying profiles would change."""
    return await call.services.rulebook.compare("profiles", call.body.text, call.principal.to_log())


def _to_profile(profile: pki_profiles.Profile) -> Profile:
    return Profile(
        name=profile.name,
        description=profile.description,
        authority=profile.authority,
        key_types=sorted(profile.key_types),
        lifetime=format_duration(profile.lifetime),
        min_lifetime=format_duration(profile.min_lifetime),
        max_lifetime=format_duration(profile.max_lifetime),
        backdate=format_duration(profile.backdate),
        usages=[*sorted(profile.key_usage), *profile.extended_key_usage],
        names=sorted(profile.names),
        built_in=profile.built_in,
    )
