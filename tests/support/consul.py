"""A Consul server, and an Envoy beside a service of it. They check what they are sent, and say what nobody should have asked."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.answering import Answering

TOKEN = "8f246b77-f3e1-ff88-5b48-8ec93abf3e05"
KEY = "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----"
SECRET = "s.vault-token-in-the-configuration"


class FakeConsul(Answering):
    """Use as a context manager: ``url`` is the server's address and a proxy's; the proxy NAME is at ``/proxy/NAME/config_dump``."""

    def __init__(self, *, token: str = "") -> None:
        super().__init__()
        self.token = token
        self.roots: list[dict[str, Any]] = []
        self.proxies: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.instead: dict[str, tuple[int, bytes]] = {}

    def answer(self, target: str, headers: Any) -> tuple[int, bytes]:
        parts = urlsplit(target)
        self.asked.append((parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}))
        if "/ca/leaf" in parts.path:
            self.complaints.append(f"{target} gives keys away")
            return 500, b""
        if parts.path.startswith("/proxy/"):
            if headers.get("X-Consul-Token") is not None:
                self.complaints.append("a proxy was given the token")
            if parts.path in self.instead:
                return self.instead[parts.path]
            name = parts.path.split("/")[2]
            return (200, json.dumps(self.proxies[name]).encode()) if name in self.proxies else (404, b"")
        if headers.get("X-Consul-Token", "") != self.token:
            self.complaints.append(f"{target}: another token")
        if headers.get("Authorization"):
            self.complaints.append(f"{target}: the token is in a second header")
        if parts.path in self.instead:
            return self.instead[parts.path]
        return self._server_answer(parts.path)

    def _server_answer(self, path: str) -> tuple[int, bytes]:
        roots = {"ActiveRootID": "a", "TrustDomain": "1111.consul", "Roots": self.roots}
        answers: dict[str, Any] = {
            "/v1/connect/ca/roots": roots,
            "/v1/agent/connect/ca/roots": roots,
            "/v1/connect/ca/configuration": {
                "Provider": "vault",
                "Config": {"LeafCertTTL": "72h", "IntermediateCertTTL": "8760h", "Token": SECRET, "PrivateKey": KEY, "CSRMaxPerSecond": 50},
            },
            "/v1/connect/intentions": [{"SourceNS": "default", "SourceName": "*", "DestinationNS": "default", "DestinationName": "db",
                                        "Action": "deny"}, {"SourceName": "web", "DestinationName": "api", "Permissions": []}],
        }  # fmt: skip
        if path not in answers:
            self.complaints.append(f"{path} was asked for")
            return 404, b""
        return 200, json.dumps(answers[path]).encode()


def context(leaf: str, roots: str) -> dict[str, Any]:
    """A transport socket as Consul configures it: certificates inline, and Envoy writes keys as [redacted]."""
    return {
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "tls_params": {},
                "tls_certificates": [{"certificate_chain": {"inline_string": leaf}, "private_key": {"inline_string": "[redacted]"}}],
                "validation_context": {"trusted_ca": {"inline_string": roots}},
            },
        },
    }


def config_dump(leaf: str, roots: str, *, secret: str = "") -> dict[str, Any]:
    """What ``/config_dump`` of a proxy beside a service answers."""
    socket = context(leaf, roots)
    configs: list[dict[str, Any]] = [
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "web-1"}}},
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "static_clusters": [{"cluster": {"name": "local_agent"}}],
            "dynamic_active_clusters": [
                {"cluster": {"name": "api", "transport_socket": socket}},
                {"cluster": {"name": "db", "transport_socket_matches": [{"name": "x", "transport_socket": socket}]}},
            ],
        },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
            "dynamic_listeners": [
                {"name": "public", "active_state": {"listener": {"filter_chains": [{"transport_socket": socket}, {"filters": []}]}}},
                {"name": "warming", "warming_state": {}},
            ],
        },
    ]
    if secret:
        chain = {"inline_bytes": base64.b64encode(secret.encode()).decode()}
        key = {"inline_bytes": base64.b64encode(b"[redacted]").decode()}
        one = {"name": "gateway", "secret": {"name": "gateway", "tls_certificate": {"certificate_chain": chain, "private_key": key}}}
        configs.append({"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": [one]})
    return {"configs": configs}
