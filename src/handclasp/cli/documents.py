"""Policy, profiles and rules of ownership are each one YAML text on the server: compare with it, replace it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handclasp.cli import terminal
from handclasp.cli.command import State

if TYPE_CHECKING:
    from handclasp.wire import Policy, PolicyChange, PolicyDiff, PolicyDocument, ProfileDocument
    from handclasp.wire.ownership import Ownership, OwnershipDocument

_MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def _document(path: str, text: str) -> PolicyDocument | ProfileDocument | OwnershipDocument:
    from handclasp.wire import PolicyDocument, ProfileDocument

    if path == "/v1/ownership":
        from handclasp.wire.ownership import OwnershipDocument

        return OwnershipDocument(text=text)
    return PolicyDocument(text=text) if path == "/v1/policy" else ProfileDocument(text=text)


def write_document(found: Policy | Ownership, never: str) -> None:
    """Write the text in force to stdout, as it was applied, and who applied it to stderr; ``never`` is said where nobody did."""
    terminal.write_text(found.text)
    if found.applied_at:
        terminal.say(f"applied {terminal.relative(found.applied_at)} by {found.applied_by} (sha256 {found.sha256[:16]})")
    else:
        terminal.say(never)


def diff_document(state: State, path: str, text: str, *, exit_code: bool) -> int:
    """Show what the text would change at ``path``; return 1 when it would and the caller asked for that."""
    from handclasp.wire import PolicyDiff

    found = state.api().call("POST", f"{path}:diff", PolicyDiff, body=_document(path, text))
    _write(state, found)
    if not found.changes:
        terminal.say("nothing would change")
    return 1 if exit_code and found.changes else 0


def apply_document(state: State, path: str, text: str) -> None:
    """Replace the text at ``path``; show what that changed."""
    from handclasp.wire import PolicyDiff

    found = state.api().call("PUT", path, PolicyDiff, body=_document(path, text))
    _write(state, found)
    changes = len(found.changes)
    entry = f" (log entry {found.log_entry})" if found.log_entry is not None else ""
    terminal.say(f"applied: {changes} change{'' if changes == 1 else 's'}{entry}" if changes else f"applied: nothing changed{entry}")


def _write(state: State, found: PolicyDiff) -> None:
    if state.json:
        terminal.write_json(found)
        return
    for change in found.changes:
        for line in _lines(change):
            terminal.write(line)


def _lines(change: PolicyChange) -> list[str]:
    mark, style = _MARKS.get(change.change, ("~", "yellow"))
    out = terminal.out()
    lines = [terminal.styled(f"{mark} {terminal.visible(change.subject)}", style, out)]
    if change.before:
        lines += [terminal.styled(f"    - {terminal.visible(line)}", "red", out) for line in change.before.splitlines()]
    if change.after:
        lines += [terminal.styled(f"    + {terminal.visible(line)}", "green", out) for line in change.after.splitlines()]
    return lines
