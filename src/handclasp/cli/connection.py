"""The connection a command talks through: settings resolved, an API client made, pages followed.

This is the one place of the command line that knows the client room.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import click

from handclasp.cli import terminal
from handclasp.cli.files import read_text

T = TypeVar("T")

PAGE = 500
"""Items asked for at a time when everything is wanted."""


class Api:
    """Calls that end when the answer is there, over a client of :mod:`handclasp.client`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, path: str, response: type[T], **params: Any) -> T:
        """Return the answer to GET ``path`` as ``response``; parameters that are None or empty are left out."""
        return self.call("GET", path, response, params=params)

    def call(self, method: str, path: str, response: type[T], *, body: Any = None, params: Mapping[str, Any] | None = None) -> T:
        """Return the answer to one request; raise the server's refusal as it was given."""
        given = {name: _text(value) for name, value in (params or {}).items() if value not in (None, "", [], ())}
        answer: T = self._client.call(method, path, body=body, params=given or None, response=response)
        return answer

    def address(self, path: str) -> str:
        """Return the whole address of a path of the server."""
        return f"{self._client.url}{path}"

    def raw(self, path: str) -> bytes:
        """Return the bytes at ``path``."""
        data: bytes = self._client.raw(path).body
        return data

    def stream(self, path: str, **params: Any) -> Iterator[bytes]:
        """Yield the bytes at ``path`` as they come; parameters that are None or empty are left out."""
        given = {name: _text(value) for name, value in params.items() if value not in (None, "", [], ())}
        parts: Iterator[bytes] = self._client.stream(path, given or None)
        return parts

    def pages(self, path: str, response: type[T], limit: int, **params: Any) -> T:
        """Return a list answer with up to ``limit`` items (0: all), following the cursor; ``next_cursor`` stays set when there are more."""
        result: Any = None
        while True:
            have = 0 if result is None else len(result.items)
            wanted = min(PAGE, limit - have) if limit else PAGE
            cursor = None if result is None else result.next_cursor
            page: Any = self.get(path, response, limit=wanted, cursor=cursor, **params)
            if result is None:
                result = page
            else:
                result.items.extend(page.items)
                result.next_cursor = page.next_cursor
            # A page may be empty and have a cursor: the server had looked through enough for one request. It never gives the same again.
            if not page.next_cursor or page.next_cursor == cursor or (limit and len(result.items) >= limit):
                break
        if result.next_cursor:
            terminal.say(f"there are more than {len(result.items)}: --limit 0 shows all")
        answer: T = result
        return answer


class Options(Protocol):
    """The options that say which server is meant."""

    url: str | None
    token_file: str | None
    ca: str | None


def connect(state: Options, **credentials: Any) -> Api:
    """Return a connection for the options in ``state``; ``credentials`` (a client certificate) replace the token.

    Raises ``bad_setting`` when the settings name nothing that can be used.
    """
    return open_api(resolve(state), **credentials)


def open_api(settings: Any, **options: Any) -> Api:
    """Return a connection that is closed when the command ends."""
    client = make_client(settings, **options)
    click.get_current_context().call_on_close(client.close)
    return Api(client)


def resolve(state: Options) -> Any:
    """Return the client's settings: options first, then environment and configuration file. Raises ``bad_setting``."""
    from handclasp.client.settings import ClientSettings

    flags = {"url": state.url, "token_file": state.token_file, "ca": state.ca}
    if state.token_file == "-":  # noqa: S105  (where the secret is, and not the secret)
        flags |= {"token_file": None, "token": _token_from_stdin()}
    return ClientSettings.resolve(flags)


def make_client(settings: Any, *, credential: Any = None, **options: Any) -> Any:
    """Return the API client itself; tests put a simulator in its place."""
    from handclasp.client.api import ApiClient

    token = None if credential else settings.token
    return ApiClient(settings.url, ca=settings.ca, token=token, credential=credential, **options)


def _token_from_stdin() -> str:
    if terminal.is_terminal(sys.stdin):
        terminal.say("reading the token from stdin; end with Ctrl-D")
    return read_text("-").strip()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
