"""OIDC tokens: each check has a case that would pass without it. The issuer is a dictionary of URLs in this process."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.oidc import COOLDOWN, LEEWAY, MAX_DOCUMENT, MAX_TOKEN, REFRESH, STALE, OidcVerifier
from handclasp.access.policy import OidcIssuer
from handclasp.access.principals import OidcPrincipal
from handclasp.errors import HandclaspError, Kind
from support.access import or_refused

ISSUER = "https://oidc.example.org"
METADATA = ISSUER + "/.well-known/openid-configuration"
JWKS = ISSUER + "/keys"
NOW = 1_800_000_000

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC384_KEY = ec.generate_private_key(ec.SECP384R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = rsa.generate_private_key(65537, 2048)
WEAK_KEY = rsa.generate_private_key(65537, 1024)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def public_jwk(key: Any, kid: str, **extra: Any) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "kid": kid, "n": number(numbers.n), "e": number(numbers.e)} | extra
    if isinstance(public, ec.EllipticCurvePublicKey):
        point, size = public.public_numbers(), (public.key_size + 7) // 8
        return {"kty": "EC", "crv": f"P-{public.key_size}", "kid": kid, "x": number(point.x, size), "y": number(point.y, size)} | extra
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(raw)} | extra


def signature(key: Any, algorithm: str, data: bytes) -> bytes:
    if isinstance(key, bytes):
        mac = HMAC(key, hashes.SHA256())
        mac.update(data)
        return mac.finalize()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256() if size == 32 else hashes.SHA384())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return key.sign(data)


def make(key: Any = RSA_KEY, algorithm: Any = "RS256", kid: Any = "rsa", header: dict[str, Any] | None = None, **changes: Any) -> str:
    claims: dict[str, Any] = {"iss": ISSUER, "aud": "handclasp", "sub": "job", "exp": NOW + 300, "iat": NOW, "nbf": NOW, "jti": "id-1"}
    claims = {name: value for name, value in (claims | changes).items() if value != "absent"}
    head = {"alg": algorithm, "kid": kid, "typ": "JWT"} | (header or {})
    signed = (
        b64(json.dumps({name: value for name, value in head.items() if value != "absent"}).encode())
        + "."
        + b64(json.dumps(claims).encode())
    )
    return signed + "." + (b64(signature(key, algorithm, signed.encode())) if key is not None else "")


KEYS = [
    public_jwk(RSA_KEY, "rsa", alg="RS256", use="sig"),
    public_jwk(EC_KEY, "ec"),
    public_jwk(EC384_KEY, "ec384"),
    public_jwk(ED_KEY, "ed"),
    public_jwk(WEAK_KEY, "weak"),
    public_jwk(RSA_KEY, "encryption", use="enc"),
    {"kty": "oct", "kid": "secret", "k": b64(b"x" * 32)},
    {"kty": "AKP", "kid": "later", "alg": "ML-DSA-44", "pub": "AA"},
    {"kty": "RSA", "kid": "broken", "n": "!", "e": []},
    {"kty": "RSA"},
    "nonsense",
]


class World:
    """An issuer, a clock, and a record of what was fetched."""

    def __init__(self, issuer: OidcIssuer | None = None) -> None:
        self.now = NOW * 1000
        self.fetched: list[str] = []
        self.pages: dict[str, Any] = {METADATA: {"issuer": ISSUER, "jwks_uri": JWKS}, JWKS: {"keys": KEYS}}
        self.verifier = OidcVerifier((issuer or OidcIssuer("ci", ISSUER, "handclasp"),), self.fetch, lambda: self.now)

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        await asyncio.sleep(0)
        page = self.pages.get(url)
        if page is None:
            raise OSError("connection refused")
        return page if isinstance(page, bytes) else json.dumps(page).encode()

    def verify(self, token: str) -> OidcPrincipal:
        return asyncio.run(self.verifier.verify(token))

    def refuses(self, token: str, kind: Kind = Kind.NOT_AUTHENTICATED, says: str = "") -> HandclaspError:
        with pytest.raises(HandclaspError) as caught:
            self.verify(token)
        assert caught.value.kind is kind, caught.value
        assert says in caught.value.detail
        return caught.value


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec"), (EC384_KEY, "ES384", "ec384"), (ED_KEY, "EdDSA", "ed"), (ED_KEY, "Ed25519", "ed")],
)
def test_a_good_token(key: Any, algorithm: str, kid: str) -> None:
    world = World()
    principal = world.verify(make(key, algorithm, kid, extra={"a": 1}))
    assert (principal.issuer, principal.subject, principal.jti) == (ISSUER, "job", "id-1")
    assert principal.claims["extra"] == {"a": 1}
    assert principal.expires_at == (NOW + 300 + LEEWAY) * 1000
    assert world.fetched == [METADATA, JWKS]


GOOD = [
    ("the audience in a list", {"aud": ["other", "handclasp"]}),
    ("expired within the leeway", {"exp": NOW - LEEWAY + 1}),
    ("issued a little in the future", {"iat": NOW + LEEWAY, "nbf": NOW + LEEWAY}),
    ("without nbf", {"nbf": "absent"}),
    ("without jti", {"jti": "absent"}),
    ("times with a fraction", {"exp": NOW + 0.5, "iat": NOW - 0.5}),
]


@pytest.mark.parametrize("claims", [case[1] for case in GOOD], ids=[case[0] for case in GOOD])
def test_a_token_that_is_good_as_well(claims: dict[str, Any]) -> None:
    World().verify(make(**claims))


BAD = [
    ("another issuer", {"iss": "https://evil.example.org"}, "issuer"),
    ("an issuer that only begins alike", {"iss": ISSUER + "/"}, "issuer"),
    ("no issuer", {"iss": "absent"}, "issuer"),
    ("an issuer that is not a text", {"iss": [ISSUER]}, "issuer"),
    ("another audience", {"aud": "other"}, "audience"),
    ("an audience that only contains ours", {"aud": "handclasp-test"}, "audience"),
    ("a list without ours", {"aud": ["other", "handclasp2"]}, "audience"),
    ("ours inside a list in a list", {"aud": [["handclasp"]]}, "audience"),
    ("ours as a key", {"aud": {"handclasp": 1}}, "audience"),
    ("no audience", {"aud": "absent"}, "audience"),
    ("an empty list", {"aud": []}, "audience"),
    ("no end", {"exp": "absent"}, "when it"),
    ("an end that is text", {"exp": str(NOW + 300)}, "when it"),
    ("an end that is true", {"exp": True}, "when it"),
    ("an end beyond all time", {"exp": 1 << 62}, "when it"),
    ("expired", {"exp": NOW - LEEWAY}, "expired"),
    ("no beginning", {"iat": "absent"}, "when it"),
    ("issued in the future", {"iat": NOW + LEEWAY + 1}, "future"),
    ("not valid yet", {"nbf": NOW + LEEWAY + 1}, "not valid yet"),
    ("nbf that is text", {"nbf": "now"}, "not valid yet"),
    ("no subject", {"sub": "absent"}, "sub"),
    ("a subject that is a number", {"sub": 7}, "sub"),
    ("a subject that is a list", {"sub": ["job"]}, "sub"),
    ("an empty subject", {"sub": ""}, "sub"),
    ("a subject with a line break", {"sub": "a\nb"}, "sub"),
    ("a subject without end", {"sub": "a" * 1025}, "sub"),
    ("a jti that is a number", {"jti": 7}, "jti"),
    ("a jti that is empty", {"jti": ""}, "jti"),
]


@pytest.mark.parametrize(("claims", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_claims(claims: dict[str, Any], says: str) -> None:
    World().refuses(make(**claims), says=says)


RSA_PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
FORGED: list[tuple[str, Callable[[], str], str]] = [
    ("no signature", lambda: make(None, "none"), "not a signed JWT"),
    ("alg none with a signature", lambda: make(RSA_KEY, "none"), "algorithm"),
    ("alg None", lambda: make(RSA_KEY, "None"), "algorithm"),
    ("HS256 with the public key as the secret", lambda: make(RSA_PEM, "HS256"), "algorithm"),
    ("HS256 with the secret that the key set publishes", lambda: make(b"x" * 32, "HS256", "secret"), "algorithm"),
    ("PS256, which is not taken", lambda: make(RSA_KEY, "PS256"), "algorithm"),
    ("an algorithm that is a list", lambda: make(RSA_KEY, ["RS256"]), "algorithm"),
    ("no algorithm", lambda: make(RSA_KEY, "RS256", header={"alg": "absent"}), "algorithm"),
    ("another key under the right id", lambda: make(OTHER_KEY), "signature"),
    ("an algorithm of another key type", lambda: make(EC_KEY, "ES256", "rsa"), "does not go with its key"),
    ("an algorithm of another curve", lambda: make(EC_KEY, "ES384", "ec"), "does not go with its key"),
    ("a weak key", lambda: make(WEAK_KEY, "RS256", "weak"), "no such key"),
    ("a key for encryption", lambda: make(RSA_KEY, "RS256", "encryption"), "no such key"),
    ("a symmetric key", lambda: make(RSA_KEY, "RS256", "secret"), "no such key"),
    ("no key id", lambda: make(kid="absent"), "kid"),
    ("a key id that is a number", lambda: make(kid=1), "kid"),
    ("an empty key id", lambda: make(kid=""), "kid"),
    ("a critical header", lambda: make(header={"crit": ["b64"], "b64": False}), "extensions"),
    ("a key of its own", lambda: make(OTHER_KEY, header={"jwk": public_jwk(OTHER_KEY, "rsa")}), "signature"),
    ("a place where its key is", lambda: make(OTHER_KEY, header={"jku": "https://evil.example.org/keys"}), "signature"),
    ("a changed claim", lambda: _changed(make()), "signature"),
    ("a fourth part", lambda: make() + ".x", "not a signed JWT"),
    ("padding", lambda: make().replace(".", "=.", 1), "not a signed JWT"),
    ("white space", lambda: " " + make(), "not a signed JWT"),
    ("JSON that is a list", lambda: f"{b64(b'[]')}.{b64(b'[]')}.AAAA", "not a signed JWT"),
    ("no JSON", lambda: "a.b.c", "not a signed JWT"),
    ("nothing", lambda: "", "not a signed JWT"),
]


def _changed(token: str) -> str:
    head, body, sealed = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "==")) | {"sub": "admin"}
    return f"{head}.{b64(json.dumps(claims).encode())}.{sealed}"


@pytest.mark.parametrize(("token", "says"), [case[1:] for case in FORGED], ids=[case[0] for case in FORGED])
def test_forged_tokens(token: Callable[[], str], says: str) -> None:
    world = World()
    world.refuses(token(), says=says)
    assert set(world.fetched) <= {METADATA, JWKS}


@pytest.mark.parametrize(
    "kid", ["../../etc/passwd", "/dev/null", "https://evil.example.org/key", "x' OR '1'='1", "rsa\0", "|id", "RSA", "a" * 600]
)
def test_a_key_id_is_compared_and_nothing_else(kid: str) -> None:
    world = World()
    world.refuses(make(OTHER_KEY, kid=kid))
    assert set(world.fetched) <= {METADATA, JWKS}


@pytest.mark.filterwarnings("ignore")
def test_a_weak_key_is_refused_by_our_own_rule_and_not_by_a_warning() -> None:
    World().refuses(make(WEAK_KEY, "RS256", "weak"), says="no such key")


def test_a_token_is_not_larger_than_its_limit() -> None:
    World().verify(make(extra="a" * 9000))
    World().refuses(make(extra="a" * MAX_TOKEN), Kind.TOO_LARGE)


def test_where_each_token_serves_once_it_must_have_an_id() -> None:
    world = World(OidcIssuer("ci", ISSUER, "handclasp", single_use=True))
    assert world.verify(make()).jti == "id-1"
    world.refuses(make(jti="absent"), says="jti")


# --- keys -------------------------------------------------------------------------------------------------------------------------------


def test_keys_are_fetched_once_and_again_when_they_are_old() -> None:
    world = World()
    for _ in range(3):
        world.verify(make())
    assert len(world.fetched) == 2
    world.now += REFRESH * 1000
    world.verify(make(exp=NOW + 10_000))
    assert len(world.fetched) == 4


def test_an_unknown_key_id_fetches_once_in_the_cooldown() -> None:
    world = World()
    world.verify(make())
    for _ in range(5):
        world.refuses(make(OTHER_KEY, kid="new"), says="no such key")
    assert len(world.fetched) == 2  # they were fetched a moment ago
    world.now += COOLDOWN * 1000
    for _ in range(5):
        world.refuses(make(OTHER_KEY, kid="new"), says="no such key")
    assert len(world.fetched) == 4
    world.pages[JWKS] = {"keys": [public_jwk(OTHER_KEY, "new")]}
    world.now += COOLDOWN * 1000
    world.verify(make(OTHER_KEY, kid="new"))
    world.refuses(make(), says="no such key")  # the withdrawn key is not taken any more


def test_many_at_once_fetch_once() -> None:
    world = World()

    async def both() -> None:
        await asyncio.gather(*(world.verifier.verify(make()) for _ in range(10)))

    asyncio.run(both())
    assert len(world.fetched) == 2


def test_an_issuer_that_is_down() -> None:
    world = World()
    pages, world.pages = world.pages, {}
    error = world.refuses(make(), Kind.UNAVAILABLE)
    assert error.retry_after == COOLDOWN
    world.refuses(make(), Kind.UNAVAILABLE)
    assert len(world.fetched) == 1  # it is not asked again at once
    world.pages = pages
    world.now += COOLDOWN * 1000
    world.verify(make())


def test_known_keys_serve_for_a_while_when_the_issuer_is_down() -> None:
    world = World()
    world.verify(make())
    world.pages = {}
    world.now += STALE * 1000
    world.verify(make(exp=NOW + 10_000))
    world.now += 1000 + COOLDOWN * 1000
    world.refuses(make(exp=NOW + 10_000), Kind.UNAVAILABLE)


def test_a_clock_that_was_set_back_neither_keeps_old_keys_nor_stops_fetching() -> None:
    """Regression: keys fetched "in the future" were taken for current, and no fetch was tried, until the clock had caught up."""
    world = World()
    token = make(exp=NOW + 300, iat=NOW - 50_000, nbf=NOW - 50_000)
    world.verify(token)
    world.now -= 40_000_000
    world.verify(token)
    assert len(world.fetched) == 4
    world.verify(token)
    assert len(world.fetched) == 4
    world.pages = {}
    world.now -= 1_000_000
    world.refuses(token, Kind.UNAVAILABLE)  # how old the keys are is not known


BROKEN: list[tuple[str, str, Any]] = [
    ("a key set of 1 MB", JWKS, {"keys": KEYS, "padding": "x" * 1_000_000}),
    ("a key set just above the limit", JWKS, json.dumps({"keys": KEYS}).encode().ljust(MAX_DOCUMENT + 1)),
    ("too many keys", JWKS, {"keys": KEYS * 100}),
    ("no key that can be used", JWKS, {"keys": [KEYS[4], KEYS[6]]}),
    ("no JSON", JWKS, b"<html>"),
    ("a list", JWKS, []),
    ("keys that are no list", JWKS, {"keys": {"rsa": 1}}),
    ("deep JSON", JWKS, b"[" * 100_000),
    ("metadata of another issuer", METADATA, {"issuer": "https://evil.example.org", "jwks_uri": JWKS}),
    ("metadata without keys", METADATA, {"issuer": ISSUER}),
    ("keys over http", METADATA, {"issuer": ISSUER, "jwks_uri": "http://oidc.example.org/keys"}),
    ("keys at the metadata service", METADATA, {"issuer": ISSUER, "jwks_uri": "https://169.254.169.254/keys"}),
    ("keys in a file", METADATA, {"issuer": ISSUER, "jwks_uri": "file:///etc/keys"}),
]


@pytest.mark.parametrize(("url", "page"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_an_issuer_that_answers_wrongly(url: str, page: Any) -> None:
    world = World()
    for place in ("http://oidc.example.org/keys", "https://169.254.169.254/keys", "file:///etc/keys"):
        world.pages[place] = world.pages[JWKS]
    world.pages[url] = page
    world.refuses(make(), Kind.UNAVAILABLE)
    assert set(world.fetched) <= {METADATA, JWKS}


def test_a_key_set_at_a_known_place() -> None:
    world = World(OidcIssuer("ci", ISSUER, "handclasp", jwks_url=JWKS))
    world.verify(make())
    assert world.fetched == [JWKS]


def test_another_policy() -> None:
    world = World()
    world.verify(make())
    world.verifier.use((OidcIssuer("ci", ISSUER, "other"),))
    world.refuses(make(), says="audience")
    world.verifier.use(())
    world.refuses(make(), says="issuer")
    assert len(world.fetched) == 2


@given(st.one_of(st.text(max_size=100), st.tuples(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))))
def test_anything_is_a_token_or_a_refusal(parts: Any) -> None:
    text = parts if isinstance(parts, str) else ".".join(map(b64, parts))
    World().refuses(text)


@given(st.integers(0, 900), st.characters())
def test_a_damaged_token_is_refused(position: int, letter: str) -> None:
    good = make(EC_KEY, "ES256", "ec")
    position %= len(good)
    damaged = good[:position] + letter + good[position + 1 :]
    if damaged != good and position != len(good) - 1:  # the last letter of base64url has bits that mean nothing
        World().refuses(damaged)


NAMES = st.sampled_from(["iss", "aud", "exp", "iat", "nbf", "sub", "jti"])
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.one_of(st.none(), NUMBERS, st.text(max_size=5), st.lists(st.integers(), max_size=2))


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_claims_of_any_type(claims: dict[str, Any]) -> None:
    with or_refused(Kind.NOT_AUTHENTICATED):
        World().verify(make(ED_KEY, "EdDSA", "ed", **claims))
