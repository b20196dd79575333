"""The load generator's gRPC part: proxies that ask for certificates over connections that stay open. Its client is gRPC's own, in C."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc

from handclasp.proto.istio_pb2 import IstioCertificateRequest, IstioCertificateResponse

PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


async def create_certificates(plan: dict[str, Any]) -> tuple[list[float], list[str], float]:
    """Make every request of the plan; return the seconds of each, what went wrong, and the seconds from first to last."""
    credentials = grpc.ssl_channel_credentials(Path(plan["ca_file"]).read_bytes())  # noqa: ASYNC240  (before the clock runs)
    messages = [IstioCertificateRequest(csr=csr, validity_duration=3600).SerializeToString() for csr in plan["csrs"]]
    todo = zip(messages, plan["tokens"], strict=True)
    seconds: list[float] = []
    failed: list[str] = []

    async def proxy(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(PATH)
        for message, token in todo:
            metadata = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
            began = time.perf_counter()
            try:
                answer = IstioCertificateResponse.FromString(await call(message, metadata=metadata))
            except grpc.aio.AioRpcError as error:
                failed.append(f"{error.code().name}: {error.details()}")
            else:
                seconds.append(time.perf_counter() - began)
                if len(answer.cert_chain) < 3:
                    failed.append(f"a chain of {len(answer.cert_chain)}")

    alone = [("grpc.use_local_subchannel_pool", 1)]  # else all channels would share one connection
    channels = [grpc.aio.secure_channel(plan["address"], credentials, alone) for _ in range(plan["connections"])]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    started = time.perf_counter()
    await asyncio.gather(*(proxy(channel) for channel in channels))
    took = time.perf_counter() - started
    for channel in channels:
        await channel.close()
    return seconds, failed, took
