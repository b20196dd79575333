"""Bundle endpoints over real TLS: by name with a Web PKI of the test's own, and by SPIFFE ID; and everybody else is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from handclasp.client.material import Credential, load_credential
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from handclasp.pki.chains import to_pem
from handclasp.pki.names import Names
from handclasp.pki.profiles import BUILT_IN
from handclasp.server.endpoints import EndpointFetcher, check_endpoint
from handclasp.server.fetch import MAX_ANSWER, Fetcher
from handclasp.trust.federation import Endpoint
from support.authorities import MadeAuthority, csr_of, key_of, make_authority, plan_of
from support.errors import refused

TD = "partner.example"
ID = f"spiffe://{TD}/handclasp/server"
NOW = None


def present(made: MadeAuthority, names: Names, profile: str = "workload") -> Credential:
    """Return a server's credential by an authority: a certificate of now, with its chain."""
    import time

    plan = plan_of(names, made=made, profile=BUILT_IN[profile], csr=csr_of(), now=time.time_ns() // 1_000_000)
    return Credential((to_pem(made.sign(plan)) + to_pem(made.certificate)).encode(), keys.to_pem(key_of("p256")))


def authority(trust_domain: str = TD) -> MadeAuthority:
    import time

    return make_authority("p256", trust_domain=trust_domain, now=time.time_ns() // 1_000_000)


@contextlib.asynccontextmanager
async def serving(credential: Credential, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") -> AsyncIterator[str]:
    """Answer each connection with these bytes; yields the URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_credential(context, credential)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/bundle"
    finally:
        server.close()
        await server.wait_closed()


def fetched(
    credential: Credential, endpoint_id: str | None, anchors: tuple[bytes, ...] = (), ca: Path | None = None, **more: bytes
) -> bytes:
    async def work() -> bytes:
        async with serving(credential, **more) as url:
            return await EndpointFetcher(Fetcher(), ca_file=ca, local=True)(Endpoint(url, endpoint_id, anchors))

    return asyncio.run(work())


def test_https_spiffe_goes_by_the_spiffe_id_and_by_nothing_else() -> None:
    made = authority()
    credential = present(made, Names(ID, dns=("elsewhere.example",)))
    assert fetched(credential, ID, (made.root,)) == b"{}"
    assert fetched(credential, ID, (authority("other.example").root, made.certificate)) == b"{}", "an intermediate can be the anchor"


def test_https_spiffe_turns_everybody_else_away(tmp_path: Path) -> None:
    made, stranger = authority(), make_authority("p384", trust_domain=TD)
    good = present(made, Names(ID))
    with refused(Kind.VERIFY_FAILED, "spiffe://partner.example/prod/web"):
        fetched(present(made, Names(f"spiffe://{TD}/prod/web")), ID, (made.root,))
    with refused(Kind.VERIFY_FAILED, "no SPIFFE ID"):
        fetched(present(made, Names(dns=("a.example",)), "server"), ID, (made.root,))
    with refused(Kind.UNAVAILABLE, "not one that we trust"):  # forged: the right name, by an authority that is not in the bundle
        fetched(good, ID, (stranger.root,))
    with refused(Kind.UNAVAILABLE, "not one that we trust"):  # a client's certificate is no server's
        fetched(present(made, Names(ID), "client"), ID, (made.root,))
    with refused(Kind.BAD_CERTIFICATE):
        fetched(good, ID, ())
    ca = tmp_path / "ca.pem"
    ca.write_text(to_pem(made.root))
    with refused(Kind.UNAVAILABLE, "not one that we trust"):  # the Web PKI has no say here
        fetched(good, ID, (stranger.root,), ca)


def test_https_web_goes_by_the_name_in_the_address(tmp_path: Path) -> None:
    made, ca = authority("web.example"), tmp_path / "ca.pem"
    ca.write_text(to_pem(made.root))
    good = present(made, Names(ip=("127.0.0.1",)), "server")
    assert fetched(good, None, ca=ca) == b"{}"
    with refused(Kind.UNAVAILABLE, "not one that we trust"):
        fetched(good, None)
    with refused(Kind.UNAVAILABLE, "not one that we trust"):
        fetched(present(made, Names(ip=("127.0.0.2",)), "server"), None, ca=ca)
    with refused(Kind.UNAVAILABLE, "not one that we trust"):  # anchors of a SPIFFE bundle have no say here
        fetched(good, None, (made.root,))


ANSWERS: list[tuple[str, bytes, str]] = [
    ("a redirect", b"HTTP/1.1 302 Found\r\nlocation: https://127.0.0.1/x\r\ncontent-length: 0\r\n\r\n", "no redirect is followed"),
    ("a temporary redirect", b"HTTP/1.1 307 Go\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "no redirect is followed"),
    ("not found", b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", "status 404"),
    ("no content", b"HTTP/1.1 204 No\r\n\r\n", "status 204"),
    ("more than we take", b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_ANSWER + 1), "more than"),
    ("more than it said", b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n{}", "cannot be reached"),
    ("no HTTP", b"hello\r\n\r\n", "cannot be reached"),
    ("nothing", b"", "cannot be reached"),
]


@pytest.mark.parametrize(("answer", "words"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS])
def test_an_answer_that_is_none(answer: bytes, words: str) -> None:
    made = authority()
    with refused(Kind.UNAVAILABLE, words):
        fetched(present(made, Names(ID)), ID, (made.root,), answer=answer)


def test_the_guard_stands_before_every_connection() -> None:
    made = authority()

    async def work() -> None:
        async with serving(present(made, Names(ID))) as url:
            fetch = EndpointFetcher(Fetcher())
            for bad in (url, url.replace("127.0.0.1", "localhost"), url.replace("https", "http"), "https://169.254.169.254/"):
                with refused(Kind.NOT_ALLOWED):
                    await fetch(Endpoint(bad, ID, (made.root,)))
            with refused(Kind.NOT_ALLOWED):  # also where loopback is allowed, plain HTTP is not
                await EndpointFetcher(Fetcher(), local=True)(Endpoint(url.replace("https", "http"), ID, (made.root,)))

    asyncio.run(work())


def test_a_certificate_with_two_spiffe_ids_is_nobodys() -> None:
    made = authority()
    above = x509.load_der_x509_certificate(made.certificate)
    both = [x509.UniformResourceIdentifier(uri) for uri in (ID, f"spiffe://{TD}/other")]
    key = key_of("p256")
    builder = x509.CertificateBuilder(
        above.subject, x509.Name([]), key.public_key(), 5, above.not_valid_before_utc, above.not_valid_after_utc
    )  # type: ignore[arg-type]
    builder = builder.add_extension(x509.SubjectAlternativeName(both), True)
    from cryptography.hazmat.primitives.serialization import Encoding

    der = builder.sign(made.key, keys.signing_hash(made.key)).public_bytes(Encoding.DER)  # type: ignore[arg-type]
    with refused(Kind.VERIFY_FAILED, "/other"):
        check_endpoint(der, ID)
    with pytest.raises(HandclaspError):
        check_endpoint(b"garbage", ID)
