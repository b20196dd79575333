"""As much of the Kubernetes API as one target needs: read a Secret, and apply one. The standard library's HTTP client
(``docs/decisions/kubernetes-in-the-agent.md``).

Nothing is kept between two uses: the cluster's CA and the service account's token are read from their files each time, because the kubelet
replaces both while the agent runs (a projected token lives an hour).
"""

from __future__ import annotations

import http.client
import os
import ssl
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from handclasp.errors import HandclaspError, Kind

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts what a pod needs to talk to the API."""
MANAGER = "handclasp-agent"
"""The field manager of server-side apply; it may never change, or the agent would be in conflict with itself."""
_MAX_ANSWER = 4 * 1024 * 1024  # a Secret has at most 1 MiB, and base64 and managedFields on top
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which API, and how to get in. An empty ``url`` means the one that the pod's environment names."""

    url: str = ""
    ca: Path = ACCOUNT / "ca.crt"
    token_file: Path = ACCOUNT / "token"

    @property
    def address(self) -> str:
        """The API's address."""
        if self.url:
            return self.url
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        # By address, as all clients do: the API's certificate names it, and it works in a pod without cluster DNS (hostNetwork).
        host = f"[{host}]" if ":" in host else host
        return f"https://{host}:{port}" if host else "https://kubernetes.default.svc"


class RefusedError(HandclaspError):
    """The API answered, with another status than success."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(Kind.DELIVERY_FAILED, detail)
        self.status = status


class KubernetesApi:
    """One API, for one thread. ``timeout`` (seconds) bounds each wait. Methods raise ``delivery_failed``, in words for who looks at it."""

    def __init__(self, cluster: Cluster, *, timeout: float) -> None:
        self._cluster, self._timeout = cluster, timeout

    def secret(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a Secret with everything in it; None when there is none."""
        return self._get(namespace, name, "application/json")

    def version(self, namespace: str, name: str) -> str:
        """Return what names the present state of a Secret, or nothing when there is none. No key goes over the wire for it."""
        found = self._get(namespace, name, _METADATA)
        return "" if found is None else version_of(found)

    def apply(self, namespace: str, name: str, secret: dict[str, Any], *, force: bool) -> None:
        """Apply a Secret on the server's side: the fields in ``secret`` become ours, those we had before and that are not in it go.

        Fields of another manager are a conflict unless ``force``.
        """
        query = urlencode({"fieldManager": MANAGER, "force": "true" if force else "false"})
        # JSON is YAML; the media type has no other name (Kubernetes 1.22 and later).
        self._exchange("PATCH", f"{_path(namespace, name)}?{query}", secret, "application/json")

    def _get(self, namespace: str, name: str, accept: str) -> dict[str, Any] | None:
        try:
            return self._exchange("GET", _path(namespace, name), None, accept)
        except RefusedError as refusal:
            if refusal.status == 404:
                return None
            raise

    def _exchange(self, method: str, target: str, body: dict[str, Any] | None, accept: str) -> dict[str, Any]:
        address = self._cluster.address
        headers = {"Accept": accept, "Authorization": f"Bearer {self._token()}", "User-Agent": MANAGER}
        if body is not None:
            headers["Content-Type"] = "application/apply-patch+yaml"
        parts, context = urlsplit(address), self._context()
        try:
            with closing(
                http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=self._timeout, context=context)
            ) as connection:
                connection.request(method, target, None if body is None else msgspec.json.encode(body), headers)
                response = connection.getresponse()
                status, data = response.status, response.read(_MAX_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            raise _failed(f"{address} is not signed by {self._cluster.ca}: {error.verify_message}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _failed(f"{address} cannot be reached: {getattr(error, 'strerror', None) or error or type(error).__name__}") from error
        answer = _object(data)
        if not 200 <= status < 300:
            raise RefusedError(status, _words(method, status, answer))
        if answer is None:
            raise _failed(f"{address} answered something that is not an object")
        return answer

    def _token(self) -> str:
        try:
            token = self._cluster.token_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise _failed(f"the token in {self._cluster.token_file} cannot be read: {getattr(error, 'strerror', 'not text')}") from error
        if not token.isprintable() or not token:
            raise _failed(f"there is no token in {self._cluster.token_file}")
        return token

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cafile=self._cluster.ca)
        except OSError as error:  # ssl.SSLError is one
            raise _failed(f"the cluster's CA in {self._cluster.ca} cannot be read: {error.strerror or error}") from error
        return context


def version_of(found: dict[str, Any]) -> str:
    """Return what names the state of an object that was read: another state has another name, and so has an object made anew."""
    return f"{metadata(found).get('uid', '')}/{metadata(found).get('resourceVersion', '')}"


def metadata(found: dict[str, Any]) -> dict[str, Any]:
    """Return an object's metadata."""
    value = found.get("metadata")
    return value if isinstance(value, dict) else {}


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/secrets/{quote(name, safe='')}"


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(data) if len(data) <= _MAX_ANSWER else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


_ADVICE = {
    401: "it does not accept the service account's token",
    403: "the service account needs get, create and patch on this Secret (packaging/kubernetes/secret-writer.yaml)",
    404: "the namespace must exist",
    409: "another manager owns some of its fields: let that one go, or set force: true for this target",
    422: "a Secret that is immutable or has another type must be deleted once",
}


def _words(method: str, status: int, answer: dict[str, Any] | None) -> str:
    message = str((answer or {}).get("message", ""))
    # What a server quotes of a request that it refuses could be the key.
    said = "" if "LS0tLS1" in message or "BEGIN" in message else "".join(c if c.isprintable() else " " for c in message)[:400]
    advice = _ADVICE.get(status, "")
    return f"Kubernetes refused the {method} with status {status}" + (f" ({said})" if said else "") + (f"; {advice}" if advice else "")


def _failed(detail: str) -> HandclaspError:
    return HandclaspError(Kind.DELIVERY_FAILED, f"the Kubernetes API: {detail}")
