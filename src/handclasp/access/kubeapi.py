"""What is asked of a cluster's API server: whether a token is good, and which pods a node runs. Within a budget, and not twice.

Every failure to get an answer is ``unavailable``: whoever waits for it may try again, and nobody is told that a good token is bad because
an API server was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec

from handclasp.access.clusterrules import Cluster, Review
from handclasp.access.limits import Limiter
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
KEYS = "/openid/v1/jwks"
GOOD_FOR = 10_000  # ms: as long as an API server itself takes a review for current (--authentication-token-webhook-cache-ttl is minutes)
PODS_FOR = 10_000  # ms that the list of a node's pods is taken for current
PODS_AGAIN = 1_000  # ms after which a list is made again for a pod that is not in it: proxies ask in the moment a pod begins
PAUSE = 1_000  # ms without questions after one that got no answer, so that an outage does not make every caller wait for its time limit
PAGE = 250
MAX_PAGES = 8  # nodes are built for 110 pods, and tested with 500
MAX_KNOWN = 10_000

T = TypeVar("T")


class ApiServer(Protocol):
    """The connection to an API server: it verifies the server's certificate, sends the bearer token, and bounds time and size."""

    async def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body of the answer. Raises ``unavailable`` when there is none."""

    async def close(self) -> None:
        """Let go of every connection."""


class _User(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct):
    authenticated: bool = False
    user: _User | None = None
    audiences: list[str] | None = None


class _TokenReview(msgspec.Struct):
    status: _Status


class _PodMetadata(msgspec.Struct):
    name: str
    namespace: str
    uid: str


class _PodSpec(msgspec.Struct):
    service_account: str = msgspec.field(default="", name="serviceAccountName")
    node: str = msgspec.field(default="", name="nodeName")


class _PodStatus(msgspec.Struct):
    phase: str = ""


class _Pod(msgspec.Struct):
    metadata: _PodMetadata
    spec: _PodSpec
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _ListMetadata(msgspec.Struct):
    more: str = msgspec.field(default="", name="continue")


class _PodList(msgspec.Struct):
    metadata: _ListMetadata
    items: list[_Pod] | None = None


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What an API server says of a token that it takes."""

    username: str
    uid: str
    groups: frozenset[str]
    audiences: frozenset[str]
    pod_name: str | None
    pod_uid: str | None


@dataclass(frozen=True, slots=True)
class NodePods:
    """The pods that a node runs, or is about to run; those that ended are not among them."""

    at: int
    accounts: frozenset[tuple[str, str]]
    """(namespace, service account) of each."""
    uids: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The same, by the pod's uid."""


