"""The policy section ``workloads:``: which process on an agent's host may have which identity.

.. code-block:: yaml

    workloads:
      - name: web
        agents: {role: web}                        # the agents that may serve it: those with all of these labels
        selectors: ["unix:user:www-data", "unix:path:/usr/sbin/nginx"]   # what a process must have: all of them
        identity: spiffe://example.org/prod/web
        dns: [web.example.org]
        profile: workload
        ttl: 1h
        hint: external
        federates_with: [partner.example]
        jwt: true
      - name: pods
        agents: {cluster: a}
        selectors: ["k8s:pod-label:handclasp:on"]
        identity: "spiffe://example.org/k8s/{cluster}/{k8s:ns}/{k8s:sa}"

The agent looks at the process and compares its selectors; the server cannot see either. What the server holds to is that an agent obtains
only what its labels entitle it to: each workload compiles to the grant ``workload:NAME``, which :mod:`handclasp.access.authorize` judges
like every other. So a taken-over agent has the workloads of its own labels, and no others.

``{k8s:ns}`` is filled by the agent from the process's own selector of that name, and stands for exactly one whole path segment.
``{cluster}`` (without a colon) is the agent's label, compared like a claim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from handclasp.access.grants import AgentRule, Grant, in_agent_space
from handclasp.access.patterns import DnsPatterns, IdentityPatterns
from handclasp.clock import format_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import check_trust_domain
from handclasp.pki.yamlshape import Part, each_once
from handclasp.wire import Workload as WireWorkload

MAX_WORKLOADS = 2000
MAX_SELECTORS = 20
MAX_HINT = 1024  # bytes: SPIFFE Workload API section 5.2.1
PREFIX = "workload:"

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]{0,63}\$?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.(?:service|scope|socket|slice|mount|timer)")
_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_UID = re.compile(r"[0-9a-fA-F-]{1,64}")
_LABEL_KEY = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_DOCKER_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,254}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{1,512}")
_PATH = re.compile(r"/(?!/)[^\x00-\x1f\x7f]{1,4095}")

_VALUES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "unix:uid": (_NUMBER, "a number"),
    "unix:gid": (_NUMBER, "a number"),
    "unix:user": (_ACCOUNT, "an account's name"),
    "unix:group": (_ACCOUNT, "a group's name"),
    "unix:supplementary_gid": (_NUMBER, "a number"),
    "unix:supplementary_group": (_ACCOUNT, "a group's name"),
    "unix:path": (_PATH, "an absolute path"),
    "unix:sha256": (_SHA256, "64 lower-case hex digits"),
    "systemd:id": (_UNIT, "a unit with its type, such as nginx.service"),
    "k8s:ns": (_DNS_LABEL, "a namespace"),
    "k8s:sa": (_DNS_NAME, "a service account"),
    "k8s:pod-name": (_DNS_NAME, "a pod's name"),
    "k8s:pod-uid": (_UID, "a pod's UID"),
    "k8s:node-name": (_DNS_NAME, "a node's name"),
    "k8s:container-name": (_DNS_LABEL, "a container's name"),
    "k8s:container-image": (_IMAGE, "an image"),
    "docker:image": (_IMAGE, "an image"),
}
_KEYED: Mapping[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "k8s:pod-label": (_LABEL_KEY, _LABEL_VALUE),
    "docker:label": (_DOCKER_KEY, _TEXT),
}
KINDS = tuple(sorted((*_VALUES, *_KEYED)))
"""Every kind of selector there is; those of :data:`FILLERS` can also fill a placeholder."""
FILLERS = frozenset({
    "unix:uid", "unix:gid", "unix:user", "unix:group", "unix:sha256", "systemd:id", "k8s:ns", "k8s:sa", "k8s:pod-name", "k8s:pod-uid",
    "k8s:node-name", "k8s:container-name",
})  # fmt: skip
"""The kinds of which a process has one value, in the characters of a path segment. (A value with others fills nothing.)"""


@dataclass(frozen=True, slots=True)
class Workload:
    """One entry. ``grant`` is what it means to authorization."""

    name: str
    agents: tuple[tuple[str, str], ...]
    selectors: tuple[str, ...]
    identity: str
    dns: tuple[str, ...] = ()
    profile: str = "workload"
    ttl: float | None = None
    """Seconds."""
    hint: str = ""
    federates_with: tuple[str, ...] = ()
    jwt: bool = False
    grant: Grant = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the grant once; raises ``bad_policy`` for an identity or a DNS name that cannot be one."""
        object.__setattr__(self, "grant", _grant(self))

    def serves(self, labels: Mapping[str, str]) -> bool:
        """Return whether an agent with these labels may serve it."""
        return bool(self.agents) and all(labels.get(label) == value for label, value in self.agents)

    def covers(self, identity: str, labels: Mapping[str, str]) -> bool:
        """Return whether ``identity`` is one that an agent with these labels may ask for by this workload."""
        return self.serves(labels) and not in_agent_space(identity) and self.grant.identities.covers(identity, labels)

    def to_wire(self, labels: Mapping[str, str]) -> WireWorkload | None:
        """Return it as the agent with these labels sees it, its own labels filled in; None when the agent lacks one that is needed."""
        try:
            identity = _filled(self.identity, labels)
            dns = [_filled(name, labels) for name in self.dns]
        except KeyError:
            return None
        if not self.grant.identities.covers(_sample(identity), labels) or not all(self.grant.dns.covers(name, labels) for name in dns):
            return None  # a label with "/" or the like: authorization would refuse every certificate
        return WireWorkload(
            name=self.name,
            selectors=list(self.selectors),
            identity=identity,
            dns=dns,
            profile=self.profile,
            ttl=None if self.ttl is None else format_duration(self.ttl),
            hint=self.hint,
            federates_with=list(self.federates_with),
            jwt=self.jwt,
        )

    def meaning(self) -> dict[str, object]:
        """Return what it says, for comparing two policies."""
        return {
            "agents": dict(self.agents),
            "selectors": sorted(self.selectors),
            "identity": self.identity,
            "dns": sorted(self.dns),
            "profile": self.profile,
            "ttl": None if self.ttl is None else format_duration(self.ttl),
            "hint": self.hint,
            "federates_with": sorted(self.federates_with),
            "jwt": self.jwt,
        }


