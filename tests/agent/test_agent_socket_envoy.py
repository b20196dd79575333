"""A real Envoy on the agent's socket: whatever its configuration calls its secrets, it serves the newest and lets in whom it should."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from support.envoy import Envoy
from support.traffic import Caller
from support.waiting import eventually
from support.workload import DOMAIN, WEB, Mint, World, socket_of, workload

UID = f"unix:uid:{os.getuid()}"


def client_context(home: Path, mint: Mint, server: Mint, identity: str = WEB) -> ssl.SSLContext:
    """A client with a certificate of ``mint`` that trusts ``server``."""
    content = mint.content(identity)
    file = home / f"client-{content.sha256[:8]}.pem"
    file.write_bytes(content.certificate + content.chain + content.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=server.bundle.decode())
    context.load_cert_chain(file)
    return context


def rotate(world: World, caller: Caller, times: int) -> None:
    for _ in range(times):
        new = world.roster.rotate(WEB)
        eventually(lambda new=new: new.sha256 in caller.served, what="Envoy serves the new certificate")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("trust", "certificate"), [("ALL", "default"), ("ROOTCA", WEB), (f"spiffe://{DOMAIN}", "default")], ids=["all", "rootca", "domain"]
)
def test_envoy_rotates_under_traffic_and_lets_only_its_own_in(tmp_path: Path, trust: str, certificate: str) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, Envoy(tmp_path, world.path, trust, certificate).running() as envoy:
        with Caller(envoy.port, client_context(tmp_path, world.mint, world.mint)) as caller:
            rotate(world, caller, 20)
        assert caller.failures == []
        assert len(caller.served) >= 20
        with Caller(envoy.port, client_context(tmp_path, Mint(), world.mint)) as stranger:
            eventually(lambda: stranger.requests > 3)
        assert stranger.served == [] or len(stranger.failures) == stranger.requests
        assert world.server.problems() == []


def test_envoy_trusts_a_federated_trust_domain_for_its_own_names_only(tmp_path: Path) -> None:
    partner = Mint("partner.example")
    with socket_of(tmp_path, workload("web", WEB, UID, federates_with=["partner.example"])) as world:
        world.anchors.bundles["partner.example"] = partner.bundle
        with Envoy(tmp_path, world.path).running() as envoy:
            theirs = client_context(tmp_path, partner, world.mint, "spiffe://partner.example/shop")
            with Caller(envoy.port, theirs) as caller:
                eventually(lambda: len(caller.served) == 1 and caller.requests > 3)
            assert caller.failures == []
            forged = client_context(tmp_path, partner, world.mint, WEB)
            with Caller(envoy.port, forged) as caller:
                eventually(lambda: caller.requests > 3)
            assert len(caller.failures) == caller.requests


def test_a_secret_that_envoy_does_not_take_is_a_problem_until_it_takes_one(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, Envoy(tmp_path, world.path).running() as envoy:
        with Caller(envoy.port, client_context(tmp_path, world.mint, world.mint)) as caller:
            keeper = next(iter(world.roster.keepers.values()))
            good = keeper.held
            assert good is not None
            wrong = world.mint.content(WEB)
            keeper.held = type(good)(wrong.sha256, good.key, wrong.certificate, wrong.chain, wrong.bundle)
            for listener in world.roster.listeners["socket-web", WEB]:
                listener(keeper)
            eventually(lambda: world.server.problems() != [])
            assert "does not take the secret default" in world.server.problems()[0]
            assert "envoy-test" in world.server.problems()[0]
            requests = caller.requests
            eventually(lambda: caller.requests > requests + 5)
            rotate(world, caller, 1)
            eventually(lambda: world.server.problems() == [])
        assert caller.failures == []  # it kept what it had
