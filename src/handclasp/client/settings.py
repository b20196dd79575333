"""Where the server is and how to speak to it: flags, then environment, then the configuration file.

Each value is taken from the first place that has it. The token may be given as a file everywhere, so that it needs to appear neither in
``ps`` nor in a shell's history.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.client.api import ApiClient

DEFAULT_CONFIG = "~/.config/handclasp/config.toml"
DEFAULT_URL = "https://localhost:8443"
_NAMES = ("url", "token", "token_file", "ca")
_TOKEN_LIMIT = 16384  # an OIDC token is the largest thing that is carried here


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Resolved settings. ``ca`` is a bundle file, ``sha256:<hex>`` of a root, PEM text, or None for the system's trust store."""

    url: str = DEFAULT_URL
    ca: str | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def resolve(
        cls,
        flags: Mapping[str, str | None] | None = None,
        env: Mapping[str, str] | None = None,
        config_file: str | os.PathLike[str] | None = None,
    ) -> ClientSettings:
        """Merge ``flags`` (``url``, ``token``, ``token_file``, ``ca``), ``HANDCLASP_*`` and the ``[default]`` table of ``config_file``.

        A ``config_file`` that was named must exist; the default one need not. ``token`` beats ``token_file`` of the same place. Relative
        files in the configuration are relative to it. Raises ``bad_setting``.
        """
        environment = os.environ if env is None else env
        named = config_file or environment.get("HANDCLASP_CONFIG")
        path = Path(named or DEFAULT_CONFIG).expanduser()
        places: list[Mapping[str, str | None]] = [
            flags or {},
            {name: environment.get(f"HANDCLASP_{name.upper()}") for name in _NAMES},
            _read_config(path, required=named is not None),
        ]
        url = _first(places, "url") or DEFAULT_URL
        ca = _first(places, "ca")
        if not url.startswith("https://"):
            raise HandclaspError(Kind.BAD_SETTING, f"the server's address {url!r} must begin with https://")
        if ca and not ca.startswith(("sha256:", "-----BEGIN")):
            ca = str(Path(ca).expanduser())
        return cls(url.rstrip("/"), ca, _token(places))

    def client(self, *, timeout: float = 30) -> ApiClient:
        """Return an API client with these settings."""
        from handclasp.client.api import ApiClient

        return ApiClient(self.url, ca=self.ca, token=self.token, timeout=timeout)


def read_token_file(path: str | os.PathLike[str]) -> str:
    """Return the token in a file, without surrounding space. Raises ``bad_setting`` when it cannot be read or is no token."""
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(_TOKEN_LIMIT + 1)
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read the token file {os.fspath(path)}: {error.strerror}") from error
    return _check_token(data.decode("ascii", "replace").strip(), f"the token file {os.fspath(path)}")


def _check_token(token: str, where: str) -> str:
    # A line break would end the header and start the next one.
    if not token or len(token) > _TOKEN_LIMIT or not all("!" <= character <= "~" for character in token):
        raise HandclaspError(Kind.BAD_SETTING, f"{where} holds no usable token")
    return token


def _first(places: list[Mapping[str, str | None]], name: str) -> str | None:
    return next((value for place in places if (value := place.get(name))), None)


def _token(places: list[Mapping[str, str | None]]) -> str | None:
    for place in places:
        if token := place.get("token"):
            return _check_token(token.strip(), "the setting 'token'")
        if token_file := place.get("token_file"):
            return read_token_file(token_file)
    return None


def _read_config(path: Path, *, required: bool) -> dict[str, str | None]:
    try:
        import tomllib

        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        if required:
            raise HandclaspError(Kind.BAD_SETTING, f"there is no configuration file {path}") from error
        return {}
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # TOML and UTF-8 errors both
        raise HandclaspError(Kind.BAD_SETTING, f"{path}: {error}") from error
    return _check_table(path, document)


def _check_table(path: Path, document: dict[str, Any]) -> dict[str, str | None]:
    table = document.get("default", {})
    if not isinstance(table, dict):
        raise HandclaspError(Kind.BAD_SETTING, f"{path}: [default] must be a table")
    for name, value in table.items():
        if name not in _NAMES:
            raise HandclaspError(Kind.BAD_SETTING, f"{path}: unknown setting {name!r}", hint="known are " + ", ".join(_NAMES))
        if not isinstance(value, str):
            raise HandclaspError(Kind.BAD_SETTING, f"{path}: {name} must be text")
    result: dict[str, str | None] = dict(table)
    for name in ("token_file", "ca"):
        value = result.get(name)
        if value and not value.startswith(("sha256:", "-----BEGIN")):
            result[name] = str(path.parent / Path(value).expanduser())
    return result
