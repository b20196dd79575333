"""``agent.yaml``: what an agent looks after. Read once, checked whole, and turned into values that cannot be wrong."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from handclasp.clock import parse_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys, names
from handclasp.pki.yamlfile import Document, Problems, read_yaml

FILES = {
    "key": "key.pem",
    "certificate": "cert.pem",
    "chain": "chain.pem",
    "bundle": "bundle.pem",
    "combined": "combined.pem",
    "crl": "crl.pem",
}
"""What a files target can deliver: the word in the configuration, and the name in a generation."""


@dataclass(frozen=True, slots=True)
class Reload:
    """How a service is told: a command, or a signal to the process in a pid file."""

    command: tuple[str, ...] = ()
    signal: int = 0
    pidfile: Path | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Where to see what the service serves."""

    host: str
    port: int
    server_name: str


@dataclass(frozen=True, slots=True)
class Files:
    """Generations below ``directory``, and links elsewhere that lead into them. ``owner`` and ``group`` are numeric, -1: unchanged."""

    directory: Path
    links: tuple[tuple[str, Path], ...] = ()
    combine: bool = False
    include_root: bool = False
    crl: bool = False
    owner: int = -1
    group: int = -1
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Target:
    """One place of delivery and what happens after it. ``timeout`` (seconds) bounds each command, and the look as a whole."""

    name: str
    place: Files
    validate: tuple[str, ...] = ()
    reload: Reload | None = None
    look: Look | None = None
    timeout: float = 30


@dataclass(frozen=True, slots=True)
class Managed:
    """One identity and its targets. ``name`` is the SPIFFE ID, else ``dns:`` or ``ip:`` and the first name."""

    name: str
    identity: str | None
    dns: tuple[str, ...]
    ip: tuple[str, ...]
    profile: str
    ttl: str | None
    key_type: str
    targets: tuple[Target, ...]

    @property
    def digest(self) -> str:
        """Digest of everything that the certificate depends on."""
        return _digest((self.identity, self.dns, self.ip, self.profile, self.ttl, self.key_type))


@dataclass(frozen=True, slots=True)
class Config:
    """A whole ``agent.yaml``. What is None comes from the enrolment or the caller."""

    url: str | None
    ca: str | None
    state_dir: Path | None
    poll: float
    identities: tuple[Managed, ...]


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration; relative files in it are relative to it. Raises one ``bad_setting`` for all problems, each ``file:line: …``."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read {os.fspath(path)}: {error.strerror}") from error
    except ValueError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"{os.fspath(path)} is not UTF-8 text") from error
    return parse_config(text, os.fspath(path), Path(path).resolve().parent)


def parse_config(text: str, source: str, base: Path) -> Config:
    """The same for a text."""
    document = read_yaml(text, source, Kind.BAD_SETTING)
    problems = Problems(source, Kind.BAD_SETTING)
    config = _Reader(document, problems, base).config()
    problems.raise_if_any()
    return config


class _Table:
    """One mapping of the file: values are taken out by name, and what is left over at the end was misspelt."""

    def __init__(self, reader: _Reader, value: Any, path: tuple[str | int, ...]) -> None:
        self.reader, self.path = reader, path
        self.value: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            self.problem("a mapping is expected here")

    def problem(self, message: str, *keys: str | int) -> None:
        self.reader.problems.add(self.reader.document.line((*self.path, *keys)), message)

    def take(self, key: str, check: Callable[[Any], Any], default: Any = None, *, required: bool = False) -> Any:
        value = self.value.pop(key, None)
        if value is None:
            if required:
                self.problem(f"{key} is missing")
            return default
        try:
            return check(value)
        except HandclaspError as error:
            self.problem(f"{key}: {error.detail}", key)
        except (ValueError, TypeError) as error:
            self.problem(f"{key}: {error}", key)
        return default

    def table(self, key: str) -> _Table | None:
        value = self.value.pop(key, None)
        return None if value is None else _Table(self.reader, value, (*self.path, key))

    def tables(self, key: str, *, required: bool) -> list[_Table]:
        value = self.value.pop(key, None)
        if not isinstance(value, list) or (required and not value):
            if value is not None or required:
                self.problem(f"{key} must be a list" + (" with something in it" if required else ""), key)
            return []
        return [_Table(self.reader, item, (*self.path, key, index)) for index, item in enumerate(value)]

    def done(self) -> None:
        for key in self.value:
            self.problem(f"{key} is not known here", key)


