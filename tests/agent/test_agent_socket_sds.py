"""Secrets for Envoy (SDS): names as SPIRE has them, and a stream that answers what is new and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpclib.client import Channel, StreamStreamMethod
from grpclib.const import Status

from handclasp.agent.config.socket import SdsNames
from handclasp.proto import sds_pb2
from support.workload import DOMAIN, WEB, Mint, World, socket_of, workload
from support.workload_calls import SDS, SECRETS, UID, on, status_of, unary


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
