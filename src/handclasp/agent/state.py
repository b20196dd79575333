"""What the agent keeps on disk, and the lease that makes it the only one to do so.

    state_dir/lease                            held by flock while an agent runs
    state_dir/agent.json                       who the agent is and which server it belongs to
    state_dir/problems.json                    what needs a person, besides what the identities say: the clock, a part that cannot start
    state_dir/agent/                           its own certificate (generations)
    state_dir/anchors/<trust domain>.pem       trust bundles, and .crl.pem
    state_dir/identities/<name>/               certificate and key (generations) and state.json
    state_dir/<slot>/<name>/                   the same for identities of another part of the agent, such as the socket

Private keys in it are sealed where a key for that is configured (:mod:`handclasp.agent.seal`).
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from handclasp.agent.generations import File, Generations, replace_file
from handclasp.agent.seal import MAGIC, Seal
from handclasp.client.material import Credential, Material, file_signature
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("state.before_save", "state.saved")

T = TypeVar("T")


class Enrolment(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How an agent enrolled, and where the evidence for another time is found. No secret is in it."""

    method: str = "token"
    """``token``, ``oidc``, ``kubernetes``, ``x509`` or ``aws``."""
    again: bool = False
    """Whether the same evidence serves again, as the server said."""
    token_file: str = ""
    cluster: str = ""
    cert_file: str = ""
    key_file: str = ""
    document_file: str = ""
    signature_file: str = ""
    metadata_url: str = ""


class AgentFile(msgspec.Struct, kw_only=True):
    """``agent.json``: written once by the enrolment."""

    version: int = 1
    url: str
    identity: str
    trust_domain: str
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    enrolled_at: str
    enrolment: Enrolment = msgspec.field(default_factory=Enrolment)


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
    signature: str = ""
    """What the delivered files looked like (:mod:`handclasp.agent.targets.changed`), where that can be told."""
    failures: int = 0
    next_attempt: int = 0
    last_success: int = 0
    last_failure: str = ""
    last_failure_at: int = 0


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
    last_failure_at: int = 0
    targets: dict[str, TargetState] = msgspec.field(default_factory=dict)


def slug(name: str) -> str:
    """Return a directory name for an identity: readable, and never the same for two."""
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", name.removeprefix("spiffe://").removeprefix("dns:")).strip("-")[:48]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What one generation of an identity holds, read at one moment; PEM, the key opened."""

    facts: Obtained
    key: bytes = field(repr=False)
    certificate: bytes
    chain: bytes
    bundle: bytes

    @property
    def credential(self) -> Credential:
        """Key and chain as one."""
        return Credential(self.certificate.rstrip() + b"\n" + self.chain, self.key)


