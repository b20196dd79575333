"""``handclasp agent list`` and ``agent show``: the agents as the server knows them, whether they say anything or not."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.cli.options import limit_option
from handclasp.cli.terminal import When

if TYPE_CHECKING:
    from handclasp.wire import Agent, AgentIdentity


@click.command(
    "list",
    cls=Command,
    client=True,
    example="handclasp agent list\nhandclasp agent list --state overdue --json\nhandclasp agent list --label role=web --q eu-1",
)
@click.option("--state", "agent_state", metavar="STATE", help="Only those that are ok, attention, overdue, silent or enrolled.")
@click.option("--identity", metavar="IDENTITY", help="Only those that look after this identity, or have it.")
@click.option("--label", metavar="K=V", help="Only those with this label.")
@click.option("--q", metavar="TEXT", help="Only those with this in their identity or host name.")
@limit_option
@pass_state
def list_(state: State, agent_state: str | None, identity: str | None, label: str | None, q: str | None, limit: int) -> None:
    """List the agents that the server knows, and how their identities are."""
    from handclasp.wire import AgentList

    found = state.api().pages("/v1/agents", AgentList, limit, state=agent_state, identity=identity, label=label, q=q)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["identity", "hostname", "state", "version", "last contact", "identities", "not ok", "missed"],
        [
            [
                a.identity,
                a.hostname,
                a.state,
                a.version,
                When(a.last_contact) if a.last_contact else None,
                len(a.identities),
                [i.identity for i in a.identities if i.state != "ok"],
                [m.identity for m in a.missed],
            ]
            for a in found.items
        ],
        empty="no agent is enrolled",
    )


@click.command(
    "show", cls=Command, client=True, example="handclasp agent show web-1\nhandclasp agent show spiffe://example.org/agent/web-1 --json"
)
@click.argument("name", help="The agent's name, or its whole identity.")
@pass_state
def show(state: State, name: str) -> int:
    """Show one agent as the server knows it: what it delivers where, and what it missed. Exits 1 when something needs a person."""
    from handclasp.wire import Agent

    found = state.api().get(f"/v1/agents/{quote(name, safe='')}", Agent)
    if state.json:
        terminal.write_json(found)
    else:
        _write(found)
    return 0 if found.state in ("ok", "enrolled") else 1


def _write(agent: Agent) -> None:
    evidence = agent.evidence
    again = "yes, with the same evidence" if agent.can_enrol_again else "no, it needs a new token"
    terminal.write_fields(
        [
            ("identity", agent.identity),
            ("hostname", agent.hostname),
            ("state", agent.state),
            ("version", agent.version),
            ("last contact", When(agent.last_contact) if agent.last_contact else None),
            ("address", agent.address),
            ("labels", [f"{key}={value}" for key, value in sorted(agent.labels.items())]),
            ("enrolled", When(agent.enrolled_at)),
            ("enrolled with", f"{evidence.method}: {evidence.subject} (rule {evidence.rule})" if evidence else "a token"),
            ("enrols again", again),
        ]
    )
    for one in agent.missed:
        terminal.write_verdict("fail", one.identity, f"{one.state}: to be renewed before {one.renew_before}, ends {one.not_after}")
    rows = []
    for identity in agent.identities:
        ends = When(identity.not_after) if identity.not_after else None
        held = (identity.sha256 or "")[:16]
        rows.append([identity.identity, "", identity.state, held, ends, _own_failure(identity)])
        rows += [[identity.identity, t.name, t.state, (t.sha256 or "")[:16], None, t.last_failure] for t in identity.targets]
    terminal.write_table(["identity", "target", "state", "certificate", "ends", "last failure"], rows, empty="it looks after nothing")


def _own_failure(identity: AgentIdentity) -> str:
    """What failed besides the deliveries: theirs stand in the rows of the targets, and ``last_failure`` ends with them."""
    words = f"\n{identity.last_failure or ''}"
    begins = [at for target in identity.targets if (at := words.find(f"\n{target.name}: ")) >= 0]
    return words[: min(begins, default=len(words))].strip()
