"""Every command of the program, by its words."""

from __future__ import annotations

from collections.abc import Iterator

import click

from handclasp.cli.main import handclasp


def commands(group: click.Group = handclasp, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that is there; the demonstration is a program of its own."""
    context = click.Context(group)
    for name in group.list_commands(context):
        if name == "demo":
            continue
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


EVERY = dict(commands())
