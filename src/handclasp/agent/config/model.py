"""What an ``agent.yaml`` turns into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from handclasp.agent.targets.base import Target


@dataclass(frozen=True, slots=True)
class Managed:
    """One identity and its targets. ``name`` is the SPIFFE ID, else ``dns:`` or ``ip:`` and the first name.

    ``slot`` keeps the state of the same name apart for different parts of the agent; it is empty for what ``agent.yaml`` names.
    """

    name: str
    identity: str | None
    dns: tuple[str, ...]
    ip: tuple[str, ...]
    profile: str
    ttl: str | None
    key_type: str
    targets: tuple[Target, ...]
    slot: str = ""

    @property
    def digest(self) -> str:
        """Digest of everything that the certificate depends on."""
        asked = (self.identity, self.dns, self.ip, self.profile, self.ttl, self.key_type)
        return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


@dataclass(frozen=True, slots=True)
class Config:
    """A whole ``agent.yaml``. What is None comes from the enrolment or the caller.

    ``sections`` holds what the readers of :data:`handclasp.agent.config.read.SECTIONS` returned, for the sections that are there.
    """

    url: str | None
    ca: str | None
    state_dir: Path | None
    poll: float
    identities: tuple[Managed, ...]
    sections: Mapping[str, Any] = field(default_factory=dict)

    def section(self, name: str) -> Any:
        """Return what a section of the file was turned into, or None when the file does not have it."""
        return self.sections.get(name)
