"""Tokens over the Workload API: obtained once, each workload's only its own, validated against the bundles of the caller."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from grpclib.const import Status
from spiffe import JwtSource, WorkloadApiClient, X509Source

from handclasp import wire
from handclasp.clock import rfc3339, system_clock
from handclasp.proto import workload_pb2
from support.waiting import eventually
from support.workload import AWAY, DOMAIN, WEB, World, socket_of, workload
from support.workload_calls import API, JWT, UID, status_of, unary


class Signer:
    """Signs JWT-SVIDs, and publishes its key."""

    def __init__(self, world: World, domain: str = DOMAIN, kid: str = "k1", life: float = 300) -> None:
        self.key, self.kid, self.life = ec.generate_private_key(ec.SECP256R1()), kid, life
        numbers = self.key.public_key().public_numbers()
        x, y = b64(numbers.x.to_bytes(32, "big")), b64(numbers.y.to_bytes(32, "big"))
        jwk = {"kty": "EC", "use": "jwt-svid", "crv": "P-256", "kid": kid, "x": x, "y": y}
        keys = [jwk, {"kty": "EC", "use": "x509-svid", "crv": "P-256", "x5c": ["AAAA"]}, {"kty": "new", "use": "wit-svid"}]
        world.anchors.keys[domain] = json.dumps({"keys": keys, "spiffe_sequence": 1}).encode()
        if domain == DOMAIN:
            world.client.sign = self

    def __call__(self, request: wire.JwtSvidRequest) -> wire.JwtSvid:
        now = system_clock() / 1000
        token = self.token({"sub": request.identity, "aud": request.audience, "iat": int(now), "exp": int(now + self.life)})
        return wire.JwtSvid(token=token, identity=request.identity, expires_at=rfc3339(int(1000 * (now + self.life))), log_entry=1)

    def token(self, claims: dict[str, Any], **header: Any) -> str:
        head = {"alg": "ES256", "kid": self.kid, "typ": "JWT", **header}
        signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwt_workload(name: str = "web", identity: str = WEB, **more: Any) -> wire.Workload:
    return workload(name, identity, UID, jwt=True, **more)


def test_tokens_are_obtained_once_and_again_at_half_of_their_life(tmp_path: Path) -> None:
    with socket_of(tmp_path, jwt_workload(hint="h")) as world:
        signer = Signer(world)
        request = workload_pb2.JWTSVIDRequest(audience=["a", "b", "a"])
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: unary(world, API + "FetchJWTSVID", JWT, request), range(8)))
        assert len(world.client.tokens) == 1
        assert {(svid.spiffe_id, svid.hint) for answer in answers for svid in answer.svids} == {(WEB, "h")}
        unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(audience=["c"]))
        assert len(world.client.tokens) == 2
        signer.life = 10

        def ask(audience: str) -> Any:
            return unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(audience=[audience])).svids[0].svid

        before = ask("d")
        world.client.away = AWAY
        assert ask("d") == before
        core = world.server._core
        assert core is not None
        core.tokens._clock = lambda: system_clock() + 4_500
        asked = len(world.client.tokens)
        assert ask("d") == before, "half of its life is nearly over"
        core.tokens._clock = lambda: system_clock() + 5_000
        eventually(lambda: ask("d") == before and len(world.client.tokens) > asked, what="it still counts, and there is no other to be had")
        assert status_of(lambda: ask("e"))[0] is Status.UNAVAILABLE


def test_only_workloads_with_jwt_have_tokens_and_each_only_its_own(tmp_path: Path) -> None:
    plain = workload("plain", f"spiffe://{DOMAIN}/plain", UID)
    with socket_of(tmp_path, plain, jwt_workload(), jwt_workload("two", f"spiffe://{DOMAIN}/two")) as world:
        Signer(world)

        def ask(**fields: Any) -> Any:
            return unary(world, API + "FetchJWTSVID", JWT, workload_pb2.JWTSVIDRequest(**fields))

        assert [svid.spiffe_id for svid in ask(audience=["a"]).svids] == [WEB, f"spiffe://{DOMAIN}/two"]
        assert [svid.spiffe_id for svid in ask(audience=["a"], spiffe_id=f"spiffe://{DOMAIN}/two").svids] == [f"spiffe://{DOMAIN}/two"]
        for identity in (plain.identity, f"spiffe://{DOMAIN}/foreign"):
            assert status_of(lambda identity=identity: ask(audience=["a"], spiffe_id=identity))[0] is Status.PERMISSION_DENIED  # type: ignore[misc]
        for audience in ([], [""], ["x"] * 2 + ["y" * 600], [str(n) for n in range(30)]):
            assert status_of(lambda audience=audience: ask(audience=audience))[0] is Status.INVALID_ARGUMENT  # type: ignore[misc]


def test_tokens_are_validated_against_the_bundles_that_the_caller_has(tmp_path: Path) -> None:
    types = (workload_pb2.ValidateJWTSVIDRequest, workload_pb2.ValidateJWTSVIDResponse)
    with socket_of(tmp_path, jwt_workload(federates_with=["partner.example"])) as world:
        own, partner, foreign = Signer(world), Signer(world, "partner.example", "p1"), Signer(world, "foreign.example", "f1")
        ends = int(system_clock() / 1000) + 60

        def validate(token: str, audience: str = "me") -> Any:
            return unary(world, API + "ValidateJWTSVID", types, workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token))

        answer = validate(own.token({"sub": WEB, "aud": ["me", "you"], "exp": ends, "n": {"deep": [1, None, True]}}))
        assert answer.spiffe_id == WEB
        assert answer.claims["n"]["deep"][2] is True
        assert validate(partner.token({"sub": "spiffe://partner.example/x", "aud": "me", "exp": ends})).spiffe_id.endswith("/x")
        for token, word in (
            (foreign.token({"sub": "spiffe://foreign.example/x", "aud": "me", "exp": ends}), "no key of foreign.example"),
            (partner.token({"sub": WEB, "aud": "me", "exp": ends}), "no key of example.org"),
            (own.token({"sub": WEB, "aud": "you", "exp": ends}), "audience"),
            (own.token({"sub": WEB, "aud": "me", "exp": ends - 1000}), "expired"),
            ("x.y.z", "compact"),
            ("", "compact"),
        ):
            status, words = status_of(lambda token=token: validate(token))  # type: ignore[misc]
            assert (status, word in words) == (Status.INVALID_ARGUMENT, True), words
        assert status_of(lambda: validate(own.token({"sub": WEB, "aud": "", "exp": ends}), ""))[0] is Status.INVALID_ARGUMENT


def test_the_python_spiffe_library_finds_everything_as_it_wants_it(tmp_path: Path) -> None:
    with socket_of(tmp_path, jwt_workload()) as world:
        signer = Signer(world)
        with WorkloadApiClient(world.url) as client:
            context = client.fetch_x509_context()
            assert str(context.default_svid.spiffe_id) == WEB
            token = client.fetch_jwt_svid({"aud1"})
            assert str(token.spiffe_id) == WEB
            assert str(client.validate_jwt_svid(token.token, "aud1").spiffe_id) == WEB
        with JwtSource(socket_path=world.url) as tokens, X509Source(socket_path=world.url) as source:
            assert str(tokens.fetch_svid({"aud2"}).spiffe_id) == WEB
            new = world.roster.rotate(WEB)
            eventually(lambda: source.get_x509_context().default_svid.leaf.fingerprint(hashes.SHA256()).hex() == new.sha256)
        assert signer.kid == "k1"
