"""A Kubernetes API server for readers: list, watch, RBAC, and everything that goes wrong between two answers. Over real TLS.

It is held to what the API's documentation says: pages are of one snapshot and their ``continue`` ends with it, a watch begins after a
resourceVersion and is refused when that is too old, in both forms (HTTP 410, and an ERROR event in a stream that began well), a ``list``
with ``fieldSelector=metadata.name=X`` is authorized as one of X. Every request is counted by verb and resource, and held against RBAC
rules where there are any: so a manifest can be shown to allow what is read, and nothing more.

``python -m support.kube_api HOME SECRETS`` runs one in a process of its own, for tests that measure the reader's memory.
"""

from __future__ import annotations

import base64
import json
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from support.fake_server import FakeAuthority, pem
from support.kube_rbac import Rule

TOKEN = "token-1"
METADATA_LIST = "as=PartialObjectMetadataList"
CLUSTER_SCOPED = {
    "namespaces",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "apiservices",
    "customresourcedefinitions",
    "clustertrustbundles",
    "certificatesigningrequests",
}
KINDS = {
    "namespaces": ("v1", "Namespace"),
    "secrets": ("v1", "Secret"),
    "configmaps": ("v1", "ConfigMap"),
    "pods": ("v1", "Pod"),
    "events": ("v1", "Event"),
    "replicasets": ("apps/v1", "ReplicaSet"),
    "mutatingwebhookconfigurations": ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    "validatingwebhookconfigurations": ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    "apiservices": ("apiregistration.k8s.io/v1", "APIService"),
    "customresourcedefinitions": ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    "clustertrustbundles": ("certificates.k8s.io/v1beta1", "ClusterTrustBundle"),
    "certificatesigningrequests": ("certificates.k8s.io/v1", "CertificateSigningRequest"),
    "podcertificaterequests": ("certificates.k8s.io/v1beta1", "PodCertificateRequest"),
    "ingresses": ("networking.k8s.io/v1", "Ingress"),
    "gateways": ("gateway.networking.k8s.io/v1", "Gateway"),
    "certificates": ("cert-manager.io/v1", "Certificate"),
    "peerauthentications": ("security.istio.io/v1", "PeerAuthentication"),
    "destinationrules": ("networking.istio.io/v1", "DestinationRule"),
}
"""The resources that there are, and which version and kind their objects are of."""

Object = dict[str, Any]
Key = tuple[str, str]


@dataclass
class Fault:
    """What becomes of the next ``count`` requests with ``path`` in their path and query."""

    path: str
    status: int = 0
    """Answer with this status, and ``retry_after`` in the header."""
    retry_after: str = ""
    broken: str = ""
    """``json``: half an object; ``reset``: the connection ends in the middle; ``silence``: no answer within the reader's patience."""
    count: int = 1
    after: int = 0
    """Requests that it lets pass first."""


