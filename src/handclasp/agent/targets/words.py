"""What a delivery to a target does, in words: for ``agent plan``, so that what a preset filled in can be seen before it happens."""

from __future__ import annotations

import shlex
import signal

from handclasp.agent.targets.base import Look, Reload, Target
from handclasp.agent.targets.files import Files, Generated


def steps(target: Target) -> list[str]:
    """Return one line for each step of a delivery to ``target``, in order."""
    lines = [_place(target)]
    if target.validate:
        lines.append(f"validate: {shlex.join(target.validate)}")
    if target.reload is not None:
        lines.append(f"reload: {_reload(target.reload)}")
    if target.look is not None:
        lines.append(f"look: {_look(target.look)}, within {target.timeout:g} s")
    return lines


def _place(target: Target) -> str:
    place = target.place
    if not isinstance(place, Generated):
        return f"deliver: {place.name}"
    what = "key, certificate and bundle" if isinstance(place, Files) else "keystore and truststore"
    links = "".join(f", {path} leads to {name}" for name, path in place.links)
    return f"write: {what} below {place.directory}/current, the key with mode {place.mode:04o}{links}"


def _reload(reload: Reload) -> str:
    if reload.pidfile is not None:
        return f"{signal.Signals(reload.signal).name} to the process in {reload.pidfile}"
    if reload.unit:
        return f"systemctl {reload.action} {reload.unit}"
    if reload.http is not None:
        return f"{reload.http.method} {reload.http}"
    return shlex.join(reload.command)


def _look(look: Look) -> str:
    begins = "" if look.starttls == "none" else f" by STARTTLS ({look.starttls})"
    return f"a handshake with {look.where}{begins} as {look.server_name} shows the new certificate"
