"""``handclasp rotate`` and ``handclasp rotation``: have certificates replaced before their time, and watch it happen."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, Group, State, pass_state
from handclasp.cli.options import in_path, limit_option
from handclasp.cli.terminal import When

if TYPE_CHECKING:
    from handclasp.cli.connection import Api
    from handclasp.wire import Rotation, RotationPending

EVERY = 1.0
"""Seconds between two looks; where a look takes long, five times as long as it took."""
SILENT = 15 * 60 * 1000
sleep = time.sleep
"""What waiting is; tests set it."""


@click.command(
    "rotate",
    cls=Command,
    client=True,
    example="handclasp rotate --identity 'spiffe://example.org/prod/**' --within 10m --dry-run\n"
    "handclasp rotate --issuer issuing --within 30m --reason 'key of issuing is lost'\n"
    "handclasp rotate --all --within 1h --yes --json",
)
@click.option("--all", "everything", is_flag=True, help="Every certificate.")
@click.option("--identity", metavar="PATTERN", help="Those of identities that a pattern covers, written as in policy; dns:… for DNS names.")
@click.option("--issuer", metavar="AUTHORITY", help="Those that one issuing authority signed.")
@click.option("--within", default="10m", show_default=True, metavar="DURATION", help="When all must be replaced.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the log and for others.")
@click.option("--dry-run", is_flag=True, help="Only say what it would concern.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Return as soon as it has begun.")
@pass_state
def rotate(
    state: State,
    everything: bool,
    identity: str | None,
    issuer: str | None,
    within: str,
    reason: str,
    dry_run: bool,
    yes: bool,
    no_wait: bool,
) -> int:
    """Have certificates replaced, with new keys, spread over a time. Exits 1 when something has not answered at the end.

    Agents and clients find out when they next ask the server, and renew as they always do. What nobody renews is listed at the end.
    """
    from handclasp.wire import Rotation, RotationRequest

    if [everything, bool(identity), bool(issuer)].count(True) != 1:
        raise click.UsageError("say what is to be replaced: --all, --identity PATTERN or --issuer AUTHORITY; one of them")
    api = state.api()
    request = RotationRequest(all=everything, identity=identity, authority=issuer, within=within, reason=reason, dry_run=True)
    planned = api.call("POST", "/v1/rotations", Rotation, body=request)
    _say_plan(planned)
    if dry_run or not planned.total:
        _write(state, planned)
        return 0
    if not yes and not _agrees(planned):
        terminal.say("nothing was changed")
        return 1
    request.dry_run = False
    started = api.call("POST", "/v1/rotations", Rotation, body=request)
    terminal.say(f"rotation {started.id} has begun (log entry {started.log_entry})")
    if no_wait:
        _write(state, started)
        return 0
    return _finish(state, _watch(api, started))


@click.group(cls=Group)
def rotation() -> None:
    """Rotations: how far they are, and what has not answered."""


@rotation.command("list", client=True, example="handclasp rotation list")
@limit_option
@pass_state
def list_(state: State, limit: int) -> None:
    """List rotations, newest first."""
    from handclasp.wire import RotationList

    found = state.api().pages("/v1/rotations", RotationList, limit)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["id", "what", "state", "certificates", "replaced", "gone", "late", "began", "ends"],
        [[r.id, r.what, r.state, r.total, r.replaced, r.gone, r.late, When(r.created_at), When(r.ends_at)] for r in found.items],
        empty="nothing was ever rotated",
    )


@rotation.command("show", client=True, example="handclasp rotation show k3v6q2mzt4w7ay5d\nhandclasp rotation show k3v6q2mzt4w7ay5d --wait")
@click.argument("rotation_id", metavar="ID", help="The rotation, as `rotation list` shows it.")
@click.option("--wait", is_flag=True, help="Watch it to its end.")
@pass_state
def show(state: State, rotation_id: str, wait: bool) -> int:
    """Show how far a rotation is, with what has not answered. Exits 1 when its time is over and something has not."""
    from handclasp.wire import Rotation

    api = state.api()
    found = api.get(f"/v1/rotations/{in_path(rotation_id)}", Rotation)
    if wait:
        found = _watch(api, found)
    return _finish(state, found)


# --- saying ---------------------------------------------------------------------------------------------------------------------------


def _say_plan(planned: Rotation) -> None:
    if not planned.total:
        terminal.say(f"{planned.what}: there is nothing to replace")
    else:
        seconds = max(1.0, (_at(planned.ends_at) - _at(planned.begins_at)) / 1000)
        rate = planned.total / seconds
        each = f"{rate:.0f} a second" if rate >= 1 else f"one in {terminal.span(1 / rate)}"
        terminal.say(f"{planned.what}: {_certificates(planned.total)} to replace, {planned.begins_at} to {planned.ends_at}, about {each}")
    for note in planned.notes:
        terminal.warn(note)


def _agrees(planned: Rotation) -> bool:
    if not terminal.is_terminal(sys.stdin):
        raise click.UsageError("there is no terminal to ask on: look at --dry-run, then add --yes")
    return click.confirm(f"replace {_certificates(planned.total)}?", err=True)


def _write(state: State, found: Rotation) -> None:
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_fields(
        [
            ("id", found.id),
            ("what", found.what),
            ("state", found.state),
            ("certificates", found.total),
            ("replaced", found.replaced),
            ("gone", found.gone),
            ("late", found.late),
            ("begins", When(found.begins_at)),
            ("ends", When(found.ends_at)),
            ("reason", found.reason),
            ("by", found.by),
            ("log entry", found.log_entry),
        ]
    )


def _finish(state: State, found: Rotation) -> int:
    """Write how it ended, or stands, and return the exit code."""
    if state.json:
        terminal.write_json(found)
    else:
        _write(state, found)
        if found.pending:
            terminal.write_table(
                ["identity", "certificate", "state", "ends", "agent", "last contact", "what to do"],
                [
                    [
                        one.identity,
                        one.sha256[:16],
                        one.state,
                        When(one.not_after),
                        one.agent,
                        When(one.agent_last_contact) if one.agent_last_contact else None,
                        _advice(one),
                    ]
                    for one in found.pending
                ],
            )
    waiting = found.total - found.replaced - found.gone
    if waiting > len(found.pending):
        terminal.say(f"{waiting - len(found.pending)} more have not answered")
    if found.state == "late":
        terminal.say(f"{_certificates(found.late)} of {found.total} not replaced in time")
    return 1 if found.state == "late" else 0


def _advice(one: RotationPending) -> str:
    if one.agent is None:
        return f"no agent has it: renew it where it is, or handclasp cert revoke {one.sha256}"
    if one.state == "waiting":
        return "its agent renews it by itself"
    heard = _at(one.agent_last_contact) if one.agent_last_contact else 0
    if terminal.clock() - heard > SILENT or heard < _at(one.renew_before):  # what is late has had time enough to be heard since
        return "its agent is silent: see whether it runs, and reaches the server"
    return f"handclasp agent show {one.agent.rpartition('/')[2]} tells what fails"


def _certificates(number: int) -> str:
    return f"{number:,} certificate{'' if number == 1 else 's'}"


def _at(text: str) -> int:
    from handclasp.clock import parse_rfc3339

    return parse_rfc3339(text)


# --- watching -------------------------------------------------------------------------------------------------------------------------


def _watch(api: Api, found: Rotation) -> Rotation:
    """Look until it is done or late. Ctrl-C ends the looking, and nothing else."""
    from handclasp.cli.rotation_view import make_view

    view = make_view(found, terminal.is_terminal(sys.stderr))
    try:
        with view:
            while found.state == "running":
                sleep(EVERY)
                began = time.monotonic()
                found = _look(api, found, view)
                sleep(min(30.0, 5 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        terminal.say(f"the rotation goes on by itself: handclasp rotation show {found.id} --wait")
        raise
    return found


def _look(api: Api, before: Rotation, view: object) -> Rotation:
    """Return how it stands; what stood before while the server cannot be reached, which is no reason to give up in an emergency."""
    from handclasp.cli.rotation_view import View
    from handclasp.errors import HandclaspError, Kind
    from handclasp.wire import Rotation

    assert isinstance(view, View)
    try:
        found = api.get(f"/v1/rotations/{before.id}", Rotation)
    except HandclaspError as error:
        if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED):
            raise
        view.show(before, error.detail)
        return before
    view.show(found)
    return found