def for_agent(workloads: tuple[Workload, ...], labels: Mapping[str, str]) -> list[WireWorkload]:
    """Return the workloads that an agent with these labels may serve, in the policy's order."""
    found = (workload.to_wire(labels) for workload in workloads if workload.serves(labels))
    return [workload for workload in found if workload is not None]


def jwt_workload(workloads: tuple[Workload, ...], identity: str, labels: Mapping[str, str]) -> Workload | None:
    """Return the workload by which an agent with these labels may have JWT-SVIDs for ``identity`` (a checked SPIFFE ID), or None.

    Of several it is the one with the longest ``ttl`` (none: no limit of its own), the first of those in the policy's order.
    """
    found = [workload for workload in workloads if workload.jwt and workload.covers(identity, labels)]
    return max(found, key=lambda workload: float("inf") if workload.ttl is None else workload.ttl, default=None)


def check_selector(text: str) -> None:
    """Raise ``bad_policy`` unless ``text`` is a selector that a process could have: ``unix:uid:1000``, ``k8s:pod-label:app:web``."""
    family, _, rest = text.partition(":")
    name, _, value = rest.partition(":")
    kind = f"{family}:{name}"
    if kind in _KEYED:
        key_pattern, value_pattern = _KEYED[kind]
        key, colon, value = value.partition(":")
        if not colon or key_pattern.fullmatch(key) is None or value_pattern.fullmatch(value) is None:
            raise _bad(f"{text[:200]!r} is not a selector: {kind} is followed by :KEY:VALUE")
        return
    known = _VALUES.get(kind)
    if known is None:
        raise _bad(f"{text[:200]!r} is not a selector: it begins with one of {', '.join(KINDS)}")
    pattern, what = known
    if pattern.fullmatch(value) is None or "/../" in f"{value}/" or "/./" in f"{value}/":
        raise _bad(f"{text[:200]!r} is not a selector: {kind} is followed by {what}")


def fill(template: str, selectors: Mapping[str, str]) -> str | None:
    """Return a workload's identity with its ``{k8s:ns}`` and the like filled from a process's selectors (kind to value), or None.

    None when a value is missing, or is not one whole path segment: such a process has no identity by this workload.
    """
    found = template
    for name in _PLACEHOLDER.findall(template):
        value = selectors.get(name)
        if value is None or _SEGMENT.fullmatch(value) is None:
            return None
        found = found.replace("{" + name + "}", value)
    return found


_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")


# --- reading ----------------------------------------------------------------------------------------------------------------------------


def read_workloads(top: Part) -> tuple[Workload, ...]:
    """Return the section ``workloads`` of a policy; every mistake is noted at its line."""
    parts = top.parts("workloads")
    if len(parts) > MAX_WORKLOADS:
        top.problem("workloads", f"at most {MAX_WORKLOADS} workloads")
    found = [workload for part in parts[:MAX_WORKLOADS] if (workload := _workload(part)) is not None]
    each_once(parts, "name")
    return tuple(found)


