"""What a delivery to a target does, in words: for ``agent plan``, so that what a preset filled in can be seen before it happens."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator

from handclasp.agent.targets.base import Look, Place, Reload, Target
from handclasp.agent.targets.files import Files, Generated


def steps(target: Target) -> list[str]:
    """Return one line for each step of a delivery to ``target``, in order."""
    lines = [*_place(target.place)]
    if target.helper is not None:
        lines[0] += f"; by the helper at {target.helper}"
    if target.validate:
        lines.append(f"validate: {shlex.join(target.validate)}")
    if target.reload is not None:
        lines.append(f"reload: {_reload(target.reload)}")
    if target.look is not None:
        lines.append(f"look: {_look(target.look)}, within {target.timeout:g} s")
    return lines


def _place(place: Place) -> Iterator[str]:
    if isinstance(place, Generated):
        yield _write(place)
    elif place.kind == "exec":
        yield from _run(place)
    elif place.kind == "kubernetes_secret":
        yield _apply(place)
    else:
        yield f"deliver: {place.name}"


def _run(place: Place) -> Iterator[str]:
    from handclasp.agent.targets.exec import Exec

    assert isinstance(place, Exec)
    yield _write(place.files)
    change = f"{signal.Signals(place.signal).name} on a change" if place.signal else "started again on a change"
    yield f"run: {shlex.join(place.command)}; {change}, and it must run for {place.settle:g} s to count"
    if place.look is not None:
        yield f"look: {_look(place.look)}"


def _apply(place: Place) -> str:
    from handclasp.agent.targets.kubernetes import KubernetesSecret

    assert isinstance(place, KubernetesSecret)
    where = place.cluster.url or "the API server of the cluster that this pod is in"
    return f"apply: the Secret {place.namespace}/{place.secret} at {where}, and read it back"


def _write(place: Generated) -> str:
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
