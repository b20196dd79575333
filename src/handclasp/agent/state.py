"""What the agent keeps on disk, and the lease that makes it the only one to do so.

    state_dir/lease                            held by flock while an agent runs
    state_dir/agent.json                       who the agent is and which server it belongs to
    state_dir/agent/                           its own certificate (generations)
    state_dir/anchors/<trust domain>.pem       trust bundles, and .crl.pem
    state_dir/identities/<name>/               certificate and key (generations) and state.json

A certificate's facts, the drawn renewal time among them, lie in its generation, so that they appear together with it. ``state.json`` holds
what can be found out again: losing it costs one more delivery and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from handclasp.agent.generations import Generations, replace_file
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("state.before_save", "state.saved")

T = TypeVar("T")


class AgentFile(msgspec.Struct, kw_only=True):
    """``agent.json``: written once by the enrolment."""

    version: int = 1
    url: str
    identity: str
    trust_domain: str
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    enrolled_at: str


class Obtained(msgspec.Struct, kw_only=True):
    """``facts.json`` of a generation: the certificate in it. Times are milliseconds since the epoch."""

    version: int = 1
    sha256: str
    identity: str
    serial: str
    authority: str
    not_after: int
    renew_after: int
    renew_before: int
    renew_at: int
    obtained_at: int
    wanted: str


class TargetState(msgspec.Struct, kw_only=True):
    """What is known about one target."""

    content: str = ""
    certificate: str = ""
    generation: str = ""
    failures: int = 0
    next_attempt: int = 0
    last_success: int = 0
    last_failure: str = ""


def target_condition(target: TargetState, sha256: str | None) -> str:
    """Return ``failed``, ``ok`` or ``pending``: whether a target is known to hold the certificate that is held."""
    if target.failures:
        return "failed"
    return "ok" if sha256 is not None and target.certificate == sha256 else "pending"


class IdentityState(msgspec.Struct, kw_only=True):
    """``state.json`` of one identity."""

    version: int = 1
    identity: str = ""
    blocked: str = ""
    """SHA-256 of a certificate that the server said was revoked."""
    renew_at: int = 0
    """An earlier renewal that the server asked for, for the certificate ``renew_at_of``."""
    renew_at_of: str = ""
    rotations: int = 0
    failures: int = 0
    next_attempt: int = 0
    last_success: int = 0
    last_failure: str = ""
    targets: dict[str, TargetState] = msgspec.field(default_factory=dict)


def slug(name: str) -> str:
    """Return a directory name for an identity: readable, and never the same for two."""
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", name.removeprefix("spiffe://").removeprefix("dns:")).strip("-")[:48]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


class IdentityStore:
    """Certificate, key and state of one identity below ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.generations = Generations(home, directory_mode=0o700)

    def prepare(self) -> None:
        """Make the directory and remove what an interruption left."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.generations.recover()

    def obtained(self) -> Obtained | None:
        """Return the facts of the certificate that counts, or None."""
        return _decode(self.generations.read(self.generations.current(), "facts.json"), Obtained)

    def file(self, name: str) -> bytes:
        """Return a file of the generation that counts; raises ``OSError``."""
        return (self.generations.path(self.generations.current()) / name).read_bytes()

    def load(self) -> IdentityState:
        """Return the state; a missing or unreadable one is an empty one."""
        try:
            return _decode((self.home / "state.json").read_bytes(), IdentityState) or IdentityState()
        except OSError:
            return IdentityState()

    def save(self, state: IdentityState) -> None:
        """Write the state; durable on return. Raises ``OSError``."""
        fault("state.before_save")
        replace_file(self.home / "state.json", msgspec.json.format(msgspec.json.encode(state)))
        fault("state.saved")


class StateDirectory:
    """The whole of it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.own = IdentityStore(self.root / "agent")

    def prepare(self) -> None:
        """Make the directory, for this user only. Raises ``bad_setting``."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            (self.root / "anchors").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"the state directory {self.root} cannot be used: {error.strerror}") from error

    def identity(self, name: str) -> IdentityStore:
        """Return the store of one identity."""
        return IdentityStore(self.root / "identities" / slug(name))

    def anchors(self, trust_domain: str) -> Path:
        """Return the file of a trust domain's bundle."""
        return self.root / "anchors" / f"{trust_domain}.pem"

    def agent(self) -> AgentFile:
        """Return who this agent is; raise ``bad_setting`` when it is not enrolled."""
        agent: AgentFile | None
        try:
            agent = _decode((self.root / "agent.json").read_bytes(), AgentFile)
        except OSError:
            agent = None
        if agent is None:
            raise HandclaspError(Kind.BAD_SETTING, f"no agent is enrolled in {self.root}", hint="run `handclasp agent enroll` first")
        return agent

    def save_agent(self, agent: AgentFile) -> None:
        """Write ``agent.json``; durable on return."""
        replace_file(self.root / "agent.json", msgspec.json.format(msgspec.json.encode(agent)))

    def managed(self) -> list[str]:
        """Return the names of the identities that the agent looked after when it last ran."""
        try:
            return _decode((self.root / "managed.json").read_bytes(), list[str]) or []
        except OSError:
            return []

    def save_managed(self, names: list[str]) -> None:
        """Write them."""
        replace_file(self.root / "managed.json", msgspec.json.encode(names))

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Be the only agent on this directory; raise ``conflict`` when there is one. The kernel ends it with the process."""
        descriptor = os.open(self.root / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HandclaspError(
                    Kind.CONFLICT, f"another agent works in {self.root}", hint="stop it first; two would deliver over each other"
                ) from error
            yield
        finally:
            os.close(descriptor)


def _decode(data: bytes | None, type_: type[T]) -> T | None:
    try:
        return None if data is None else msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
