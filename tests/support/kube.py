"""A Kubernetes cluster as a CA sees it: service account tokens, and an API server that checks what is sent to it, over real TLS."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from support.oidc import b64

ISSUER = "https://kubernetes.default.svc.cluster.local"
REVIEWER = "the-token-of-the-ca-itself"
KEYS_PATH = "/openid/v1/jwks"
REVIEW_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


@dataclass(frozen=True)
class Pod:
    namespace: str
    account: str
    name: str
    uid: str
    node: str = "node-1"
    phase: str = "Running"

    def to_json(self) -> dict[str, Any]:
        return {
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": {"app": "x"}},
            "spec": {"serviceAccountName": self.account, "nodeName": self.node, "containers": [{"name": "x"}]},
            "status": {"phase": self.phase, "podIP": "10.1.1.1"},
        }


ZTUNNEL = Pod("istio-system", "ztunnel", "ztunnel-abcde", "uid-ztunnel")
WEB = Pod("prod", "web", "web-1", "uid-web")


class Cluster:
    """Signs service account tokens as an API server does (ES256), and publishes its keys."""

    def __init__(self, issuer: str = ISSUER, kid: str = "k1") -> None:
        self.issuer = issuer
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwks(self) -> str:
        point = self.key.public_key().public_numbers()
        key = {"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "alg": "ES256"}
        return json.dumps({"keys": [key | {"x": b64(point.x.to_bytes(32)), "y": b64(point.y.to_bytes(32))}]})

    def claims(
        self, pod: Pod, *, aud: str = "istio-ca", now: float | None = None, lifetime: float = 3600, bound: bool = True
    ) -> dict[str, Any]:
        at = int(time.time() if now is None else now)
        inner: dict[str, Any] = {
            "namespace": pod.namespace,
            "serviceaccount": {"name": pod.account, "uid": f"sa-{pod.namespace}-{pod.account}"},
        }
        if bound:
            inner |= {"pod": {"name": pod.name, "uid": pod.uid}, "node": {"name": pod.node, "uid": f"uid-{pod.node}"}}
        return {
            "iss": self.issuer, "aud": [aud], "iat": at, "nbf": at, "exp": at + int(lifetime), "jti": "0b5c",
            "sub": f"system:serviceaccount:{pod.namespace}:{pod.account}", "kubernetes.io": inner,
        }  # fmt: skip

    def sign(self, claims: Any) -> str:
        head = b64(json.dumps({"alg": "ES256", "kid": self.kid}).encode())
        signed = f"{head}.{b64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{b64(r.to_bytes(32) + s.to_bytes(32))}"

    def token(self, pod: Pod, **more: Any) -> str:
        return self.sign(self.claims(pod, **more))


@dataclass
class ApiServer:
    """A simulated API server on loopback. It refuses what a real one would: another path, method, media type or bearer token."""

    cluster: Cluster
    directory: Path
    pods: list[Pod] = field(default_factory=lambda: [ZTUNNEL, WEB])
    deleted: set[str] = field(default_factory=set)
    """Uids of pods that are gone: their tokens are good no longer."""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    status: int | None = None
    """Answer everything with this."""
    answer: bytes | None = None
    """Answer a review with this."""
    audience_aware: bool = True

    def __post_init__(self) -> None:
        certificate, key = self_signed()
        self.ca = certificate.public_bytes(Encoding.PEM).decode()
        (self.directory / "api.pem").write_bytes(
            certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer("GET", None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                self._answer("POST", json.loads(body))

            def _answer(self, method: str, body: Any) -> None:
                api.requests.append((method, self.path, body))
                authorized = self.headers["Authorization"] == f"Bearer {REVIEWER}"
                status, data = api.respond(method, self.path, body) if authorized else (401, b'{"kind":"Status","code":401}')
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "api.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def reviews(self) -> list[Any]:
        return [body for method, path, body in self.requests if (method, path) == ("POST", REVIEW_PATH)]

    @property
    def lists(self) -> list[str]:
        return [path for _, path, _ in self.requests if path.startswith("/api/v1/pods?")]

    def respond(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        if self.status is not None:
            return self.status, b'{"kind":"Status"}'
        parts = urlsplit(path)
        if (method, parts.path) == ("POST", REVIEW_PATH):
            return 201, self.answer or json.dumps(self._review(body)).encode()
        if (method, parts.path) == ("GET", KEYS_PATH):
            return 200, self.cluster.jwks.encode()
        if (method, parts.path) == ("GET", "/api/v1/pods"):
            return 200, json.dumps(self._list(parse_qs(parts.query))).encode()
        found = [pod for pod in self.pods if parts.path == f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"]
        return (200, json.dumps(found[0].to_json()).encode()) if found else (404, b'{"kind":"Status","code":404}')

    def _review(self, body: Any) -> dict[str, Any]:
        assert (body["apiVersion"], body["kind"]) == ("authentication.k8s.io/v1", "TokenReview"), body
        spec = body["spec"]
        assert set(spec) == {"token", "audiences"}, spec
        claims = json.loads(_unpadded(spec["token"].split(".")[1]))
        inner = claims["kubernetes.io"]
        pod = inner.get("pod", {})
        if claims["exp"] < time.time() or pod.get("uid") in self.deleted:
            return {"kind": "TokenReview", "status": {"user": {}, "error": "[invalid bearer token]"}}
        extra = {f"authentication.kubernetes.io/pod-{key}": [value] for key, value in pod.items()}
        user = {"username": claims["sub"], "uid": inner["serviceaccount"]["uid"], "extra": extra}
        user["groups"] = ["system:serviceaccounts", f"system:serviceaccounts:{inner['namespace']}", "system:authenticated"]
        audiences = [one for one in spec["audiences"] if one in claims["aud"]] if self.audience_aware else []
        return {"kind": "TokenReview", "status": {"authenticated": True, "user": user, "audiences": audiences}}

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        selector, limit = query["fieldSelector"][0], int(query["limit"][0])
        assert selector.startswith("spec.nodeName="), selector
        found = [pod.to_json() for pod in self.pods if pod.node == selector.partition("=")[2]]
        start = int(query.get("continue", ["0"])[0])
        more = str(start + limit) if start + limit < len(found) else ""
        return {"kind": "PodList", "metadata": {"resourceVersion": "7", "continue": more}, "items": found[start : start + limit]}


def _unpadded(part: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def self_signed() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()), key


@contextmanager
def api_server(cluster: Cluster | None = None) -> Iterator[ApiServer]:
    """Run a simulated API server, with the directory that holds its clients' token file as ``server.directory``."""
    with tempfile.TemporaryDirectory(prefix="handclasp-kube-") as directory:
        (Path(directory) / "a.token").write_text(REVIEWER + "\n")
        server = ApiServer(cluster or Cluster(), Path(directory))
        try:
            yield server
        finally:
            server.close()


def cluster_entry(
    cluster: Cluster, *, name: str = "Kubernetes", api: ApiServer | None = None, mode: str = "off", **more: Any
) -> dict[str, Any]:
    """Return a cluster as it stands in a policy."""
    entry: dict[str, Any] = {"name": name, "issuer": cluster.issuer, "jwks": cluster.jwks}
    if api is not None:
        entry["review"] = {"url": api.url, "ca": api.ca, "token_file": "a.token", "mode": mode}
        entry["node_accounts"] = ["istio-system/ztunnel"]
    return entry | more


def mesh_policy(*clusters: dict[str, Any], max_ttl: str | None = None, **grant: Any) -> str:
    """Return a policy by which every service account of these clusters has its own name."""
    body = {
        "name": "mesh",
        "principals": [{"kubernetes": cluster["name"]} for cluster in clusters],
        "identities": ["spiffe://example.org/ns/{namespace}/sa/{service_account}"],
        "profiles": ["mesh"],
    }
    if max_ttl:
        body["max_ttl"] = max_ttl
    return json.dumps({"version": 1, "clusters": list(clusters), "grants": [body | grant]}, indent=1)
