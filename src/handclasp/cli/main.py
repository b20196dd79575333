"""The ``handclasp`` program: every command, by section, and nothing imported before it is used."""

from __future__ import annotations

import click

from handclasp import __version__
from handclasp.cli.command import RootGroup, connection_options, json_option

SECTIONS = {
    "Server": {
        "up": ("handclasp.cli.servers:up", "Make the authorities when there are none, then serve, in one process."),
        "init": ("handclasp.cli.servers:init", "Make a data directory with its authorities and first token."),
        "serve": ("handclasp.cli.servers:serve", "Serve from a data directory that is there."),
        "demo": ("handclasp.cli.demo:demo", "Watch the whole story on this machine, live."),
        "ca": ("handclasp.cli.authorities:ca", "Authorities, bundles, revocation lists, and offline roots."),
    },
    "Identities": {
        "cert": ("handclasp.cli.certificates:cert", "Issue, renew, revoke and look at certificates."),
        "rotate": ("handclasp.cli.rotations:rotate", "Have certificates replaced before their time, and watch it."),
        "rotation": ("handclasp.cli.rotations:rotation", "Rotations: how far they are, and what has not answered."),
        "identity": ("handclasp.cli.identities:identity", "Who has certificates, and who owns them."),
        "owner": ("handclasp.cli.owners:owner", "Teams, people and services that own identities, and how it is found out which."),
        "agent": ("handclasp.cli.agents:agent", "Keep the certificates of a host fresh."),
        "workload": ("handclasp.cli.workloads:workload", "Ask the Workload API of this host, as a workload would."),
    },
    "What is out there": {
        "inventory": ("handclasp.cli.locations:inventory", "Show how many certificates stand how, and what to do about it."),
        "location": ("handclasp.cli.locations:location", "Places where certificates are: endpoints, files, Secrets, mesh proxies, stores."),
        "view": ("handclasp.cli.views:view", "Saved views: searches that somebody keeps, for everybody."),
        "source": ("handclasp.cli.sources:source", "What discovery reads: networks, hosts, clusters, CAs, files."),
        "collect": ("handclasp.cli.collect:collect", "Read sources near where they are, for a server far away."),
    },
    "Who may have what": {
        "token": ("handclasp.cli.tokens:token", "Scoped access tokens."),
        "policy": ("handclasp.cli.policies:policy", "The grants in force: show, compare, apply, test."),
        "profile": ("handclasp.cli.profiles:profile", "What each kind of certificate looks like."),
        "federation": ("handclasp.cli.federations:federation", "Other trust domains, and their bundles."),
    },
    "Proof and health": {
        "audit": ("handclasp.cli.audit:audit", "The tamper-evident log: read, export, prove, verify."),
        "doctor": ("handclasp.cli.doctor:doctor", "Check everything between here and the server, and say what to do."),
    },
}


@click.command(
    cls=RootGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=[*connection_options(), json_option()],
    epilog='Shell completion: eval "$(_HANDCLASP_COMPLETE=bash_source handclasp)" (or zsh_source, fish_source).',
)
@click.version_option(__version__, message="handclasp %(version)s")
def handclasp() -> None:
    """Mutual TLS that runs itself: certificate identities, issued, delivered, renewed and logged."""


def main() -> None:
    """Run the program (the ``handclasp`` entry point)."""
    handclasp(prog_name="handclasp")