class ClusterApi:
    """One cluster's API server. For one event loop; any number of calls at once."""

    def __init__(self, cluster: Cluster, review: Review, server: ApiServer, clock: Clock) -> None:
        self._name = cluster.name
        self._server = server
        self._clock = clock
        self._limit = Limiter(review.rate, max(1, round(2 * review.rate)), clock)
        self._good: OrderedDict[bytes, tuple[int, Reviewed]] = OrderedDict()
        self._pods: OrderedDict[str, NodePods] = OrderedDict()
        self._turns: dict[bytes | str, _Turn] = {}
        self._away_at: int | None = None

    async def review(self, token: str, audiences: tuple[str, ...], until: int) -> Reviewed | None:
        """Return what the API server says of the token, None when it does not take it.

        A yes is remembered for some seconds, and never beyond ``until`` (ms), where the token ends; a no is not remembered.
        """
        key = hashlib.sha256("\0".join([token, *audiences]).encode("utf-8", "surrogatepass")).digest()
        async with _held(self._turns, key):  # a node's proxy asks for all its pods at once, with one token
            now = self._clock()
            known = self._good.get(key)
            if known is not None and known[0] - GOOD_FOR <= now < known[0]:
                return known[1]
            found = await self._review(token, audiences)
            if found is not None:
                _keep(self._good, key, (min(now + GOOD_FOR, until), found))
            return found

    async def _review(self, token: str, audiences: tuple[str, ...]) -> Reviewed | None:
        question = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(audiences)},
        }
        status = self._read(_TokenReview, await self._ask("POST", REVIEWS, msgspec.json.encode(question))).status
        if not status.authenticated or status.user is None:
            return None
        user = status.user
        extra = user.extra or {}
        name, uid = (next(iter(extra.get(f"authentication.kubernetes.io/pod-{what}", ())), None) for what in ("name", "uid"))
        return Reviewed(user.username, user.uid, frozenset(user.groups or ()), frozenset(status.audiences or ()), name, uid)

    async def keys(self) -> bytes:
        """Return the key set with which the cluster signs its tokens."""
        return await self._ask("GET", KEYS)

    async def node_of(self, namespace: str, pod: str) -> str | None:
        """Return the name of the node that a pod runs on; None when there is no such pod or it has no node yet."""
        answer = await self._ask("GET", f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}", missing=b"")
        return (self._read(_Pod, answer).spec.node or None) if answer else None

    async def pods(self, node: str, newer_than: int | None = None) -> NodePods:
        """Return the pods of a node as they were some seconds ago; as they are now where what is known is not newer than ``newer_than``
        (ms)."""
        async with _held(self._turns, node):
            now = self._clock()
            known = self._pods.get(node)
            if known is not None and 0 <= now - known.at < PODS_FOR and (newer_than is None or known.at > newer_than):
                return known
            found = await self._list(node, now)
            _keep(self._pods, node, found)
            return found

    async def _list(self, node: str, now: int) -> NodePods:
        query = f"/api/v1/pods?fieldSelector={quote(f'spec.nodeName={node}', safe='')}&limit={PAGE}"
        uids: dict[str, tuple[str, str]] = {}
        more = ""
        for _ in range(MAX_PAGES):
            page = self._read(_PodList, await self._ask("GET", query + (f"&continue={quote(more, safe='')}" if more else "")))
            for pod in page.items or ():
                if pod.spec.node == node and pod.status.phase not in ("Succeeded", "Failed"):
                    uids[pod.metadata.uid] = (pod.metadata.namespace, pod.spec.service_account)
            more = page.metadata.more
            if not more:
                return NodePods(now, frozenset(uids.values()), uids)
        raise self._away(f"the node {node} has more pods than are read here")

    async def _ask(self, method: str, path: str, body: bytes | None = None, missing: bytes | None = None) -> bytes:
        """Return the body of an answer that is a yes; ``missing`` where the answer is that there is no such thing."""
        now = self._clock()
        if self._away_at is not None and 0 <= now - self._away_at < PAUSE:
            raise self._away("does not answer")
        try:
            self._limit.check("")
        except HandclaspError as error:
            raise self._away("is asked as often as its rate allows", error.retry_after) from error
        try:
            status, answer = await self._server.send(method, path, body)
        except HandclaspError as error:
            self._away_at = self._clock()
            raise self._away(f"does not answer: {error.detail}") from error
        self._away_at = None
        if status == 404 and missing is not None:
            return missing
        if status not in (200, 201):
            # 401 and 403 too: it is this server's own token that they speak of.
            raise self._away(f"answers {method} {path.partition('?')[0]} with status {status}")
        return answer

    def _read(self, kind: type[T], answer: bytes) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self._away("answers with what cannot be read") from error

    def _away(self, what: str, retry_after: float | None = None) -> HandclaspError:
        return HandclaspError(
            Kind.UNAVAILABLE, f"the API server of the cluster {self._name} {what}", hint="try again", retry_after=retry_after or 1.0
        )

    async def close(self) -> None:
        """Let go of the connection."""
        await self._server.close()


K = TypeVar("K")
V = TypeVar("V")


def _keep(known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > MAX_KNOWN:
        known.popitem(last=False)


class _Turn:
    """A lock, and how many hold or await it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


@contextlib.asynccontextmanager
async def _held(turns: dict[bytes | str, _Turn], key: bytes | str) -> AsyncIterator[None]:
    """Hold the lock of one key, which is forgotten with the last who needs it."""
    turn = turns.setdefault(key, _Turn())
    turn.users += 1
    try:
        async with turn.lock:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            del turns[key]
