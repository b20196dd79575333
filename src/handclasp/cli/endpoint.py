"""Look at what a TLS endpoint serves. Nothing is sent but a handshake, so nothing needs to be trusted for it."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from handclasp.cli.describe import Item, describe
from handclasp.errors import HandclaspError, Kind

_TIMEOUT = 10.0


def describe_endpoint(host: str, port: int, servername: str | None, ca: str | None, now: int) -> tuple[dict[str, Any], list[Item]]:
    """Return facts of the handshake with ``problems``, and the certificates served, leaf first.

    ``ca`` is a bundle file that the chain should lead to. Raises ``unavailable`` when there is no TLS to be had there.
    """
    from handclasp.client.connections import unverified_context

    name = servername or host
    chain, version, cipher = _handshake(host, port, name, unverified_context())
    items = describe(b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in chain), f"{host}:{port}", now)
    problems = [] if _is_named(items[0], name) else [f"the certificate is not for {name}"]
    if ca is not None:
        problem = _verify(host, port, name, ca)
        if problem:
            problems.append(problem)
    return {"tls_version": version, "cipher": cipher, "problems": problems}, items


def _handshake(host: str, port: int, name: str, context: ssl.SSLContext) -> tuple[list[bytes], str, str]:
    try:
        with (
            socket.create_connection((host, port), _TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=name) as secure,
        ):
            cipher = secure.cipher()
            return _served(secure), secure.version() or "", cipher[0] if cipher else ""
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
        reason = (getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)) or str(error)
        raise HandclaspError(Kind.UNAVAILABLE, f"no TLS handshake with {host}:{port}: {reason}") from error


def _served(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the chain as it was sent. Python has a public name for it since 3.13; before, the object inside has it."""
    public = getattr(secure, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    inner = getattr(getattr(secure, "_sslobj", None), "get_unverified_chain", None)
    if inner is not None:
        return [certificate.public_bytes(2) for certificate in inner() or ()]  # 2: _ssl.ENCODING_DER
    leaf = secure.getpeercert(binary_form=True)
    return [leaf] if leaf else []


def _is_named(leaf: Item, name: str) -> bool:
    """Hold a host name or address against a certificate's names (RFC 9525: exact, or a wildcard for exactly the first label)."""
    if leaf["type"] != "certificate":
        return False
    wanted = name.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    dns = {known.lower() for known in leaf["dns"]}
    return wanted in dns or (bool(parent) and f"*.{parent}" in dns) or wanted in leaf["ip"]


def _verify(host: str, port: int, name: str, ca: str) -> str:
    from handclasp.cli.files import read_bytes
    from handclasp.client.material import load_trust

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # names are held against it above, in words
    load_trust(context, read_bytes(ca))
    try:
        _handshake(host, port, name, context)
    except ssl.SSLCertVerificationError as error:
        return f"the chain does not lead to {ca}: {error.verify_message}"
    return ""
