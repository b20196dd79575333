"""``handclasp agent helper``: root's hands, for the targets of one configuration that are marked ``helper: true``."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pwd
import secrets
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handclasp.agent.config import Config, Target, load_config
from handclasp.agent.config.helper import SOCKET, HelperSettings
from handclasp.agent.content import Content
from handclasp.agent.deliver import Delivery
from handclasp.agent.helper.messages import MAX_QUESTION, Answer, Question, read_question, receive, send
from handclasp.agent.helper.trust import require_roots
from handclasp.agent.signals import on_signals
from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.agent.helper")
USER = "handclasp-agent"
"""Whom the helper listens to when the configuration names nobody."""
_AT_ONCE = 16
_PATIENCE = 10.0
"""Seconds in which a question must come, and in which an answer must be taken."""
_NOTHING = Content("", b"", b"", b"", b"")


@dataclass
class _Served:
    """One target that is ours. ``busy``: one question at a time."""

    identity: str
    target: Target
    busy: threading.Lock = field(default_factory=threading.Lock)


def run_helper(config_path: str | os.PathLike[str]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    The socket is systemd's where that passes one (LISTEN_FDS), else it is made, for the agent's user alone. Raises ``bad_setting`` for a
    configuration that cannot be used or that others than root can change, ``conflict`` when another helper listens.
    """
    helper = Helper(config_path)
    with _listener(helper.settings, helper.uid) as listener, on_signals(helper.stop, helper.read_again, helper.wakes):
        helper.serve(listener)


