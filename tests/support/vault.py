"""A Vault or an OpenBao with PKI mounts, as far as listing goes. It checks what it is sent, and may lie or be slow on demand."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.answering import Answering

TOKEN = "hvs.only-for-reading"


class FakeVault(Answering):
    """Use as a context manager. ``paged`` is OpenBao's way of listing."""

    def __init__(self, *, paged: bool = True, namespace: str = "") -> None:
        super().__init__()
        self.paged, self.namespace = paged, namespace
        self.certs: dict[str, str] = {}
        """By serial as it is stored: with hyphens."""
        self.revoked: dict[str, int] = {}
        self.issuers: dict[str, tuple[str, list[str]]] = {}
        self.asked: list[str] = []
        self.denied: set[str] = set()
        self.garbage: dict[str, bytes] = {}

    def answer(self, target: str, headers: Any) -> tuple[int, bytes]:
        status, body = self._said(target, headers)
        return status, body if isinstance(body, bytes) else json.dumps(body).encode()

    def _said(self, target: str, headers: Any) -> tuple[int, Any]:
        parts = urlsplit(target)
        path, query = parts.path.removeprefix("/v1/pki/"), {name: values[0] for name, values in parse_qs(parts.query).items()}
        if headers.get("X-Vault-Request") != "true" or headers.get("X-Vault-Namespace", "") != self.namespace:
            self.complaints.append(f"{target}: headers are missing")
        self.asked.append(path)
        if path in self.denied:
            return 403, {"errors": ["permission denied"]}
        if path in self.garbage:
            return 200, self.garbage[path]
        if query.get("list") == "true":
            return self._list(path, query)
        if path.startswith("cert/"):
            return self._cert(unquote(path.removeprefix("cert/")))
        if path.startswith("issuer/") and path.endswith("/json"):
            certificate, chain = self.issuers[path.split("/")[1]]
            return 200, {"data": {"certificate": certificate, "ca_chain": chain}}
        self.complaints.append(f"{target} was asked for")
        return 404, {"errors": []}

    def _list(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        stored = {"certs": self.certs, "certs/revoked": self.revoked, "issuers": self.issuers}[path]
        keys = sorted(stored)
        if self.paged and path == "certs":
            if ":" in query.get("after", ""):
                self.complaints.append("after is not as it is stored")
            keys = [key for key in keys if key > query.get("after", "")][: int(query.get("limit", "0")) or None]
        told = [key.replace("-", ":") if path.startswith("certs") else key for key in keys]
        return (200, {"data": {"keys": told}}) if told else (404, {"errors": []})

    def _cert(self, serial: str) -> tuple[int, Any]:
        stored = serial.replace(":", "-")
        if stored not in self.certs:
            return 404, {"errors": []}
        at = self.revoked.get(stored, 0)
        return 200, {"data": {"certificate": self.certs[stored], "revocation_time": at, "issuer_id": "one"}}
