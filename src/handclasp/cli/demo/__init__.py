"""``handclasp demo``: real services keep talking mutual TLS while their certificates change under them, on this machine, in a minute.

Everything in here only starts other parts and watches them: the server, the agents and the service run as the programs a user would run.
"""

from __future__ import annotations

import click

from handclasp.cli.command import Command, State, pass_state


@click.command(
    cls=Command,
    example="handclasp demo\nhandclasp demo --json --seconds 60",
)
@click.option("--seconds", type=click.IntRange(30, 3600), default=60, show_default=True, help="How long to watch before the revocation.")
@click.option("--keep", is_flag=True, help="Leave the server running at the end, and say where it is.")
@pass_state
def demo(state: State, seconds: int, keep: bool) -> int:
    """Watch the whole story on this machine, live: a server, two agents, nginx, a client and an intruder.

    Certificates live 20 seconds. At the end one identity is revoked and the log is verified. Exit code 0 only if no request failed, every
    identity rotated at least three times, no intruder got in, the revoked one was refused, and the log verifies.
    """
    from handclasp.cli.demo.story import tell

    return tell(seconds, keep=keep, as_json=state.json)