class Helper:
    """Answers questions about the targets of a configuration. :meth:`serve` runs until :meth:`stop`, which any thread may call."""

    def __init__(self, config_path: str | os.PathLike[str]) -> None:
        self._path = Path(config_path)
        self._served: Mapping[str, _Served] = {}
        self.settings, self.uid = HelperSettings(), -1
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stop, self._again = False, False
        self.load()

    def load(self) -> None:
        """Read the configuration; raises ``bad_setting``, and leaves what counted before as it was."""
        require_roots(Path(os.path.abspath(self._path)), "the configuration")  # noqa: PTH100  (not resolved: links on the way count too)
        config = load_config(self._path)
        settings: HelperSettings = config.section("helper") or HelperSettings()
        uid = settings.uid if settings.uid >= 0 else _uid(USER)
        served = {name: self._served_again(one) for name, one in _targets(config).items()}
        for one in served.values():
            check_places(one.target)
        self._served, self.settings, self.uid = served, settings, uid
        _log.info("ready for uid %d: %s", uid, ", ".join(served) or "no target is marked helper: true")

    def serve(self, listener: socket.socket) -> None:
        """Answer until stopped; what is under way then is finished."""
        listener.setblocking(False)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._wake_out, select.POLLIN)
        while not self._stop:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_out, 1024)
            if self._again:
                self._again = False
                self._load_again()
            with contextlib.suppress(OSError):  # whoever came may have gone
                connection, _ = listener.accept()
                self._slots.acquire()
                threading.Thread(target=self._attend, args=(connection,)).start()
        for _ in range(_AT_ONCE):
            self._slots.acquire()

    def stop(self) -> None:
        """End :meth:`serve`."""
        self._stop = True
        self.wake()

    def read_again(self) -> None:
        """Have the configuration read again."""
        self._again = True
        self.wake()

    @property
    def wakes(self) -> int:
        """The descriptor on which a byte lets :meth:`serve` look around."""
        return self._wake_in

    def wake(self) -> None:
        """Let :meth:`serve` look around."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_in, b"x")

    def answer(self, question: Question) -> Answer:
        """Do what a question asks. Raises ``not_found`` for a target that is not ours, and what a delivery raises."""
        served = self._served.get(question.target)
        if served is None:
            raise HandclaspError(
                Kind.NOT_FOUND,
                f"the helper's configuration has no target {question.target[:200]!r} with helper: true",
                hint="systemctl reload handclasp-agent-helper.service, when the configuration is newer",
            )
        with served.busy:
            check_places(served.target)
            if question.material is not None:
                content = _checked(question.material.content())
                generation, previous = Delivery(served.target, content, served.identity).bring(question.generation)
                return Answer(generation=generation, previous=previous)
            return self._finish(Delivery(served.target, _NOTHING, served.identity), question)

    def _finish(self, delivery: Delivery, question: Question) -> Answer:
        name, previous, generations = question.generation, question.previous, delivery.generations
        if question.do == "settle":
            delivery.settle(name, previous)
            return Answer()
        if name != generations.current():
            raise HandclaspError(Kind.CONFLICT, "this generation is not the one that counts")
        if previous and previous not in generations.names():
            raise HandclaspError(Kind.NOT_FOUND, "the previous generation is not there any more")
        delivery.told = True  # it was, or there would be nothing to go back from
        return Answer(words=delivery.back(name, previous))

    def _served_again(self, one: _Served) -> _Served:
        """Keep the lock of a target over a reading of the configuration: somebody may be at work there."""
        before = self._served.get(one.target.name)
        return one if before is None else _Served(one.identity, one.target, before.busy)

    def _load_again(self) -> None:
        try:
            self.load()
        except HandclaspError as error:
            _log.error("the configuration is not taken: %s", error.detail)

    def _attend(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_PATIENCE)
                if self._is_agent(connection):
                    send(connection, self._answer(connection))
        except OSError as error:
            _log.debug("whoever asked is gone: %s", error)
        finally:
            self._slots.release()

    def _is_agent(self, connection: socket.socket) -> bool:
        # struct ucred: pid, uid, gid of whoever connected, from the kernel; unix(7)
        _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in (self.uid, 0):
            return True
        _log.warning("uid %d asked, and is not the agent's", uid)
        return False

    def _answer(self, connection: socket.socket) -> Answer:
        target = "-"
        try:
            question = read_question(receive(connection, MAX_QUESTION))
            target = question.target[:200]
            answer = self.answer(question)
        except HandclaspError as error:
            answer = Answer(failed=error.kind.value, words=error.detail[:8000])
        except (EOFError, ValueError) as error:
            answer = Answer(failed=Kind.BAD_REQUEST.value, words=str(error)[:1000])
        except OSError as error:
            answer = Answer(failed="os_error", errno=error.errno or 0, words=(error.strerror or str(error))[:1000])
        except Exception:  # root's process serves the next question, whatever this one was
            _log.exception("unexpected")
            answer = Answer(failed=Kind.INTERNAL.value, words="the helper failed in a way that it does not know; its log says more")
        if answer.failed:
            _log.warning("%r: %s", target, answer.words)
        else:
            _log.info("%s: %s %s", target, question.do, answer.generation or question.generation)
        return answer


def check_places(target: Target) -> None:
    """Raise ``bad_setting`` when anybody but root could put something else in the place of what is written for a target."""
    place = target.place
    directory: Path = getattr(place, "directory")  # noqa: B009  (only places of files have helper: true)
    require_roots(directory, target.name)
    for _, link in getattr(place, "links", ()):
        require_roots(link.parent, target.name)
    password: Path | None = getattr(place, "password_file", None)
    if password is not None:
        require_roots(password.parent, target.name)


def _checked(content: Content) -> Content:
    """Return it when it is one: PEM throughout, and of the leaf that it says. What is in it is checked by the delivery."""
    if not all(part.isascii() for part in (content.key, content.certificate, content.chain, content.bundle, content.crl)):
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the content is not PEM")
    if hashlib.sha256(content.credential.leaf).hexdigest() != content.sha256:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the content is of another certificate than it says")
    return content


def _targets(config: Config) -> dict[str, _Served]:
    return {
        target.name: _Served(managed.name, target)
        for managed in config.identities
        for target in managed.targets
        if target.helper is not None
    }


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise HandclaspError(
            Kind.BAD_SETTING, f"there is no user {name}", hint="name the agent's user: helper: {user: …} in agent.yaml"
        ) from error


@contextlib.contextmanager
def _listener(settings: HelperSettings, uid: int) -> Iterator[socket.socket]:
    """Take systemd's socket (sd_listen_fds(3): the first is descriptor 3), or make one."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0":
        with socket.socket(fileno=3) as passed:
            passed.set_inheritable(False)
            yield passed
        return
    path = settings.socket or SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _bind(listener, path, uid)
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"the socket {path} cannot be made: {error.strerror or error}") from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _bind(listener: socket.socket, path: Path, uid: int) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(ConnectionRefusedError):
            probe.connect(str(path))
            raise HandclaspError(Kind.CONFLICT, f"another helper listens at {path}", hint="systemctl status handclasp-agent-helper.socket")
        path.unlink()
    # It appears under its name when it is the agent's and somebody listens: until then nobody could do anything with it but fail.
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    before = os.umask(0o177)
    try:
        listener.bind(str(draft))
    finally:
        os.umask(before)
    os.chown(draft, uid, -1)
    listener.listen(64)
    draft.rename(path)
