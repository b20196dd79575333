"""Service accounts of Kubernetes clusters: whose token this is, and whether a node's proxy may speak for a pod.

A token is always checked here, against the cluster's keys (:mod:`oidc` has the checks of any identity token; those of Kubernetes are
below). Where the policy says ``mode: require``, the cluster's API server is asked as well: it alone knows that a pod was deleted.

Refused is ``not_authenticated``, and only what is wrong with the token or the claim; what may be right the next time is ``unavailable``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from handclasp.access.clusterrules import KUBE_NAME, Cluster, Review
from handclasp.access.kubeapi import KEYS, PODS_AGAIN, ApiServer, ClusterApi, NodePods, Reviewed
from handclasp.access.oidc import LEEWAY, Fetch, OidcVerifier
from handclasp.access.policy import OidcIssuer, Policy
from handclasp.access.principals import KubernetesPrincipal, OidcPrincipal
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind

Connect = Callable[[Review], ApiServer]
"""Makes the connection to an API server of the policy. Raises ``bad_setting`` when it cannot be made at all."""

PROVEN = 5_000
"""Milliseconds for which the very same token need not prove itself again: a node's proxy asks for each of its pods with one."""
MAX_PROVEN = 4_096
"""Tokens of one cluster that are remembered, by their hash."""
SUBJECT = "system:serviceaccount:"
GROUP = "system:serviceaccounts"


class Clusters:
    """The clusters of the policy in force. For one event loop; any number of calls at once."""

    def __init__(self, fetch: Fetch, connect: Connect, clock: Clock, *, insecure: bool = False) -> None:
        """``fetch`` gets key sets, ``insecure`` takes issuers over http and on loopback, both as for :class:`OidcVerifier`."""
        self._fetch = fetch
        self._connect = connect
        self._clock = clock
        self._insecure = insecure
        self._policy: Policy | None = None
        self._known: dict[str, _Known] = {}
        self._dropped: list[_Known] = []

    def use(self, policy: Policy) -> None:
        """Take the clusters of a policy; what is known of those that stay as they are is kept."""
        if policy is self._policy:
            return
        before, self._known = self._known, {}
        for cluster in policy.clusters:
            known = before.pop(cluster.name, None)
            if known is None or known.cluster != cluster:
                self._dropped += [known] if known is not None else []
                known = _Known(cluster, self._fetch, self._connect, self._clock, insecure=self._insecure)
            self._known[cluster.name] = known
        self._dropped += before.values()
        self._policy = policy

    def find(self, name: str) -> Cluster | None:
        """Return the cluster of that name; None when the policy has none. An empty name is the only cluster, where there is one."""
        known = self._known.get(name) if name else next(iter(self._known.values()), None) if len(self._known) == 1 else None
        return known.cluster if known is not None else None

    async def verify(self, cluster: str, token: str, *, audiences: tuple[str, ...] | None = None) -> KubernetesPrincipal:
        """Return the service account that the token proves, with its pod and node where the token is bound to them.

        ``audiences`` are taken in the place of the cluster's. Raises ``not_authenticated`` with what is wrong, ``too_large``, and
        ``unavailable`` when keys or the API server cannot be reached.
        """
        await self._let_go()
        return await self._cluster(cluster).verify(token, audiences)

    async def impersonate(self, caller: KubernetesPrincipal, namespace: str, service_account: str) -> KubernetesPrincipal:
        """Return that service account, asked for by ``caller``: a node account of the cluster, whose own node runs a pod of it.

        Raises ``not_authenticated`` when it does not, ``unavailable`` when the API server cannot be reached.
        """
        return await self._cluster(caller.cluster).impersonate(caller, namespace, service_account)

    def _cluster(self, name: str) -> _Known:
        known = self._known.get(name)
        if known is None:
            raise _not("its cluster is not in the policy")
        return known

    async def _let_go(self) -> None:
        while self._dropped:
            await self._dropped.pop().close()

    async def close(self) -> None:
        """Let go of every connection."""
        self._dropped += self._known.values()
        self._known, self._policy = {}, None
        await self._let_go()