class KubeApi:
    """The cluster behind the server. May be changed while it runs."""

    def __init__(self, home: Path) -> None:
        self.home, self.url = home, ""
        self.authority = FakeAuthority("Kubernetes")
        self.lock = threading.Condition()
        self.version, self.oldest, self.lists_from = 1000, 0, 0
        self.objects: dict[str, dict[Key, Object | Callable[[], Object]]] = {name: {} for name in KINDS}
        self.journal: list[tuple[int, str, str, Object]] = []
        self.rules: list[Rule] | None = None
        self.faults: list[Fault] = []
        self.proxied: dict[tuple[str, str], bytes] = {}
        """Answers of pods, by (namespace, ``POD:PORT/PATH``)."""
        self.files: dict[str, bytes] = {}
        """Answers at paths outside of the API, without authentication: a proxy's admin port."""
        self.tokens, self.users = {TOKEN}, set[str]()
        self.asked: Counter[tuple[str, str, str, str]] = Counter()
        """(verb, group/resource, namespace, name)."""
        self.requests: list[str] = []
        self.allowed: set[tuple[str, str, str, str]] = set()
        self.refused: set[tuple[str, str, str, str]] = set()
        self.agents: Counter[str] = Counter()
        self.bookmark_every, self.in_stream, self.stopping, self.biggest_page = 0.05, False, False, 0
        self.on_page: Callable[[str, int], None] = lambda _path, _number: None

    @property
    def ca(self) -> Path:
        return self.home / "ca.crt"

    @property
    def token_file(self) -> Path:
        return self.home / "token"

    def access(self, **more: Any) -> dict[str, Any]:
        """The settings of a source that reads this cluster."""
        return {"cluster": "c1", "api": self.url, "ca_file": str(self.ca), "token_file": str(self.token_file), **more}

    # --- the cluster ------------------------------------------------------------------------------------------------------------------

    def put(self, resource: str, name: str, namespace: str = "", *, labels: dict[str, str] | None = None, **parts: Any) -> Object:
        """Make an object, or replace it."""
        version, kind = KINDS[resource]
        metadata: Object = {"name": name, "uid": f"uid-{resource}-{namespace}-{name}", "creationTimestamp": "2026-01-02T03:04:05Z"}
        metadata |= ({"namespace": namespace} if namespace else {}) | ({"labels": labels} if labels else {}) | parts.pop("metadata", {})
        value = {"apiVersion": version, "kind": kind, "metadata": metadata, **parts}
        with self.lock:
            known = (namespace, name) in self.objects[resource]
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
            self.objects[resource][namespace, name] = value
            self.journal.append((self.version, resource, "MODIFIED" if known else "ADDED", value))
            self.lock.notify_all()
        return value

    def remove(self, resource: str, name: str, namespace: str = "") -> None:
        """Delete an object."""
        with self.lock:
            value = self.objects[resource].pop((namespace, name))
            self.version += 1
            gone = value() if callable(value) else value
            gone = gone | {"metadata": gone["metadata"] | {"resourceVersion": str(self.version)}}
            self.journal.append((self.version, resource, "DELETED", gone))
            self.lock.notify_all()

    def compact(self) -> None:
        """Forget the past: pages and watches that began before now are 410 Gone."""
        with self.lock:
            self.version += 1
            self.oldest = self.lists_from = self.version
            self.lock.notify_all()

    def secret(self, name: str, namespace: str, data: Mapping[str, bytes], kind: str = "kubernetes.io/tls", **more: Any) -> None:
        """Make a Secret."""
        self.put("secrets", name, namespace, data={key: base64.b64encode(value).decode() for key, value in data.items()}, type=kind, **more)

    # --- answers ----------------------------------------------------------------------------------------------------------------------

    def may(self, verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        wanted = (verb, f"{group}/{resource}", namespace, name)
        with self.lock:
            self.asked[wanted] += 1
        good = self.rules is None or any(rule.allows(verb, group, resource, namespace, name) for rule in self.rules)
        (self.allowed if good else self.refused).add(wanted)
        return good

    def page(self, resource: str, namespace: str, query: Mapping[str, str], accept: str) -> tuple[int, Object]:
        """One page of a list."""
        version, kind = KINDS[resource]
        with self.lock:
            keys = sorted(key for key in self.objects[resource] if not namespace or key[0] == namespace)
            snapshot, start = self.version, 0
        if query.get("continue"):
            try:
                held = json.loads(base64.urlsafe_b64decode(query["continue"]))
            except ValueError:
                return 400, status(400, "BadRequest", "continue key is not valid")
            if held["rv"] < self.lists_from:
                return 410, status(410, "Expired", "The provided continue parameter is too old to display a consistent list result.")
            snapshot = held["rv"]
            start = sum(key <= tuple(held["last"]) for key in keys)
        limit = int(query.get("limit") or 0) or len(keys) + 1
        items, last = [], None
        rest = iter(keys[start:])
        for last in rest:
            value = self.objects[resource].get(last)
            one = value() if callable(value) else value
            if one is not None and selected(one, query):
                items.append(one)
                if len(items) == limit:
                    break
        self.biggest_page = max(self.biggest_page, len(items))
        metadata: Object = {"resourceVersion": str(snapshot)}
        if next(rest, None) is not None and last is not None:
            metadata["continue"] = base64.urlsafe_b64encode(json.dumps({"rv": snapshot, "last": last}).encode()).decode()
        if METADATA_LIST in accept:
            items = [{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": one["metadata"]} for one in items]
            return 200, {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": metadata, "items": items}
        bare = [{key: value for key, value in one.items() if key not in ("apiVersion", "kind")} for one in items]  # as the real one
        return 200, {"apiVersion": version, "kind": f"{kind}List", "metadata": metadata, "items": bare}

    def events(self, resource: str, namespace: str, query: Mapping[str, str]) -> Iterator[Object]:
        """The events of a watch, as they come; ends at its time limit."""
        at, deadline = int(query.get("resourceVersion") or self.version), time.monotonic() + float(query.get("timeoutSeconds") or 300)
        place, marked = 0, time.monotonic()
        while not self.stopping and time.monotonic() < deadline:
            with self.lock:
                if at < self.oldest:
                    yield {"type": "ERROR", "object": status(410, "Expired", f"too old resource version: {at} ({self.oldest})")}
                    return
                fresh = self.journal[place:]
                place = len(self.journal)
                if not fresh:
                    self.lock.wait(0.02)
            for number, what, kind, value in fresh:
                if number > at and what == resource and namespace in ("", value["metadata"].get("namespace")) and selected(value, query):
                    at = number
                    yield {"type": kind, "object": value}
            if query.get("allowWatchBookmarks") == "true" and time.monotonic() - marked > self.bookmark_every:
                marked = time.monotonic()
                at = max(at, self.version) if not self.journal[place:] else at
                version, kind = KINDS[resource]
                yield {
                    "type": "BOOKMARK",
                    "object": {
                        "apiVersion": version,
                        "kind": kind,
                        "metadata": {"resourceVersion": str(at), "creationTimestamp": None},
                    },
                }


def selected(value: Object, query: Mapping[str, str]) -> bool:
    """Whether an object is one that the selectors of a request want."""
    for want in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, wanted = want.partition("=")
        found: Any = value
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != wanted:
            return False
    labels = value["metadata"].get("labels") or {}
    for want in filter(None, query.get("labelSelector", "").split(",")):
        name, equals, wanted = want.partition("=")
        if name not in labels or (equals and labels[name] != wanted):
            return False
    return True


def status(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def parse(path: str) -> tuple[str, str, str, str, str, str] | None:
    """Return (group, version, namespace, resource, name, rest) of a path; None for one that is not of the API."""
    steps = [unquote(step) for step in path.strip("/").split("/")]
    if steps[0] == "api":
        group, version, steps = "", steps[1], steps[2:]
    elif steps[0] == "apis" and len(steps) > 3:
        group, version, steps = steps[1], steps[2], steps[3:]
    else:
        return None
    namespace = ""
    if len(steps) > 2 and steps[0] == "namespaces":
        namespace, steps = steps[1], steps[2:]
    return group, version, namespace, steps[0], (steps[1:] or [""])[0], "/".join(steps[2:])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KubeApi

    def do_GET(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with api.lock:
            api.requests.append(self.path)
        if parts.path in api.files:
            self._send(200, api.files[parts.path])
        elif self._fault():
            pass
        elif not self._known():
            self._json(401, status(401, "Unauthorized", "Unauthorized"))
        else:
            self._resource(parts.path, query)

    def _resource(self, path: str, query: dict[str, str]) -> None:
        api, found = self.api, parse(path)
        if found is None:
            return self._send(404, b"404 page not found\n")
        group, version, namespace, resource, name, rest = found
        if resource == "pods" and rest.startswith("proxy"):
            if not api.may("get", group, "pods/proxy", namespace, name):
                return self._forbidden("get", "pods/proxy", namespace)
            answer = api.proxied.get((namespace, f"{name}{rest.removeprefix('proxy')}"))
            return self._send(200 if answer is not None else 503, answer or b"no such pod")
        if resource not in KINDS or KINDS[resource][0] != f"{group}/{version}".strip("/"):
            return self._send(404, b"404 page not found\n")
        watching = query.get("watch") in ("true", "1")
        verb = "get" if name else "watch" if watching else "list"
        names = [one.partition("=")[2] for one in query.get("fieldSelector", "").split(",") if one.startswith("metadata.name=")]
        if not api.may(verb, group, resource, namespace, name or (names or [""])[0]):
            return self._forbidden(verb, resource, namespace)
        if name:
            one = api.objects[resource].get((namespace, name))
            one = one() if callable(one) else one
            return self._json(200, one) if one else self._json(404, status(404, "NotFound", f'{resource} "{name}" not found'))
        if watching:
            return self._watch(resource, namespace, query)
        code, answer = api.page(resource, namespace, query, self.headers.get("Accept", ""))
        self._json(code, answer)
        return api.on_page(path, code)

    def _watch(self, resource: str, namespace: str, query: dict[str, str]) -> None:
        if int(query.get("resourceVersion") or 0) < self.api.oldest and not self.api.in_stream:
            return self._json(410, status(410, "Expired", "too old resource version"))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.api.events(resource, namespace, query):
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _known(self) -> bool:
        self.api.agents[self.headers.get("User-Agent", "")] += 1
        peer = self.connection.getpeercert() or {}
        name = {key: value for ((key, value),) in peer.get("subject", ())}.get("commonName", "")
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return name in self.api.users or (scheme == "Bearer" and token in self.api.tokens)

    def _fault(self) -> bool:
        with self.api.lock:
            for fault in self.api.faults:
                if fault.path in self.path and fault.count:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.count -= 1
                    break
            else:
                return False
        if fault.broken == "silence":
            deadline = time.monotonic() + 20
            while not self.api.stopping and time.monotonic() < deadline:
                time.sleep(0.02)
            self.close_connection = True
        elif fault.broken == "reset":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{"items":[')
            self.close_connection = True
        elif fault.broken == "json":
            self._send(200, b'{"kind":"SecretList","metadata":{"resourceVersion":"1"},"items":[{"metadata":')
        else:
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            reason = {429: "TooManyRequests", 410: "Expired"}.get(fault.status, "InternalError")
            self._json(fault.status, status(fault.status, reason, "told to"), headers)
        return True

    def _forbidden(self, verb: str, resource: str, namespace: str) -> None:
        words = f'{resource} is forbidden: User "handclasp" cannot {verb} resource "{resource}" in the namespace "{namespace}"'
        self._json(403, status(403, "Forbidden", words))

    def _json(self, code: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(code, json.dumps(value).encode(), headers)

    def _send(self, code: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name in the base class)
        pass


@contextmanager
def kube_api(home: Path) -> Iterator[KubeApi]:
    """Run one; its CA, a token that it takes, and a client certificate of the user ``reader`` are in its ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    api = KubeApi(home)
    authority = api.authority
    chain, key = authority.credential(dns=["localhost"], ip=["127.0.0.1"])
    (home / "server.pem").write_bytes(chain + key)
    api.ca.write_text(pem(authority.root))
    api.token_file.write_text(TOKEN + "\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(api.ca)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # whoever has enough goes away in the middle

        def finish_request(self, request: Any, client_address: Any) -> None:
            with suppress(OSError), context.wrap_socket(request, server_side=True) as connection:
                super().finish_request(connection, client_address)

    with Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api})) as server:
        api.url = f"https://127.0.0.1:{server.server_address[1]}"
        api.token_file.with_name("token.hosts").write_text(api.url.removeprefix("https://"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield api
        finally:
            api.stopping = True
            server.shutdown()
            thread.join()


def fill(api: KubeApi, number: int, namespace: str = "") -> list[bytes]:
    """Make TLS Secrets as cert-manager does, each with an RSA key, a chain and an authority, some 8 KB; return the DER of their leaves.

    The objects are made when they are asked for, and are always the same.
    """
    authority, key = FakeAuthority("Cluster"), rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    rest, root = pem(authority.issuing), pem(authority.root)
    leaves = []
    for index in range(number):
        home = namespace or f"team-{index % 50:02d}"
        leaf = authority.issue(key.public_key(), dns=[f"app-{index}.{home}.svc"])
        leaves.append(leaf.public_bytes(Encoding.DER))
        data = {"tls.crt": (pem(leaf) + rest).encode(), "tls.key": private, "ca.crt": root.encode()}
        metadata = {
            "name": f"app-{index:05d}-tls",
            "namespace": home,
            "uid": f"uid-{index}",
            "resourceVersion": "500",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app.kubernetes.io/name": f"app-{index}"},
            "annotations": {"cert-manager.io/certificate-name": f"app-{index}", "cert-manager.io/issuer-name": "ca"},
            "managedFields": [{"manager": "cert-manager", "fieldsV1": {f"f:{name}": {} for name in data}} for _ in range(3)],
        }
        api.objects["secrets"][home, metadata["name"]] = partial(_secret, metadata, data)
    for index in range(50):
        api.put("namespaces", namespace or f"team-{index:02d}", labels={"team": f"team-{index % 7}"})
    return leaves


def _secret(metadata: Object, data: dict[str, bytes]) -> Object:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "data": encoded}


def _serve() -> None:
    with kube_api(Path(sys.argv[1])) as api:
        fill(api, int(sys.argv[2]))
        print(api.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _serve()
