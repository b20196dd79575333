"""The Workload API as the standard has it: headers, codes, full state on each change, redaction, bundles; and who is asking."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from grpclib.client import Channel, UnaryStreamMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from handclasp.agent.socket.messages import certificates
from handclasp.agent.socket.proc import Process
from handclasp.agent.state import slug
from handclasp.clock import system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.proto import sds_pb2, workload_pb2
from support.waiting import eventually
from support.workload import AWAY, DOMAIN, WEB, Mint, World, socket_of, workload
from support.workload_calls import API, BUNDLES, HEADER, JWT, SDS, SECRETS, UID, X509, first, on, status_of, unary

# --- what a caller gets -----------------------------------------------------------------------------------------------------------------


def test_a_message_holds_everything_the_standard_asks_for(tmp_path: Path) -> None:
    partner = Mint("partner.example")
    with socket_of(tmp_path, workload("web", WEB, UID, hint="main", federates_with=["partner.example", "unknown.example"])) as world:
        world.anchors.bundles["partner.example"] = partner.bundle
        world.anchors.crls[DOMAIN] = world.mint.crl() + world.mint.crl(issuing=True)
        message = first(world, "FetchX509SVID")
        (svid,) = message.svids
        content = world.roster.keepers["socket-web", WEB].held
        assert content is not None
        assert (svid.spiffe_id, svid.hint) == (WEB, "main")
        assert svid.x509_svid == b"".join(certificates(content.certificate + content.chain))
        assert svid.bundle == b"".join(certificates(world.mint.bundle))
        key = load_der_private_key(svid.x509_svid_key, None)
        assert key.public_key() == leaf_of(svid.x509_svid).public_key()
        assert dict(message.federated_bundles) == {"spiffe://partner.example": b"".join(certificates(partner.bundle))}
        assert len(message.crl) == 2
        assert set(world.anchors.watched) == {DOMAIN, "partner.example", "unknown.example"}
        bundles = first(world, "FetchX509Bundles", BUNDLES)
        assert set(bundles.bundles) == {f"spiffe://{DOMAIN}", "spiffe://partner.example"}
        assert len(bundles.crl) == 2


def leaf_of(chain: bytes) -> x509.Certificate:
    length = int.from_bytes(chain[2:4], "big") + 4
    return x509.load_der_x509_certificate(chain[:length])


def test_the_first_is_the_default_and_hints_are_unique(tmp_path: Path) -> None:
    two, three = f"spiffe://{DOMAIN}/two", f"spiffe://{DOMAIN}/three"
    workloads = [
        workload("b", two, UID, hint="x"),
        workload("a", WEB, UID, hint="x"),
        workload("c", three, UID, "unix:uid:99999"),
        workload("d", three, UID, hint="y"),
    ]
    with socket_of(tmp_path, *workloads) as world:
        message = first(world, "FetchX509SVID")
        assert [(svid.spiffe_id, svid.hint) for svid in message.svids] == [(two, "x"), (WEB, ""), (three, "y")]


@pytest.mark.parametrize("name", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", "FetchWITSVID", "FetchWITBundles"])
def test_without_the_header_nothing_is_answered(tmp_path: Path, name: str) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world:
        for metadata in ({}, {"workload.spiffe.io": "false"}, {"workload.spiffe.io": "True"}):
            assert status_of(lambda metadata=metadata: first(world, name, metadata=metadata))[0] is Status.INVALID_ARGUMENT  # type: ignore[misc]
        for path, types in ((API + "FetchJWTSVID", JWT), (API + "ValidateJWTSVID", JWT)):
            assert status_of(lambda path=path, types=types: unary(world, path, types, types[0](), {}))[0] is Status.INVALID_ARGUMENT  # type: ignore[misc]
        assert world.roster.issued == []


@pytest.mark.parametrize("name", ["FetchWITSVID", "FetchWITBundles", "SomethingElse"])
def test_what_is_not_offered_is_unimplemented(tmp_path: Path, name: str) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world:
        assert status_of(lambda: first(world, name))[0] is Status.UNIMPLEMENTED


@pytest.mark.parametrize(
    "selectors",
    [
        [f"unix:uid:{os.getuid() + 1}"],
        [UID, "unix:path:/usr/sbin/nginx"],
        [UID, "unix:sha256:" + "0" * 64],
        [UID, "unix:gid:54321"],
        [UID, "systemd:id:nginx.service"],
        [UID, "k8s:ns:default"],
        [],
    ],
)
def test_who_lacks_a_selector_is_denied(tmp_path: Path, selectors: list[str]) -> None:
    with socket_of(tmp_path, workload("web", WEB, *selectors)) as world:
        for do in (
            lambda: first(world, "FetchX509SVID"),
            lambda: first(world, "FetchX509Bundles", BUNDLES),
            lambda: unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(audience=["x"])),
            lambda: unary(world, SDS + "FetchSecrets", SECRETS, sds_pb2.DiscoveryRequest()),
        ):
            assert status_of(do)[0] is Status.PERMISSION_DENIED
        assert world.roster.keepers == {}


def test_path_and_hash_of_the_executable_count(tmp_path: Path) -> None:
    digest = hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()
    path = str(Path("/proc/self/exe").readlink())
    with socket_of(tmp_path, workload("web", WEB, f"unix:path:{path}", f"unix:sha256:{digest}")) as world:
        assert first(world, "FetchX509SVID").svids[0].spiffe_id == WEB


# --- changes ----------------------------------------------------------------------------------------------------------------------------


class Follower:
    """Follows a stream in a thread, and keeps every message."""

    def __init__(self, world: World, name: str = "FetchX509SVID", types: Any = X509) -> None:
        self.messages: list[Any] = []
        self.end: tuple[Status, str] | None = None
        self._world, self._name, self._types = world, name, types
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def do(channel: Channel) -> None:
            async with UnaryStreamMethod(channel, API + self._name, *self._types).open(metadata=HEADER) as stream:
                await stream.send_message(self._types[0](), end=True)
                async for message in stream:
                    self.messages.append(message)

        try:
            on(self._world, do)
        except GRPCError as error:
            self.end = (error.status, error.message or "")
        except StreamTerminatedError as error:
            self.end = (Status.UNAVAILABLE, str(error))

    def wait(self, count: int) -> Any:
        eventually(lambda: len(self.messages) >= count or self.end, what=f"message {count}")
        assert self.end is None, self.end
        return self.messages[count - 1]


def test_each_change_gives_the_full_state_and_nothing_else_does(tmp_path: Path) -> None:
    partner = Mint("partner.example")
    with socket_of(tmp_path, workload("web", WEB, UID, federates_with=["partner.example"])) as world:
        follower, bundles = Follower(world), Follower(world, "FetchX509Bundles", BUNDLES)
        before = follower.wait(1)
        bundles.wait(1)
        new = world.roster.rotate(WEB)
        assert follower.wait(2).svids[0].x509_svid.startswith(certificates(new.certificate)[0])
        world.anchors.bundles["partner.example"] = partner.bundle
        assert set(follower.wait(3).federated_bundles) == {"spiffe://partner.example"}
        assert len(bundles.wait(2).bundles) == 2
        world.anchors.bundles[DOMAIN] += Mint().bundle
        assert len(follower.wait(4).svids[0].bundle) > len(before.svids[0].bundle)
        world.anchors.crls[DOMAIN] = world.mint.crl()
        assert len(follower.wait(5).crl) == 1
        world.policy(workload("web", WEB, UID, hint="h"), workload("other", f"spiffe://{DOMAIN}/other", UID))
        assert [svid.hint for svid in follower.wait(6).svids] == ["h", ""]
        assert len(bundles.wait(5).bundles) == 1
        for keeper, listeners in zip(world.roster.keepers.values(), world.roster.listeners.values(), strict=True):
            for listener in listeners:
                listener(keeper)  # nothing has changed, whatever the roster says
        world.policy(*world.client.items)
        assert len(follower.messages) == 6


def test_what_the_policy_takes_away_is_absent_from_the_next_message_and_the_last_ends_the_stream(tmp_path: Path) -> None:
    web, other = workload("web", WEB, UID), workload("other", f"spiffe://{DOMAIN}/other", UID)
    with socket_of(tmp_path, web, other) as world:
        follower = Follower(world)
        assert len(follower.wait(1).svids) == 2
        world.policy(web)
        assert [svid.spiffe_id for svid in follower.wait(2).svids] == [WEB]
        assert world.roster.removed == [f"spiffe://{DOMAIN}/other"]
        world.policy()
        eventually(lambda: follower.end)
        assert follower.end is not None
        assert follower.end[0] is Status.PERMISSION_DENIED
        assert world.roster.keepers == {}


def test_callers_share_one_issuance(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, ThreadPoolExecutor(8) as pool:
        messages = list(pool.map(lambda _: first(world, "FetchX509SVID"), range(16)))
        assert world.roster.issued == [WEB]
        assert len({message.svids[0].x509_svid for message in messages}) == 1


def test_the_first_certificate_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID), wait=0.5) as world:
        world.roster.holds = True
        assert status_of(lambda: first(world, "FetchX509SVID")) == (Status.UNAVAILABLE, "there is no certificate yet")
        threading.Timer(0.2, lambda: world.roster.rotate(WEB)).start()
        assert first(world, "FetchX509SVID").svids


def test_a_failed_issuance_is_said_and_the_others_are_served(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID), wait=10) as world:
        world.roster.failure = "the server is full"
        status, words = status_of(lambda: first(world, "FetchX509SVID"))
        assert (status, "the server is full" in words) == (Status.UNAVAILABLE, True)
        world.roster.failure = ""
        world.policy(workload("web", WEB, UID), workload("other", f"spiffe://{DOMAIN}/other", UID))
        assert [svid.spiffe_id for svid in first(world, "FetchX509SVID").svids] == [f"spiffe://{DOMAIN}/other"]


def test_a_certificate_that_has_ended_is_not_given(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID), wait=0.5) as world:
        first(world, "FetchX509SVID")
        world.roster.rotate(WEB, seconds=1)
        world.roster.keepers["socket-web", WEB].not_after = system_clock() - 1
        assert status_of(lambda: first(world, "FetchX509SVID"))[0] is Status.UNAVAILABLE


def test_while_the_server_is_away_a_restart_serves_what_was_known(tmp_path: Path) -> None:
    world = World(tmp_path, [workload("web", WEB, UID)], wait=0.5)
    world.client.away = AWAY
    with world.running():
        status, words = status_of(lambda: first(world, "FetchX509SVID"))
        assert (status, words) == (Status.UNAVAILABLE, "the policy has not been heard of yet")
        assert "the workloads of the policy: the server cannot be reached" in world.server.problems()
        world.client.away = None
        eventually(lambda: not world.server.problems())
        first(world, "FetchX509SVID")
    world.client.away = AWAY
    again = World(tmp_path, [], wait=0.5)
    again.client.away, again.roster = AWAY, world.roster
    world.roster.keepers.clear()
    with again.running():
        eventually(lambda: world.roster.keepers, what="it goes on with what was in use, before anybody asks")
        assert first(again, "FetchX509SVID").svids[0].spiffe_id == WEB


def test_what_nobody_asks_for_is_let_go_of_unless_a_stream_carries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.agent.socket.core._SYNC", 0.1)
    with socket_of(tmp_path, workload("web", WEB, UID), keep=0.5) as world:
        follower = Follower(world)
        follower.wait(1)
        time.sleep(1.5)
        assert world.roster.removed == []
        first(world, "FetchX509SVID")
    assert world.roster.removed == []
    with socket_of(tmp_path, workload("web", WEB, UID), keep=0.5) as world:
        first(world, "FetchX509SVID")
        eventually(lambda: world.roster.removed == [WEB])


# --- who is asking ----------------------------------------------------------------------------------------------------------------------

_CHILD = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
os.setgid(65534)
os.setuid(65534)
os.write(1, b"x")
os.read(0, 1)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_process_that_becomes_another_user_is_denied_from_then_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    connection, _ = listening.accept()
    assert child.stdout is not None
    assert child.stdout.read(1) == b"x"
    with pytest.raises(HandclaspError) as caught:
        Process.of_peer(connection)
    assert caught.value.kind is Kind.NOT_ALLOWED
    child.communicate(b"x")
    connection.close()
    listening.close()


def test_keys_of_what_the_policy_took_away_leave_the_disk(tmp_path: Path) -> None:
    web, db = workload("web", WEB, UID), workload("db", f"spiffe://{DOMAIN}/prod/db", UID)
    with socket_of(tmp_path, web, db) as world:
        first(world, "FetchX509SVID")
        world.policy(web, db)
        homes = {one.name: tmp_path / "state" / f"socket-{one.name}" / slug(one.identity) for one in (web, db)}
        left = tmp_path / "state" / "socket-gone" / "a-left-over"
        for home in (*homes.values(), left):
            (home / "generations" / "00000001").mkdir(parents=True)
            (home / "generations" / "00000001" / "key.pem").write_text("secret")
        world.policy(web)
        eventually(lambda: not homes["db"].parent.exists() and not left.parent.exists())
        assert homes["web"].exists()
        assert (tmp_path / "state" / "socket").exists()
