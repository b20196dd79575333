"""Calls of the Workload API and of SDS over an agent's socket, as a client makes them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from handclasp.proto import sds_pb2, workload_pb2
from support.workload import World

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
    """Call a method that answers once."""
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
    """Return the code and the words with which a call is refused."""
    with pytest.raises(GRPCError) as caught:
        do()
    return caught.value.status, caught.value.message or ""
