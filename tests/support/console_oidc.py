"""A sign-in provider on a loopback port: authorization code with PKCE, which it checks; who is signed in is what the test says."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from support.oidc import Issuer, b64

CLIENT = "console"
SECRET = "s3cret+with/odd=characters"


class Provider(Issuer):
    """Sends everybody back at once as the person in ``claims``."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[str, Any] = {"sub": "u-1", "email": "alice@example.org", "groups": ["platform"]}
        self.spoil: dict[str, Any] = {}
        """Claims to answer with in the place of the right ones; ``state`` spoils what goes back in the address."""
        self.asked: list[dict[str, str]] = []
        self._codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if parts.path == "/authorize":
                    self.send_response(302)
                    self.send_header("Location", provider.authorize({key: value[0] for key, value in parse_qs(parts.query).items()}))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.answer(200, provider.documents().get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {key: value[0] for key, value in parse_qs(body).items()}
                self.answer(*provider.redeem(form, self.headers.get("Authorization", "")))

            def answer(self, status: int, found: Any) -> None:
                data = json.dumps(found).encode()
                self.send_response(status if found else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server.RequestHandlerClass = Handler

    def documents(self) -> dict[str, Any]:
        found = super().documents()
        metadata = found["/.well-known/openid-configuration"]
        metadata |= {"authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token"}
        return found

    def authorize(self, query: dict[str, str]) -> str:
        """Return where the browser goes back to; fail for a request that is not as the standards want it."""
        self.asked.append(query)
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        assert min(len(query["state"]), len(query["nonce"]), len(query["code_challenge"])) >= 43
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': self.spoil.get('state', query['state'])})}"

    def redeem(self, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        """Give the identity token for a code, once, to who has the verifier and the secret."""
        query = self._codes.pop(form.get("code", ""), None)
        pair = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        challenge = b64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        right = (
            query is not None
            and pair == f"{CLIENT}:s3cret%2Bwith%2Fodd%3Dcharacters"
            and form["grant_type"] == "authorization_code"
            and form["redirect_uri"] == query["redirect_uri"]
            and challenge == query["code_challenge"]
        )
        if not right or query is None:
            return 400, {"error": "invalid_grant"}
        claims = {"nonce": query["nonce"], **self.claims, **{key: value for key, value in self.spoil.items() if key != "state"}}
        return 200, {"token_type": "Bearer", "access_token": "x", "id_token": self.token(**({"aud": CLIENT} | claims))}
