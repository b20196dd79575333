"""Keystores for Java and others: PKCS#12 and JKS, in generations like PEM files, under a password that stays the same."""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from handclasp.agent import reach
from handclasp.agent.content import Content, join_pem
from handclasp.agent.generations import File
from handclasp.agent.targets.files import Generated, digest_of, root_above
from handclasp.clock import system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.chains import split_pem

NAMES = {
    "pkcs12": {"keystore": "keystore.p12", "truststore": "truststore.p12"},
    "jks": {"keystore": "keystore.jks", "truststore": "truststore.jks"},
}
"""Format -> the words in the configuration, and the names in a generation."""
_LARGEST = 4096
_MAKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Keystore(Generated):
    """A keystore and a truststore below ``directory``, of the ``format`` ``pkcs12`` or ``jks``, both under one password.

    The password is the first line of ``password_file`` (left out: ``password`` in the directory). Where there is none, one is made once,
    with the owner, group and mode of the key. A password that is changed there is used from the next generation on.
    """

    format: str = "pkcs12"
    password_file: Path | None = None
    alias: str = "handclasp"

    @property
    def kind(self) -> str:
        """Its word in the configuration."""
        return self.format

    @property
    def crl(self) -> bool:
        """Keystores have no room for revocation lists."""
        return False

    @property
    def adopts(self) -> tuple[frozenset[str], ...]:
        """The keystore."""
        return (frozenset({NAMES[self.format]["keystore"]}),)

    def digest(self, content: Content, /) -> str:
        """Digest of what this place is to hold."""
        return digest_of(content, False, (self.settings, str(self.password_file or ""), self.alias))

    def render(self, content: Content) -> dict[str, File]:
        """Return the files of a generation. Raises ``bad_setting`` for a password that cannot be used, ``OSError``."""
        from handclasp.pki import keystores

        password = self.password()
        root = root_above(content) if self.include_root else b""
        chain = split_pem(join_pem(content.certificate, content.chain, root).decode("ascii"))
        anchors = split_pem(content.bundle.decode("ascii"))
        if self.format == "pkcs12":
            keystore = keystores.pkcs12_keystore(content.key, chain, self.alias, password)
            truststore = keystores.pkcs12_truststore(anchors, password)
        else:
            now = system_clock()
            keystore = keystores.jks_keystore(content.key, chain, self.alias, password, now=now, random=os.urandom)
            truststore = keystores.jks_truststore(anchors, password, now=now)
        names = NAMES[self.format]
        return {names["keystore"]: File(keystore, self.mode), names["truststore"]: File(truststore)}

    def password(self) -> str:
        """Return the password; make it, durably, when there is none yet."""
        path = self.password_file or self.directory / "password"
        with _MAKING:  # two targets may share one
            try:
                data = reach.read(path, _LARGEST)
            except FileNotFoundError:
                return self._make_password(path)
        text = data.decode("utf-8", "replace").split("\n")[0].rstrip("\r")
        if not text:
            raise HandclaspError(Kind.BAD_SETTING, f"there is no password in {path}")
        return text

    def _make_password(self, path: Path) -> str:
        password = secrets.token_hex(16)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with reach.directory(path.parent) as place:
            home, start = place.descriptor, f".{path.name}-"
            for left in os.listdir(home):  # noqa: PTH208  (a descriptor)
                if left.startswith(start):  # by an interruption
                    os.unlink(left, dir_fd=home)
            draft = start + secrets.token_hex(8)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=home)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(password)  # no end of line: some read the whole of it
                    file.flush()
                    os.fchown(descriptor, self.owner, self.group)
                    os.fchmod(descriptor, self.mode)
                    os.fsync(descriptor)
                os.rename(draft, path.name, src_dir_fd=home, dst_dir_fd=home)
            except BaseException:  # the half-written file goes, and what happened is raised on
                with suppress(FileNotFoundError):
                    os.unlink(draft, dir_fd=home)
                raise
            os.fsync(home)
        return password
