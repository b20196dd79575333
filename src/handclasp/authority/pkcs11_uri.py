"""PKCS#11 URIs (RFC 7512): which object on which token, behind which library, and where its PIN is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from handclasp.errors import HandclaspError, Kind

_TEXT = ("token", "serial", "manufacturer", "model", "object")
_LONGEST = 2048
_URI = re.compile(r"pkcs11:[!-~]*", re.ASCII)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """One key on one token. Empty text and None stand for attributes that were not given."""

    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    object: str = ""
    id: bytes = b""
    slot_id: int | None = None
    module_path: str = ""
    pin_source: str = ""

    @property
    def place(self) -> tuple[str, str, str, str, int | None]:
        """What chooses the token; URIs of the same place share one session."""
        return self.token, self.serial, self.manufacturer, self.model, self.slot_id

    def describe(self) -> str:
        """Name the key in words for errors and logs."""
        name = f"{self.object!r}" if self.object else self.id.hex()
        where = self.token or self.serial or (f"in slot {self.slot_id}" if self.slot_id is not None else self.model)
        return f"key {name} on PKCS#11 token {where}"


def parse_pkcs11_uri(text: str) -> Pkcs11Uri:
    """Parse ``pkcs11:token=T;object=O;id=%01?module-path=/M&pin-source=file:/P``; raise ``bad_setting`` for anything else.

    Refused on purpose: ``pin-value``, because URIs are shown, stored and logged; unknown attributes, because one that is not understood may
    be the one that tells two keys apart (RFC 7512 section 2.3 lets a consumer refuse them); attributes given twice.
    """
    if len(text) > _LONGEST or not _URI.fullmatch(text) or _BAD_ESCAPE.search(text):
        raise _bad("is not a pkcs11: URI (RFC 7512)")
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    found = _pairs(path, ";", (*_TEXT, "id", "slot-id", "type")) | _pairs(query, "&", ("module-path", "pin-source"))
    values = {name: _text(name, value) for name, value in found.items() if name != "id"}
    if values.get("type", "private") != "private":
        raise _bad("must name a private key (type=private)")
    slot = values.get("slot-id")
    if slot is not None and not re.fullmatch("[0-9]{1,18}", slot):
        raise _bad("has a slot-id that is not a number")
    uri = Pkcs11Uri(
        **{name: values.get(name, "") for name in _TEXT},
        id=found.get("id", b""),
        slot_id=None if slot is None else int(slot),
        module_path=values.get("module-path", ""),
        pin_source=values.get("pin-source", ""),
    )
    if not (uri.token or uri.serial or uri.slot_id is not None):
        raise _bad("does not say which token: it needs token=, serial= or slot-id=")
    if not (uri.object or uri.id):
        raise _bad("does not say which key: it needs object= or id=")
    return uri


def _pairs(text: str, separator: str, allowed: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise _bad("carries a PIN", hint="keep the PIN in a file (pin-source=file:/…) or in HANDCLASP_PKCS11_PIN")
        if not equals or not value or name not in allowed:
            raise _bad(f"has an attribute that is not understood: {name[:40]!r}")
        if name in found:
            raise _bad(f"gives {name} twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"has a {name} that is not UTF-8") from error
    if any(character < " " or character == "\x7f" for character in text):
        raise _bad(f"has a control character in {name}")
    return text


def _bad(what: str, *, hint: str = "") -> HandclaspError:
    # The URI itself is not quoted: somebody may just have put a PIN into it.
    return HandclaspError(
        Kind.BAD_SETTING, f"the PKCS#11 URI {what}", hint=hint or "write it like pkcs11:token=NAME;object=KEY?pin-source=file:/run/pin"
    )
