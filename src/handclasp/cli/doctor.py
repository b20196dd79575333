"""``handclasp doctor``: everything between this shell and a working certificate, looked at in the order in which it breaks."""

from __future__ import annotations

from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state


@click.command(
    "doctor",
    cls=Command,
    client=True,
    example="handclasp doctor\nhandclasp doctor --url https://ca.example.org:8443 --ca bundle.pem --json",
)
@click.option("--agent-config", metavar="FILE", help="Configuration of the agent to look at (agent.yaml).")
@click.option("--agent-state", metavar="DIR", help="State directory of the agent to look at.")
@pass_state
def doctor(state: State, agent_config: str | None, agent_state: str | None) -> int:
    """Check settings, server, trust, clock, token, agent, revocation lists and log, one line each, and say what to do."""
    from handclasp.cli.checks import examine

    findings: list[dict[str, Any]] = []
    for finding in examine(state, agent_config, agent_state):
        findings.append({"check": finding.check, "verdict": finding.verdict, "detail": finding.detail, "hint": finding.hint})
        if not state.json:
            terminal.write_verdict(finding.verdict, finding.check, finding.detail + (f": {finding.hint}" if finding.hint else ""))
    failed = [finding for finding in findings if finding["verdict"] == "fail"]
    if state.json:
        terminal.write_json({"ok": not failed, "checks": findings})
    return 1 if failed else 0
