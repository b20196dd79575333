"""Owners, rules of ownership, assignments, and confirmations by link."""

from __future__ import annotations

from urllib.parse import parse_qsl

from handclasp.access.limits import network_key
from handclasp.api.handlers.confirm_page import PAGE_HEADERS, answered_page, asking_page, over_page
from handclasp.api.paging import read_cursor, read_limit, read_text, write_cursor
from handclasp.api.routes import Call, Plain
from handclasp.errors import HandclaspError, Kind
from handclasp.ownership.names import KINDS
from handclasp.ownership.views import NEEDS
from handclasp.wire import Done, PolicyDiff
from handclasp.wire.ownership import (
    Asked,
    Assignments,
    Confirmation,
    ConfirmationAnswer,
    Confirmed,
    Owner,
    OwnerImported,
    OwnerList,
    Ownership,
    OwnershipItems,
)

HTML = "text/html; charset=utf-8"


async def list_owners(call: Call) -> OwnerList:
    """List owners by name."""
    limit = read_limit(call.query)
    after = read_cursor(call.query, str)
    kind, state = read_text(call.query, "kind"), read_text(call.query, "state")
    if (kind is not None and kind not in KINDS) or state not in (None, "active", "left"):
        raise HandclaspError(Kind.BAD_REQUEST, "kind is team, person or service, and state active or left")
    found = await call.services.ownership.views.owners(
        limit + 1,
        after[0] if after is not None else None,
        kind=kind,
        left=None if state is None else state == "left",
        q=read_text(call.query, "q"),
    )
    items = found[:limit]
    return OwnerList(items=items, next_cursor=write_cursor(items[-1].name) if len(found) > limit else None)


async def import_owners(call: Call) -> OwnerImported:
    """Bring a directory of owners in, whole."""
    return await call.services.ownership.owners.import_(call.body, call.principal.to_log())


async def show_owner(call: Call) -> Owner:
    """Show one owner."""
    return await call.services.ownership.views.owner(call.path["name"])


async def put_owner(call: Call) -> Done:
    """Make an owner by hand, or change one that was."""
    if call.body.name != call.path["name"]:
        raise HandclaspError(Kind.BAD_REQUEST, "the owner in the body is another than the one in the address")
    return Done(log_entry=await call.services.ownership.owners.add(call.body, call.principal.to_log()))


async def remove_owner(call: Call) -> Done:
    """Remove an owner that owns nothing."""
    return Done(log_entry=await call.services.ownership.owners.remove(call.path["name"], call.principal.to_log()))


async def ask_owner(call: Call) -> Asked:
    """Make a link by which an owner confirms what it owns. Its secret is in this answer and nowhere else."""
    return await call.services.ownership.people.ask(call.path["name"], call.body, call.principal.to_log())


async def show_ownership(call: Call) -> Ownership:
    """Show the rules of ownership in force, and how the whole stands."""
    return await call.services.ownership.views.ownership()


async def apply_ownership(call: Call) -> PolicyDiff:
    """Put rules of ownership in force; every owner is derived again."""
    return await call.services.ownership.book.apply(call.body.text, call.principal.to_log(), call.principal.describe())


async def diff_ownership(call: Call) -> PolicyDiff:
    """Say what applying rules of ownership would change."""
    return await call.services.ownership.book.compare(call.body.text)


async def test_ownership(call: Call) -> Assignments:
    """Say who would own an identity, and why."""
    return await call.services.ownership.views.test(call.body)


async def needing_people(call: Call) -> OwnershipItems:
    """List identities that need a person."""
    what = read_text(call.query, "need") or "owner"
    if what not in NEEDS:
        raise HandclaspError(Kind.BAD_REQUEST, f"need is one of {', '.join(NEEDS)}")
    after = read_cursor(call.query, int, int, int)
    items, place = await call.services.ownership.views.needing(
        what, read_limit(call.query), (after[0], after[1], after[2]) if after is not None else None
    )
    return OwnershipItems(items=items, next_cursor=write_cursor(*place) if place is not None else None)


async def assign(call: Call) -> Done:
    """Say who owns an identity."""
    principal = call.principal
    entry = await call.services.ownership.people.assign(call.path["identity"], call.body, principal.to_log(), principal.describe())
    return Done(log_entry=entry)


async def list_assignments(call: Call) -> Assignments:
    """Show everything that says who owns an identity."""
    return await call.services.ownership.views.assignments(call.path["identity"])


# --- confirmation by link ---------------------------------------------------------------------------------------------------------------


async def show_confirmation(call: Call) -> Confirmation:
    """Show what a link asks. Changes nothing."""
    _within_limits(call)
    try:
        return await call.services.ownership.people.show(call.path["secret"])
    except HandclaspError:
        _count_failure(call)
        raise


async def answer_confirmation(call: Call) -> Confirmed:
    """Answer a link, once."""
    _within_limits(call)
    try:
        return await call.services.ownership.people.answer(call.path["secret"], call.body, call.source.to_log())
    except HandclaspError:
        _count_failure(call)
        raise


async def confirmation_page(call: Call) -> Plain:
    """Show what a link asks, for people. Changes nothing: mail programs look at links before people do."""
    try:
        found = await show_confirmation(call)
    except HandclaspError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        return _page(over_page(error.detail))
    return _page(asking_page(found))


async def confirmation_form(call: Call) -> Plain:
    """Take the answer of the page. Raises ``bad_request`` for what its form does not send."""
    if not call.body:  # the form has a field that is always sent
        raise HandclaspError(Kind.BAD_REQUEST, "this is not the form's answer")
    try:
        fields = parse_qsl(call.body.decode("ascii"), max_num_fields=1000, strict_parsing=True, errors="strict")
    except (ValueError, UnicodeError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "this is not the form's answer") from error
    said = {choice: [name.removeprefix("for:") for name, value in fields if value == choice] for choice in ("confirm", "deny")}
    if not any(said.values()):
        return await confirmation_page(call)
    call.body = ConfirmationAnswer(confirmed=said["confirm"], denied=said["deny"])
    try:
        return _page(answered_page(await answer_confirmation(call)))
    except HandclaspError as error:
        if error.kind not in (Kind.NOT_FOUND, Kind.CONFLICT, Kind.BAD_REQUEST):
            raise
        return _page(over_page(error.detail))


def _page(text: str) -> Plain:
    return Plain(text.encode(), HTML, headers=PAGE_HEADERS)


def _within_limits(call: Call) -> None:
    """Links have the rate of one principal for each address. Not each by itself: who makes secrets up would fill the limiter with them."""
    if call.source.address is not None:
        call.services.principal_limit.check(f"links:{network_key(call.source.address)}")


def _count_failure(call: Call) -> None:
    """Who tries links that there are not, is slowed down like who is refused."""
    if call.source.address is not None:
        call.services.refused_limit.check(network_key(call.source.address))
