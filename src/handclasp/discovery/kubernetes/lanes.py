"""One resource of one namespace, or of all: listed whole, then watched. Where a lane is can be written down, and gone on from.

A list is of one snapshot as long as its pages are fetched in time. When the API server has forgotten the snapshot (410), the list begins
again; what was observed before stays observed, and nothing is covered until a list came to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from handclasp.discovery.kubernetes.api import PAGE, Api, GoneError, MissingError, Page, StoppedError
from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.source import Count, Covered, Failed, Observed, Place, Reading
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind

RESTARTS = 5  # lists that may be begun again for a snapshot that is gone


@dataclass(frozen=True)
class Resource:
    """A resource of the API, and what its objects are turned into."""

    name: str
    """In the specs of parts and in units; append-only."""
    groups: tuple[str, ...]
    """``/api/v1`` or ``/apis/GROUP/VERSION``, the best first: the first one that the cluster has is read."""
    plural: str
    shape: type[Any]
    observe: Callable[[Any, Around], Iterable[Observed]]
    params: Mapping[str, str] = field(default_factory=dict)
    """Selectors."""
    namespaced: bool = True
    vanishes: bool = False
    """Objects go while what they said stays true: the newest object of each location is the one that counts."""
    keeps: int = 0
    """Milliseconds that what vanishes is taken for true without being heard of again: longer than such certificates live."""
    limit: int = PAGE
    optional: bool = False
    """A cluster may be without it: then there is nothing to read, and nothing is covered either."""

    def path(self, group: str, namespace: str) -> str:
        """Return where it is listed."""
        return f"{group}/namespaces/{namespace}/{self.plural}" if namespace else f"{group}/{self.plural}"


class Position(msgspec.Struct, omit_defaults=True):
    """How far a lane is: in a list (``more``), or behind it (``version``)."""

    more: str = ""
    version: str = ""
    group: str = ""
    done: bool = False
    partial: bool = False
    """Something in the list could not be read: it is not covered."""


@dataclass(slots=True)
class Lane:
    """One resource and namespace (empty: all of them), and where its reading is."""

    resource: Resource
    namespace: str
    around: Around
    admits: Callable[[str], bool] = lambda _: True
    """Whether the scope admits a namespace."""
    position: Position = field(default_factory=Position)

    @property
    def name(self) -> str:
        """What it is called in a place."""
        return f"{self.namespace or '*'}/{self.resource.name}"


class _Partial(msgspec.Struct):
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


_PARTIAL = msgspec.json.Decoder(_Partial)
_SHORTEST, _LONGEST = 0.1, 30.0  # seconds between two watches


def objects(items: Iterable[msgspec.Raw], lane: Lane) -> Iterable[tuple[Any, list[Observed]] | Failed]:
    """Yield each object that the scope admits with what it comes to; :class:`Failed` for one that is not what the API promises."""
    decoder = msgspec.json.Decoder(lane.resource.shape)
    for item in items:
        try:
            one = decoder.decode(item)
            if not one.metadata.namespace or lane.admits(one.metadata.namespace):
                yield one, list(lane.resource.observe(one, lane.around))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            yield Failed(_what(item), f"it does not have the shape of its kind: {str(error)[:200]}")
        except HandclaspError as error:
            yield Failed(_what(item), error.detail)


def _what(item: msgspec.Raw) -> str:
    metadata = _metadata(item)
    return f"{metadata.get('namespace') or '-'}/{metadata.get('name') or '?'}"[:300]


def _metadata(item: msgspec.Raw) -> dict[str, Any]:
    try:
        return _PARTIAL.decode(item).metadata
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


async def listed(lane: Lane, api: Api, tools: Tools) -> AsyncIterator[Reading]:
    """List a lane from its position on; at the end its ``version`` is set and its unit is covered.

    Raises what cannot be worked around: :class:`StoppedError`, ``unavailable``.
    """
    position, more, restarts = lane.position, lane.position.more, 0
    newest: dict[str, tuple[str, Observed]] = {}
    while True:
        try:
            page = await _page(lane, api, more)
        except GoneError:
            restarts += 1
            if restarts > RESTARTS:
                raise HandclaspError(Kind.UNAVAILABLE, f"{lane.name} changes faster than it can be listed") from None
            position.more = more = ""
            position.partial = False
            continue
        except MissingError as error:
            if error.forbidden or not lane.resource.optional:
                yield Failed(lane.name, error.detail)
            position.done = True
            return
        for one in _read(page, lane, newest):
            position.partial = position.partial or isinstance(one, Failed)
            yield one
        more = page.metadata.more or ""
        if not more:
            break
        if tools.stop.is_set():
            raise StoppedError
        if not lane.resource.vanishes:  # such a list is not gone on with but begun again: its newest objects are known at its end
            position.more = more
            yield Place("")
    for _, observed in newest.values():
        yield observed
    if not position.partial:
        yield Covered(unit=lane.around.unit, began_at=tools.began_at - lane.resource.keeps)
    position.more, position.version, position.done, position.partial = "", page.metadata.resource_version, True, False


async def _page(lane: Lane, api: Api, more: str) -> Page:
    """Return the next page, from the best version of the API that the cluster has."""
    groups = [lane.position.group] if lane.position.group else list(lane.resource.groups)
    for group in groups:
        try:
            page = await api.page(lane.resource.path(group, lane.namespace), lane.resource.params, more, limit=lane.resource.limit)
        except MissingError as error:
            if error.forbidden or group == groups[-1]:
                raise
        else:
            lane.position.group = group
            return page
    raise AssertionError  # the last one either returned or raised


def _read(page: Page, lane: Lane, newest: dict[str, tuple[str, Observed]]) -> Iterable[Reading]:
    """Yield what a page holds; of what vanishes, keep the newest of each location for the end."""
    empty = total = 0
    for one in objects(page.items or (), lane):
        if isinstance(one, Failed):
            yield one
            continue
        value, found = one
        total, empty = total + max(1, len(found)), empty + (not found)
        if not lane.resource.vanishes:
            yield from found
            continue
        made = value.metadata.creation_timestamp or ""
        for each in found:
            if each.key not in newest or newest[each.key][0] <= made:
                newest[each.key] = (made, each)
    yield Count(total=total, read=empty)


async def watched(lane: Lane, api: Api, tools: Tools, until: int, turn: asyncio.Lock) -> AsyncIterator[Reading]:
    """Watch a lane that was listed, until a time (ms); list again when its version is too old. Every change of version is a Place.

    An API server that starts anew has forgotten every version: ``turn`` lets one lane after the other list, so that memory stays bounded.
    """
    pause = _SHORTEST
    while lane.position.version and not tools.stop.is_set() and (left := (until - tools.clock()) / 1000) > 0:
        path, began = lane.resource.path(lane.position.group, lane.namespace), tools.clock()
        try:
            async for event in api.watch(path, lane.resource.params, lane.position.version, left):
                for one in _happened(event.type, event.object, lane):
                    yield one
                yield Place("")
        except GoneError:
            lane.position.done, lane.position.version = False, ""  # whoever goes on from here lists
            async with turn:
                async for one in listed(lane, api, tools):
                    yield one
            yield Place("")
        except HandclaspError as error:
            if error.kind in (Kind.NOT_ALLOWED, Kind.NOT_FOUND):
                yield Failed(lane.name, f"it cannot be watched: {error.detail}")
                return
        # A server that ends each watch at once is not to be hammered.
        pause = _SHORTEST if tools.clock() - began > 1000 else min(pause * 2, _LONGEST)
        if await tools.pause(pause):
            return


def _happened(what: str, item: msgspec.Raw, lane: Lane) -> Iterable[Reading]:
    if what != "BOOKMARK":
        for one in objects([item], lane):
            if isinstance(one, Failed):
                yield one
            elif what != "DELETED":
                yield from one[1]
            elif not lane.resource.vanishes:
                yield from map(emptied, one[1])
    version = _metadata(item).get("resourceVersion")
    if isinstance(version, str) and version:
        lane.position.version = version


def emptied(observed: Observed) -> Observed:
    """Return a location with nothing in it any more."""
    return msgspec.structs.replace(observed, certificates=[], private_key=None, problem=None)
