"""Which of the policy's workloads a process is, and what it lacks for the others. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from handclasp import wire
from handclasp.agent.socket.attest.base import kind_of
from handclasp.errors import HandclaspError
from handclasp.pki.names import check_spiffe_id

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# SPIFFE-ID section 2.2. A value with anything else in it could make more of a segment than one.
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class Entitled:
    """One workload that a process is: the SPIFFE ID is complete, and ``hint`` is nobody else's in the same list."""

    workload: wire.Workload
    identity: str
    hint: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others: the workload's name and the identity."""
        return self.workload.name, self.identity


def entitled(workloads: Iterable[wire.Workload], selectors: Collection[str]) -> list[Entitled]:
    """Return what a process with these selectors is, in the policy's order: the first is its default (Workload API section 5.2.1)."""
    found: list[Entitled] = []
    hints: set[str] = set()
    for workload in workloads:
        identity = None if missing(workload, selectors) else fill(workload.identity, selectors)
        if identity is None or any(other.key == (workload.name, identity) for other in found):
            continue
        hint = workload.hint if workload.hint not in hints else ""
        hints.add(hint)
        found.append(Entitled(workload, identity, hint))
    return found


def missing(workload: wire.Workload, selectors: Collection[str]) -> list[str]:
    """Return the selectors that a process lacks for a workload. A workload without any selector is nobody: it lacks all."""
    return [selector for selector in workload.selectors if selector not in selectors] if workload.selectors else ["(it has no selectors)"]


def fill(template: str, selectors: Collection[str]) -> str | None:
    """Return the identity with its placeholders filled, or None where that does not make one.

    A placeholder takes the process's only selector of that kind: of two values neither is taken.
    """
    identity = template
    for kind in _PLACEHOLDER.findall(template):
        values = {selector[len(kind) + 1 :] for selector in selectors if selector.startswith(f"{kind}:")}
        value = next(iter(values)) if len(values) == 1 else ""
        if not _SEGMENT.fullmatch(value):
            return None
        identity = identity.replace("{" + kind + "}", value)
    try:
        return check_spiffe_id(identity)
    except HandclaspError:
        return None


def fits(template: str, identity: str) -> bool:
    """Tell whether ``identity`` can have come from ``template``."""
    pattern = "".join(
        _SEGMENT.pattern.replace(r"\Z", "(?:/|$)") if index % 2 else re.escape(part)
        for index, part in enumerate(_PLACEHOLDER.split(template))
    )
    return re.fullmatch(pattern, identity) is not None


def unfilled(workload: wire.Workload, selectors: Collection[str]) -> list[str]:
    """Return the kinds of selector that the placeholders of a workload need and a process does not have once, in a usable form."""
    kinds = dict.fromkeys(_PLACEHOLDER.findall(workload.identity))
    return [kind for kind in kinds if fill("spiffe://td/{" + kind + "}", selectors) is None]


def kinds_of(workloads: Iterable[wire.Workload]) -> frozenset[str]:
    """Return the kinds of selector that anybody asks for: ``unix:uid``, ``k8s:ns`` …"""
    found: set[str] = set()
    for workload in workloads:
        found.update(kind_of(selector) for selector in workload.selectors)
        found.update(_PLACEHOLDER.findall(workload.identity))
    return frozenset(found)


def could_be(workloads: Iterable[wire.Workload], selectors: Collection[str], unknown: Collection[str]) -> bool:
    """Tell whether a process might be one of the workloads if the attestors in ``unknown``, which failed, had answered."""
    families = tuple(f"{name}:" for name in unknown)
    if not families:
        return False
    return any(
        all(lacking.startswith(families) for lacking in [*missing(workload, selectors), *unfilled(workload, selectors)])
        for workload in workloads
        if workload.selectors
    )
