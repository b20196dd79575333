"""A TLS server as a child of an agent has it: credentials by environment, read again on SIGHUP; ends well on SIGTERM.

``python tls_child.py PORT [MODE]``: MODE ``stale`` never reads again, ``stubborn`` does not care about SIGTERM, ``chatty`` says much.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import threading


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(os.environ["TLS_CERT"], os.environ["TLS_KEY"])
    return made


class Server:
    def __init__(self, port: int, mode: str) -> None:
        self.mode, self.context = mode, context()
        self.listener = socket.create_server(("127.0.0.1", port), backlog=128, reuse_port=True)

    def reload(self, _number: int, _frame: object) -> None:
        if self.mode != "stale":
            self.context = context()
        print("read again", flush=True)

    def serve(self) -> None:
        while True:
            plain, _ = self.listener.accept()
            threading.Thread(target=self.answer, args=(plain,), daemon=True).start()

    def answer(self, plain: socket.socket) -> None:
        try:
            with self.context.wrap_socket(plain, server_side=True) as connection:
                connection.sendall(connection.recv(1))
        except OSError:
            plain.close()


def main() -> None:
    port, mode = int(sys.argv[1]), (sys.argv[2:] or [""])[0]
    server = Server(port, mode)
    signal.signal(signal.SIGHUP, server.reload)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else lambda *_: os._exit(0))
    print("serving", flush=True)
    for line in range(5000 if mode == "chatty" else 0):
        print(f"line {line}", "x" * (10_000 if line == 7 else 0), flush=False)
    server.serve()


if __name__ == "__main__":
    main()
