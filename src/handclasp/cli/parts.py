"""Reach the parts that are other programs: the server and the agent.

They are imported by name when a command needs them, because the command line has to work where they are not installed, and because nothing
of theirs may be loaded for ``handclasp --help``.
"""

from __future__ import annotations

import importlib
from typing import Any

from handclasp.errors import HandclaspError, Kind

_SERVER_HINT = "pip install 'handclasp[server]'"


def server_part(module: str, attribute: str) -> Any:
    """Return ``handclasp.<module>.<attribute>``; raise ``unavailable`` and say what to install where the server's parts are missing."""
    try:
        return getattr(importlib.import_module(f"handclasp.{module}"), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("handclasp"):
            raise  # our own file is missing: that is a broken installation, and not the absence of an extra
        raise HandclaspError(
            Kind.UNAVAILABLE, f"this command needs the server's parts, and {error.name} is not installed", hint=_SERVER_HINT
        ) from error


def agent_part(module: str, attribute: str) -> Any:
    """Return ``handclasp.agent.<module>.<attribute>``."""
    return getattr(importlib.import_module(f"handclasp.agent.{module}" if module else "handclasp.agent"), attribute)


def finish(result: Any) -> Any:
    """Return ``result``, run to its end first when it is a coroutine."""
    import inspect

    if not inspect.isawaitable(result):
        return result
    import asyncio

    return asyncio.run(_await(result))


async def _await(result: Any) -> Any:
    return await result
