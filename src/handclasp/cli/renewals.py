"""``handclasp cert renew``: a new certificate over a new key, obtained with the certificate that is renewed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state

if TYPE_CHECKING:
    from cryptography import x509

    from handclasp.cli.connection import Api
    from handclasp.cli.credentials import CredentialFiles
    from handclasp.pki.names import Names


@click.command(
    "renew",
    cls=Command,
    client=("url", "ca"),
    example="handclasp cert renew --cert cert.pem --key key.pem --bundle bundle.pem\n"
    "handclasp cert renew --cert cert.pem --key key.pem --if-due   (from cron)",
)
@click.option("--cert", "cert_file", required=True, metavar="FILE", help="The certificate to renew, and to replace.")
@click.option("--key", required=True, metavar="FILE", help="Its key, to replace with a new one.")
@click.option("--bundle", metavar="FILE", help="Trust bundle to replace; also what the server is trusted by when --ca is not given.")
@click.option("--ttl", metavar="DURATION", help="Lifetime, such as 1h; without it the profile's.")
@click.option("--key-type", metavar="TYPE", help="Type of the new key; without it the type of the old one.")
@click.option("--if-due", is_flag=True, help="Do nothing, quietly, while it is too early.")
@pass_state
def renew(state: State, cert_file: str, key: str, bundle: str | None, ttl: str | None, key_type: str | None, if_due: bool) -> None:
    """Renew a certificate over mutual TLS with itself, with a new key.

    Key, certificate and bundle are replaced together: a service that reads them finds the old pair or the new pair, whatever happens. On
    the first renewal the files become links into a directory beside the certificate.
    """
    from handclasp.cli.credentials import CredentialFiles

    files = CredentialFiles(Path(key), Path(cert_file), Path(bundle) if bundle else None)
    with files.locked():
        _renew(state, files, ttl, key_type, if_due)


def _renew(state: State, files: CredentialFiles, ttl: str | None, key_type: str | None, if_due: bool) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    from handclasp.cli.files import read_bytes
    from handclasp.cli.pem import check_pair, load_certificates, load_key, served_chain
    from handclasp.client.csr import new_request
    from handclasp.pki import keys
    from handclasp.wire import Issued, RenewRequest

    old_key, old = load_key(files.key), read_bytes(str(files.cert))
    check_pair(old_key, old, str(files.cert))
    certificate = load_certificates(old, str(files.cert))[0]
    sha256 = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    api = _connect(state, files)
    if if_due and not _due(state, api, sha256):
        return
    files.check_writable()
    names = _names(certificate)
    pem, csr = new_request(key_type or keys.key_type_of(old_key.public_key()), identity=names.spiffe, dns=names.dns, ip=names.ip)
    issued = api.call("POST", f"/v1/certificates/{sha256}:renew", Issued, body=RenewRequest(csr=csr, ttl=ttl))
    check_pair(keys.from_pem(pem), issued.certificate, "the certificate that the server sent")
    files.install(pem, served_chain(issued).encode(), issued.bundle.encode())
    if state.json:
        terminal.write_json(issued)
    terminal.say(f"{issued.identity}, until {issued.not_after}, renew after {issued.renew_after} (log entry {issued.log_entry})")


def _names(certificate: x509.Certificate) -> Names:
    """Return the names to ask for again: those of the certificate, none where it has e-mail addresses (a CSR made here cannot)."""
    from cryptography import x509

    from handclasp.pki.names import Names, names_from_san

    try:
        names = names_from_san(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return Names()
    return Names() if names.email else names


def _connect(state: State, files: CredentialFiles) -> Api:
    import os

    credential: Any = (str(files.cert), str(files.key))
    if not state.ca and not os.environ.get("HANDCLASP_CA") and files.bundle is not None and files.bundle.exists():
        state.ca = str(files.bundle)
    return state.api(credential=credential)


def _due(state: State, api: Api, sha256: str) -> bool:
    from handclasp.clock import parse_rfc3339
    from handclasp.wire import RenewalInfo

    info = api.get(f"/v1/certificates/{sha256}:renewal-info", RenewalInfo)
    if terminal.clock() >= parse_rfc3339(info.renew_after):
        return True
    if state.json:
        terminal.write_json(info)
    return False
