"""The API as the command line's tests need it: answers by method and path, through the wire types, and a list of what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from handclasp.errors import HandclaspError, Kind

Answer = Any
"""A wire value, raw bytes, an error to raise, or a callable of (body, params) that returns one of these."""


@dataclass
class Asked:
    method: str
    path: str
    params: dict[str, str]
    body: Any


@dataclass
class FakeApi:
    """Stands for a server. ``client`` takes the place of ``handclasp.cli.connection.make_client``."""

    routes: dict[tuple[str, str], Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    settings: Any = None
    closed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def client(self, settings: Any, **options: Any) -> FakeClient:
        self.settings, self.options = settings, options
        return FakeClient(self)

    def on(self, method: str, path: str, answer: Answer) -> None:
        self.routes[method, path] = answer

    def pages(self, path: str, items: list[Any]) -> None:
        """Answer a list, one page at a time."""

        def answer(_body: Any, params: Mapping[str, str]) -> dict[str, Any]:
            start, limit = int(params.get("cursor", "0")), int(params["limit"])
            assert limit > 0
            end = start + limit
            wanted = [item for item in items if all(getattr(item, name, value) == value for name, value in params.items())]
            return {"items": wanted[start:end], "next_cursor": str(end) if end < len(wanted) else None}

        self.on("GET", path, answer)

    def answer(self, method: str, path: str, params: Mapping[str, str], body: Any) -> Any:
        self.asked.append(Asked(method, path, dict(params), body))
        found = self.routes.get((method, path))
        if isinstance(found, Callable):  # type: ignore[arg-type]
            found = found(body, params)
        if found is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no {method} {path}")
        if isinstance(found, Exception):
            raise found
        return found


@dataclass
class Raw:
    body: bytes
    etag: str = ""
    changed: bool = True


class FakeClient:
    """As much of ``ApiClient`` as the command line uses; what goes through it is encoded and decoded as on the wire."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self.url = "https://handclasp.test"

    def call(self, method: str, path: str, *, body: Any = None, params: Mapping[str, str] | None = None, response: Any = None) -> Any:
        sent = None if body is None else msgspec.json.decode(msgspec.json.encode(body), type=type(body))
        answer = self._api.answer(method, path, params or {}, sent)
        return msgspec.json.decode(msgspec.json.encode(answer), type=response)

    def close(self) -> None:
        self._api.closed += 1

    def raw(self, path: str, **_: Any) -> Raw:
        answer = self._api.answer("GET", path, {}, None)
        return Raw(answer if isinstance(answer, bytes) else answer.encode())
