"""Which API server, and how to get in: the pod's service account, files that settings name, or a kubeconfig."""

from __future__ import annotations

import base64
import binascii
import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from msgspec import Struct

from handclasp.client.material import Credential
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.discovery.http import Http
    from handclasp.discovery.tools import Tools

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts what a pod needs to talk to the API; a collector may read files there."""
MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of one page. Whoever gets more asks for fewer objects: one has at most 1.5 MiB (what etcd takes)."""
TIMEOUT = 30.0  # seconds; a page of 100 takes an API server well below one
_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Access(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to reach the API of one cluster; part of the settings of every kind that does."""

    cluster: str
    """The cluster's name, as it stands in the inventory: letters, digits, ``.``, ``_`` and ``-``. Choose one and keep it."""
    api: str = ""
    """The API server, ``https://HOST:PORT``. Empty: the kubeconfig's, or the one of the cluster that the collector runs in."""
    ca_file: str = ""
    """File with the authority of the API server's certificate."""
    token_file: str = ""
    """File with a bearer token, and beside it FILE.hosts with the servers that it may go to; read again for each request."""
    certificate_file: str = ""
    """File with a client certificate, instead of a token."""
    key_file: str = ""
    """File with the client certificate's key."""
    kubeconfig: str = ""
    """A kubeconfig with certificates, keys or tokens in it or in files beside it. Plugins (``exec``) are not run."""
    context: str = ""
    """The kubeconfig's context. Empty: its current one."""
    rate: float = 10.0
    """Requests per second, at most."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An API server and a credential for it, however they were named. Files are as :meth:`Tools.secret` takes them."""

    url: str
    ca: bytes | None = None
    ca_file: str | None = None
    token_file: str | None = None
    token_is_own: bool = False
    """The API server was not named by settings, but by what the token comes from: the pod, a kubeconfig."""
    token: str | None = field(default=None, repr=False)
    certificate_file: str | None = None
    key_file: str | None = None
    credential: Credential | None = field(default=None, repr=False)


def check_access(settings: Access) -> None:
    """Raise ``bad_setting`` for settings that say nothing, or two things; no I/O."""
    if not _CLUSTER.fullmatch(settings.cluster):
        raise _bad(f"{settings.cluster!r} is not a cluster's name", "letters, digits, '.', '_' and '-', at most 63")
    if not 0 < settings.rate <= 1000:
        raise _bad("rate is requests per second, above 0 and at most 1000")
    if settings.kubeconfig and (settings.api or settings.ca_file or settings.token_file or settings.certificate_file):
        raise _bad("a kubeconfig says all of api, ca_file, token_file and certificate_file", "leave them out")
    if settings.context and not settings.kubeconfig:
        raise _bad("context names one of a kubeconfig's", "set kubeconfig too")
    if bool(settings.certificate_file) != bool(settings.key_file):
        raise _bad("a client certificate needs its key", "set certificate_file and key_file")
    if settings.certificate_file and settings.token_file:
        raise _bad("there is a token and a client certificate", "set one of them")
    if settings.api and not settings.api.startswith("https://"):
        raise _bad("api is not an https:// address")


def find_entry(settings: Access, tools: Tools) -> Entry:
    """Return the way in that settings name. Raises ``bad_setting`` where there is none, or none that can be used here."""
    if settings.kubeconfig:
        return _from_kubeconfig(settings, tools)
    inside = not settings.api
    url = settings.api or _own_api()
    token = settings.token_file or ("" if settings.certificate_file else str(ACCOUNT / "token") if inside else "")
    if not token and not settings.certificate_file:
        raise _bad("there is no credential for the API", "set token_file, certificate_file and key_file, or kubeconfig")
    return Entry(
        url=url,
        ca_file=settings.ca_file or (str(ACCOUNT / "ca.crt") if inside else None),
        token_file=token or None,
        token_is_own=inside and not settings.token_file,
        certificate_file=settings.certificate_file or None,
        key_file=settings.key_file or None,
    )


def open_http(entry: Entry, tools: Tools, *, max_answer: int = 0) -> Http:
    """Return a client for an API server; an async context manager."""
    headers = {"user-agent": "handclasp-collector"} | ({"authorization": f"Bearer {entry.token}"} if entry.token else {})
    return tools.http(
        entry.url,
        ca=entry.ca,
        ca_file=entry.ca_file,
        certificate_file=entry.certificate_file,
        key_file=entry.key_file,
        credential=entry.credential,
        token_file=entry.token_file,
        token_is_own=entry.token_is_own,
        headers=headers,
        timeout=TIMEOUT,
        max_answer=max_answer or MAX_ANSWER,
    )


def _own_api() -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise _bad("this does not run in a cluster, and no other is named", "set kubeconfig, or api with ca_file and token_file")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


# --- kubeconfig ---------------------------------------------------------------------------------------------------------------------------


def _from_kubeconfig(settings: Access, tools: Tools) -> Entry:
    try:
        document = yaml.safe_load(tools.secret(settings.kubeconfig))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _bad(f"the kubeconfig {settings.kubeconfig} is not YAML") from error
    if not isinstance(document, dict):
        raise _bad(f"the kubeconfig {settings.kubeconfig} holds no configuration")
    wanted = settings.context or _text(document, "current-context")
    context = _named(document, "contexts", "context", wanted)
    cluster = _named(document, "clusters", "cluster", _text(context, "cluster"))
    user = _named(document, "users", "user", _text(context, "user"))
    _refuse_what_is_not_done(cluster, user)
    beside = posixpath.dirname(settings.kubeconfig)

    def file(part: dict[str, Any], name: str) -> str | None:
        path = _text(part, name)
        return posixpath.join(beside, path) if path else None

    url, ca = _text(cluster, "server"), _data(cluster, "certificate-authority-data")
    if not url.startswith("https://"):
        raise _bad("the kubeconfig's server is not an https:// address")
    certificate, key = _data(user, "client-certificate-data"), _data(user, "client-key-data")
    # As kubectl: a token's file goes before a token, data before files, and a certificate goes with either.
    token_file = file(user, "tokenFile")
    return Entry(
        url=url,
        ca=ca,
        ca_file=None if ca else file(cluster, "certificate-authority"),
        token_file=token_file,
        token_is_own=True,
        token=None if token_file else _token(user),
        certificate_file=None if certificate else file(user, "client-certificate"),
        key_file=None if key else file(user, "client-key"),
        credential=Credential(certificate, key) if certificate and key else None,
    )


def _refuse_what_is_not_done(cluster: dict[str, Any], user: dict[str, Any]) -> None:
    for name in ("exec", "auth-provider"):
        if user.get(name):
            raise _bad(
                f"the kubeconfig's user has {name}: plugins are not run here",
                "make a service account with the read-only role (docs/clusters.md), and a kubeconfig with its token",
            )
    if user.get("username") or user.get("password"):
        raise _bad("the kubeconfig's user has a password", "Kubernetes takes none since 1.19; use a token or a client certificate")
    if cluster.get("insecure-skip-tls-verify"):
        raise _bad("the kubeconfig does not verify the API server (insecure-skip-tls-verify)", "name its authority instead")
    for name in ("proxy-url", "tls-server-name"):
        if cluster.get(name):
            raise _bad(f"the kubeconfig's cluster has {name}, which is not done here", "run a collector in the cluster")


def _named(document: dict[str, Any], group: str, one: str, name: str) -> dict[str, Any]:
    entries = document.get(group)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(one), dict):
            found: dict[str, Any] = entry[one]
            return found
    raise _bad(f"the kubeconfig has no {one} named {name!r}")


def _text(part: dict[str, Any], name: str) -> str:
    value = part.get(name)
    return value if isinstance(value, str) else ""


def _token(user: dict[str, Any]) -> str | None:
    token = _text(user, "token").strip()
    if token and not all("!" <= letter <= "~" for letter in token):
        raise _bad("the kubeconfig's token is none")
    return token or None


def _data(part: dict[str, Any], name: str) -> bytes | None:
    try:
        return base64.b64decode(_text(part, name), validate=True) or None
    except (binascii.Error, ValueError) as error:
        raise _bad(f"the kubeconfig's {name} is not base64") from error


def _bad(detail: str, hint: str = "") -> HandclaspError:
    return HandclaspError(Kind.BAD_SETTING, detail, hint=hint)
