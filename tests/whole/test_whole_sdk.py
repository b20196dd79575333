"""``TLSContext.from_api`` against a real server: two programs that hold their credentials in memory and never stop talking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from handclasp.client import TLSContext
from handclasp.client.settings import ClientSettings
from handclasp.errors import Kind
from support.errors import refused
from support.live import Live, serving
from support.programs import Shell
from support.servers import WEB
from support.tls import API, ask, connected, echo
from support.waiting import eventually

ROTATIONS = 5
PROFILES = "version: 1\nprofiles:\n  brief: {extend: workload, lifetime: 7s, min_lifetime: 5s, max_lifetime: 1m, backdate: 10s}\n"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """A server with a profile of seconds."""
    with serving(tmp_path) as running:
        (tmp_path / "profiles.yaml").write_text(PROFILES)
        Shell(tmp_path, running.environment)("profile", "apply", "-f", "profiles.yaml")
        yield running


@contextmanager
def from_api(live: Live, identity: str, token: str) -> Iterator[TLSContext]:
    """What a program does: first contact by bundle file, a token from its environment, and the rest is automatic."""
    with (
        ClientSettings(live.facts["https"], live.facts["ca_file"], token).client(timeout=10) as client,
        TLSContext.from_api(client, identity=identity, dns=["localhost"], profile="brief") as tls,
    ):
        yield tls


def test_server_and_client_talk_while_both_rotate(live: Live) -> None:
    """Tokens are good for one certificate each: every renewal stands on the certificate before it."""
    once = {"allow_dns": ["localhost"], "profiles": ("brief",), "uses": 1}
    tokens = {name: live.issuing_token(name, **once) for name in (WEB, API)}
    mine: set[str] = set()
    theirs: set[str] = set()
    with ExitStack() as stack:
        server = stack.enter_context(from_api(live, API, tokens[API]))
        client = stack.enter_context(from_api(live, WEB, tokens[WEB]))
        with refused(Kind.TOKEN_SPENT), from_api(live, WEB, tokens[WEB]):
            pass
        context = client.client_context(peers=[API])
        port, peers = stack.enter_context(echo(server.server_context(peers=[WEB])))
        kept = stack.enter_context(connected(context, port))
        first, requests = ask(kept), 0

        def both_rotated() -> bool:
            nonlocal requests
            with connected(context, port) as connection:  # whatever fails here fails the test
                ask(connection)
            requests += 1
            mine.add(client.sha256)
            theirs.add(server.sha256)
            assert (client.problem, server.problem) == ("", "")
            return min(len(mine), len(theirs)) > ROTATIONS

        eventually(both_rotated, 120, "five rotations on both sides")
        assert ask(kept) == first, "a connection that is open stays open"
        eventually(lambda: len(peers) == requests + 1)
        assert requests > 100
        assert set(peers) == {WEB}
    with live.client(live.admin_token) as admin:
        for name, seen in ((WEB, mine), (API, theirs)):
            items = admin.get("/v1/certificates", identity=name)["items"]
            assert seen <= {one["sha256"] for one in items}
            assert sorted(one["generation"] for one in items) == list(range(len(items))), "one line, without a gap"
            assert len({one["key_sha256"] for one in items}) == len(items), "each with a key of its own"


def test_a_program_survives_the_end_of_its_certificate_in_an_outage_if_its_token_is_still_good(live: Live) -> None:
    """What it cannot do is keep talking: its certificate ends. It comes back by itself."""
    token = live.issuing_token(WEB, allow_dns=["localhost"], profiles=("brief",))
    with from_api(live, WEB, token) as tls:
        before = tls.sha256
        with live.client(live.admin_token) as admin:
            admin("POST", f"/v1/certificates/{before}:revoke", {"reason": "superseded"}).ok()
            eventually(lambda: "revoked" in tls.problem, what="its renewal is refused")
            assert tls.sha256 == before
            eventually(lambda: tls.sha256 != before, what="the certificate ended, and the token gave another")
            items = admin.get("/v1/certificates", identity=WEB)["items"]
    assert [one["generation"] for one in items if one["sha256"] == tls.sha256] == [0]
