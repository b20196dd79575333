"""A Kubernetes API in this process, as far as Secrets go: TLS with a CA of its own, bearer tokens, server-side apply with field managers.

It holds a client to what a real one would: paths, media types, ``fieldManager``, who owns which field. What it did not like is in
``complaints``.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.fake_server import FakeAuthority, pem

METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass
class Api:
    """What the server knows. ``secrets`` are by (namespace, name); ``owners`` say which manager owns which field."""

    home: Path
    url: str = ""
    tokens: set[str] = field(default_factory=lambda: {"token-1"})
    namespaces: set[str] = field(default_factory=lambda: {"prod"})
    secrets: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    owners: dict[tuple[str, str], dict[str, set[str]]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    status: int = 0
    """Answer everything with this instead."""
    version: int = 100
    spoil: bool = False
    """Store something else than what was applied."""

    @property
    def ca(self) -> Path:
        return self.home / "ca.crt"

    @property
    def token_file(self) -> Path:
        return self.home / "token"

    def config(self, name: str = "web-tls", **more: Any) -> dict[str, Any]:
        """The target of ``agent.yaml``."""
        api = {"url": self.url, "ca": str(self.ca), "token_file": str(self.token_file)}
        return {"type": "kubernetes_secret", "namespace": "prod", "name": name, "api": api, **more}

    def data(self, name: str = "web-tls") -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self.secrets["prod", name]["data"].items()}

    def put(self, name: str, **parts: Any) -> None:
        """Make a Secret as somebody else would, with ``kubectl create``."""
        self._store(("prod", name), {"type": "kubernetes.io/tls", "data": {}, "labels": {}, "annotations": {}} | parts, "kubectl-create")

    def edit(self, name: str, **data: bytes) -> None:
        """Change data as somebody else would, with ``kubectl edit``."""
        key = ("prod", name)
        self.secrets[key]["data"] |= {field.replace("_", "."): base64.b64encode(value).decode() for field, value in data.items()}
        self.secrets[key]["metadata"]["resourceVersion"] = self._next()

    def patches(self) -> int:
        return sum(method == "PATCH" for method, _, _ in self.asked)

    # --- the server -------------------------------------------------------------------------------------------------------------------

    def _next(self) -> str:
        self.version += 1
        return str(self.version)

    def _store(self, key: tuple[str, str], parts: dict[str, Any], manager: str) -> dict[str, Any]:
        before = self.secrets.get(key, {}).get("metadata", {})
        metadata = {
            "namespace": key[0],
            "name": key[1],
            "uid": before.get("uid") or str(uuid.uuid4()),
            "resourceVersion": self._next(),
            "labels": parts["labels"],
            "annotations": parts["annotations"],
        }
        self.secrets[key] = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": parts["type"], "data": parts["data"]}
        owners = self.owners.setdefault(key, {})
        owners[manager] = _fields(parts)
        return self.secrets[key]

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append((method, parts.path, headers.get("accept", "")))
        if self.status:
            return self.status, _status(self.status, "told to")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            return 401, _status(401, "Unauthorized")
        pieces = parts.path.split("/")
        if len(pieces) != 7 or pieces[:4] != ["", "api", "v1", "namespaces"] or pieces[5] != "secrets":
            self.complaints.append(f"a path that is none: {parts.path}")
            return 404, _status(404, "not found")
        key = (pieces[4], pieces[6])
        if method == "GET":
            return self._get(key, headers.get("accept", ""))
        if method == "PATCH":
            return self._apply(key, query, headers, json.loads(body))
        self.complaints.append(f"{method} {parts.path}")
        return 405, _status(405, "not here")

    def _get(self, key: tuple[str, str], accept: str) -> tuple[int, dict[str, Any]]:
        found = self.secrets.get(key)
        if found is None:
            return 404, _status(404, f'secrets "{key[1]}" not found')
        if accept == METADATA:
            return 200, {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}
        return 200, found

    def _apply(
        self, key: tuple[str, str], query: dict[str, str], headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if headers.get("content-type") != "application/apply-patch+yaml":
            return 415, _status(415, "the media type is not supported")
        manager, force = query.get("fieldManager", ""), query.get("force") == "true"
        if not manager or "managedFields" in body["metadata"]:
            return 400, _status(400, "fieldManager is required")
        if (body["apiVersion"], body["kind"]) != ("v1", "Secret") or (body["metadata"]["namespace"], body["metadata"]["name"]) != key:
            return 400, _status(400, "the object is not the one in the path")
        if key[0] not in self.namespaces:
            return 404, _status(404, f'namespaces "{key[0]}" not found')
        found, uid = self.secrets.get(key), body["metadata"].get("uid")
        if uid and uid != (found or {}).get("metadata", {}).get("uid"):
            return 409, _status(409, "uid mismatch: the provided object specified another uid")
        wanted = {
            "type": body["type"],
            "data": dict(body["data"]),
            "labels": dict(body["metadata"].get("labels") or {}),
            "annotations": dict(body["metadata"].get("annotations") or {}),
        }
        if {"tls.crt", "tls.key"} - wanted["data"].keys():
            return 422, _status(422, "data: Required value")
        return self._merge(key, found, wanted, manager, force)

    def _merge(
        self, key: tuple[str, str], found: dict[str, Any] | None, wanted: dict[str, Any], manager: str, force: bool
    ) -> tuple[int, dict[str, Any]]:
        if found is None:
            return 201, self._spoilt(self._store(key, wanted, manager))
        if found["type"] != wanted["type"]:
            return 422, _status(422, "type: field is immutable")
        there = {
            "type": found["type"],
            "data": dict(found["data"]),
            "labels": dict(found["metadata"]["labels"]),
            "annotations": dict(found["metadata"]["annotations"]),
        }
        others = {name: fields for name, fields in self.owners[key].items() if name != manager}
        conflicts = sorted(
            one for fields in others.values() for one in fields & _fields(wanted) if _value(there, one) != _value(wanted, one)
        )
        if conflicts and not force:
            return 409, _status(409, f'Apply failed with conflicts with "kubectl-create": .{", .".join(conflicts)}')
        for fields in others.values():
            fields -= set(conflicts)
        gone = self.owners[key].get(manager, set()) - _fields(wanted) - set().union(*others.values())
        merged: dict[str, Any] = {"type": wanted["type"]}
        for part in ("data", "labels", "annotations"):
            merged[part] = {name: value for name, value in there[part].items() if f"{part}/{name}" not in gone} | wanted[part]
        stored = self._store(key, merged, manager)
        self.owners[key][manager] = _fields(wanted)
        return 200, self._spoilt(stored)

    def _spoilt(self, stored: dict[str, Any]) -> dict[str, Any]:
        if self.spoil:
            stored["data"] = stored["data"] | {"tls.crt": base64.b64encode(b"something else").decode()}
        return stored


def _fields(parts: dict[str, Any]) -> set[str]:
    return {"type"} | {f"{part}/{name}" for part in ("data", "labels", "annotations") for name in parts[part]}


def _value(parts: dict[str, Any], field: str) -> Any:
    part, _, name = field.partition("/")
    return parts[part].get(name) if name else parts[part]


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


@contextmanager
def kubernetes(home: Path) -> Iterator[Api]:
    """Run one; the CA and a token that is accepted are in its ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    api, authority = Api(home), FakeAuthority("Kubernetes")
    chain, key = authority.credential(dns=["localhost"], ip=["127.0.0.1"])
    (home / "server.pem").write_bytes(chain + key)
    api.ca.write_text(pem(authority.root))
    api.token_file.write_text("token-1\n")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = api.handle(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  (the names that the base class looks for)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name in the base class)
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # whoever does not trust us goes away in the middle

        def finish_request(self, request: Any, client_address: Any) -> None:
            with suppress(OSError), context.wrap_socket(request, server_side=True) as connection:
                super().finish_request(connection, client_address)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.pem")
    with Server(("127.0.0.1", 0), Handler) as server:
        api.url = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