def _workload(part: Part) -> Workload | None:
    part.keys("name", "agents", "selectors", "identity", "dns", "profile", "ttl", "hint", "federates_with", "jwt")
    name, identity = part.name(), part.text("identity")
    if identity:
        part.attempt("identity", lambda: _check_identity(identity))
    hint = part.text("hint") if "hint" in part.value else ""
    if len(hint.encode()) > MAX_HINT or not hint.isprintable():
        part.problem("hint", f"a hint is a printable text of at most {MAX_HINT} bytes")
    profile = part.text("profile") if "profile" in part.value else "workload"
    if profile == "agent":
        part.problem("profile", "a workload is not an agent: agents enrol")
    domains = part.texts("federates_with")
    for index, domain in enumerate(domains):
        part.attempt(("federates_with", index), lambda domain=domain: check_trust_domain(domain))  # type: ignore[misc]
    return part.attempt(
        "identity",
        lambda: Workload(
            name=name,
            agents=labels_of(part, "agents", "the labels that an agent must have, as text: {role: web}"),
            selectors=_selectors(part),
            identity=identity or "spiffe://example.org/x",
            dns=_dns(part),
            profile=profile,
            ttl=part.duration("ttl"),
            hint=hint,
            federates_with=tuple(domains),
            jwt=part.flag("jwt", False),
        ),
    )


def labels_of(part: Part, key: str, what: str) -> tuple[tuple[str, str], ...]:
    """Return the mapping of texts at ``key``, sorted; ``what`` says what it must be, for the problem that is noted otherwise."""
    labels = part.value.get(key)
    if not isinstance(labels, dict) or not labels or not all(isinstance(value, str) and value for value in labels.values()):
        part.problem(key, f"write {what}")
        return ()
    return tuple(sorted(labels.items()))


def _selectors(part: Part) -> tuple[str, ...]:
    selectors = part.texts("selectors", required=True)
    if len(selectors) > MAX_SELECTORS:
        part.problem("selectors", f"at most {MAX_SELECTORS} selectors")
    for index, selector in enumerate(selectors):
        part.attempt(("selectors", index), lambda selector=selector: check_selector(selector))  # type: ignore[misc]
    return tuple(dict.fromkeys(selectors))


def _dns(part: Part) -> tuple[str, ...]:
    good = []
    for index, name in enumerate(part.texts("dns")):
        made = part.attempt(("dns", index), lambda name=name: _check_dns(name))  # type: ignore[misc]
        if made is not None:
            good.append(made)
    return tuple(good)


def _check_dns(name: str) -> str:
    if "*" in name:
        raise _bad(f"{name!r}: a workload has these very names, so a pattern cannot be one")
    if any(":" in hole for hole in _PLACEHOLDER.findall(name)):
        raise _bad(f"{name!r}: only the agent's labels fill a DNS name")
    DnsPatterns([name])
    return name


def _check_identity(identity: str) -> None:
    if "*" in identity:
        raise _bad(f"{identity[:200]!r}: a workload has one identity; write {{k8s:ns}} for what the process says")
    for segment in identity.removeprefix("spiffe://").split("/"):
        for name in _PLACEHOLDER.findall(segment):
            if ":" not in name:
                continue
            if name not in FILLERS:
                raise _bad(f"{{{name}}} cannot fill a segment; these can: {', '.join(sorted(FILLERS))}")
            if segment != f"{{{name}}}":
                raise _bad(f"{{{name}}} stands for one whole segment, and {segment[:200]!r} has more in it")
    if IdentityPatterns([_as_pattern(identity)]).agents:
        raise _bad(f"{identity[:200]!r} is below /agent, where nobody but agents has a name")


def _as_pattern(identity: str) -> str:
    """Return the pattern of what an agent may ask for: any one segment where the process's own selectors fill in."""
    return _PLACEHOLDER.sub(lambda match: "*" if ":" in match[1] else match[0], identity)


def _sample(identity: str) -> str:
    return _PLACEHOLDER.sub("x", identity)


def _filled(text: str, labels: Mapping[str, str]) -> str:
    """Return the text with the agent's labels filled in; raises ``KeyError`` for one that it lacks. Selectors' placeholders stay."""
    return _PLACEHOLDER.sub(lambda match: match[0] if ":" in match[1] else labels[match[1]], text)


def _grant(workload: Workload) -> Grant:
    return Grant(
        name=PREFIX + workload.name,
        principals=(AgentRule(workload.agents),),
        identities=IdentityPatterns([_as_pattern(workload.identity)]),
        dns=DnsPatterns(workload.dns),
        profiles=frozenset({workload.profile}),
        max_ttl=workload.ttl,
        actions=frozenset({"issue", "renew"}),
    )


def _bad(detail: str) -> HandclaspError:
    return HandclaspError(Kind.BAD_POLICY, detail)