class IdentityStore:
    """Certificate, key and state of one identity below ``home``; ``seal`` is for its private keys."""

    __slots__ = ("home", "seal")

    def __init__(self, home: Path, seal: Seal | None = None) -> None:
        self.home = home
        self.seal = seal or Seal()

    @property
    def generations(self) -> Generations:
        """Its generations."""
        return Generations(self.home, directory_mode=0o700)

    def prepare(self) -> Obtained | None:
        """Make the directory, remove what an interruption left, and go back to a whole generation where the one that counts is not.

        Return the facts of the certificate that counts, or None. Raises ``OSError``.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            self.generations.recover()
            found = self.obtained()
            return found if found is not None or not self.repair() else self.obtained()
        return None

    def repair(self) -> bool:
        """Let the newest generation that is whole be the one that counts, and remove those that are not; return whether there is one.

        For what a power loss or a hand in the directory may leave: a missing link, cut off files. Raises ``OSError``.
        """
        generations = self.generations
        for name in reversed(generations.names()):
            if self._is_whole(name):
                if generations.current() != name:
                    generations.flip(name)
                return True
            generations.remove(name)
        return False

    def _is_whole(self, name: str) -> bool:
        try:
            kept = self._read(name)
            Material(kept.credential, kept.bundle).check()
        except (OSError, HandclaspError) as error:
            # One that cannot be opened may be opened with another setting: it is not ours to remove.
            return isinstance(error, HandclaspError) and error.kind is Kind.BAD_SETTING
        return True

    def obtained(self) -> Obtained | None:
        """Return the facts of the certificate that counts, or None."""
        try:
            return _decode(self.file("facts.json"), Obtained)  # by path: nobody else can write to the state directory
        except OSError:
            return None

    def kept(self) -> Kept:
        """Return the whole generation that counts.

        Raises ``OSError`` when it cannot be read, ``bad_certificate`` when it holds something else than it should, ``bad_setting`` when its
        key cannot be opened.
        """
        return self._read(self.generations.current())

    def _read(self, name: str) -> Kept:
        home = self.generations.path(name)
        facts = _decode((home / "facts.json").read_bytes(), Obtained)
        if not name or facts is None:
            raise HandclaspError(Kind.BAD_CERTIFICATE, f"what is kept in {self.home} is damaged")
        key, certificate, chain, bundle = ((home / file).read_bytes() for file in ("key.pem", "leaf.pem", "chain.pem", "bundle.pem"))
        return Kept(facts, self.seal.open(key, self.home.name), certificate, chain, bundle)

    def keep(self, facts: Obtained, kept: Kept, keep: int) -> None:
        """Make a generation of it that counts, and remove all but the newest ``keep``. Durable on return; raises ``OSError``."""
        contents = {
            "key.pem": self.seal.close(kept.key, self.home.name),
            "cert.pem": kept.credential.certificate,
            "leaf.pem": kept.certificate,
            "chain.pem": kept.chain,
            "bundle.pem": kept.bundle,
            "facts.json": msgspec.json.format(msgspec.json.encode(facts)),
        }
        generations = self.generations
        name = generations.write({file: File(data, 0o600) for file, data in contents.items()})
        generations.flip(name)
        generations.prune(keep)

    def check_seal(self) -> None:
        """Raise ``bad_setting`` when the private key cannot be opened with the present setting; whatever else is wrong shows later."""
        self.seal.open(self.generations.read("", "key.pem") or b"", self.home.name)

    def reseal(self) -> bool:
        """Have its private key kept as the present setting says, and only that one; return whether anything was to do.

        Raises ``bad_setting`` for a key that cannot be opened, ``OSError``.
        """
        generations, held = self.generations, {name: self.generations.read(name, "key.pem") for name in self.generations.names()}
        stale = [name for name, key in held.items() if not self.seal.is_current(key or MAGIC, self.home.name)]
        current = generations.current()
        for name in stale:
            if name != current:
                generations.remove(name)
            else:
                path = generations.path(name) / "key.pem"
                replace_file(path, self.seal.close(self.seal.open(path.read_bytes(), self.home.name), self.home.name))
        return bool(stale)

    def file(self, name: str) -> bytes:
        """Return a file of the generation that counts; raises ``OSError``."""
        return (self.home / "current" / name).read_bytes()

    def forget(self) -> None:
        """Drop every certificate that is held; the state stays. Raises ``OSError``."""
        generations = self.generations
        (self.home / "current").unlink(missing_ok=True)
        for name in generations.names():
            generations.remove(name)

    def signature(self) -> object:
        """Tell one state of the credential from another (for :class:`handclasp.client.api.Followed`)."""
        return file_signature([self.home / "current" / name for name in ("cert.pem", "key.pem")])

    def read(self) -> Credential:
        """Return the credential; raise ``bad_setting`` when it cannot be read."""
        try:
            return self.kept().credential
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"the certificate in {self.home} cannot be read: {error.strerror}") from error

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
        self.seal = Seal()
        """How private keys are kept; set before anything is read."""

    @property
    def own(self) -> IdentityStore:
        """The store of the agent's own identity."""
        return IdentityStore(self.root / "agent", self.seal)

    def prepare(self) -> None:
        """Make the directory, for this user only. Raises ``bad_setting``."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            (self.root / "anchors").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"the state directory {self.root} cannot be used: {error.strerror}") from error

    def identity(self, name: str, slot: str = "") -> IdentityStore:
        """Return the store of one identity, in the part of the agent that looks after it."""
        return IdentityStore(self.root / (slot or "identities") / slug(name), self.seal)

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

    def managed(self) -> list[tuple[str, str]]:
        """Return slot and name of the identities that the agent looked after when it last ran."""
        try:
            found = _decode((self.root / "managed.json").read_bytes(), list[str | tuple[str, str]]) or []
        except OSError:
            return []
        return [("", one) if isinstance(one, str) else one for one in found]

    def save_managed(self, names: list[tuple[str, str]]) -> None:
        """Write them."""
        replace_file(self.root / "managed.json", msgspec.json.encode(names))

    def problems(self) -> list[str]:
        """Return what needed a person when the agent last ran, besides what the identities say themselves."""
        try:
            return _decode((self.root / "problems.json").read_bytes(), list[str]) or []
        except OSError:
            return []

    def save_problems(self, problems: list[str]) -> None:
        """Write it."""
        replace_file(self.root / "problems.json", msgspec.json.encode(problems))

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
