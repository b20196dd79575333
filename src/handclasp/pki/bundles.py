"""Trust bundles: the anchors and JWT keys of a trust domain, as PEM and as a SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4).

What is read here comes from others. Where the standard demands something, a bundle without it is refused whole; entries of a kind that is
not known are passed over, as it demands too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, keys
from handclasp.pki.jwt_svid import VerifyKey, base64url, from_base64url
from handclasp.pki.names import check_trust_domain

MAX_BUNDLE = 262_144  # bytes, as much as is fetched; a bundle with ten roots and ten JWT keys has 20,000
MAX_KEYS = 500  # in one bundle: chains are tried against each of them
MAX_SEQUENCE = (1 << 63) - 1  # what a row can hold
MAX_HINT = 365 * 86_400

_CURVES = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48)}
_READ_CURVES: dict[str, tuple[ec.EllipticCurve, int]] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-384": (ec.SECP384R1(), 48),
    "P-521": (ec.SECP521R1(), 66),
}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})  # RFC 7518 section 6, and AKP's
_KNOWN_KTY = ("EC", "RSA", "OKP", "AKP")  # no set: what is looked up may be anything that JSON has


def _number(value: int, size: int = 0) -> str:
    return base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def jwk_of(public_key: keys.PublicKey) -> dict[str, Any]:
    """Return the key's JWK members: RFC 7518 section 6, RFC 8037 for Ed25519, and the AKP type for ML-DSA."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        curve, size = _CURVES[public_key.curve.name]
        point = public_key.public_numbers()
        return {"kty": "EC", "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size)}
    if isinstance(public_key, rsa.RSAPublicKey):
        modulus = public_key.public_numbers()
        return {"kty": "RSA", "n": _number(modulus.n), "e": _number(modulus.e)}
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": base64url(public_key.public_bytes_raw())}
    return {"kty": "AKP", "alg": keys.key_type_of(public_key).upper(), "pub": base64url(public_key.public_bytes_raw())}


def spiffe_bundle(
    authorities: Sequence[bytes], sequence: int | None, refresh_hint: int, jwt_keys: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> bytes:
    """Return the SPIFFE bundle (a JWK set, JSON) of root certificates in DER and of JWT keys, as ``kid`` and JWK.

    ``sequence`` must rise with each change of content; None leaves it out, for a bundle that no trust domain published. ``refresh_hint`` in
    seconds. Raises ``bad_certificate`` or ``bad_key`` for an authority that cannot be published.
    """
    items: list[dict[str, Any]] = []
    for der in authorities:
        public_key = chains.load(der).public_key()
        keys.key_type_of(public_key)
        items.append({**jwk_of(public_key), "use": "x509-svid", "x5c": [base64.b64encode(der).decode()]})  # type: ignore[arg-type]
    items += [{**jwk, "use": "jwt-svid", "kid": kid} for kid, jwk in jwt_keys]
    numbers = {} if sequence is None else {"spiffe_sequence": sequence}
    return msgspec.json.encode({"keys": items, **numbers, "spiffe_refresh_hint": refresh_hint})


def pem_bundle(authorities: Sequence[bytes]) -> str:
    """Return DER certificates as one PEM text."""
    return "".join(map(chains.to_pem, authorities))


# --- reading ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpiffeBundle:
    """A SPIFFE bundle that was read and checked."""

    authorities: tuple[bytes, ...] = ()
    """Anchors in DER. None at all means that all are revoked."""
    jwt_keys: Mapping[str, VerifyKey] = field(default_factory=dict)
    """Keys of JWT-SVIDs by ``kid``."""
    sequence: int | None = None
    refresh_hint: int | None = None
    """Seconds."""

    @property
    def content(self) -> tuple[frozenset[bytes], frozenset[tuple[str, bytes]]]:
        """What it makes one trust: equal for bundles that differ in nothing else than order, numbers and entries that nobody knows."""
        jwt = frozenset((kid, keys.spki_der(key)) for kid, key in self.jwt_keys.items())
        return frozenset(self.authorities), jwt


def parse_spiffe_bundle(data: bytes, trust_domain: str) -> SpiffeBundle:
    """Return the bundle of ``trust_domain`` that ``data`` holds (SPIFFE Trust Domain and Bundle 4.1, 4.2).

    Raises ``bad_certificate`` with the reason: for what is no JWK set, an anchor that is not exactly one CA certificate or names another
    trust domain, a JWT key without ``kid``, numbers that are none, or a private key, which nobody should ever hand on.
    """
    check_trust_domain(trust_domain)
    if len(data) > MAX_BUNDLE:
        raise _bad(f"it has more than {MAX_BUNDLE} bytes")
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _bad("it is not a JSON object") from error
    items = document.get("keys")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _bad("it has no list of keys")
    if len(items) > MAX_KEYS:
        raise _bad(f"it has more than {MAX_KEYS} keys")
    authorities: dict[bytes, None] = {}
    jwt_keys: dict[str, VerifyKey] = {}
    for item in items:
        if _PRIVATE & item.keys():
            raise _bad("it holds a private key")
        if item.get("kty") not in _KNOWN_KTY:  # 4.2.1: an element with a kty that is not known must be ignored
            continue
        if item.get("use") == "x509-svid":
            authorities[_read_anchor(item, trust_domain)] = None
        elif item.get("use") == "jwt-svid":  # 4.2.2: and so must one with another use
            _add_jwt_key(jwt_keys, item)
    return SpiffeBundle(
        tuple(authorities), jwt_keys, _whole(document, "spiffe_sequence", MAX_SEQUENCE), _whole(document, "spiffe_refresh_hint", MAX_HINT)
    )


def read_bundle(text: str, trust_domain: str) -> tuple[bytes, SpiffeBundle]:
    """Return a bundle that somebody hands in, PEM or SPIFFE, in the SPIFFE format and read; raises ``bad_certificate``."""
    data = text.encode("utf-8", "replace")
    if "-----BEGIN" in text:
        if len(data) > MAX_BUNDLE:
            raise _bad(f"it has more than {MAX_BUNDLE} bytes")
        anchors = list(dict.fromkeys(chains.split_pem(text)))
        try:
            data = spiffe_bundle(anchors, None, 300)
        except HandclaspError as error:
            raise _bad(error.detail) from error
    return data, parse_spiffe_bundle(data, trust_domain)


def _bad(why: str) -> HandclaspError:
    return HandclaspError(Kind.BAD_CERTIFICATE, f"this is not a SPIFFE bundle that can be used: {why}")


def _whole(document: Mapping[str, Any], name: str, largest: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise _bad(f"its {name} is not a number that can be used")
    return value


def _read_anchor(item: Mapping[str, Any], trust_domain: str) -> bytes:
    chain = item.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):  # X509-SVID section 6.1
        raise _bad("an anchor does not have exactly one certificate (x5c)")
    try:
        der = binascii.a2b_base64(chain[0], strict_mode=True)
        certificate = chains.load(der)
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (binascii.Error, ValueError, x509.ExtensionNotFound, HandclaspError, *chains.UNREADABLE) as error:
        raise _bad("an anchor is not a certificate of an authority that can be read") from error
    if not basic.ca:
        raise _bad("an anchor is not the certificate of an authority")
    for uri in uris_of(certificate):
        if uri != f"spiffe://{trust_domain}":  # X509-SVID section 3: an authority's name is its trust domain
            raise _bad(f"an anchor is for {uri[:200]!r} and not for {trust_domain}")
    return der


def uris_of(certificate: x509.Certificate) -> list[str]:
    """Return the URIs in a certificate's subject alternative names; raise ``bad_certificate`` where these cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except chains.UNREADABLE as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the certificate's names cannot be read") from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _add_jwt_key(found: dict[str, VerifyKey], item: Mapping[str, Any]) -> None:
    kid = item.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 256 or not kid.isprintable():  # JWT-SVID section 4: it must be there
        raise _bad("a JWT key has no key ID")
    if kid in found:
        raise _bad(f"two JWT keys have the key ID {kid!r}")
    key = _read_jwt_key(item)
    if key is not None:
        found[kid] = key


def _read_jwt_key(item: Mapping[str, Any]) -> VerifyKey | None:
    """Return an EC or RSA key; None for a kind that signs no JWT-SVIDs we know. Raises ``bad_certificate`` for a broken or weak one."""
    try:
        if item["kty"] == "EC":
            curve = _READ_CURVES.get(str(item.get("crv")))
            if curve is None:
                return None
            x, y = (from_base64url(item[name]) for name in ("x", "y"))
            if not len(x) == len(y) == curve[1]:
                raise ValueError("a coordinate of another length")
            return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve[0]).public_key()
        if item["kty"] == "RSA":
            n, e = (int.from_bytes(from_base64url(item[name]), "big") for name in ("n", "e"))
            if not 2048 <= n.bit_length() <= 8192 or e.bit_length() > 33:
                raise ValueError("not 2048 to 8192 bits")
            return rsa.RSAPublicNumbers(e, n).public_key()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad("a JWT key cannot be read, or is weak") from error
    return None
