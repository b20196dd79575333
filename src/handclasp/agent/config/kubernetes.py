"""Targets that are Secrets of a Kubernetes cluster."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from handclasp.agent.config import values
from handclasp.agent.config.table import Table
from handclasp.agent.config.targets import About
from handclasp.agent.kubernetes_api import Cluster
from handclasp.agent.targets.base import Target
from handclasp.agent.targets.kubernetes import KubernetesSecret

# The forms that the API accepts: RFC 1123 labels and subdomains, and qualified names.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*/)?{_WORD}")
_VALUE = re.compile(rf"{_WORD}")


def read_kubernetes_secret(table: Table, _kind: str, _about: About) -> Target:
    """Read a target of the kind ``kubernetes_secret``."""
    namespace = table.take("namespace", _named(_NAMESPACE, "a namespace"), "default", required=True)
    place = KubernetesSecret(
        namespace,
        table.take("name", _named(_NAME, "a Secret"), "none", required=True),
        labels=table.take("labels", _marks(_VALUE), ()),
        annotations=table.take("annotations", _marks(None), ()),
        cluster=_cluster(table),
        crl=table.take("crl", values.flag, False),
        force=table.take("force", values.flag, False),
    )
    return Target(place.name, place, timeout=table.take("timeout", values.duration, 30.0))


def _cluster(parent: Table) -> Cluster:
    usual = Cluster()
    table = parent.table("api")
    if table is None:
        return usual
    cluster = Cluster(
        table.take("url", _address, ""),
        table.take("ca", table.path_of, usual.ca),
        table.take("token_file", table.path_of, usual.token_file),
    )
    table.done()
    return cluster


def _address(value: Any) -> str:
    parts = urlsplit(values.url(value))
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username is not None or not str(value).isascii():
        raise ValueError("an address such as https://10.0.0.1:6443 is expected")
    parts.port  # noqa: B018  (raises ValueError for one that is none)
    return str(value).rstrip("/")


def _named(form: re.Pattern[str], what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not form.fullmatch(values.text(value)):
            raise ValueError(f"{value!r} cannot be the name of {what}: lower-case letters, digits and -")
        return str(value)

    return read


def _marks(form: re.Pattern[str] | None) -> Callable[[Any], tuple[tuple[str, str], ...]]:
    def read(value: Any) -> tuple[tuple[str, str], ...]:
        found = values.pairs(value)
        for key, text in found:
            if not _KEY.fullmatch(key):
                raise ValueError(f"{key!r} cannot be a key of labels or annotations")
            if key.startswith("handclasp/") or key == "app.kubernetes.io/managed-by":
                raise ValueError(f"{key} is set by the agent")
            if form is not None and not form.fullmatch(text):
                raise ValueError(f"{text!r} cannot be the value of a label")
        return found

    return read