class _Reader:
    def __init__(self, document: Document, problems: Problems, base: Path) -> None:
        self.document, self.problems, self.base = document, problems, base

    def config(self) -> Config:
        top = _Table(self, self.document.value, ())
        if top.value.pop("version", 1) != 1:
            top.problem("version must be 1", "version")
        server = top.table("server") or _Table(self, {}, ("server",))
        url, ca = server.take("url", _url), server.take("ca", self._ca)
        server.done()
        state_dir = top.take("state_dir", self._path)
        poll = top.take("poll", _duration, 60.0)
        identities = [self._identity(table) for table in top.tables("identities", required=True)]
        top.done()
        self._unique(top, [identity.name for identity in identities], "identity")
        self._unique(top, [str(target.place.directory) for identity in identities for target in identity.targets], "directory")
        return Config(url, ca, state_dir, poll, tuple(identities))

    def _unique(self, top: _Table, values: list[str], what: str) -> None:
        for value in sorted({value for value in values if value and values.count(value) > 1}):
            top.problem(f"the {what} {value} is there more than once", "identities")

    def _identity(self, table: _Table) -> Managed:
        identity = table.take("identity", lambda value: names.check_spiffe_id(_text(value)))
        dns = table.take("dns", _texts(names.check_dns), ())
        ip = table.take("ip", _texts(names.check_ip), ())
        if not (identity or dns or ip):
            table.problem("an identity needs a SPIFFE ID, a DNS name or an IP address")
        profile = table.take("profile", _text, "workload" if identity else "server")
        ttl = table.take("ttl", _ttl)
        key_type = table.take("key_type", _key_type, "p256")
        name = identity or (f"dns:{dns[0]}" if dns else f"ip:{ip[0]}" if ip else "")
        targets = tuple(self._target(item, name, dns) for item in table.tables("targets", required=False))
        table.done()
        return Managed(name, identity, dns, ip, profile, ttl, key_type, targets)

    def _target(self, table: _Table, identity: str, dns: tuple[str, ...]) -> Target:
        kind = table.take("type", _text, "files")
        if kind != "files":
            table.problem(f"{kind!r} is not a type of target", "type")
        place = self._files(table, identity)
        validate = table.take("validate", _argv, ())
        reload = self._reload(table.table("reload"))
        look = self._look(table.table("look"), dns)
        timeout = table.take("timeout", _duration, 30.0)
        table.done()
        return Target(f"{kind}:{place.directory}", place, validate, reload, look, timeout)

    def _files(self, table: _Table, identity: str) -> Files:
        directory = table.take("directory", self._path)
        paths = table.table("paths")
        links: list[tuple[str, Path]] = []
        for word, name in FILES.items() if paths else ():
            path = paths.take(word, self._path) if paths else None
            if path is not None:
                links.append((name, path))
        if paths:
            paths.done()
        if directory is None and not links:
            table.problem("a files target needs a directory or paths")
        if directory is None:
            # Beside the first link, so that whoever can reach the link can reach what it leads to.
            home = links[0][1].parent if links else self.base
            directory = home / f".handclasp-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        linked = {name for name, _ in links}
        return Files(
            directory,
            tuple(links),
            combine=table.take("combine", _flag, False) or "combined.pem" in linked,
            include_root=table.take("include_root", _flag, False),
            crl=table.take("crl", _flag, False) or "crl.pem" in linked,
            owner=table.take("owner", lambda value: _id(value, lambda name: pwd.getpwnam(name).pw_uid, "user"), -1),
            group=table.take("group", lambda value: _id(value, lambda name: grp.getgrnam(name).gr_gid, "group"), -1),
            mode=table.take("mode", _mode, 0o600),
        )

    def _reload(self, table: _Table | None) -> Reload | None:
        if table is None:
            return None
        command = table.take("command", _argv, ())
        number = table.take("signal", _signal, 0)
        pidfile = table.take("pidfile", self._path)
        if bool(command) == bool(number) or bool(number) != bool(pidfile):
            table.problem("reload is either a command, or a signal with a pidfile")
        table.done()
        return Reload(command, number, pidfile)

    def _look(self, table: _Table | None, dns: tuple[str, ...]) -> Look | None:
        if table is None:
            return None
        host, port = table.take("connect", _address, ("", 0), required=True)
        server_name = table.take("server_name", _text, next((name for name in dns if "*" not in name), host))
        starttls = table.take("starttls", _text, "none")
        if starttls != "none":
            table.problem(f"starttls {starttls!r} is not known; only none is", "starttls")
        table.done()
        return Look(host, port, server_name)

    def _path(self, value: Any) -> Path:
        return Path(os.path.normpath(self.base / Path(_text(value)).expanduser()))

    def _ca(self, value: Any) -> str:
        text = _text(value)
        return text if text.startswith("sha256:") else str(self._path(text))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("text is expected")
    return value


def _texts(check: Callable[[str], str]) -> Callable[[Any], tuple[str, ...]]:
    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise TypeError("a list is expected")
        return tuple(check(_text(item)) for item in value)

    return read


def _argv(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('a list of words is expected, such as ["nginx", "-t"]; there is no shell')
    return tuple(_text(item) if not isinstance(item, int) or isinstance(item, bool) else str(item) for item in value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false is expected")
    return value


def _url(value: Any) -> str:
    if not _text(value).startswith("https://"):
        raise ValueError("an address that begins with https:// is expected")
    return str(value).rstrip("/")


def _duration(value: Any) -> float:
    seconds = parse_duration(_text(value))
    if not 0.5 <= seconds <= 86400:
        raise ValueError("between 500ms and 24h is expected")
    return seconds


def _ttl(value: Any) -> str:
    parse_duration(_text(value))
    return str(value)


def _key_type(value: Any) -> str:
    if value not in keys.KEY_TYPES:
        raise ValueError(f"{value!r} is not one of {', '.join(keys.KEY_TYPES)}")
    return str(value)


def _mode(value: Any) -> int:
    # YAML keeps 0640 as text here, so that nobody gets 640 decimal.
    text = _text(str(value))
    mode = int(text, 8) if text.isascii() and text.isdigit() and len(text) <= 4 else -1
    if not 0o400 <= mode <= 0o777 or mode & 0o7:
        raise ValueError("a mode such as 0640 is expected; a private key is not for everybody")
    return mode


def _id(value: Any, find: Callable[[str], int], what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1:
        return value
    try:
        return find(_text(value))
    except KeyError:
        raise ValueError(f"there is no {what} {value} here") from None


def _signal(value: Any) -> int:
    name = "SIG" + _text(value).upper().removeprefix("SIG")
    if name not in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM", "SIGINT", "SIGQUIT"):
        raise ValueError(f"{value} is not a signal that reloads anything")
    return int(signal.Signals[name])


def _address(value: Any) -> tuple[str, int]:
    host, _, port = _text(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError("host:port is expected")
    return host, int(port)
