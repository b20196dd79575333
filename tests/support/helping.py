"""The privileged helper of an agent as a process, and an agent of another uid that asks it."""

from __future__ import annotations

import contextlib
import grp  # noqa: F401  (before the test changes its user, who may be unable to read where Python lies)
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handclasp.agent.config import load_config
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.targets.base import Target
from handclasp.client import TLSContext
from handclasp.errors import HandclaspError
from support import contents
from support.fake_server import DOMAIN, FakeAuthority
from support.servers import environment
from support.waiting import eventually

WEB = f"spiffe://{DOMAIN}/prod/web"

NOBODY = 65534

AUTHORITY = FakeAuthority()


def content() -> Content:
    """Return another content each time."""
    return contents.content(AUTHORITY)


def configure(home: Path, *targets: dict[str, Any]) -> Path:
    """Write an ``agent.yaml`` with these targets of the helper's."""
    listed = [{"helper": True, "directory": str(home / "etc" / "tls")} | one for one in targets or ({},)]
    config = {
        "identities": [{"identity": WEB, "targets": listed}],
        "helper": {"socket": str(home / "run" / "socket"), "user": "nobody"},
    }
    path = home / "agent.yaml"
    path.write_text(json.dumps(config))
    path.chmod(0o644)
    return path


def target(home: Path, index: int = 0) -> Target:
    """Return one of the configured targets."""
    return load_config(home / "agent.yaml").identities[0].targets[index]


@contextlib.contextmanager
def helping(home: Path, fault: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run the helper as a process while the block does."""
    argv = [sys.executable, "-m", "handclasp", "agent", "helper", "-c", str(home / "agent.yaml")]
    with (home / "helper.log").open("ab") as log, subprocess.Popen(argv, env=environment(fault), stderr=log, stdout=log) as process:
        try:
            eventually(lambda: (home / "run" / "socket").is_socket() or process.poll() is not None)
            assert process.poll() is None, (home / "helper.log").read_text()
            yield process
        finally:
            process.terminate()
            process.wait(30)


def as_nobody(do: Any) -> Any:
    """Do something in a process of another uid and return what it returns (text), or the words of its error."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(out)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = {"ok": do()}
            except HandclaspError as error:
                said = {"kind": error.kind.value, "words": error.detail}
            except OSError as error:
                said = {"kind": "os_error", "words": str(error), "errno": error.errno}
            os.write(into, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    return json.loads(data)


def deliver_to(one: Target, what: Content, confirmed: str = "") -> str:
    """Deliver to a target and return the generation's name, as an agent does."""
    return deliver(one, what, confirmed, identity=WEB, wait=threading.Event().wait)


def served(home: Path) -> str:
    """Return the fingerprint of what was delivered."""
    return TLSContext.from_directory(home / "etc" / "tls").sha256
