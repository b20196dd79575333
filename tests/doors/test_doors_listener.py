"""The gRPC listener: peers that are slow, many, mad or hostile; limits; the swap of its certificate; its end; two workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, PingAckReceived, ResponseReceived, StreamReset, TrailersReceived
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from handclasp import wire
from handclasp.errors import HandclaspError
from handclasp.proto.istio_pb2 import IstioCertificateRequest
from handclasp.server.grpc import MAX_OF_ONE, MAX_RESETS
from handclasp.server.settings import Settings
from support.kube import WEB, Cluster, cluster_entry, mesh_policy
from support.live import Live, read_all, serving
from support.mesh import PATH, check_as_ztunnel, connected, ztunnel_csr
from support.meshes import Mesh
from support.needs import needs
from support.servers import Server
from support.waiting import eventually

IDENTITY = "spiffe://example.org/ns/prod/sa/web"


class Peer:
    """HTTP/2 by hand, for what no gRPC client would do."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.socket = connection
        self.h2 = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def start(self, *, path: str = PATH, without: str = "", more: list[tuple[str, str]] | None = None) -> int:
        """Send the head of a request and return its stream."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "ca"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self.h2.send_headers(stream, [(name, value) for name, value in headers if name != without] + (more or []))
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = True) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def events(self, until: Callable[[Event], bool]) -> list[Event]:
        """Read until an event that is waited for, or the end of the connection."""
        seen: list[Event] = []
        while not any(until(event) for event in seen):
            try:
                data = self.socket.recv(65536)
            except (ssl.SSLEOFError, ConnectionResetError):
                break
            if not data:
                break
            seen += self.h2.receive_data(data)
            self.flush()
        return seen

    def answered(self, streams: list[int]) -> list[StreamReset]:
        """Return which of these were refused: the answer to a ping comes after every refusal before it."""
        self.h2.ping(b"are-you?")
        self.flush()
        events = self.events(lambda event: isinstance(event, PingAckReceived | ConnectionTerminated))
        return [event for event in events if isinstance(event, StreamReset) and event.stream_id in streams]

    def answer(self, stream: int) -> dict[str, str]:
        """Return the status and what came with it."""
        found: dict[str, str] = {}
        for event in self.events(
            lambda event: isinstance(event, StreamReset | ConnectionTerminated) or bool(getattr(event, "stream_ended", None))
        ):
            if isinstance(event, ResponseReceived | TrailersReceived) and event.stream_id == stream:
                found |= {str(name): str(value) for name, value in event.headers}
            if isinstance(event, StreamReset):
                found.setdefault("reset", str(int(event.error_code)))
        return found


@contextmanager
def raw(mesh: Mesh | Live, address: str | None = None, source: str = "") -> Iterator[ssl.SSLSocket]:
    live = mesh.live if isinstance(mesh, Mesh) else mesh
    host, _, port = str(address or live.facts["grpc"]).rpartition(":")
    context = ssl.create_default_context(cafile=live.facts["ca_file"])
    context.set_alpn_protocols(["h2"])
    origin = (source, 0) if source else None
    with socket.create_connection((host, int(port)), 30, origin) as bare, context.wrap_socket(bare, server_hostname=host) as connection:
        yield connection


@contextmanager
def peer(mesh: Mesh) -> Iterator[Peer]:
    with raw(mesh) as connection:
        yield Peer(connection)


def works(mesh: Mesh) -> None:
    """Fail unless the server still does what it is for."""
    key, csr = ztunnel_csr(IDENTITY)
    check_as_ztunnel(mesh.run(lambda client: client.create(csr, mesh.cluster.token(WEB))), key, IDENTITY)


def framed(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + struct.pack(">I", len(data)) + data


GOOD = IstioCertificateRequest(csr="x").SerializeToString()


# --- what is not a request --------------------------------------------------------------------------------------------------------------


def test_only_tls_with_http2_is_spoken(mesh: Mesh) -> None:
    host, _, port = mesh.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"SETTINGS" not in read_all(plain)
    with raw(mesh) as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() == "TLSv1.3"
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_all(connection)
    works(mesh)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (framed(GOOD), Status.UNAUTHENTICATED),
        (framed(b""), Status.UNAUTHENTICATED),
        (framed(b"\xff\xff\xff"), Status.INVALID_ARGUMENT),
        (framed(b"\x0a\x02\xff\xfe"), Status.INVALID_ARGUMENT),  # text that is not UTF-8
        (framed(GOOD, 1), Status.INVALID_ARGUMENT),  # compressed
        (framed(GOOD)[:-1], Status.INVALID_ARGUMENT),  # cut short
        (b"\x00\x00", Status.INVALID_ARGUMENT),
        (b"", Status.INVALID_ARGUMENT),
        (b"\x00" + struct.pack(">I", 70_000) + b"x" * 1000, Status.INVALID_ARGUMENT),
        (b"\x00\xff\xff\xff\xff" + b"x" * 1000, Status.INVALID_ARGUMENT),  # 4 GB are announced
    ],
)
def test_a_message_that_cannot_be_read_is_an_invalid_argument(mesh: Mesh, message: bytes, status: Status) -> None:
    with peer(mesh) as client:
        stream = client.start()
        client.data(stream, message)
        assert client.answer(stream)["grpc-status"] == str(status.value)
    works(mesh)


def test_other_methods_and_odd_requests_leave_the_connection_as_it_is(mesh: Mesh) -> None:
    with peer(mesh) as client:
        stream = client.start(path="/istio.v1.auth.IstioCertificateService/Other")
        client.data(stream, framed(GOOD))
        assert client.answer(stream)["grpc-status"] == str(Status.UNIMPLEMENTED.value)
        for without in (":path", ":method"):
            stream = client.start(without=without)
            assert "reset" in client.answer(stream)
        stream = client.start(more=[("x-bin", "!!!not base64!!!")])
        assert "reset" in client.answer(stream)
        for without in ("te", "content-type"):
            stream = client.start(without=without)
            assert client.answer(stream)[":status"] in ("400", "415")
        stream = client.start(more=[("authorization", "Bearer ")])
        client.data(stream, framed(GOOD))
        assert client.answer(stream)["grpc-status"] == str(Status.UNAUTHENTICATED.value)
    works(mesh)


def test_an_answer_to_a_refusal_says_why_and_of_what_kind(mesh: Mesh) -> None:
    with peer(mesh) as client:
        stream = client.start()
        client.data(stream, framed(GOOD))
        answer = client.answer(stream)
        assert answer["handclasp-kind"] == "not_authenticated"
        assert "service account token" in answer["grpc-message"]


@settings(max_examples=60)
@given(st.binary(max_size=400))
def test_nothing_that_is_sent_as_http2_breaks_the_listener(mesh: Mesh, data: bytes) -> None:
    with raw(mesh) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data)


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_nothing_that_is_sent_as_a_message_does_more_than_be_refused(mesh: Mesh, data: bytes) -> None:
    with peer(mesh) as client:
        stream = client.start(more=[("authorization", f"Bearer {mesh.cluster.token(WEB)}"), ("clusterid", "Kubernetes")])
        client.data(stream, framed(data))
        assert client.answer(stream)["grpc-status"] == str(Status.INVALID_ARGUMENT.value)


def test_unknown_frames_are_passed_over(mesh: Mesh) -> None:
    with peer(mesh) as client:
        client.socket.sendall(b"\x00\x00\x04\xfa\x00\x00\x00\x00\x00abcd")  # RFC 9113, section 5.5
        stream = client.start()
        client.data(stream, framed(GOOD))
        assert client.answer(stream)["grpc-status"] == str(Status.UNAUTHENTICATED.value)


# --- slow, many, mad --------------------------------------------------------------------------------------------------------------------


def test_half_open_requests_and_silent_connections_end_by_themselves(mesh: Mesh) -> None:
    """The time limit is 5 s here: a head without a message, a message that never ends, a connection that never says anything."""
    with peer(mesh) as silent, peer(mesh) as head, peer(mesh) as drip:
        half, slow = head.start(), drip.start()
        drip.data(slow, framed(GOOD)[:3], end=False)
        works(mesh)  # nobody waits for them
        for client, stream in ((head, half), (drip, slow)):
            assert client.answer(stream)["grpc-status"] == str(Status.DEADLINE_EXCEEDED.value)
        assert any(isinstance(event, ConnectionTerminated) for event in silent.events(lambda _: False))
    works(mesh)


def test_a_request_may_be_taken_back_and_a_flood_of_that_ends_the_connection(mesh: Mesh) -> None:
    with peer(mesh) as client:
        stream = client.start()
        client.h2.reset_stream(stream)
        client.flush()
        other = client.start()
        client.data(other, framed(GOOD))
        assert client.answer(other)["grpc-status"] == str(Status.UNAUTHENTICATED.value)
    with peer(mesh) as client:

        def flood() -> None:
            for _ in range(100 * MAX_RESETS):
                client.h2.reset_stream(client.start())
                client.flush()

        with pytest.raises(OSError):
            flood()
    works(mesh)


def test_a_flood_of_pings_is_cut_off(mesh: Mesh) -> None:
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh"
    with peer(mesh) as client:

        def flood() -> None:
            for _ in range(10_000):  # each is answered, and as many bytes come back
                client.socket.sendall(ping * 1000)

        with pytest.raises(OSError):
            flood()
    works(mesh)


def test_one_connection_has_a_bounded_number_of_requests_under_way(mesh: Mesh) -> None:
    with peer(mesh) as client:
        client.events(lambda event: type(event).__name__ == "RemoteSettingsChanged")
        assert client.h2.remote_settings.max_concurrent_streams == 100
        for _ in range(100):
            client.start()
        works(mesh)


# --- limits -----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def small(directory: Path, *flags: str) -> Iterator[tuple[Live, Cluster]]:
    """A server with a cluster, for what would disturb the others."""
    cluster = Cluster()
    with serving(directory, "--grpc", "127.0.0.1:0", *flags) as live:
        with live.client(live.admin_token) as admin:
            admin("PUT", "/v1/policy", {"text": mesh_policy(cluster_entry(cluster))}).ok()
        yield live, cluster


async def statuses(work: Callable[[], Awaitable[Any]], count: int) -> list[Status]:
    found = []
    for _ in range(count):
        try:
            await work()
            found.append(Status.OK)
        except GRPCError as error:
            found.append(error.status)
    return found


def test_requests_that_one_network_never_ends_leave_room_for_others(mesh: Mesh) -> None:
    """Heads of requests cost a peer nothing, and each waits for its message: a handful of connections would have been enough."""
    with contextlib.ExitStack() as stack:
        peers = [Peer(stack.enter_context(raw(mesh))) for _ in range(MAX_OF_ONE // 100 + 1)]
        refused = []
        for peer in peers:
            begun = [peer.start() for _ in range(100)]
            refused += [event.stream_id for event in peer.answered(begun)]
        assert 0 < len(refused) <= 100 * len(peers) - MAX_OF_ONE
        other = Peer(stack.enter_context(raw(mesh, source="127.0.0.2")))
        stream = other.start()
        other.data(stream, b"\0\0\0\0\0")
        assert other.answer(stream)["grpc-status"] == str(Status.UNAUTHENTICATED.value)
    eventually(lambda: _answers(mesh))


def _answers(mesh: Mesh) -> bool:
    with raw(mesh) as connection:
        peer = Peer(connection)
        stream = peer.start()
        peer.data(stream, b"\0\0\0\0\0")
        return "grpc-status" in peer.answer(stream)


def test_a_caller_and_a_stranger_are_slowed_down_each_by_itself(tmp_path: Path) -> None:
    with small(tmp_path, "--rate-principal", "10", "--rate-refused", "5") as (live, cluster):

        async def work() -> None:
            csr = ztunnel_csr(IDENTITY)[1]
            async with connected(live.facts["grpc"], live.facts["ca_file"]) as client:
                token = cluster.token(WEB)
                mine = await statuses(lambda: client.create(csr, token), 60)
                assert set(mine) == {Status.OK, Status.RESOURCE_EXHAUSTED}
                assert mine[:15] == [Status.OK] * 15
                replica = cluster.token(replace(WEB, uid="uid-2", name="web-2"))  # of the same service account: another pod
                await client.create(ztunnel_csr(IDENTITY)[1], replica)
                refused = await statuses(lambda: client.create(csr, "nonsense"), 60)
                assert set(refused) == {Status.UNAUTHENTICATED, Status.RESOURCE_EXHAUSTED}
                await client.create(ztunnel_csr(IDENTITY)[1], cluster.token(replace(WEB, uid="uid-3")))

        asyncio.run(work())


def test_requests_are_counted(mesh: Mesh) -> None:
    works(mesh)
    mesh.run(lambda client: client.refused(Status.UNAUTHENTICATED, "x"))
    with mesh.live.client(mesh.live.admin_token) as admin:
        families = {family.name: family for family in text_string_to_metric_families(admin("GET", "/metrics").text)}
    counted = {
        tuple(sample.labels.values()): sample.value for sample in families["handclasp_grpc_requests"].samples if "total" in sample.name
    }
    assert counted[PATH, "OK"] >= 1
    assert counted[PATH, "UNAUTHENTICATED"] >= 1
    assert {path for path, _ in counted} == {PATH}


# --- its certificate, its end, and two of them ------------------------------------------------------------------------------------------


def test_a_new_certificate_is_served_to_new_connections_and_no_connection_is_dropped(tmp_path: Path) -> None:
    with small(tmp_path, "--server-cert-lifetime", "10s") as (live, cluster):

        def served() -> bytes:
            with raw(live) as connection:
                return connection.getpeercert(binary_form=True) or b""

        async def work() -> None:
            async with connected(live.facts["grpc"], live.facts["ca_file"]) as client:
                first = await asyncio.to_thread(served)
                await client.create(ztunnel_csr(IDENTITY)[1], cluster.token(WEB))
                await asyncio.to_thread(eventually, lambda: served() != first, 30, "another certificate")
                protocol = client.channel._protocol
                await client.create(ztunnel_csr(IDENTITY)[1], cluster.token(WEB))
                assert client.channel._protocol is protocol

        asyncio.run(work())


def test_at_its_end_what_was_begun_is_answered_and_a_lost_answer_can_be_had_again(tmp_path: Path) -> None:
    """Answers that arrive after SIGTERM are whole; after the restart the same request gets the same certificate."""
    cluster = Cluster()
    flags = ("--trust-domain", "example.org", "--grpc", "127.0.0.1:0")
    with Server(tmp_path / "data", *flags) as server:
        server.ready()
        with server.client() as admin:
            admin.call("PUT", "/v1/policy", body=wire.PolicyDocument(text=mesh_policy(cluster_entry(cluster))), response=wire.PolicyDiff)
        requests = [ztunnel_csr(IDENTITY) for _ in range(60)]
        token = cluster.token(WEB)

        async def work() -> list[list[str] | None]:
            async with connected(server.facts["grpc"], server.ca) as client:
                await client.create(*(ztunnel_csr(IDENTITY)[1], token))

                async def one(csr: str) -> list[str] | None:
                    try:
                        return await client.create(csr, token)
                    except (GRPCError, StreamTerminatedError, OSError):
                        return None

                tasks = [asyncio.create_task(one(csr)) for _, csr in requests]
                await asyncio.sleep(0.02)
                os.kill(server.process.pid, signal.SIGTERM)
                return list(await asyncio.gather(*tasks))

        answers = asyncio.run(work())
        assert server.process.wait(30) == 0
    assert any(answers)
    with Server(tmp_path / "data", *flags, verb="serve") as server:
        server.ready()

        async def again() -> None:
            async with connected(server.facts["grpc"], server.ca) as client:
                for (key, csr), answer in zip(requests, answers, strict=True):
                    chain = await client.create(csr, token)
                    check_as_ztunnel(chain, key, IDENTITY)
                    assert answer in (None, chain)

        asyncio.run(again())


def test_two_workers_answer_the_same_request_with_one_certificate(tmp_path: Path, postgres_url: str) -> None:
    needs("postgresql")
    with small(tmp_path, "--database", postgres_url, "--workers", "2") as (live, cluster):

        async def both_know(token: str) -> None:
            """Wait until a worker that did not put the policy in force has seen it too, which takes half a second."""
            in_a_row = 0
            while in_a_row < 12:
                async with connected(live.facts["grpc"], live.facts["ca_file"]) as client:
                    found = await statuses(lambda: client.create(ztunnel_csr(IDENTITY)[1], token), 1)
                in_a_row = in_a_row + 1 if found == [Status.OK] else 0

        async def work() -> None:
            token = cluster.token(WEB)
            await both_know(token)
            key, csr = ztunnel_csr(IDENTITY)
            chains = set()
            for _ in range(12):  # each connection goes to one of the two
                async with connected(live.facts["grpc"], live.facts["ca_file"]) as client:
                    chain = await client.create(csr, token)
                    check_as_ztunnel(chain, key, IDENTITY)
                    chains.add("".join(chain))
            assert len(chains) == 1

        asyncio.run(work())


def test_a_listener_that_is_off_is_not_there(tmp_path: Path) -> None:
    with serving(tmp_path) as live:
        assert live.facts["grpc"] is None


@pytest.mark.parametrize("value", ["8444", "x:y", "127.0.0.1:99999"])
def test_a_bad_address_is_a_bad_setting(value: str) -> None:
    with pytest.raises(HandclaspError, match="grpc"):
        Settings.load({"grpc": value}, {})


def test_a_server_that_dies_between_the_commit_and_the_answer_has_issued_once(tmp_path: Path) -> None:
    cluster = Cluster()
    flags = ("--trust-domain", "example.org", "--grpc", "127.0.0.1:0")
    with Server(tmp_path / "data", *flags) as server:
        server.ready()
        with server.client() as admin:
            admin.call("PUT", "/v1/policy", body=wire.PolicyDocument(text=mesh_policy(cluster_entry(cluster))), response=wire.PolicyDiff)
    key, csr = ztunnel_csr(IDENTITY)
    token = cluster.token(WEB)

    async def ask(server: Server) -> list[str]:
        async with connected(server.facts["grpc"], server.ca) as client:
            return await client.create(csr, token)

    own = 1  # the server's own certificate passes that point first
    with Server(tmp_path / "data", *flags, verb="serve", fault=f"issue.committed:{own + 1}:kill") as server:
        server.ready()
        with pytest.raises((GRPCError, StreamTerminatedError, OSError)):
            asyncio.run(ask(server))
        assert server.process.wait(30) == -signal.SIGKILL
    with Server(tmp_path / "data", *flags, verb="serve") as server:
        server.ready()
        check_as_ztunnel(asyncio.run(ask(server)), key, IDENTITY)
        with server.client() as admin:
            assert len(admin.call("GET", f"/v1/certificates?identity={quote(IDENTITY)}", response=wire.CertificateList).items) == 1
