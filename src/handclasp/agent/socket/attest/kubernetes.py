"""The pod of a process, from the kubelet of this node.

    k8s:ns:shop  k8s:sa:web  k8s:pod-label:app:web  k8s:pod-name:web-0  k8s:pod-uid:…  k8s:node-name:n1
    k8s:container-name:app   k8s:container-image:registry/app:1.2

Container id and pod uid come from the control group; the kubelet's list of pods (``GET /pods``) says whose they are. The kubelet lists a
pod's container a moment after that has started, so a missing one is asked for again (:class:`~.base.NotYetError`).
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from handclasp.agent.socket.attest.base import NamedConnection, NotYetError, clean, get_json, inside, items, word
from handclasp.agent.socket.attest.cgroup import read_cgroup
from handclasp.agent.socket.proc import Process
from handclasp.errors import HandclaspError, Kind

_MOST = 64 * 1024 * 1024
_FRESH = 0.4
"""Seconds for which one answer serves everybody: a node's pods start together, and each asks."""


@dataclass(frozen=True, slots=True)
class Kubelet:
    """Where the kubelet is. ``server_name``: the name in its certificate, where that is not the address; without ``ca_file`` the system's
    store decides. A token is read from its file each time, because it is renewed there."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    server_name: str = ""
    timeout: float = 5.0


class KubernetesAttestor:
    """Asks the kubelet."""

    name = "k8s"

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._lock = threading.Lock()
        self._answer: tuple[float, dict[str, tuple[Any, Any]]] = (-1e9, {})

    def selectors(self, process: Process, wanted: frozenset[str] | None) -> list[str]:  # noqa: ARG002  (one answer has everything)
        """Return what the kubelet says of the pod; nothing for a process in no container."""
        place = read_cgroup(process.read("cgroup"))
        if not place.container:
            return []
        found = self._containers().get(place.container)
        if found is None:
            if not place.pod:
                return []  # a container that need not be Kubernetes' at all
            raise NotYetError(Kind.UNAVAILABLE, "the kubelet does not list the pod of the process yet")
        pod, container = found
        if place.pod and place.pod not in (word(inside(pod, "metadata", "uid")), _mirror(pod)):
            raise HandclaspError(Kind.UNAVAILABLE, "the kubelet and the control group of the process name different pods")
        return clean(_selectors(pod, container))

    def _containers(self) -> dict[str, tuple[Any, Any]]:
        """Container id -> (pod, status of the container)."""
        with self._lock:
            asked, answer = self._answer
            if time.monotonic() - asked > _FRESH:
                answer = {identifier: (pod, status) for pod in self._pods() for identifier, status in _statuses(pod)}
                self._answer = (time.monotonic(), answer)
            return answer

    def _pods(self) -> list[Any]:
        kubelet = self._kubelet
        try:
            headers = {}
            if kubelet.token_file is not None:
                headers["Authorization"] = f"Bearer {kubelet.token_file.read_text('ascii').strip()}"
            return items(inside(get_json(self._connection(), "/pods", headers, most=_MOST, seconds=4 * kubelet.timeout), "items"))
        except (OSError, ValueError, HandclaspError) as error:
            reason = error.detail if isinstance(error, HandclaspError) else getattr(error, "strerror", None) or type(error).__name__
            raise HandclaspError(Kind.UNAVAILABLE, f"the kubelet at {kubelet.url}: {reason}") from error

    def _connection(self) -> http.client.HTTPConnection:
        kubelet, parts = self._kubelet, urlsplit(self._kubelet.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=kubelet.timeout)
        context = ssl.create_default_context(cafile=str(kubelet.ca_file) if kubelet.ca_file else None)
        return NamedConnection(host, port, kubelet.server_name or host, timeout=kubelet.timeout, context=context)


def _statuses(pod: Any) -> Iterator[tuple[str, Any]]:
    for group in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for status in items(inside(pod, "status", group)):
            identifier = word(inside(status, "containerID")).rpartition("://")[2]
            if identifier:
                yield identifier, status


def _mirror(pod: Any) -> str:
    """The uid that the control group of a static pod carries: that of its file, kept in this annotation of the pod the server shows."""
    return word(inside(pod, "metadata", "annotations", "kubernetes.io/config.hash"))


def _selectors(pod: Any, container: Any) -> list[str]:
    values = {
        "ns": inside(pod, "metadata", "namespace"),
        "sa": inside(pod, "spec", "serviceAccountName"),
        "pod-name": inside(pod, "metadata", "name"),
        "pod-uid": inside(pod, "metadata", "uid"),
        "node-name": inside(pod, "spec", "nodeName"),
        "container-name": inside(container, "name"),
        "container-image": inside(container, "image"),
    }
    found = [f"k8s:{name}:{value}" for name, value in values.items() if isinstance(value, str) and value]
    labels = inside(pod, "metadata", "labels")
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, str) and ":" not in name:
            found.append(f"k8s:pod-label:{name}:{value}")
    return found
