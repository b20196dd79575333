"""Directories of owners as they come from outside: tables (CSV), Backstage, CODEOWNERS, JSON. Pure; only ``bad_request`` escapes.

Each reader returns the import that the API takes. A mistake in a file is an error with its line and nothing is imported: half a directory
would make the other half look as if it had left.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from handclasp.errors import HandclaspError, Kind
from handclasp.ownership.names import KINDS, TIERS, is_environment, is_owner, plain_owner
from handclasp.pki.yamlfile import read_yaml
from handclasp.wire.ownership import CatalogueEntry, OwnerEntry, OwnerImport

MAX_LINES = 200_000
MAX_FILE = 16_000_000
_SPLIT = re.compile(r"[\s;,|]+")
_MARKER = re.compile(r"^---[ \t]*(?:#.*)?$", re.MULTILINE)
_OWNER_COLUMNS = ("name", "kind", "title", "contact", "escalation")
_ITEM_COLUMNS = ("component", "path", "owner", "tier", "environment")

Files = Sequence[tuple[str, str]]
"""(name, text) of each file of one directory, in their order."""


class _Gathered:
    """What a directory has, each thing once; the first one counts."""

    def __init__(self) -> None:
        self.owners: dict[str, OwnerEntry] = {}
        self.items: dict[tuple[str, str], CatalogueEntry] = {}
        self.problems: list[str] = []

    def done(self, directory: str) -> OwnerImport:
        """Return it as an import, or raise one ``bad_request`` with everything that is wrong."""
        if self.problems:
            more = [f"… and {len(self.problems) - 50} more"] if len(self.problems) > 50 else []
            raise HandclaspError(Kind.BAD_REQUEST, "\n".join(self.problems[:50] + more))
        return OwnerImport(directory=directory, owners=list(self.owners.values()), catalogue=list(self.items.values()))


def read_csv(files: Files, directory: str = "csv") -> OwnerImport:
    """Return a table of owners (name, kind, title, contact, escalation) or of things with owners (component or path, owner, tier,
    environment); which of them a file is, its first line says."""
    gathered = _Gathered()
    for name, text in files:
        try:
            _table(name, _checked(name, text), gathered)
        except (csv.Error, ValueError) as error:
            gathered.problems.append(f"{name}: not a table: {error}")
    return gathered.done(directory)


def _table(source: str, text: str, gathered: _Gathered) -> None:
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns = _columns(source, row, gathered)
            if columns is None:
                return
            continue
        where = f"{source}:{rows.line_num}"
        if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
            gathered.problems.append(f"{where}: {len(row)} cells under {len(columns)} columns")
            continue
        cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False)}
        if "name" in columns:
            _owner_row(where, cells, gathered)
        else:
            _item_row(where, cells, gathered)


def _columns(source: str, row: list[str], gathered: _Gathered) -> list[str] | None:
    columns = [cell.strip().lower() for cell in row]
    known = _OWNER_COLUMNS if "name" in columns else _ITEM_COLUMNS
    wrong = [column for column in columns if column not in known]
    things = [column for column in ("component", "path") if column in columns]
    if wrong or len(set(columns)) != len(columns) or ("name" not in columns and (len(things) != 1 or "owner" not in columns)):
        gathered.problems.append(
            f"{source}:1: the first line must name the columns: {', '.join(_OWNER_COLUMNS)} for owners; component or path, owner, tier, "
            "environment for what they own"
        )
        return None
    return columns


def _owner_row(where: str, cells: Mapping[str, str], gathered: _Gathered) -> None:
    name, kind = plain_owner(cells.get("name", "")), cells.get("kind", "").lower() or "team"
    if not name or kind not in KINDS:
        gathered.problems.append(
            f"{where}: " + ("a name is needed, of letters, digits and . _ @ + -" if not name else "kind is team, person or service")
        )
        return
    if name in gathered.owners:
        gathered.problems.append(f"{where}: {name} is there twice")
        return
    escalation = plain_owner(cells.get("escalation", "")) or None
    gathered.owners[name] = _owner(name, kind, cells.get("title", ""), cells.get("contact", ""), escalation)


def _item_row(where: str, cells: Mapping[str, str], gathered: _Gathered) -> None:
    kind = "component" if "component" in cells else "path"
    name = cells.get(kind, "")
    owners = [plain_owner(text) for text in _SPLIT.split(cells.get("owner", "")) if text]
    tier, environment = cells.get("tier", ""), cells.get("environment", "").lower()
    if not name or len(name) > 1024 or not all(owners) or len(owners) > 50:
        gathered.problems.append(f"{where}: {kind} and owner are needed, owners of letters, digits and . _ @ + -")
    elif (tier and tier not in TIERS) or (environment and not is_environment(environment)):
        gathered.problems.append(f"{where}: tier is 0 to 3, an environment is written like prod")
    elif (kind, name) in gathered.items:
        gathered.problems.append(f"{where}: {kind} {name} is there twice")
    else:
        gathered.items[kind, name] = CatalogueEntry(kind=kind, name=name, owners=owners, tier=tier or None, environment=environment or None)


def read_backstage(files: Files, directory: str = "backstage") -> OwnerImport:
    """Return the groups, users, systems and components of Backstage's catalog files; other kinds are passed over.

    Tier and environment are taken from annotations or labels whose name is, or ends in, ``tier`` or ``environment``, and from tags such as
    ``tier-1``. The annotation ``backstage.io/kubernetes-id`` is another name of its component.
    """
    gathered = _Gathered()
    for name, text in files:
        for number, piece in enumerate(_MARKER.split(_checked(name, text)), 0):
            source = f"{name}#{number}" if number > 1 else name
            try:
                document = read_yaml(piece, source, Kind.BAD_REQUEST).value
            except HandclaspError as error:
                gathered.problems += error.detail.splitlines()
                continue
            if document:
                _entity(source, document, gathered)
    return gathered.done(directory)


def _entity(source: str, document: Mapping[str, Any], gathered: _Gathered) -> None:
    kind = str(document.get("kind", "")).lower()
    metadata, spec = _mapping(document.get("metadata")), _mapping(document.get("spec"))
    if kind not in ("group", "user", "system", "component", "resource"):
        return
    namespace, written = _text(metadata.get("namespace")) or "default", _text(metadata.get("name"))
    name = plain_owner(f"{kind if kind in ('group', 'user') else 'component'}:{namespace}/{written}") if written else ""
    if not name:
        gathered.problems.append(f"{source}: metadata.name is needed, of letters, digits and . _ -")
    elif kind in ("group", "user"):
        profile = _mapping(spec.get("profile"))
        title = _text(profile.get("displayName")) or _text(metadata.get("title"))
        parent = _reference(spec.get("parent")) if kind == "group" else ""
        entry = _owner(name, "team" if kind == "group" else "person", title, _text(profile.get("email")), parent or None)
        gathered.owners.setdefault(name, entry)
    else:
        owner = _reference(spec.get("owner"))
        tier, environment = _tier(metadata), _environment(metadata)
        also = _text(_mapping(metadata.get("annotations")).get("backstage.io/kubernetes-id"))
        for one in dict.fromkeys((name, also)):
            if one and len(one) <= 1024 and (owner or tier or environment):
                entry_ = CatalogueEntry(kind="component", name=one, owners=[owner] if owner else [], tier=tier, environment=environment)
                if kind == "component":  # a system or resource of the same name is less than the component
                    gathered.items["component", one] = entry_
                gathered.items.setdefault(("component", one), entry_)


def _reference(value: Any) -> str:
    return plain_owner(value) if isinstance(value, str) else ""


def _said(metadata: Mapping[str, Any], what: str) -> str:
    for part in ("annotations", "labels"):
        for key, value in sorted(_mapping(metadata.get(part)).items()):
            if (key == what or key.endswith(f"/{what}")) and isinstance(value, str | int) and not isinstance(value, bool):
                return str(value).lower()
    return ""


def _tier(metadata: Mapping[str, Any]) -> str | None:
    tags = metadata.get("tags")
    for text in (_said(metadata, "tier"), *(tag for tag in (tags if isinstance(tags, list) else []) if isinstance(tag, str))):
        found = re.fullmatch(r"(?:tier)?[-_ ]?([0-3])", text.lower())
        if found and (text == _said(metadata, "tier") or text.lower().startswith("tier")):
            return found[1]
    return None


def _environment(metadata: Mapping[str, Any]) -> str | None:
    said = _said(metadata, "environment")
    return said if is_environment(said) else None


def read_codeowners(files: Files, directory: str = "codeowners") -> OwnerImport:
    """Return the paths and owners of CODEOWNERS files. ``@org/team`` is the team ``team``, ``@user`` and an address are persons.

    Sections (``[Docs]``) are passed over, and so are patterns that CODEOWNERS does not know (``!``, ``[a-z]``).
    """
    gathered = _Gathered()
    for name, text in files:
        for number, line in enumerate(_checked(name, text).splitlines(), 1):
            words = _words(line)
            if not words or words[0].startswith(("[", "^[", "!")):
                continue
            owners = []
            for word in words[1:]:
                owner = plain_owner(word)
                if not owner:
                    gathered.problems.append(f"{name}:{number}: {word[:100]!r} is not an owner: @org/team, @user or an address")
                    continue
                owners.append(owner)
                kind = "team" if word.startswith("@") and "/" in word else "person"
                gathered.owners.setdefault(owner, _owner(owner, kind, "", word if "/" in word or "@" in word[1:] else "", None))
            if len(words[0]) > 1024 or len(owners) > 50:
                gathered.problems.append(f"{name}:{number}: a pattern of more than 1024 characters, or more than 50 owners")
                continue
            gathered.items.pop(("path", words[0]), None)  # the last one counts, and so does its place
            gathered.items["path", words[0]] = CatalogueEntry(kind="path", name=words[0], owners=list(dict.fromkeys(owners)))
    return gathered.done(directory)


def _words(line: str) -> list[str]:
    """Split a line at spaces that no backslash is before; ``#`` begins a comment."""
    words: list[str] = []
    word, escaped = "", False
    for character in line:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif character == "#":
            break
        elif character.isspace():
            words += [word] if word else []
            word = ""
        else:
            word += character
    return words + ([word] if word else [])


