"""Getting a ``config_dump``: by URL, from a file, or through the API server's proxy to a pod."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from handclasp.discovery.istio.dump import Dump, name_of
from handclasp.discovery.kubernetes.access import Access, find_entry, open_http
from handclasp.discovery.kubernetes.api import Api, GoneError
from handclasp.discovery.kubernetes.around import owner_of, some
from handclasp.discovery.kubernetes.shapes import Bare
from handclasp.discovery.source import Failed, Observed
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind

PIECE = 65_536
MAX_AGE = 3600_000  # ms: an older file says nothing about now
ADMIN_PORT = 15000


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    service_account_name: str = ""


class _PodStatus(msgspec.Struct):
    phase: str = ""


class _Pod(Bare):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and where its dump is: one of ``url``, ``file`` and ``path`` (at the API server)."""

    name: str
    url: str = ""
    file: str = ""
    path: str = ""
    host: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it cannot be asked now, though it holds something."""


def given_proxies(urls: list[str], files: list[str]) -> list[Proxy]:
    """Return the proxies that settings name; ``NAME=URL`` gives one a name."""
    found = []
    for entry in urls:
        name, equals, url = entry.partition("=")
        named = bool(equals) and "://" not in name
        found.append(Proxy(name if named else name_of(entry), url=url if named else entry, host=name if named else None))
    return found + [Proxy(Path(file).stem, file=file) for file in files]


async def pods(api: Api, namespace: str, selector: str, *, by_node: bool) -> AsyncIterator[Proxy]:
    """Yield the pods that a selector selects, by name, those that have ended left out.

    A node's proxy that is just being started, and one of a node that nobody hears of, holds certificates that cannot be read now.
    """
    path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
    more, restarts = "", 0
    while True:
        try:
            page = await api.page(path, {"labelSelector": selector}, more)
        except GoneError:
            more, restarts = "", restarts + 1
            if restarts > 5:
                raise
            continue
        for item in page.items or ():
            pod = msgspec.json.decode(item, type=_Pod)
            phase = pod.status.phase or "Unknown"
            if phase == "Running":
                yield _proxy(pod, by_node=by_node)
            elif phase == "Unknown" or (phase == "Pending" and by_node):
                yield replace(_proxy(pod, by_node=by_node), problem=f"its pod is {phase.lower()}")
        more = page.metadata.more or ""
        if not more:
            return


def _proxy(pod: _Pod, *, by_node: bool) -> Proxy:
    metadata = pod.metadata
    facts: dict[str, Any] = {}
    if not by_node:  # a node's proxy is not whose certificates it holds
        facts = {"namespace": metadata.namespace, "workload": owner_of(metadata) or f"Pod/{metadata.name}"}
        facts |= {"workload_labels": some(metadata.labels)} if metadata.labels else {}
    where = f"{quote(metadata.namespace, safe='')}/pods/{quote(metadata.name, safe='')}:{ADMIN_PORT}"
    return Proxy(
        f"ztunnel/{pod.spec.node_name}" if by_node else f"{metadata.namespace}/{metadata.name}",
        path=f"/api/v1/namespaces/{where}/proxy/config_dump",
        host=pod.spec.node_name or None,
        facts=facts,
    )


async def dumped(proxy: Proxy, dump: Dump, settings: Access, tools: Tools) -> AsyncIterator[Observed | Failed]:
    """Yield what a proxy holds. Raises ``unavailable`` and the like when its dump cannot be read to its end."""
    async with aclosing(_pieces(proxy, settings, tools)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            for one in dump.feed(piece):
                yield one
            if tools.stop.is_set():
                return
    for one in dump.end():
        yield one


async def _pieces(proxy: Proxy, settings: Access, tools: Tools) -> AsyncIterator[bytes]:
    if proxy.file:
        async for piece in _from_file(tools.file(proxy.file), tools):
            yield piece
        return
    if proxy.path:
        http, path = open_http(find_entry(settings, tools), tools), proxy.path
    else:
        parts = urlsplit(proxy.url)
        http, path = tools.http(f"{parts.scheme}://{parts.netloc}", plain=True), parts.path.rstrip("/") or "/config_dump"
        path += f"?{parts.query}" if parts.query else ""
    async with http:
        async for piece in http.chunks(path, idle=30.0):
            yield piece


async def _from_file(path: Path, tools: Tools) -> AsyncIterator[bytes]:
    try:
        age = tools.clock() - (await asyncio.to_thread(path.stat)).st_mtime_ns // 1_000_000
        if age > MAX_AGE:
            raise HandclaspError(Kind.UNAVAILABLE, f"{path.name} is {age // 60_000} minutes old, and says nothing about now")
        with await asyncio.to_thread(path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece
    except OSError as error:
        raise HandclaspError(Kind.UNAVAILABLE, f"{path.name} cannot be read: {error.strerror}") from error
