"""``handclasp audit witness``: watch somebody's log, and cosign only what grows from what was there (C2SP tlog-witness)."""

from __future__ import annotations

import http.server
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handclasp.cli import terminal
from handclasp.cli.audit_verify import read_vkeys
from handclasp.cli.command import Command, State, pass_state
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.log.notes import Cosigner
    from handclasp.log.witness import Witness

_MAX_BODY = 200_000  # a note of 100 kB with a proof of 63 hashes is the largest request there is


@click.command(
    "witness",
    cls=Command,
    example="handclasp audit witness --state ./witness --name witness.example.net --log-vkey-file log.vkey --listen 0.0.0.0:8460\n"
    "handclasp audit witness --state ./witness --name witness.example.net --show-vkey",
)
@click.option(
    "--state",
    "directory",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Its key and what it has seen; losing it means trusting the log once more.",
)
@click.option("--name", required=True, metavar="NAME", help="The witness's name, in its key and its cosignatures.")
@click.option("--log-vkey-file", "vkey_files", multiple=True, metavar="FILE", help="Verifier key of a log to witness.")
@click.option(
    "--listen", default="127.0.0.1:8460", show_default=True, metavar="HOST:PORT", help="Where to listen (HTTP); port 0 is a free one."
)
@click.option("--show-vkey", is_flag=True, help="Write the witness's own verifier key, and end.")
@pass_state
def witness(state: State, directory: Path, name: str, vkey_files: tuple[str, ...], listen: str, show_vkey: bool) -> None:
    """Run a witness: a log that is rolled back or rewritten finds no cosignature any more. Run it where the log's operator has no hand.

    Its key is made on the first start. Give its verifier key and address to the log (handclasp serve --witness 'VKEY http://HOST:PORT').
    """
    cosigner = _cosigner(directory, name)
    if show_vkey:
        terminal.write_json({"vkey": str(cosigner.vkey)}) if state.json else terminal.write(str(cosigner.vkey))
        return
    if not vkey_files:
        raise click.UsageError("say which log to witness: --log-vkey-file FILE")
    server = make_server(directory, cosigner, vkey_files, listen)
    host, port = server.server_address[:2]
    if state.json:
        terminal.write_json({"vkey": str(cosigner.vkey), "address": f"{host!s}:{port}"})
    terminal.say(f"{cosigner.vkey} listens on http://{host!s}:{port}")
    with server:
        server.serve_forever()


def make_server(directory: Path, cosigner: Cosigner, vkey_files: tuple[str, ...], listen: str) -> http.server.HTTPServer:
    """Return the witness's HTTP server, listening; the caller runs it."""
    from handclasp.log.notes import VerifierKey
    from handclasp.log.witness import Witness

    logs: dict[str, list[VerifierKey]] = {}
    for key in read_vkeys(vkey_files):
        logs.setdefault(key.name, []).append(key)
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{listen!r} is not HOST:PORT", param_hint="--listen")
    service = Witness(directory, cosigner, logs, terminal.clock)
    return http.server.ThreadingHTTPServer((host.strip("[]") or "127.0.0.1", int(port)), _handler(service))


def _handler(service: Witness) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """Carries requests to the witness; bounded in size and time, because anyone may call."""

        server_version = "handclasp-witness"
        sys_version = ""
        timeout = 10

        def do_GET(self) -> None:
            self._answer("GET", b"")

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit() or int(length) > _MAX_BODY:
                self.send_error(413)
                return
            self._answer("POST", self.rfile.read(int(length)))

        def _answer(self, method: str, body: bytes) -> None:
            try:
                response = service.respond(method, self.path, body)
            except OSError as error:
                terminal.warn(f"the state cannot be kept, so nothing is cosigned: {error.strerror}")
                self.send_error(503)
                return
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in the base class)
            terminal.say(f"{self.client_address[0]} {format % args}")

    return Handler


def _cosigner(directory: Path, name: str) -> Cosigner:
    """Return the witness's key, made and kept (mode 0600) when there is none yet."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from handclasp.cli.files import read_bytes, write_file
    from handclasp.log.notes import Cosigner
    from handclasp.pki import keys

    path = directory / "witness.key"
    if not path.exists():
        write_file(path, keys.to_pem(Ed25519PrivateKey.generate()), 0o600)
    key = keys.from_pem(read_bytes(str(path)))
    if not isinstance(key, Ed25519PrivateKey):
        raise HandclaspError(Kind.BAD_KEY, f"{path} is not an Ed25519 key")
    return Cosigner(name, key)
