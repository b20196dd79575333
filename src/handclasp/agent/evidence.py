"""Evidence as the agent shows it: where it is found is remembered, what it says is read anew each time, and no secret is kept.

A projected token rotates, a device's certificate is renewed by others, a metadata service answers whenever it is asked: so an agent whose
own certificate has ended enrols again by itself. One that came by a one-time token cannot, and says so in time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from handclasp import wire
from handclasp.agent.state import AgentFile, Enrolment, Obtained, StateDirectory
from handclasp.client.api import ApiClient
from handclasp.client.settings import read_token_file
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from handclasp.pki.possession import enrolment_text

METHODS = ("token", "oidc", "kubernetes", "x509", "aws")
KUBERNETES_TOKEN = "/var/run/secrets/tokens/handclasp"  # noqa: S105  (where the secret is)
"""Where the manifests of the project project the token."""
METADATA = "http://169.254.169.254"
"""The link-local address of the metadata service of EC2."""

_TIMEOUT = 5.0
_MOST = 16_384
_DOCUMENT, _SIGNATURE = "/latest/dynamic/instance-identity/document", "/latest/dynamic/instance-identity/rsa2048"


def checked(enrolment: Enrolment) -> Enrolment:
    """Return where evidence is found, complete with what is usual; raise ``bad_setting`` when something is missing or does not belong."""
    method = enrolment.method
    if method not in METHODS:
        raise HandclaspError(Kind.BAD_SETTING, f"{method!r} is not a method", hint=f"one of {', '.join(METHODS)}")
    if method == "x509" and not (enrolment.cert_file and enrolment.key_file):
        raise HandclaspError(Kind.BAD_SETTING, "a certificate as evidence needs its file and its key's", hint="--cert FILE --key FILE")
    if method == "oidc" and not enrolment.token_file:
        raise HandclaspError(Kind.BAD_SETTING, "an OIDC token as evidence is read from a file", hint="--token-file FILE")
    if method == "kubernetes" and not enrolment.cluster:
        raise HandclaspError(Kind.BAD_SETTING, "the cluster's name in the server's policy is needed", hint="--cluster NAME")
    if method == "aws" and bool(enrolment.document_file) != bool(enrolment.signature_file):
        raise HandclaspError(Kind.BAD_SETTING, "document and signature are given together", hint="--aws-document FILE --aws-signature FILE")
    if method == "kubernetes" and not enrolment.token_file:
        enrolment.token_file = KUBERNETES_TOKEN
    if method == "aws" and not enrolment.document_file and not enrolment.metadata_url:
        enrolment.metadata_url = METADATA
    for name in ("token_file", "cert_file", "key_file", "document_file", "signature_file"):
        if value := getattr(enrolment, name):
            setattr(enrolment, name, str(Path(value).expanduser().absolute()))
    return enrolment


def gather(enrolment: Enrolment, client: ApiClient, csr: str) -> wire.Evidence:
    """Return the evidence as it is at this moment. ``client`` is asked for a challenge where the method needs one.

    Raises ``bad_setting`` when a file cannot be read or used, ``unavailable`` when the metadata service does not answer, and what the
    client raises.
    """
    if enrolment.method in ("oidc", "kubernetes"):
        return wire.Evidence(method=enrolment.method, token=read_token_file(enrolment.token_file), cluster=enrolment.cluster)
    if enrolment.method == "x509":
        return _certificate(enrolment, client, csr)
    if enrolment.method == "aws":
        return _instance(enrolment)
    raise HandclaspError(Kind.BAD_SETTING, "a one-time token serves once", hint="make a new one with `handclasp token create NAME --agent`")


def reenrol(state: StateDirectory, agent: AgentFile, url: str, ca: str | None) -> Callable[[str], wire.Issued] | None:
    """Return how this agent comes to another certificate when its own has ended or is refused: a function of the CSR (PEM).

    None where it cannot by itself: by a one-time token, or evidence that the server takes once. The function raises what
    :func:`gather` and the server raise; how often it is called is for the caller to space out.
    """
    how = agent.enrolment
    if how.method == "token" or not how.again:
        return None

    def enrol_again(csr: str) -> wire.Issued:
        # Without the agent's certificate: where that has ended, the handshake itself would be refused.
        with ApiClient(url, ca=ca, timeout=10, attempts=1) as client:
            try:
                issued = client.enrol(wire.EnrolRequest(csr=csr, evidence=gather(how, client, csr)))
            except HandclaspError as error:
                if error.kind is not Kind.BAD_NAME:
                    raise
                raise HandclaspError(
                    Kind.BAD_NAME, f"the policy gives this host another name than {agent.identity} now", hint="enrol this host again"
                ) from error
        if issued.again != how.again:  # the rule has changed: whoever looks at the status is told in time
            how.again = issued.again
            with contextlib.suppress(OSError):
                state.save_agent(agent)
        return issued

    return enrol_again


def _certificate(enrolment: Enrolment, client: ApiClient, csr: str) -> wire.Evidence:
    chain, key = _read(enrolment.cert_file).decode("ascii", "replace"), keys.from_pem(_read(enrolment.key_file))
    challenge = client.challenge().challenge
    der = ssl.PEM_cert_to_DER_cert(csr.replace("CERTIFICATE REQUEST", "CERTIFICATE"))
    signature = keys.sign(key, enrolment_text(challenge, hashlib.sha256(der).digest()))
    return wire.Evidence(method="x509", chain=chain, challenge=challenge, signature=base64.b64encode(signature).decode())


def _instance(enrolment: Enrolment) -> wire.Evidence:
    if enrolment.document_file:
        document, signature = _read(enrolment.document_file), _read(enrolment.signature_file)
    else:
        document, signature = _metadata(enrolment.metadata_url)
    encoded = _unframed(signature.decode("ascii", "replace"))
    return wire.Evidence(method="aws", document=base64.b64encode(document).decode(), signature=encoded)


def _unframed(text: str) -> str:
    """Return the base64 of a signature that was saved with the lines that OpenSSL wants around it."""
    return "".join("".join(line.split()) for line in text.splitlines() if not line.startswith("-----"))


def _metadata(url: str) -> tuple[bytes, bytes]:
    """Return document and signature from the metadata service, by its version 2: a session's token first (no proxy, no redirect)."""
    connection = _connection(url)
    try:
        session = _ask(connection, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        headers = {"X-aws-ec2-metadata-token": session.decode("latin-1").strip()}
        return _ask(connection, "GET", _DOCUMENT, headers), _ask(connection, "GET", _SIGNATURE, headers)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HandclaspError(
            Kind.UNAVAILABLE, f"the metadata service at {url} does not answer: {error}", hint="is this an EC2 instance, and IMDSv2 enabled?"
        ) from error
    finally:
        connection.close()


def _connection(url: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.path in ("", "/"):
            return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=_TIMEOUT)
    except ValueError:  # of a port, of brackets
        pass
    raise HandclaspError(Kind.BAD_SETTING, f"{url!r} is not the address of a metadata service", hint=f"write it like {METADATA}")


def _ask(connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]) -> bytes:
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read(_MOST + 1)
    if response.status != 200 or len(body) > _MOST:
        raise http.client.HTTPException(f"{method} {path} was answered with status {response.status}")
    return body


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(4 * _MOST + 1)
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read {path}: {error.strerror}") from error
    if len(data) > 4 * _MOST:
        raise HandclaspError(Kind.BAD_SETTING, f"{path} is too large to be what it should be")
    return data


def warning(agent: AgentFile, own: Obtained | None, now: int) -> str:
    """Return what a person must do before the agent's own certificate ends, or nothing.

    Said when its renewal is overdue and the agent cannot enrol again by itself: nothing else will help, and there is still time.
    """
    if own is None or agent.enrolment.again or not own.renew_before < now < own.not_after:
        return ""
    method = agent.enrolment.method
    what = "a one-time token" if method == "token" else f"{method} evidence, which the server takes once"
    then = (
        "make a new token with `handclasp token create NAME --agent`"
        if method == "token"
        else "revoke its last certificate on the server, or set once: false in the rule"
    )
    return (
        f"the agent's own certificate ends at {rfc3339(own.not_after)}, its renewal is overdue, and it cannot enrol again by itself:"
        f" it came by {what}. Where the renewal does not succeed soon, {then}, and run `handclasp agent enroll` on this host before then"
    )
