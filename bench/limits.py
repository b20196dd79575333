"""What no implementation on this machine can beat: the limits that figures are held against, measured in the same run."""

from __future__ import annotations

import functools
import re
import ssl
import subprocess
import time

from cryptography.hazmat.primitives.asymmetric import ec


@functools.cache
def verify_and_sign_us() -> float:
    """One P-256 verification and one signature, in microseconds, by ``openssl speed``: the work of an issuance that is cryptography."""
    output = subprocess.run(["openssl", "speed", "-seconds", "2", "ecdsap256"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"256 bits ecdsa.*?\s([\d.]+)s\s+([\d.]+)s\s+([\d.]+)\s+([\d.]+)", output)
    if match is None:
        raise RuntimeError(f"openssl speed printed something else:\n{output}")
    return 1e6 / float(match[3]) + 1e6 / float(match[4])


def handshake_server_us(ca_file: str, credential_file: str, *, rounds: int = 300) -> float:
    """CPU time of the server's side of one mutual TLS 1.3 handshake in memory, in microseconds, with certificates of the installation.

    ``credential_file`` holds key, leaf and chain and serves both sides.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(credential_file)
        context.load_verify_locations(ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    server.num_tickets = 0
    times = sorted(_handshake(server, client) for _ in range(rounds))
    return times[len(times) // 2] * 1e6


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> float:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.wrap_bio(to_server, to_client, server_side=True)
    other = client.wrap_bio(to_client, to_server)
    spent, finished = 0.0, 0
    while finished < 2:
        finished = 0
        for side in (other, one):
            started = time.process_time()
            try:
                side.do_handshake()
                finished += 1
            except ssl.SSLWantReadError:
                pass
            if side is one:
                spent += time.process_time() - started
    return spent


def p256_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())
