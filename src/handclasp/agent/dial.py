"""A connection to a service of this host, by address or by unix socket."""

from __future__ import annotations

import socket
from pathlib import Path


def dial(host: str, port: int, path: Path | None, *, timeout: float) -> socket.socket:
    """Return a connection to the unix socket at ``path``, else to ``host`` and ``port``. Raises ``OSError``, after ``timeout`` seconds too.

    The timeout stays set on the connection.
    """
    if path is None:
        return socket.create_connection((host, port), timeout=timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(str(path))
    except BaseException:  # also when it is interrupted: the socket is closed, and what happened is raised on
        connection.close()
        raise
    return connection
