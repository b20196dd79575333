"""The agent's side of the helper: a delivery whose hands are in another process."""

from __future__ import annotations

import socket
from contextlib import closing

from handclasp.agent.content import Content
from handclasp.agent.helper.messages import MAX_ANSWER, Answer, Material, Question, read_answer, receive, send
from handclasp.agent.targets.base import Target
from handclasp.errors import HandclaspError, Kind


class Helped:
    """:class:`handclasp.agent.deliver.Hands` that ask the helper. What failed there has been undone there, as in a delivery of our own."""

    def __init__(self, target: Target, content: Content) -> None:
        self._target, self._content = target, content

    def bring(self, confirmed: str) -> tuple[str, str]:
        """Have it write, flip, validate and reload."""
        answer = self._ask(Question(do="bring", target=self._target.name, material=Material.of(self._content), generation=confirmed))
        return answer.generation, answer.previous

    def back(self, name: str, previous: str) -> str:
        """Have it put the previous generation back."""
        try:
            return self._ask(Question(do="back", target=self._target.name, generation=name, previous=previous)).words
        except (HandclaspError, OSError) as error:
            return f"the helper could not go back ({error.detail if isinstance(error, HandclaspError) else error})"

    def settle(self, name: str, previous: str) -> None:
        """Have it remove generations that nobody needs any more."""
        self._ask(Question(do="settle", target=self._target.name, generation=name, previous=previous))

    def _ask(self, question: Question) -> Answer:
        path = self._target.helper
        assert path is not None
        try:
            with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
                # Validate, reload, and a reload on the way back; what waits for another question about this target waits besides.
                connection.settimeout(4 * self._target.timeout + 10)
                connection.connect(str(path))
                send(connection, question)
                answer = read_answer(receive(connection, MAX_ANSWER))
        except (OSError, EOFError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise HandclaspError(
                Kind.DELIVERY_FAILED,
                f"the helper at {path} does not answer ({reason}); it is asked again, and finds what it had begun",
                hint="systemctl status handclasp-agent-helper.service",
            ) from error
        if answer.failed == "os_error":
            raise OSError(answer.errno, answer.words)
        if answer.failed:
            raise HandclaspError(Kind.DELIVERY_FAILED, answer.words)
        return answer
