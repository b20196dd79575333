"""The Web PKI certificate of the HTTPS listener, for one server name: for ``https_web`` bundle endpoints, where nobody knows our roots yet.

The files belong to whoever renews them (an ACME client, mostly) and are read again when they change. What cannot be used then is reported,
and the certificate from before stays.
"""

from __future__ import annotations

import asyncio
import ssl

import structlog

from handclasp.client.material import Credential, file_signature, load_credential
from handclasp.errors import HandclaspError
from handclasp.server.settings import Settings
from handclasp.server.tls import SwappableTls

_log = structlog.get_logger("handclasp.server")


class WebCertificate:
    """Keeps a listener's certificate for the setting ``web_name`` at what the files hold."""

    def __init__(self, settings: Settings, tls: SwappableTls) -> None:
        """Read the files for the first time. Raises ``bad_setting`` or ``bad_key``: a server does not start with what it cannot serve."""
        self._name = settings.web_name
        self._files = [path for path in (settings.web_certificate, settings.web_key) if path is not None]
        self._tls = tls
        self._signature: tuple[object, ...] = ()
        if self._name:
            self._signature = file_signature(self._files)
            self._load()

    async def refresh(self) -> None:
        """Read the files again if they changed. Never raises: the listener goes on with what it has."""
        if not self._name:
            return
        signature = await asyncio.to_thread(file_signature, self._files)
        if signature == self._signature:
            return
        try:
            await asyncio.to_thread(self._load)
        except HandclaspError as error:
            # Certificate and key are two files: between their two writes they do not belong together. The next look is a second away.
            _log.warning("web certificate cannot be used", name=self._name, reason=error.detail)
        else:
            self._signature = signature
            _log.info("web certificate read", name=self._name)

    def _load(self) -> None:
        certificate, key = self._files
        credential = Credential.read(certificate, key)
        load_credential(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), credential)  # for nothing, before it is shown to anyone
        self._tls.serve_name(self._name, credential)
