"""Delivered files that somebody changes: noticed, put right, and said; and anchors of partners that are none any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handclasp.agent.anchors import Anchors
from handclasp.agent.state import StateDirectory
from handclasp.client import TLSContext
from handclasp.client.api import ApiClient
from handclasp.errors import Kind
from support.agents import prepare, running, settled
from support.errors import refused
from support.fake_server import DOMAIN, FakeServer
from support.waiting import eventually

CHANGES: dict[str, Callable[[Path], object]] = {
    "a key is overwritten": lambda tls: (tls / "current" / "key.pem").write_text("nonsense"),
    "a certificate is removed": lambda tls: (tls / "current" / "cert.pem").unlink(),
    "a key is opened to everybody": lambda tls: (tls / "current" / "key.pem").chmod(0o644),
    "the link is removed": lambda tls: (tls / "current").unlink(),
    "a link elsewhere is replaced": lambda tls: ((tls.parent / "web.key").unlink(), (tls.parent / "web.key").write_text("mine")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changes_is_put_right(tmp_path: Path, change: str) -> None:
    with FakeServer() as server:
        targets = f"[{{directory: tls, paths: {{key: {tmp_path}/web.key}}, reload: {{command: [sh, -c, 'echo x >> {tmp_path}/told']}}}}]"
        config = prepare(server, tmp_path, targets, poll="500ms")
        with running(config) as agent:
            keeper = agent.roster.keepers()[0]
            eventually(lambda: settled(keeper))
            before = (tmp_path / "told").read_text()
            CHANGES[change](tmp_path / "tls")
            eventually(lambda: (tmp_path / "told").read_text() != before)
            eventually(lambda: "changed or removed" in (keeper.told.targets[0].last_failure or ""))
        assert TLSContext.from_directory(tmp_path / "tls").sha256 == server.newest(keeper.managed.name)
        assert (tmp_path / "tls" / "current" / "key.pem").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "web.key").read_bytes() == (tmp_path / "tls" / "current" / "key.pem").read_bytes()
        assert server.count("/v1/certificates", "POST") == 2, "nothing was issued for it"


def test_what_was_changed_while_the_agent_was_away_is_noticed(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]", poll="500ms")
        with running(config) as agent:
            eventually(lambda: settled(agent.roster.keepers()[0]))
        (tmp_path / "tls" / "current" / "bundle.pem").unlink()
        with running(config):
            eventually(lambda: (tmp_path / "tls" / "current" / "bundle.pem").exists())


def test_what_nobody_changes_is_not_delivered_again(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(
            server, tmp_path, f"[{{directory: tls, reload: {{command: [sh, -c, 'echo x >> {tmp_path}/told']}}}}]", poll="500ms"
        )
        with running(config) as agent:
            keeper = agent.roster.keepers()[0]
            eventually(lambda: settled(keeper))
            before, asked = (tmp_path / "told").read_text(), len(server.reports)
            eventually(lambda: len(server.reports) > asked + 2)
            assert not keeper.look()
            assert (tmp_path / "told").read_text() == before


PARTNER = "partner.example"


@contextmanager
def anchors_of(server: FakeServer, root: Path) -> Iterator[Anchors]:
    prepare(server, root)
    state = StateDirectory(root / "state")
    with ApiClient(server.url, ca=server.root_fingerprint, credential=state.own, attempts=1) as client:
        yield Anchors(state, client)


@pytest.mark.parametrize("emptied", [True, False])
def test_a_partner_that_is_none_any_more_is_trusted_no_longer(tmp_path: Path, emptied: bool) -> None:
    heard: list[str] = []
    with FakeServer() as server, anchors_of(server, tmp_path) as anchors:
        server.partners = {f"{PARTNER}.pem": server.bundle, PARTNER: '{"keys": []}'}
        anchors.watch(PARTNER, heard.append)
        assert anchors.refresh(PARTNER, crl=False, foreign=True)
        assert anchors.bundle(PARTNER)
        server.partners = {f"{PARTNER}.pem": "", PARTNER: '{"keys": []}'} if emptied else {}
        assert anchors.refresh(PARTNER, crl=False, foreign=True)
        assert (anchors.bundle(PARTNER), heard) == (b"", [PARTNER, PARTNER])
        assert not anchors.refresh(PARTNER, crl=False, foreign=True), "and that is told once"
        assert bool(anchors.jwks(PARTNER)) is emptied
        assert anchors_again(server, tmp_path).bundle(PARTNER) == b""
        server.partners = {f"{PARTNER}.pem": server.bundle, PARTNER: '{"keys": []}'}
        assert anchors.refresh(PARTNER, crl=False, foreign=True)
        assert anchors.bundle(PARTNER)


def anchors_again(server: FakeServer, root: Path) -> Anchors:
    """What an agent that starts now would find on disk."""
    return Anchors(StateDirectory(root / "state"), ApiClient(server.url, ca=server.root_fingerprint))


def test_our_own_anchors_are_never_taken_away(tmp_path: Path) -> None:
    with FakeServer() as server, anchors_of(server, tmp_path) as anchors:
        held = anchors.bundle(DOMAIN)
        assert held
        server.partners = {f"{DOMAIN}.pem": " "}
        with refused(Kind.BAD_CERTIFICATE, "no PEM certificate"):
            anchors.refresh(DOMAIN, crl=False)
        with refused(Kind.NOT_FOUND):
            anchors.refresh("unknown.example", crl=False)
        assert anchors.bundle(DOMAIN) == held
