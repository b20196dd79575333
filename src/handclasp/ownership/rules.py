"""Who owns an identity, by everything that is known about it. Pure: the same evidence gives the same answer in whatever order it comes.

The order of evidence is fixed: what a person confirmed, the owner of the token that obtained its certificates, labels of the workload,
labels and name of its namespace, the path of its SPIFFE ID, tags of the cloud, a catalogue, the group of its host, its DNS zone. What is
less sure than the threshold never gives an owner: it is a guess, shown to people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from handclasp.ownership.catalogue import Catalogue, Item
from handclasp.ownership.document import CONFIDENCE, OwnershipRules, Rule
from handclasp.ownership.names import TIERS, is_environment, is_owner, plain_owner

EVIDENCE = ("confirmed", "token", "workload", "namespace", "spiffe", "cloud", "catalogue", "host", "zone")
"""From the strongest to the weakest."""
DENIED = "denied"
"""An owner said that it is not theirs: no rule makes it theirs again, only a person."""

GIVEN = "as given"
"""The rule of what a place or its source says itself; no rule of a document can have this name."""
TOKEN_CONFIDENCE = 95
UNKNOWN_CONFIDENCE = 30
"""Of an owner that evidence names and no directory knows: it may be a namespace that is called like nobody."""
MAX_PLACES = 200
"""Places of one identity that are looked at: a thousand replicas have the same labels."""

_RANK = {name: place for place, name in enumerate(EVIDENCE)}


@dataclass(frozen=True, slots=True)
class Said:
    """What people said of an identity: a confirmation, or a denial (``evidence``)."""

    evidence: str
    owner: str
    rule: str
    tier: str | None = None
    environment: str | None = None
    detail: str = ""
    at: int = 0
    due_at: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one identity."""

    said: tuple[Said, ...] = ()
    tokens: tuple[tuple[str, str], ...] = ()
    """(token's name, its owner) for the tokens that obtained its certificates."""
    dns: tuple[str, ...] = ()
    """DNS names of its certificates."""
    places: tuple[Mapping[str, Any], ...] = ()
    """Facts of the places where it was seen, as :class:`handclasp.wire.observations.Observed` has them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that says who owns it. The first three fields tell it from others."""

    evidence: str
    rule: str
    owner: str
    """Empty where only tier or environment are said."""
    tier: str | None = None
    environment: str | None = None
    detail: str = ""
    confidence: int = 100
    due_at: int | None = None
    stands: str = ""
    """See ``store.tables.assignment``."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who owns an identity, and everything that says so or says otherwise, the strongest first."""

    owner: str | None = None
    tier: str | None = None
    environment: str | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What directories know."""

    owners: Collection[str] = frozenset()
    catalogue: Catalogue = field(default_factory=Catalogue)


def evaluate(identity: str, evidence: Evidence, rules: OwnershipRules, known: Known) -> Judgement:
    """Return who owns ``identity``."""
    found: dict[tuple[str, str, str], Candidate] = {}
    for candidate in _candidates(identity, evidence, rules, known):
        key = (candidate.evidence, candidate.rule, candidate.owner)
        found[key] = _merged(found[key], candidate) if key in found else candidate
    places = {rule.name: place for place, rule in enumerate(rules.rules)}
    ordered = sorted(found.values(), key=lambda one: (*_strength(one), places.get(one.rule, -1), one.rule, one.owner))
    return _judge(ordered, rules.threshold)


def _judge(ordered: list[Candidate], threshold: int) -> Judgement:
    denied = {one.owner for one in ordered if one.evidence == DENIED}
    strong = [
        one
        for one in ordered
        if one.owner and one.evidence != DENIED and one.confidence >= threshold and (one.evidence == "confirmed" or one.owner not in denied)
    ]
    winner = strong[0] if strong else None
    sure = [one for one in ordered if one.evidence != DENIED and one.confidence >= threshold]
    tier = next((one.tier for one in sure if one.tier is not None), None)
    environment = next((one.environment for one in sure if one.environment is not None), None)
    if winner is None:
        guesses = [one for one in ordered if one.owner and one.evidence != DENIED and one.owner not in denied]
        best = max(guesses, key=lambda one: one.confidence, default=None)  # the first of those that are as sure
        return Judgement(None, tier, environment, tuple(replace(one, stands="guess") if one is best else one for one in ordered))
    others = [one for one in strong if one.owner != winner.owner]
    contested = any(one.evidence == winner.evidence for one in others)
    stands = "contested" if contested else "disputed" if others else "owner"
    candidates = tuple(replace(one, stands=stands) if one is winner else one for one in ordered)
    return Judgement(winner.owner, tier, environment, candidates)


class Strong(Protocol):
    """What has a place in the order of evidence: a candidate, or a row of ``assignment``."""

    @property
    def evidence(self) -> str:
        """One of :data:`EVIDENCE`, or a denial."""

    @property
    def rule(self) -> str:
        """The rule's name."""

    @property
    def owner(self) -> str:
        """Whose it says that it is."""

    @property
    def confidence(self) -> int:
        """In percent."""


def rank(one: Strong) -> tuple[int, int, str, str]:
    """Return the sort key of evidence, the strongest first, with a fixed order among those that are as strong."""
    return *_strength(one), one.rule, one.owner


def _strength(one: Strong) -> tuple[int, int]:
    return _RANK.get(one.evidence, len(EVIDENCE)), -one.confidence


