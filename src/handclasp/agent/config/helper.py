"""The section of the privileged helper.

helper: {socket: /run/handclasp-agent-helper/socket, user: handclasp-agent}
"""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from pathlib import Path

from handclasp.agent.config import values
from handclasp.agent.config.table import Table

SOCKET = Path("/run/handclasp-agent-helper/socket")


@dataclass(frozen=True, slots=True)
class HelperSettings:
    """Where the helper listens, and the uid of the one user that it listens to (-1: that of ``handclasp-agent``)."""

    socket: Path = SOCKET
    uid: int = -1


def helper_of(table: Table) -> Path | None:
    """Read whether a target is the helper's (``helper: true``), and return its socket."""
    if not table.take("helper", values.flag, False):
        return None
    section = table.source.document.value.get("helper")
    place = section.get("socket") if isinstance(section, dict) else None
    # What is wrong with the section is noted where it is read.
    return table.path_of(place) if isinstance(place, str) and place and "\0" not in place else SOCKET


def read_helper(top: Table, key: str) -> HelperSettings | None:
    """Read ``helper``."""
    table = top.table(key)
    if table is None:
        return None
    settings = HelperSettings(
        table.take("socket", table.path_of, SOCKET),
        table.take("user", values.account(lambda name: pwd.getpwnam(name).pw_uid, "user"), -1),
    )
    table.done()
    return settings
