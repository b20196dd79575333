"""The Workload API as the standard has it: headers, codes, full state on each change, redaction, bundles, tokens."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_private_key
from grpclib.client import Channel, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from spiffe import JwtSource, WorkloadApiClient, X509Source

from handclasp import wire
from handclasp.agent.config.socket import SdsNames
from handclasp.agent.socket.messages import certificates
from handclasp.agent.socket.proc import Process
from handclasp.agent.state import slug
from handclasp.clock import rfc3339, system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.proto import sds_pb2, workload_pb2
from support.waiting import eventually
from support.workload import AWAY, DOMAIN, WEB, Mint, World, socket_of, workload

UID = f"unix:uid:{os.getuid()}"
HEADER = {"workload.spiffe.io": "true"}
API = "/SpiffeWorkloadAPI/"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"
X509 = (workload_pb2.X509SVIDRequest, workload_pb2.X509SVIDResponse)
BUNDLES = (workload_pb2.X509BundlesRequest, workload_pb2.X509BundlesResponse)
JWT = (workload_pb2.JWTSVIDRequest, workload_pb2.JWTSVIDResponse)
SECRETS = (sds_pb2.DiscoveryRequest, sds_pb2.DiscoveryResponse)


def on(world: World, do: Callable[[Channel], Awaitable[Any]]) -> Any:
    """Run a client."""

    async def run() -> Any:
        channel = Channel(path=str(world.path))
        try:
            return await asyncio.wait_for(do(channel), 20)
        finally:
            channel.close()

    return asyncio.run(run())


def unary(world: World, path: str, types: Any, request: Any, metadata: dict[str, str] | None = None) -> Any:
    return on(world, lambda channel: UnaryUnaryMethod(channel, path, *types)(request, metadata=HEADER if metadata is None else metadata))


def first(world: World, name: str, types: Any = X509, metadata: dict[str, str] | None = None) -> Any:
    """Return the first message of a stream."""

    async def do(channel: Channel) -> Any:
        async with UnaryStreamMethod(channel, API + name, *types).open(metadata=HEADER if metadata is None else metadata) as stream:
            await stream.send_message(types[0](), end=True)
            message = await stream.recv_message()
            if message is not None:
                await stream.cancel()
            return message

    return on(world, do)


def status_of(do: Callable[[], Any]) -> tuple[Status, str]:
    with pytest.raises(GRPCError) as caught:
        do()
    return caught.value.status, caught.value.message or ""


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


# --- tokens -----------------------------------------------------------------------------------------------------------------------------


class Signer:
    """Signs JWT-SVIDs, and publishes its key."""

    def __init__(self, world: World, domain: str = DOMAIN, kid: str = "k1", life: float = 300) -> None:
        self.key, self.kid, self.life = ec.generate_private_key(ec.SECP256R1()), kid, life
        numbers = self.key.public_key().public_numbers()
        x, y = b64(numbers.x.to_bytes(32, "big")), b64(numbers.y.to_bytes(32, "big"))
        jwk = {"kty": "EC", "use": "jwt-svid", "crv": "P-256", "kid": kid, "x": x, "y": y}
        keys = [jwk, {"kty": "EC", "use": "x509-svid", "crv": "P-256", "x5c": ["AAAA"]}, {"kty": "new", "use": "wit-svid"}]
        world.anchors.keys[domain] = json.dumps({"keys": keys, "spiffe_sequence": 1}).encode()
        if domain == DOMAIN:
            world.client.sign = self

    def __call__(self, request: wire.JwtSvidRequest) -> wire.JwtSvid:
        now = system_clock() / 1000
        token = self.token({"sub": request.identity, "aud": request.audience, "iat": int(now), "exp": int(now + self.life)})
        return wire.JwtSvid(token=token, identity=request.identity, expires_at=rfc3339(int(1000 * (now + self.life))), log_entry=1)

    def token(self, claims: dict[str, Any], **header: Any) -> str:
        head = {"alg": "ES256", "kid": self.kid, "typ": "JWT", **header}
        signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwt_workload(name: str = "web", identity: str = WEB, **more: Any) -> wire.Workload:
    return workload(name, identity, UID, jwt=True, **more)


def test_tokens_are_obtained_once_and_again_at_half_of_their_life(tmp_path: Path) -> None:
    with socket_of(tmp_path, jwt_workload(hint="h")) as world:
        signer = Signer(world)
        request = workload_pb2.JWTSVIDRequest(audience=["a", "b", "a"])
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: unary(world, API + "FetchJWTSVID", JWT, request), range(8)))
        assert len(world.client.tokens) == 1
        assert {(svid.spiffe_id, svid.hint) for answer in answers for svid in answer.svids} == {(WEB, "h")}
        unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(audience=["c"]))
        assert len(world.client.tokens) == 2
        signer.life = 10

        def ask(audience: str) -> Any:
            return unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(audience=[audience])).svids[0].svid

        before = ask("d")
        world.client.away = AWAY
        assert ask("d") == before
        core = world.server._core
        assert core is not None
        core.tokens._clock = lambda: system_clock() + 4_500
        asked = len(world.client.tokens)
        assert ask("d") == before, "half of its life is nearly over"
        core.tokens._clock = lambda: system_clock() + 5_000
        eventually(lambda: ask("d") == before and len(world.client.tokens) > asked, what="it still counts, and there is no other to be had")
        assert status_of(lambda: ask("e"))[0] is Status.UNAVAILABLE


def test_only_workloads_with_jwt_have_tokens_and_each_only_its_own(tmp_path: Path) -> None:
    plain = workload("plain", f"spiffe://{DOMAIN}/plain", UID)
    with socket_of(tmp_path, plain, jwt_workload(), jwt_workload("two", f"spiffe://{DOMAIN}/two")) as world:
        Signer(world)

        def ask(**fields: Any) -> Any:
            return unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(**fields))

        assert [svid.spiffe_id for svid in ask(audience=["a"]).svids] == [WEB, f"spiffe://{DOMAIN}/two"]
        assert [svid.spiffe_id for svid in ask(audience=["a"], spiffe_id=f"spiffe://{DOMAIN}/two").svids] == [f"spiffe://{DOMAIN}/two"]
        for identity in (plain.identity, f"spiffe://{DOMAIN}/foreign"):
            assert status_of(lambda identity=identity: ask(audience=["a"], spiffe_id=identity))[0] is Status.PERMISSION_DENIED  # type: ignore[misc]
        for audience in ([], [""], ["x"] * 2 + ["y" * 600], [str(n) for n in range(30)]):
            assert status_of(lambda audience=audience: ask(audience=audience))[0] is Status.INVALID_ARGUMENT  # type: ignore[misc]


def test_tokens_are_validated_against_the_bundles_that_the_caller_has(tmp_path: Path) -> None:
    types = (workload_pb2.ValidateJWTSVIDRequest, workload_pb2.ValidateJWTSVIDResponse)
    with socket_of(tmp_path, jwt_workload(federates_with=["partner.example"])) as world:
        own, partner, foreign = Signer(world), Signer(world, "partner.example", "p1"), Signer(world, "foreign.example", "f1")
        ends = int(system_clock() / 1000) + 60

        def validate(token: str, audience: str = "me") -> Any:
            return unary(world, API + "ValidateJWTSVID", types, workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token))

        answer = validate(own.token({"sub": WEB, "aud": ["me", "you"], "exp": ends, "n": {"deep": [1, None, True]}}))
        assert answer.spiffe_id == WEB
        assert answer.claims["n"]["deep"][2] is True
        assert validate(partner.token({"sub": "spiffe://partner.example/x", "aud": "me", "exp": ends})).spiffe_id.endswith("/x")
        for token, word in (
            (foreign.token({"sub": "spiffe://foreign.example/x", "aud": "me", "exp": ends}), "no key of foreign.example"),
            (partner.token({"sub": WEB, "aud": "me", "exp": ends}), "no key of example.org"),
            (own.token({"sub": WEB, "aud": "you", "exp": ends}), "audience"),
            (own.token({"sub": WEB, "aud": "me", "exp": ends - 1000}), "expired"),
            ("x.y.z", "compact"),
            ("", "compact"),
        ):
            status, words = status_of(lambda token=token: validate(token))  # type: ignore[misc]
            assert (status, word in words) == (Status.INVALID_ARGUMENT, True), words
        assert status_of(lambda: validate(own.token({"sub": WEB, "aud": "", "exp": ends}), ""))[0] is Status.INVALID_ARGUMENT


def test_the_python_spiffe_library_finds_everything_as_it_wants_it(tmp_path: Path) -> None:
    with socket_of(tmp_path, jwt_workload()) as world:
        signer = Signer(world)
        with WorkloadApiClient(world.url) as client:
            context = client.fetch_x509_context()
            assert str(context.default_svid.spiffe_id) == WEB
            token = client.fetch_jwt_svid({"aud1"})
            assert str(token.spiffe_id) == WEB
            assert str(client.validate_jwt_svid(token.token, "aud1").spiffe_id) == WEB
        with JwtSource(socket_path=world.url) as tokens, X509Source(socket_path=world.url) as source:
            assert str(tokens.fetch_svid({"aud2"}).spiffe_id) == WEB
            new = world.roster.rotate(WEB)
            eventually(lambda: source.get_x509_context().default_svid.leaf.fingerprint(hashes.SHA256()).hex() == new.sha256)
        assert signer.kid == "k1"


# --- SDS --------------------------------------------------------------------------------------------------------------------------------


def fetch(world: World, *names: str, **fields: Any) -> dict[str, sds_pb2.Secret]:
    answer = unary(world, SDS + "FetchSecrets", SECRETS, sds_pb2.DiscoveryRequest(resource_names=names, **fields), {})
    secrets = [sds_pb2.Secret.FromString(resource.value) for resource in answer.resources]
    return {secret.name: secret for secret in secrets}


def test_secrets_have_the_names_of_spire(tmp_path: Path) -> None:
    other, partner = f"spiffe://{DOMAIN}/other", Mint("partner.example")
    with socket_of(tmp_path, workload("web", WEB, UID, federates_with=["partner.example"]), workload("o", other, UID)) as world:
        world.anchors.bundles["partner.example"] = partner.bundle
        everything = fetch(world)
        assert set(everything) == {WEB, other, f"spiffe://{DOMAIN}", "spiffe://partner.example"}
        named = fetch(world, "default", "ROOTCA", "ALL", "")
        assert named["default"].tls_certificate.private_key.inline_bytes == everything[WEB].tls_certificate.private_key.inline_bytes
        assert named["ROOTCA"].validation_context.trusted_ca.inline_bytes == world.mint.bundle
        assert named["ALL"].validation_context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
        config = sds_pb2.SPIFFECertValidatorConfig.FromString(named["ALL"].validation_context.custom_validator_config.typed_config.value)
        assert [domain.name for domain in config.trust_domains] == [DOMAIN, "partner.example"]
        status, words = status_of(lambda: fetch(world, "default", "nobody"))
        assert (status, words) == (Status.INVALID_ARGUMENT, "the workload is not authorized for the requested identities: nobody")
        assert status_of(lambda: fetch(world, type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"))[0] is Status.INVALID_ARGUMENT
        assert status_of(lambda: fetch(world, *[f"n{n}" for n in range(200)]))[0] is Status.INVALID_ARGUMENT

        async def delta(channel: Channel) -> Any:
            return await StreamStreamMethod(channel, SDS + "DeltaSecrets", *SECRETS)([sds_pb2.DiscoveryRequest()])

        assert status_of(lambda: on(world, delta))[0] is Status.UNIMPLEMENTED


def test_names_of_secrets_are_settings(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID), sds=SdsNames("mine", "root", "every", False)) as world:
        assert set(fetch(world, "mine", "root")) == {"mine", "root"}
        for name in ("default", "ROOTCA", "ALL", "every"):
            assert status_of(lambda name=name: fetch(world, name))[0] is Status.INVALID_ARGUMENT  # type: ignore[misc]


def test_revocation_lists_reach_envoy_only_when_they_are_complete(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID), sds=SdsNames(crl=True)) as world:
        mint = world.mint
        for lists, given in (
            (b"", False),
            (mint.crl(), True),
            (mint.crl() + mint.crl(issuing=True), True),
            (mint.crl(issuing=True), False),
            (mint.crl(minutes=1) + mint.crl(issuing=True), False),
            (mint.crl() + mint.crl(issuing=True, partial=True), False),
            (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", False),
        ):
            world.anchors.crls[DOMAIN] = lists
            assert fetch(world, "ROOTCA")["ROOTCA"].validation_context.HasField("crl") is given
    with socket_of(tmp_path, workload("web", WEB, UID)) as world:
        world.anchors.crls[DOMAIN] = world.mint.crl() + world.mint.crl(issuing=True)
        assert not fetch(world, "ROOTCA")["ROOTCA"].validation_context.HasField("crl")


def test_a_stream_of_secrets_answers_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world:

        async def do(channel: Channel) -> None:
            async with StreamStreamMethod(channel, SDS + "StreamSecrets", *SECRETS).open() as stream:

                async def say(answer: Any = None, *names: str, error: str = "", nonce: str | None = None, node: str = "") -> None:
                    request = sds_pb2.DiscoveryRequest(resource_names=names or ("default",))
                    request.node.id = node
                    if answer is not None:
                        request.version_info, request.response_nonce = answer.version_info, answer.nonce if nonce is None else nonce
                    if error:
                        request.error_detail.code, request.error_detail.message = 3, error
                    await stream.send_message(request)

                async def silence() -> None:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(asyncio.shield(pending), 0.3)

                await say()
                one = await stream.recv_message()
                assert one is not None
                pending = asyncio.ensure_future(stream.recv_message())
                await say(one)
                await silence()
                world.roster.rotate(WEB)
                two = await pending
                assert two is not None
                assert (two.version_info != one.version_info, two.nonce != one.nonce) == (True, True)
                pending = asyncio.ensure_future(stream.recv_message())
                await say(one, error="bad key", nonce=two.nonce)
                await silence()
                assert "bad key" in world.server.problems()[0]
                # What an Envoy says is shown to people and logged: nothing in it moves a cursor or begins a line.
                await say(one, error="bad\x1b[31m key", nonce=two.nonce, node="x\nERROR forged\x1b[2J")
                await silence()
                assert all(problem.isprintable() for problem in world.server.problems())
                assert any("ERROR forged" in problem for problem in world.server.problems())
                await say(one, nonce=one.nonce)  # an old one, about what is long replaced
                await silence()
                await say(two, "default", "ROOTCA")
                three = await pending
                assert three is not None
                assert len(three.resources) == 2
                pending = asyncio.ensure_future(stream.recv_message())
                await say(three, "default", "ROOTCA")
                world.policy()
                assert await pending is None

        assert status_of(lambda: on(world, do))[0] is Status.PERMISSION_DENIED


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
