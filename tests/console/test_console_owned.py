"""Acting for an owner: what counts as that owner's own, in the API as the console calls it. No browser and no server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from handclasp.access.principals import ConsoleUser
from handclasp.access.roles import SCOPES_OF
from handclasp.api.internal import InternalApi
from handclasp.api.table import API
from handclasp.errors import HandclaspError, Kind
from handclasp.server.instance import Instance, open_instance
from handclasp.server.settings import Settings
from handclasp.server.setup import initialise
from handclasp.store import tables
from handclasp.store.writes import Change, Write

TEAM = ConsoleUser("oidc:u-1", "Ann", "team", SCOPES_OF["team"], frozenset({"mallory"}))

OWNED: dict[str, tuple[tuple[str, str], ...]] = {
    "dns:plain.example.org": (("workload", "owner"),),
    "dns:given.example.org": (("confirmed", "disputed"),),
    "dns:token.example.org": (("token", "contested"),),
    "dns:copied.example.org": (("workload", "disputed"),),
    "dns:torn.example.org": (("workload", "contested"),),
    "dns:*.example.org": (("confirmed", "owner"),),
    "dns:nobody.example.org": (),
}
"""Identity -> what says that it is the team's: (evidence, how that stands)."""
OWN = ["dns:given.example.org", "dns:plain.example.org", "dns:token.example.org"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings.load({"data": str(tmp_path_factory.mktemp("owned") / "data"), "trust_domain": "example.org"}, env={})
    asyncio.run(_fill(settings))
    return settings


async def _fill(settings: Settings) -> None:
    await initialise(settings)
    instance = await open_instance(settings)
    try:
        changes = []
        for number, (name, said) in enumerate(OWNED.items(), 1000):
            owner = "mallory" if said else None
            changes.append(Change(insert(tables.identity).values(id=number, name=name, created_at=1, owner=owner)))
            for evidence, stands in said:
                row = {"identity_id": number, "evidence": evidence, "rule": "r", "owner": "mallory", "stands": stands, "at": 1}
                changes.append(Change(insert(tables.assignment).values(row | {"confidence": 90, "detail": ""})))
        await instance.store.ledger.commit(Write([], changes))
    finally:
        await instance.close()


async def _refused(instance: Instance, method: str, path: str, body: dict[str, Any]) -> bool:
    """Tell whether the team may not do it; what it asks for is wrong in another way, so that nothing happens where it may."""
    with pytest.raises(HandclaspError) as caught:
        await InternalApi(API, instance.services).call(TEAM, method, path, {}, body)
    return caught.value.kind is Kind.NOT_ALLOWED


def test_only_what_is_theirs_beyond_dispute(opened: Settings, tmp_path: Path) -> None:
    """A copy of a certificate in a place of one's own is evidence, and must not be enough to act on what others say is somebody else's."""

    async def run() -> dict[str, bool]:
        instance = await open_instance(opened)
        try:
            asked = {"owner": "no-such-owner", "reason": "test"}
            return {name: not await _refused(instance, "POST", f"/v1/identities/{name}:assign", asked) for name in OWNED}
        finally:
            await instance.close()

    assert sorted(name for name, may in asyncio.run(run()).items() if may) == OWN


def test_an_identity_s_name_that_is_a_pattern_does_not_rotate_others(opened: Settings) -> None:
    async def run() -> dict[str, bool]:
        instance = await open_instance(opened)
        try:
            asked = {"within": "1x", "reason": "test"}
            return {name: not await _refused(instance, "POST", "/v1/rotations", asked | {"identity": name}) for name in OWNED}
        finally:
            await instance.close()

    assert sorted(name for name, may in asyncio.run(run()).items() if may) == OWN


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/owners"),
        ("PUT", "/v1/ownership"),
        ("POST", "/v1/views"),
        ("PUT", "/v1/owners/mallory"),
        ("POST", "/v1/owners/mallory:ask"),
    ],
)
def test_naming_one_s_own_opens_nothing_else(opened: Settings, method: str, path: str) -> None:
    """Where a call is not about one identity, an identity in its body says nothing."""

    async def run() -> bool:
        instance = await open_instance(opened)
        try:
            return await _refused(instance, method, path, {"identity": OWN[0]})
        finally:
            await instance.close()

    assert asyncio.run(run())
