"""The rules of ownership: a YAML file, read whole and compared whole.

.. code-block:: yaml

    version: 1
    threshold: 50                        # percent: what is less sure is only a guess, for people to decide
    rules:
      - {name: team-label, workload_label: team, owner: "{value}"}
      - {name: ns-label, namespace_label: owner, is: "team-{team}", owner: "{team}"}
      - {name: prod, namespace: "*-prod", environment: prod}
      - {name: paths, spiffe: "spiffe://example.org/ns/{team}/**", owner: "{team}"}
      - {name: tag, tag: CostCentre, is: pay*, owner: payments, tier: 1}
      - {name: services, spiffe: "spiffe://example.org/*/{service}", component: "{service}"}
      - {name: repository, spiffe: "spiffe://example.org/*/{service}", path: "services/{service}/main.go"}
      - {name: databases, host_group: db, owner: dba}
      - {name: zone, zone: "{team}.example.org", owner: "{team}", confidence: 55}

Each rule looks at one thing (the first key after its name), and that is what its evidence is; with ``component`` or ``path`` the owner is
looked up in the imported catalogue, and the evidence is that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from handclasp.errors import Kind
from handclasp.ownership.names import check_environment, check_owner, check_tier
from handclasp.ownership.patterns import Pattern, Template, spiffe_pattern, text_pattern, zone_pattern
from handclasp.pki.yamlshape import Part, changes_between, document_of, each_once
from handclasp.wire import PolicyChange

THRESHOLD = 50

_KEYED = {"workload_label": "workload", "namespace_label": "namespace", "tag": "cloud", "fact": "cloud"}
"""What is looked at by a key, and the evidence that it is; the value is compared with ``is``."""
_PLAIN: Mapping[str, tuple[str, Callable[[str], Pattern]]] = {
    "workload": ("workload", text_pattern),
    "namespace": ("namespace", text_pattern),
    "spiffe": ("spiffe", spiffe_pattern),
    "host_group": ("host", text_pattern),
    "host": ("host", text_pattern),
    "zone": ("zone", zone_pattern),
}
LOOKS_AT = (*_KEYED, *_PLAIN)
CONFIDENCE = {"workload": 90, "namespace": 80, "spiffe": 75, "cloud": 70, "catalogue": 65, "host": 60, "zone": 55}
"""How sure a rule is that does not say so itself, in percent."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, compiled."""

    name: str
    evidence: str
    looks_at: str
    key: str
    """Of the label or tag; empty where there is none."""
    pattern: Pattern
    owner: Template | None
    tier: Template | None
    environment: Template | None
    component: Template | None
    path: Template | None
    confidence: int
    unknown: bool
    """Whether an owner that no directory knows is taken from the evidence as it is. One that is written in the rule always is."""


@dataclass(frozen=True, slots=True)
class OwnershipRules:
    """One whole document. Immutable."""

    rules: tuple[Rule, ...] = ()
    threshold: int = THRESHOLD
    text: str = ""
    sha256: bytes = field(default=hashlib.sha256(b"").digest())


EMPTY = OwnershipRules()
"""Of a new installation: only tokens say who owns what, and people."""


def parse_ownership(text: str, source: str = "ownership.yaml") -> OwnershipRules:
    """Return the rules that ``text`` says. Raises one ``bad_policy`` with every mistake as ``source:line: message``."""
    top = document_of(text, source, Kind.BAD_POLICY)
    top.keys("version", "threshold", "rules")
    if top.value.get("version") != 1:
        top.problem("version", "the version must be 1")
    threshold = _percent(top, "threshold", THRESHOLD)
    rules = [_rule(part) for part in top.parts("rules")]
    each_once(top.parts("rules", quiet=True), "name")
    top.problems.raise_if_any()
    return OwnershipRules(tuple(rule for rule in rules if rule is not None), threshold, text, hashlib.sha256(text.encode()).digest())


def _rule(part: Part) -> Rule | None:
    name = part.name()
    looks = [key for key in LOOKS_AT if key in part.value]
    if len(looks) != 1:
        part.problem("", f"a rule looks at exactly one of {', '.join(LOOKS_AT)}")
        return None
    kind = looks[0]
    part.keys("name", kind, *(("is",) if kind in _KEYED else ()), *_SAYS)
    evidence, pattern = _pattern(part, kind)
    if pattern is None:
        return None
    owner, tier, environment, component, path = (_template(part, key, pattern) for key in _TEMPLATES)
    if not any((owner, tier, environment, component, path)):
        part.problem("", "a rule says owner, tier or environment, or leads to a component or path")
    if sum(one is not None for one in (owner, component, path)) > 1:
        part.problem("", "only one of owner, component and path")
    if component is not None or path is not None:
        evidence = "catalogue"
    return Rule(
        name,
        evidence,
        kind,
        part.text(kind) if kind in _KEYED else "",
        pattern,
        owner,
        tier,
        environment,
        component,
        path,
        _percent(part, "confidence", CONFIDENCE[evidence]),
        part.flag("unknown", False),
    )


_TEMPLATES = ("owner", "tier", "environment", "component", "path")
_SAYS = (*_TEMPLATES, "confidence", "unknown")
_LITERAL = {"owner": check_owner, "tier": check_tier, "environment": check_environment}


def _pattern(part: Part, kind: str) -> tuple[str, Pattern | None]:
    if kind in _KEYED:
        text = part.text("is") if "is" in part.value else "{value}"
        return _KEYED[kind], part.attempt("is" if "is" in part.value else kind, lambda: text_pattern(text))
    evidence, make = _PLAIN[kind]
    return evidence, part.attempt(kind, lambda: make(part.text(kind)))


def _template(part: Part, key: str, pattern: Pattern) -> Template | None:
    if key not in part.value:
        return None
    value = part.value[key]
    text = str(value) if key == "tier" and isinstance(value, int) and not isinstance(value, bool) else part.text(key)
    if not text:
        return None
    template = part.attempt(key, lambda: Template(text, pattern.names))
    if template is not None and not template.names and key in _LITERAL:
        part.attempt(key, lambda: _LITERAL[key](text))
    return template


def _percent(part: Part, key: str, default: int) -> int:
    value = part.value.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        part.problem(key, f"{key} is a whole number from 1 to 100, in percent")
        return default
    return value


def diff(old: OwnershipRules, new: OwnershipRules) -> list[PolicyChange]:
    """Return what differs in meaning between two documents. Comments are no difference; the order of rules is one."""
    return changes_between(_meaning(old), _meaning(new))


def _meaning(document: OwnershipRules) -> dict[str, str]:
    parts: dict[str, Any] = {"threshold": document.threshold}
    for rule in document.rules:
        parts[f"rule {rule.name}"] = rule_meaning(rule)
    common = [rule.name for rule in document.rules]
    if common:
        parts["order"] = common
    return {subject: msgspec.json.encode(meaning, order="sorted").decode() for subject, meaning in parts.items()}


def rule_meaning(rule: Rule) -> dict[str, Any]:
    """Return a rule as it would be written."""
    what: dict[str, Any] = {rule.looks_at: rule.key, "is": rule.pattern.text} if rule.key else {rule.looks_at: rule.pattern.text}
    for key in _TEMPLATES:
        template: Template | None = getattr(rule, key)
        if template is not None:
            what[key] = template.text
    return what | {"confidence": rule.confidence} | ({"unknown": True} if rule.unknown else {})


def read_ownership(text: str) -> OwnershipRules:
    """Return the rules of an applied text; none for an empty one."""
    return parse_ownership(text) if text else EMPTY
