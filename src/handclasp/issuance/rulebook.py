"""The rules in force: policy and profiles, as last applied, parsed once and swapped whole."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from sqlalchemy import Delete, Insert, delete, insert, select

from handclasp.access.policy import EMPTY, Policy, diff, parse_policy
from handclasp.clock import Clock
from handclasp.log.entries import make_entry
from handclasp.pki.profiles import Profile, all_profiles, load_profiles
from handclasp.pki.yamlshape import changes_between
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire import PolicyChange, PolicyDiff


@dataclass(frozen=True, slots=True)
class Rules:
    """One consistent set of rules."""

    policy: Policy
    profiles: dict[str, Profile]
    longest_lifetime: float


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was applied."""

    text: str
    sha256: str
    applied_at: int | None
    applied_by: str | None


class Rulebook:
    """Reads the applied documents when they changed, and applies new ones."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._rules: Rules | None = None
        self._generation = -1
        self._reading = asyncio.Lock()
        self._comparing = asyncio.Lock()

    async def current(self) -> Rules:
        """Return the rules in force. Another process's change is seen within half a second."""
        if self._rules is not None and self._generation == self._store.generation:
            return self._rules
        async with self._reading:  # one reads for all who wait: under load a change would else be read hundreds of times at once
            if self._rules is None or self._generation != self._store.generation:
                generation = self._store.generation
                texts = (await self.document("policy")).text, (await self.document("profiles")).text
                self._rules = await asyncio.to_thread(make_rules, *texts)  # a megabyte of policy takes seconds
                self._generation = generation
            return self._rules

    async def document(self, kind: str) -> Document:
        """Return the applied ``policy`` or ``profiles`` text; empty text when none was ever applied."""
        row = await self._store.row(select(tables.document).where(tables.document.c.kind == kind))
        if row is None:
            return Document("", hashlib.sha256(b"").hexdigest(), None, None)
        return Document(row.text, row.sha256.hex(), row.applied_at, row.applied_by)

    async def compare(self, kind: str, text: str, who: dict[str, str]) -> PolicyDiff:
        """Return what applying ``text`` would change, and log that it was asked. Raises ``bad_policy`` or ``bad_profile``."""
        changes = await self._changes(kind, text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        what = {"document": kind, "sha256": digest, "changes": len(changes)}
        entry = make_entry(f"{kind}.compared", at=self._clock(), who=who, what=what)
        index = await self._store.ledger.commit(Write([entry]))
        return PolicyDiff(changes=changes, sha256=digest, log_entry=index)

    async def apply(self, kind: str, text: str, who: dict[str, str], by: str) -> PolicyDiff:
        """Put ``text`` in force and return what changed; durable and logged on return. Applying the same text again changes nothing."""
        changes = await self._changes(kind, text)
        digest = hashlib.sha256(text.encode())
        before = await self.document(kind)
        if before.sha256 == digest.hexdigest():
            return PolicyDiff(changes=[], sha256=before.sha256)
        now = self._clock()
        # The subjects only, and not all of a huge change: an entry has a size limit, and the text is known by its hash.
        subjects = [f"{change.change} {change.subject}" for change in changes[:200]]
        what = {"sha256": digest.hexdigest(), "before": before.sha256, "changes": subjects, "count": len(changes)}
        entry = make_entry(f"{kind}.applied", at=now, who=who, what=what)
        statements = _replace(kind, text, digest.digest(), now, by)
        index = await self._store.ledger.commit(Write([entry], [Change(statement) for statement in statements], bump=True))
        return PolicyDiff(changes=changes, sha256=digest.hexdigest(), applied=True, log_entry=index)

    async def _changes(self, kind: str, text: str) -> list[PolicyChange]:
        rules = await self.current()
        async with self._comparing:  # in a thread, and one at a time: whoever may read may send a megabyte that takes seconds
            return await asyncio.to_thread(_compared, kind, rules, text)


def _compared(kind: str, rules: Rules, text: str) -> list[PolicyChange]:
    if kind == "policy":
        return diff(rules.policy, parse_policy(text, "policy.yaml"))
    return _profile_changes(rules.profiles, all_profiles(load_profiles(text, "profiles.yaml")))


def make_rules(policy_text: str, profiles_text: str) -> Rules:
    """Return the rules of two documents; an empty text means no grants, or only the built-in profiles."""
    policy = parse_policy(policy_text, "policy.yaml") if policy_text else EMPTY
    profiles = all_profiles(load_profiles(profiles_text, "profiles.yaml") if profiles_text else {})
    return Rules(policy, profiles, max(profile.max_lifetime for profile in profiles.values()))


def _replace(kind: str, text: str, digest: bytes, now: int, by: str) -> tuple[Delete, Insert]:
    document = tables.document
    return (
        delete(document).where(document.c.kind == kind),
        insert(document).values(kind=kind, text=text, sha256=digest, applied_at=now, applied_by=by),
    )


def _profile_changes(old: dict[str, Profile], new: dict[str, Profile]) -> list[PolicyChange]:
    before, after = ({f"profile {name}": describe_profile(book[name]) for name in sorted(book)} for book in (old, new))
    return changes_between(before, after)


def describe_profile(profile: Profile) -> str:
    """Return a profile in one line, for people comparing two."""
    return (
        f"authority={profile.authority or 'default'} keys={','.join(sorted(profile.key_types))} "
        f"lifetime={profile.lifetime:g}s ({profile.min_lifetime:g}s..{profile.max_lifetime:g}s) backdate={profile.backdate:g}s "
        f"usages={','.join(sorted(profile.key_usage))}+{','.join(profile.extended_key_usage)} "
        f"names={','.join(sorted(profile.names))} require={','.join(sorted(profile.require))}"
    )