def read_json(files: Files, directory: str = "json") -> OwnerImport:
    """Return ``{"owners": [...], "catalogue": [...]}`` as the API takes it."""
    gathered = _Gathered()
    for name, text in files:
        try:
            found = msgspec.json.decode(_checked(name, text), type=_Json)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            gathered.problems.append(f"{name}: {error}")
            continue
        for owner in found.owners:
            gathered.owners.setdefault(owner.name, owner)
        for item in found.catalogue:
            gathered.items.setdefault((item.kind, item.name), item)
    return gathered.done(directory)


class _Json(msgspec.Struct, forbid_unknown_fields=True):
    owners: list[OwnerEntry] = []
    catalogue: list[CatalogueEntry] = []


READERS: Mapping[str, Callable[[Files, str], OwnerImport]] = {
    "csv": read_csv,
    "backstage": read_backstage,
    "codeowners": read_codeowners,
    "json": read_json,
}
"""Every format, by name."""


def _owner(name: str, kind: str, title: str, contact: str, escalation: str | None) -> OwnerEntry:
    above = escalation if escalation and is_owner(escalation) else None
    return OwnerEntry(name=name, kind=kind, title=_clean(title), contact=_clean(contact), escalation=above)


def _clean(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:512]


def _checked(source: str, text: str) -> str:
    """Return a file's text without its byte order mark; raise for what no directory is."""
    if len(text) > MAX_FILE or text.count("\n") > MAX_LINES:
        raise HandclaspError(Kind.BAD_REQUEST, f"{source} is larger than a directory can be")
    if "\0" in text:
        raise HandclaspError(Kind.BAD_REQUEST, f"{source} is not a text: there is a NUL in it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HandclaspError(Kind.BAD_REQUEST, f"{source} is not Unicode text") from error
    return text.removeprefix("\ufeff")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
