"""The sections of the agent itself: how keys are kept, and where it answers about itself.

state_key: {file: /etc/handclasp/state.key}      or {credential: state-key}, of systemd; previous: FILE while it is changed
metrics: 127.0.0.1:9180
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handclasp.agent.config import values
from handclasp.agent.config.table import Table


@dataclass(frozen=True, slots=True)
class StateKey:
    """Where the key is that private keys are sealed with, and where the one before it is."""

    file: Path
    previous: Path | None = None


def read_state_key(top: Table, key: str) -> StateKey | None:
    """Read ``state_key``."""
    table = top.table(key)
    if table is None:
        return None
    file, credential = table.take("file", table.path_of), table.take("credential", _credential)
    previous = table.take("previous", table.path_of)
    if bool(file) == bool(credential):
        table.problem("state_key needs either a file or a credential")
    table.done()
    return StateKey(file or credential or Path(), previous)


def read_metrics(top: Table, key: str) -> tuple[str, int] | None:
    """Read ``metrics``: an address of this host, because nobody is asked who they are there."""
    found: tuple[str, int] | None = top.take(key, _local)
    return found


def _credential(value: Any) -> Path:
    name = values.text(value)
    if "/" in name or name in (".", ".."):
        raise ValueError("the name of a credential is expected, not a path")
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        raise ValueError("there is no CREDENTIALS_DIRECTORY: systemd sets it for units with LoadCredential= or LoadCredentialEncrypted=")
    return Path(directory) / name


def _local(value: Any) -> tuple[str, int]:
    host, port = values.address(value)
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError("an address of this host alone is expected, such as 127.0.0.1:9180; let a collector on the host fetch it")
    return host, port
