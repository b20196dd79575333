"""HTTP servers on loopback that play somebody else's: what each answers is a method of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = tuple[int, bytes]


class Answering:
    """Use as a context manager: ``url`` is where it listens. Fails at its end when it was asked for what nobody should ask for."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                status, body = outer.answer(self.path, self.headers)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                outer.complaints.append(f"{self.command} {self.path}")
                self.send_error(405)

            def do_PUT(self) -> None:
                self.do_POST()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        assert not self.complaints, self.complaints

    def answer(self, target: str, headers: Any) -> Answer:
        """Return status and body for a GET."""
        raise NotImplementedError


class _Fixed(Answering):
    def __init__(self, answers: Mapping[str, bytes]) -> None:
        super().__init__()
        self._answers = answers

    def answer(self, target: str, headers: Any) -> Answer:
        body = self._answers.get(target)
        return (200, body) if body is not None else (404, b"")


@contextmanager
def answering(answers: Mapping[str, bytes]) -> Iterator[str]:
    """Serve these bodies by their targets, everything else as 404; yields the address."""
    with _Fixed(answers) as server:
        yield server.url
