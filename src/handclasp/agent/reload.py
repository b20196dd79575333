"""Telling a service that there is something new: a command, a signal, a systemd unit, or an HTTP call to its administrative interface."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from handclasp.agent.commands import run_command, send_signal
from handclasp.agent.dial import dial
from handclasp.agent.targets.base import Call, Reload
from handclasp.errors import HandclaspError, Kind

_ANSWER = 64 * 1024
_BODY = 4 * 1024 * 1024
_SHOWN = 1500


def tell(reload: Reload, *, timeout: float, environment: Mapping[str, str]) -> None:
    """Tell the service; raise ``delivery_failed`` with what it answered when it does not take it, or not in ``timeout`` seconds."""
    if reload.pidfile is not None:
        send_signal(reload.signal, reload.pidfile)
    elif reload.unit:
        # reload waits until the unit's ExecReload has ended, and fails when it does.
        command = ("systemctl", "--no-ask-password", reload.action, "--", reload.unit)
        run_command("reload", command, timeout=timeout, environment=environment)
    elif reload.http is not None:
        call(reload.http, timeout=timeout)
    else:
        run_command("reload", reload.command, timeout=timeout, environment=environment)


def call(place: Call, *, timeout: float) -> None:
    """Make an HTTP call; raise ``delivery_failed`` for any answer that is not expected. Redirects are not followed."""
    try:
        body = _body(place)
        status, said = _ask(place, body, timeout)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise HandclaspError(Kind.DELIVERY_FAILED, f"reload: {place} cannot be called: {reason}") from error
    if status not in place.expect:
        text = said[:_SHOWN].decode("utf-8", "replace").strip()
        raise HandclaspError(Kind.DELIVERY_FAILED, f"reload: {place} answered {status}" + (f": {text}" if text else ""))


def _body(place: Call) -> bytes:
    if place.body_file is None:
        return b""
    with place.body_file.open("rb") as file:
        data = file.read(_BODY + 1)
    if len(data) > _BODY:
        raise ValueError(f"{place.body_file} is too large")
    return data


def _ask(place: Call, body: bytes, timeout: float) -> tuple[int, bytes]:
    """Return status and the beginning of the answer. All of it has to happen in ``timeout`` seconds, however slowly the answer drips."""
    deadline = time.monotonic() + timeout
    with contextlib.closing(dial(place.host, place.port, place.socket, timeout=timeout)) as connection:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        connection.sendall(_request(place, body))
        answer = b""
        while len(answer) < _ANSWER:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no whole answer in {timeout:g} s")
            connection.settimeout(left)
            part = connection.recv(8192)
            if not part:
                break
            answer += part
    return _parse(answer)


def _parse(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
        raise ValueError("it does not answer in HTTP")
    return int(words[1]), body


def _request(place: Call, body: bytes) -> bytes:
    # HTTP/1.0 and closed after the answer, so that the answer ends where the connection does (RFC 9112 section 9.3).
    host = f"[{place.host}]" if ":" in place.host else place.host
    headers = {"Host": f"{host}:{place.port}", "Connection": "close", **dict(place.headers)}
    if place.method != "GET":
        headers["Content-Length"] = str(len(body))
    lines = [f"{place.method} {place.target} HTTP/1.0", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + body