class _Known:
    """One cluster, with its keys and its API server."""

    def __init__(self, cluster: Cluster, fetch: Fetch, connect: Connect, clock: Clock, *, insecure: bool) -> None:
        self.cluster = cluster
        self._clock = clock
        self._connect = connect
        self._made: ClusterApi | None = None
        of_api = cluster.review is not None and cluster.jwks is None and _served_by(cluster.review, cluster.jwks_url)
        jwks_url = f"{cluster.review.url}{KEYS}" if of_api and cluster.review is not None else cluster.jwks_url
        issuer = OidcIssuer(cluster.name, cluster.issuer, "", jwks_url, jwks=cluster.jwks)
        # The connection to the API server has its own guard, which knows of the authority that the policy names.
        self._local = OidcVerifier((issuer,), self._keys if of_api else fetch, clock, insecure=insecure or of_api)
        self._proven: dict[tuple[bytes, tuple[str, ...]], tuple[int, KubernetesPrincipal]] = {}

    async def _keys(self, _url: str) -> bytes:
        return await self._api().keys()

    def _api(self) -> ClusterApi:
        if self._made is None:
            if self.cluster.review is None:
                raise _not(f"the policy names no API server for the cluster {self.cluster.name}")
            try:
                server = self._connect(self.cluster.review)
            except HandclaspError as error:  # a token file that is not there: nothing that the caller could do about
                raise HandclaspError(
                    Kind.UNAVAILABLE, f"the API server of the cluster {self.cluster.name} cannot be asked: {error.detail}", hint=error.hint
                ) from error
            self._made = ClusterApi(self.cluster, self.cluster.review, server, self._clock)
        return self._made

    async def verify(self, token: str, audiences: tuple[str, ...] | None) -> KubernetesPrincipal:
        accepted = audiences or self.cluster.audiences
        # 1 and 2 what the token itself says
        principal = await self._prove(token, accepted)
        # 3 the API server, where the policy requires it; after the others, so that garbage costs it nothing
        if self.cluster.review is not None and self.cluster.review.require:
            reviewed = await self._api().review(token, accepted, principal.expires_at - LEEWAY * 1000)
            if reviewed is None:
                raise _not("the cluster's API server does not take it (any more)")
            _check_review(reviewed, principal, accepted)
        return principal

    async def _prove(self, token: str, accepted: tuple[str, ...]) -> KubernetesPrincipal:
        """Return whose token this is; what was found a moment ago holds while the token has not expired and the cluster is as it was.

        This object ends with the cluster's entry in the policy, and a clock that was set back makes everything be looked at again.
        """
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest(), accepted
        now = self._clock()
        at, known = self._proven.get(key, (0, None))
        if known is not None and at <= now < min(at + PROVEN, known.expires_at):
            return known
        # 1 signature, issuer, audience, dates: as for any identity token
        proven = await self._local.verify(token, audiences=accepted)
        # 2 the claims of Kubernetes
        principal = _service_account(self.cluster.name, proven)
        self._proven.pop(key, None)  # the oldest comes first
        self._proven[key] = now, principal
        if len(self._proven) > MAX_PROVEN:
            del self._proven[next(iter(self._proven))]
        return principal

    async def impersonate(self, caller: KubernetesPrincipal, namespace: str, service_account: str) -> KubernetesPrincipal:
        # 1 the caller is a node's proxy, in a pod
        own = (caller.namespace, caller.service_account)
        if own not in self.cluster.node_accounts:
            raise _not(f"{'/'.join(own)} is not among the node_accounts of the cluster {self.cluster.name}")
        if caller.via is not None or caller.pod_name is None or caller.pod_uid is None:
            raise _not("it is not bound to a pod, so it proves no node")
        if not KUBE_NAME.fullmatch(namespace) or not KUBE_NAME.fullmatch(service_account):
            raise _not("what it asks for is not a service account")
        # 2 the node is that of the pod, which exists, is the same, and runs under that account
        node = caller.node_name or await self._api().node_of(caller.namespace, caller.pod_name)
        if node is None:
            raise _not("its pod is not there, or has no node")
        wanted = (namespace, service_account)
        pods = await self._api().pods(node)
        if not _runs(pods, caller.pod_uid, own, wanted) and self._clock() - pods.at >= PODS_AGAIN:
            pods = await self._api().pods(node, newer_than=pods.at)
        if pods.uids.get(caller.pod_uid) != own:
            raise _not("its pod does not run on that node")
        # 3 and a pod of the wanted account runs there too
        if wanted not in pods.accounts:
            raise _not(f"no pod of {'/'.join(wanted)} runs on its node")
        via = replace(caller, claims={})
        return KubernetesPrincipal(self.cluster.name, namespace, service_account, node_name=node, expires_at=caller.expires_at, via=via)

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()


