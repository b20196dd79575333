"""The kinds of sources: one line for each. A kind is loaded when somebody uses it, so that its libraries cost nobody else anything."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from handclasp.discovery.source import SourceKind
from handclasp.errors import HandclaspError, Kind

KINDS: Mapping[str, str] = {
    "network": "handclasp.discovery.network.kind:NETWORK",
    "import": "handclasp.discovery.imports.kind:IMPORT",
    "kubernetes": "handclasp.discovery.kubernetes.kind:KUBERNETES",
    "istio": "handclasp.discovery.istio.kind:ISTIO",
    "linkerd": "handclasp.discovery.linkerd:LINKERD",
    "files": "handclasp.discovery.files:FILES",
    "consul": "handclasp.discovery.consul.kind:CONSUL",
    "spire": "handclasp.discovery.spire:SPIRE",
    "vault": "handclasp.discovery.vault:VAULT",
    "ct": "handclasp.discovery.ct:CT",
    "step": "handclasp.discovery.step:STEP",
    "aws": "handclasp.discovery.aws:AWS",
}
"""Name -> ``module:attribute``, an instance of the kind. Append-only: sources of installations have these names."""


def load_kind(name: str) -> SourceKind:
    """Return a kind of source. Raises ``bad_setting`` for one that there is not, or of which a library is not installed."""
    place = KINDS.get(name)
    if place is None:
        raise HandclaspError(Kind.BAD_SETTING, f"there is no source of the kind {name!r}", hint=f"the kinds are: {', '.join(KINDS)}")
    module, _, attribute = place.partition(":")
    try:
        kind: SourceKind = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise HandclaspError(
            Kind.BAD_SETTING,
            f"sources of the kind {name} need a library that is not installed: {error.name}",
            hint=f"install handclasp[{name}]",
        ) from error
    return kind
