"""One delivery: new generation beside the old, flip, validate, reload, look; and the way back when any of it fails.

It may be interrupted anywhere and repeated: a generation with the same content is found again instead of written again, and a delivery that
was flipped and not confirmed goes through validate, reload and look once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Container
from dataclasses import dataclass, field

import msgspec

from handclasp.agent.commands import run_command, send_signal
from handclasp.agent.config import FILES, Files, Target
from handclasp.agent.generations import File, Generations, sync_directory
from handclasp.agent.look import Wait, look
from handclasp.client.material import Credential, Material
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.pki.chains import split_pem

declare("deliver.flipped", "deliver.validated", "deliver.reloaded", "deliver.looked", "deliver.rolled_back")

KEEP = 3
_DIGEST = ".content"


@dataclass(frozen=True, slots=True)
class Content:
    """What a target is to hold. ``certificate`` is the leaf alone, ``chain`` what stands above it without the root; all PEM."""

    sha256: str
    key: bytes = field(repr=False)
    certificate: bytes
    chain: bytes
    bundle: bytes
    crl: bytes = b""

    @property
    def credential(self) -> Credential:
        """Key and chain as one."""
        return Credential(_join(self.certificate, self.chain), self.key)

    def digest(self, place: Files) -> str:
        """Digest of what ``place`` is to hold: another one means another delivery."""
        settings = msgspec.json.encode((str(place.directory), [(name, str(path)) for name, path in place.links], place.combine))
        modes = msgspec.json.encode((place.include_root, place.owner, place.group, place.mode))
        parts = (self.sha256.encode(), self.chain, self.bundle, self.crl if place.crl else b"", settings, modes)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def deliver(target: Target, content: Content, confirmed: str, *, identity: str, wait: Wait) -> str:
    """Deliver and return the name of the generation that the service now runs on.

    ``confirmed`` is the generation of the last delivery that succeeded. Raises ``delivery_failed`` when a step failed: the previous
    generation is then back in place and the service was told again; ``OSError`` when nothing could be written; ``Interrupted`` when the
    agent stops.
    """
    place = target.place
    place.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    generations = Generations(place.directory, owner=place.owner, group=place.group)
    generations.recover()
    _adopt(generations, place)
    Material(content.credential, content.bundle).check()
    name = _generation(generations, place, content)
    previous = confirmed if confirmed in generations.names() else next((old for old in reversed(generations.names()) if old != name), "")
    environment = {"HANDCLASP_IDENTITY": identity, "HANDCLASP_DIRECTORY": str(place.directory / "current")}
    told = False
    try:
        if generations.current() != name:
            generations.flip(name)
        _link(place)
        fault("deliver.flipped")
        if target.validate:
            run_command("validate", target.validate, timeout=target.timeout, environment=environment)
        fault("deliver.validated")
        told = True
        _reload(target, environment)
        fault("deliver.reloaded")
        if target.look is not None:
            look(target.look, content.sha256, content.credential, timeout=target.timeout, wait=wait)
        fault("deliver.looked")
    except (HandclaspError, OSError) as error:
        if previous and previous != name:
            generations.flip(previous)
            fault("deliver.rolled_back")
            if told:
                with contextlib.suppress(HandclaspError):  # the finding is about what failed first
                    _reload(target, environment)
            after = "the previous certificate is back in place"
        else:
            after = "there was no previous certificate to go back to"
        raise HandclaspError(Kind.DELIVERY_FAILED, f"{_reason(error)}; {after}") from error
    generations.prune(KEEP, (name, previous))
    return name


def _reason(error: HandclaspError | OSError) -> str:
    return error.detail if isinstance(error, HandclaspError) else str(error)


def _reload(target: Target, environment: dict[str, str]) -> None:
    if target.reload is None:
        return
    if target.reload.pidfile is not None:
        send_signal(target.reload.signal, target.reload.pidfile)
    else:
        run_command("reload", target.reload.command, timeout=target.timeout, environment=environment)


def _generation(generations: Generations, place: Files, content: Content) -> str:
    """Return the generation with this content: the one that an earlier try wrote, or a new one."""
    digest = content.digest(place)
    for name in reversed(generations.names()):
        if generations.read(name, _DIGEST) == digest.encode():
            return name
    return generations.write(render(place, content) | {_DIGEST: File(digest.encode())})


def render(place: Files, content: Content) -> dict[str, File]:
    """Return the files of a generation: leaf before chain (RFC 8446 section 4.4.2), the root only where it is asked for."""
    root = _root_above(content) if place.include_root else b""
    served = _join(content.certificate, content.chain, root)
    files = {
        "key.pem": File(content.key, place.mode),
        "cert.pem": File(served),
        "chain.pem": File(_join(content.chain, root)),
        "bundle.pem": File(content.bundle),
    }
    if place.combine:
        files["combined.pem"] = File(_join(served, content.key), place.mode)
    if place.crl:
        files["crl.pem"] = File(content.crl)
    return files


def _root_above(content: Content) -> bytes:
    from cryptography import x509

    issuer = x509.load_der_x509_certificate(split_pem(_join(content.certificate, content.chain).decode("ascii"))[-1]).issuer
    anchors = x509.load_pem_x509_certificates(content.bundle)
    return b"".join(_pem(anchor) for anchor in anchors if anchor.subject == issuer and anchor.subject == anchor.issuer)


def _pem(certificate: object) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    assert isinstance(certificate, x509.Certificate)
    return certificate.public_bytes(Encoding.PEM)


def _adopt(generations: Generations, place: Files) -> None:
    """Take files that stand where our links will be as the first generation, so that there is something to go back to."""
    if generations.current():
        return
    found = {name: path for name, path in place.links if path.is_file() and not path.is_symlink()}
    if not {FILES["key"], FILES["certificate"]} <= found.keys() and FILES["combined"] not in found:
        return
    files = {name: File(path.read_bytes(), path.stat().st_mode & 0o777) for name, path in found.items()}
    generations.flip(generations.write(files))
    _link(place, only=found)


def _link(place: Files, only: Container[str] | None = None) -> None:
    """Let the configured paths lead into the generation that counts; each is replaced by one rename."""
    for name, path in place.links:
        wanted = place.directory / "current" / name
        if (only is not None and name not in only) or (path.is_symlink() and path.readlink() == wanted):
            continue
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        draft.symlink_to(wanted)
        draft.replace(path)
        sync_directory(path.parent)


def _join(*parts: bytes) -> bytes:
    return b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts if part)