# --- pure parts -------------------------------------------------------------------------------------------------------------------------


def _not(why: str) -> HandclaspError:
    return HandclaspError(Kind.NOT_AUTHENTICATED, f"the service account token is refused: {why}")


def _served_by(review: Review, jwks_url: str | None) -> bool:
    """Tell whether the keys are those that the API server itself publishes."""
    return jwks_url is None or jwks_url == f"{review.url}{KEYS}"


def _runs(pods: NodePods, caller_uid: str, own: tuple[str, str], wanted: tuple[str, str]) -> bool:
    return pods.uids.get(caller_uid) == own and wanted in pods.accounts


def _service_account(cluster: str, proven: OidcPrincipal) -> KubernetesPrincipal:
    """Return the service account of a token's claims (KEP-1205, KEP-4193): everything that they say of it must fit together."""
    claims = proven.claims.get("kubernetes.io")
    if not isinstance(claims, Mapping):
        raise _not("it has no kubernetes.io claims")
    namespace = claims.get("namespace")
    account, uid = _reference(claims, "serviceaccount")
    if not isinstance(namespace, str) or not KUBE_NAME.fullmatch(namespace) or account is None or uid is None:
        raise _not("it does not name its namespace and service account")
    if proven.subject != f"{SUBJECT}{namespace}:{account}":
        raise _not("its subject is not the service account that it names")
    pod_name, pod_uid = _reference(claims, "pod")
    node_name, node_uid = _reference(claims, "node")
    return KubernetesPrincipal(
        cluster, namespace, account, pod_name, pod_uid, node_name, node_uid, expires_at=proven.expires_at, claims=proven.claims
    )


def _reference(claims: Mapping[str, Any], key: str) -> tuple[str | None, str | None]:
    """Return name and uid of an object that the token is bound to; None for both where it is not bound to one."""
    if key not in claims:
        return None, None
    value = claims[key]
    name, uid = (value.get("name"), value.get("uid")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(name, str) or not KUBE_NAME.fullmatch(name):
        raise _not(f"its {key} has no name")
    if uid is None and key == "node":  # a node's uid may be unknown to the API server that signed it
        return name, None
    if not isinstance(uid, str) or not 0 < len(uid) <= 128 or not uid.isprintable():
        raise _not(f"its {key} has no uid")
    return name, uid


def _check_review(reviewed: Reviewed, principal: KubernetesPrincipal, accepted: tuple[str, ...]) -> None:
    """Refuse a token of which the API server says something else than the token itself."""
    if reviewed.username != f"{SUBJECT}{principal.namespace}:{principal.service_account}" or GROUP not in reviewed.groups:
        raise _not("the API server knows it as somebody else's")
    if not reviewed.audiences & set(accepted):  # an API server that knows nothing of audiences would take a token for any
        raise _not("the API server takes it, but not for this audience")
    claims = principal.claims.get("kubernetes.io")
    uid = claims["serviceaccount"]["uid"] if isinstance(claims, Mapping) else None
    if reviewed.uid != uid:
        raise _not("the API server knows its service account by another uid")
    if reviewed.pod_uid is not None and reviewed.pod_uid != principal.pod_uid:
        raise _not("the API server knows it as another pod's")