def _merged(one: Candidate, other: Candidate) -> Candidate:
    """Put what two places say by the same rule of the same owner together, in the same way whichever comes first."""
    tiers = [tier for tier in (one.tier, other.tier) if tier is not None]
    environments = [name for name in (one.environment, other.environment) if name is not None]
    return replace(
        one,
        tier=min(tiers, default=None),
        environment=min(environments, default=None),
        detail=min(one.detail, other.detail),
        confidence=max(one.confidence, other.confidence),
    )


def _candidates(identity: str, evidence: Evidence, rules: OwnershipRules, known: Known) -> Iterator[Candidate]:
    for said in evidence.said:
        yield Candidate(said.evidence, said.rule, said.owner, said.tier, said.environment, said.detail, 100, said.due_at)
    for token, owner in evidence.tokens:
        yield Candidate(
            "token", f"token {token}", owner, detail="the owner of the token that obtained its certificate", confidence=TOKEN_CONFIDENCE
        )
    dns = [name.removeprefix("*.") for name in evidence.dns]
    if identity.startswith("dns:"):
        dns.append(identity[4:].removeprefix("*."))
    yield from _as_given(evidence.places, known)
    for rule in rules.rules:
        if rule.looks_at == "spiffe":
            values: Iterable[tuple[str, str]] = [(identity, "SPIFFE ID")]
        elif rule.looks_at == "zone":
            values = [(name, f"DNS name {name}") for name in dict.fromkeys(dns)]
        else:
            values = _values(rule, evidence.places)
        for value, words in dict.fromkeys(values):
            cut = rule.pattern.match(value)
            if cut is not None:
                yield from _said_by(rule, cut, words, known)


def _as_given(places: Iterable[Mapping[str, Any]], known: Known) -> Iterator[Candidate]:
    """Yield what a place says itself, without a rule: an import with a column for owners, a source that is all of one environment."""
    for facts in places:
        tags = facts.get("tags")  # where imports put what a table's columns say
        given = {**(tags if isinstance(tags, Mapping) else {}), **facts}
        owner, environment, tier = (_plain(given.get(key)) for key in ("owner", "environment", "tier"))
        name = owner if owner in known.owners else plain_owner(owner)
        said_environment = environment.lower() if is_environment(environment.lower()) else None
        said_tier = tier if tier in TIERS else None
        if is_owner(name):
            sure = name in known.owners
            detail = f"owner {owner[:200]}" + ("" if sure else f"; no directory knows {name}")
            confidence = CONFIDENCE["catalogue"] if sure else UNKNOWN_CONFIDENCE
            yield Candidate("catalogue", GIVEN, name, None, None, detail, confidence)
        if said_environment is not None or said_tier is not None:
            words = " and ".join(f"{key} {text}" for key, text in (("environment", said_environment), ("tier", said_tier)) if text)
            yield Candidate("catalogue", GIVEN, "", said_tier, said_environment, words, CONFIDENCE["catalogue"])


def _plain(value: Any) -> str:
    return str(value)[:512] if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _values(rule: Rule, places: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Return what a rule looks at in each place, and how to call that."""
    kind = rule.looks_at
    for facts in places:
        where = facts.get("workload") or facts.get("namespace") or facts.get("host")
        of = f" of {str(where)[:200]}" if where and kind.endswith("_label") else ""
        if rule.key:
            held = facts if kind == "fact" else facts.get("tags" if kind == "tag" else f"{kind}s")
            value = held.get(rule.key) if isinstance(held, Mapping) else None
            words = f"{kind.replace('_', ' ')} {rule.key}={str(value)[:200]}{of}"
        else:
            value = facts.get(kind)
            words = f"{kind.replace('_', ' ')} {str(value)[:200]}"
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, str | int) and not isinstance(one, bool):
                yield str(one), words


def _said_by(rule: Rule, cut: dict[str, str], words: str, known: Known) -> Iterator[Candidate]:
    tier = rule.tier.fill(cut) if rule.tier is not None else None
    environment = rule.environment.fill(cut).lower() if rule.environment is not None else None
    tier = tier if tier in TIERS else None
    environment = environment if environment is not None and is_environment(environment) else None
    if rule.component is not None or rule.path is not None:
        yield from _looked_up(rule, cut, words, known, tier, environment)
        return
    if rule.owner is None:
        if tier is not None or environment is not None:
            yield Candidate(rule.evidence, rule.name, "", tier, environment, words, rule.confidence)
        return
    owner = rule.owner.fill(cut)
    owner = owner if owner in known.owners else plain_owner(owner)
    if not is_owner(owner):
        return  # a value that cannot be anybody's name
    sure = not rule.owner.names or rule.unknown or owner in known.owners
    confidence = rule.confidence if sure else min(rule.confidence, UNKNOWN_CONFIDENCE)
    detail = words if sure else f"{words}; no directory knows {owner}"
    yield Candidate(rule.evidence, rule.name, owner, tier, environment, detail, confidence)


def _looked_up(rule: Rule, cut: dict[str, str], words: str, known: Known, tier: str | None, environment: str | None) -> Iterator[Candidate]:
    items: list[Item]
    if rule.component is not None:
        what = rule.component.fill(cut)
        items = known.catalogue.component(what)
    else:
        assert rule.path is not None
        what = rule.path.fill(cut)
        items = known.catalogue.path(what)
    for item in items:
        detail = f"{words}, {item.kind} {item.name} of {item.directory}"
        for owner in item.owners or ("",):
            said_tier, said_environment = tier or item.tier, environment or item.environment
            if not owner and said_tier is None and said_environment is None:
                continue
            sure = rule.unknown or not owner or owner in known.owners
            confidence = rule.confidence if sure else min(rule.confidence, UNKNOWN_CONFIDENCE)
            yield Candidate("catalogue", rule.name, owner, said_tier, said_environment, detail, confidence)
