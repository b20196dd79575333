"""An OIDC issuer on a loopback port, and tokens of it."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

if TYPE_CHECKING:
    from support.live import Live

AUDIENCE = "handclasp"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Issuer:
    """Serves its metadata and its key set over HTTP, and signs tokens with ES256."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = issuer.documents().get(self.path)
                body = json.dumps(found).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def documents(self) -> dict[str, Any]:
        point = self._key.public_key().public_numbers()
        key = {"kty": "EC", "crv": "P-256", "kid": "k1", "x": b64(point.x.to_bytes(32)), "y": b64(point.y.to_bytes(32))}
        metadata = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return {"/.well-known/openid-configuration": metadata, "/keys": {"keys": [key]}}

    def token(self, *, aud: str = AUDIENCE, lifetime: int = 300, jti: str | None = "", key: Any = None, **claims: Any) -> str:
        """Return a token; ``jti`` is a new one each time unless it is given, and None for none."""
        now = int(time.time())
        payload = {"iss": self.url, "aud": aud, "iat": now, "exp": now + lifetime, **claims}
        if jti is not None:
            payload["jti"] = jti or uuid.uuid4().hex
        head = b64(json.dumps({"alg": "ES256", "kid": "k1", "typ": "JWT"}).encode())
        signed = f"{head}.{b64(json.dumps(payload).encode())}"
        r, s = decode_dss_signature((key or self._key).sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{b64(r.to_bytes(32) + s.to_bytes(32))}"

    def policy(self, *, identities: list[str], claims: dict[str, str], single_use: bool = False) -> str:
        """Return a policy that takes this issuer's tokens with these claims, for these identities."""
        return json.dumps(  # JSON is YAML
            {
                "version": 1,
                "oidc": [{"name": "local", "issuer": self.url, "audience": AUDIENCE, "single_use": single_use}],
                "grants": [
                    {
                        "name": "jobs",
                        "principals": [{"oidc": "local", "claims": claims}],
                        "identities": identities,
                        "profiles": ["workload"],
                    }
                ],
            },
            indent=1,
        )

    def apply(self, live: Live, **policy: Any) -> None:
        """Put such a policy in force."""
        with live.client(live.admin_token) as admin:
            admin("PUT", "/v1/policy", {"text": self.policy(**policy)}).ok()
