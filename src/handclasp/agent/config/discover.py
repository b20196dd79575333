"""The section ``discover``: where the agent may look for certificates in files when the server asks it to.

discover: {allow: [/etc, /srv], deny: [/etc/vault], passwords_file: /etc/handclasp/keystore-passwords}      or {off: true}
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from handclasp.agent.config import values
from handclasp.agent.config.table import Table

DEFAULT_ALLOW = ("/etc", "/opt", "/srv", "/usr/local", "/var/lib")
"""Where services keep what is theirs. Not /home and /root: what people keep there is their own."""


@dataclass(frozen=True, slots=True)
class DiscoverSettings:
    """What this host's own configuration allows, whatever the server asks for."""

    allow: tuple[str, ...] = DEFAULT_ALLOW
    deny: tuple[str, ...] = ()
    passwords_file: Path | None = None
    """Passwords to try on PKCS#12 files, one in a line."""
    off: bool = False


def read_discover(top: Table, key: str) -> DiscoverSettings:
    """Read ``discover``."""
    table = top.table(key)
    if table is None:
        return DiscoverSettings()
    read = values.texts(_directory)
    settings = DiscoverSettings(
        table.take("allow", read, DEFAULT_ALLOW),
        table.take("deny", read, ()),
        table.take("passwords_file", table.path_of),
        table.take("off", values.flag, False),
    )
    table.done()
    return settings


def _directory(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return os.path.normpath(value)
