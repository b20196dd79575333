"""Whose an object is, as far as the cluster says: labels of namespaces, and who uses which Secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from handclasp.discovery.kubernetes.api import Api, GoneError, MissingError, Page
from handclasp.discovery.kubernetes.around import Users, some
from handclasp.discovery.kubernetes.edges import Edge, add_edges
from handclasp.discovery.kubernetes.lanes import RESTARTS, Resource
from handclasp.discovery.kubernetes.shapes import Bare
from handclasp.errors import HandclaspError, Kind

Edges = Callable[[Any], Iterator[Edge]]


async def namespace_labels(api: Api) -> Mapping[str, dict[str, str]]:
    """Return the labels of every namespace; nothing where they may not be listed."""
    found: dict[str, dict[str, str]] = {}
    for one in await _all(api, "/api/v1/namespaces", Bare, metadata=True):
        if one.metadata.labels:
            found[one.metadata.name] = some(one.metadata.labels)
    return found


async def secret_users(api: Api, resources: Sequence[tuple[Resource, Edges]], namespace: str) -> dict[tuple[str, str], Users]:
    """Return who uses which Secret of a namespace (empty: of all), from the resources that refer to Secrets.

    One that may not be listed, or that the cluster does not have, says nothing.
    """
    found: dict[tuple[str, str], Users] = {}
    for resource, edges in resources:
        for group in resource.groups:
            objects = await _all(api, resource.path(group, namespace), resource.shape)
            for one in objects:
                add_edges(found, edges(one))
            if objects:
                break
    return found


async def _all(api: Api, path: str, shape: type[Any], *, metadata: bool = False) -> list[Any]:
    """Return every object of a list that has its shape."""
    found: list[Any] = []
    decoder, more, restarts = msgspec.json.Decoder(shape), "", 0
    while True:
        try:
            page: Page = await api.page(path, {}, more, limit=500 if metadata else 100, metadata=metadata)
        except MissingError:
            return []
        except GoneError:
            found, more, restarts = [], "", restarts + 1
            if restarts > RESTARTS:
                raise HandclaspError(Kind.UNAVAILABLE, f"{path} changes faster than it can be listed") from None
            continue
        for item in page.items or ():
            try:
                found.append(decoder.decode(item))
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                continue  # whoever lists it for itself reports it
        more = page.metadata.more or ""
        if not more:
            return found
