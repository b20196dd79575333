"""``handclasp agent``: enrol, run and look at the agent of this host; list those that the server knows."""

from __future__ import annotations

from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.fleet import list_, show
from handclasp.cli.options import log_level_option, pairs
from handclasp.cli.parts import agent_part
from handclasp.cli.terminal import When

DEFAULT_STATE = "/var/lib/handclasp-agent"
"""Where an agent keeps its state unless it is told otherwise; a test holds it against the agent's own."""

_CONFIG = click.option("-c", "--config", required=True, metavar="FILE", help="The agent's configuration (agent.yaml).")
_STATE_DIR = click.option(
    "--state-dir", metavar="DIR", help=f"Where the agent keeps its state; without it the configuration's, or {DEFAULT_STATE}."
)


@click.group(cls=Group)
def agent() -> None:
    """Keep the certificates of a host fresh: obtained, delivered, renewed and reported without a person."""


@agent.command(
    client=True,
    example="handclasp agent enroll --token-file enrol.token --ca sha256:5f1c… --url https://ca.example.org:8443\n"
    'echo "$TOKEN" | handclasp agent enroll --token - --label role=web\n'
    "handclasp agent enroll --method kubernetes --cluster prod-a --token-file /var/run/secrets/tokens/handclasp\n"
    "handclasp agent enroll --method x509 --cert /etc/device/cert.pem --key /etc/device/key.pem",
)
@click.option(
    "--method",
    type=click.Choice(["token", "oidc", "kubernetes", "x509", "aws"]),
    default="token",
    show_default=True,
    help="What proves this host: a one-time token, or evidence that the server's policy takes.",
)
@click.option("--token", metavar="TOKEN|-", help="Enrolment token; - reads it from stdin, which keeps it out of ps.")
@click.option("--cluster", default="", metavar="NAME", help="kubernetes: the cluster's name in the server's policy.")
@click.option("--cert", "cert_file", default="", metavar="FILE", help="x509: the certificate with its chain, PEM.")
@click.option("--key", "key_file", default="", metavar="FILE", help="x509: its private key, PEM.")
@click.option("--aws-document", "document_file", default="", metavar="FILE", help="aws: the instance identity document.")
@click.option("--aws-signature", "signature_file", default="", metavar="FILE", help="aws: its signature, as the metadata service has it.")
@click.option("--aws-metadata", "metadata_url", default="", metavar="URL", help="aws: the metadata service, where it is not the usual one.")
@click.option("--name", metavar="NAME", help="The agent's name; without it the host's.")
@click.option(
    "--label", "labels", multiple=True, metavar="K=V", help="Note kept beside the certificate; labels for policy are in the token."
)
@click.option("--trust-domain", metavar="NAME", help="Needed where the server has more than one.")
@click.option("--state-dir", default=DEFAULT_STATE, show_default=True, metavar="DIR", help="Where the agent keeps its state.")
@pass_state
def enroll(
    state: State,
    method: str,
    token: str | None,
    name: str | None,
    labels: tuple[str, ...],
    trust_domain: str | None,
    state_dir: str,
    **places: str,
) -> None:
    """Turn a one-time token, or evidence, into the agent's own certificate.

    A token is needed nowhere after that. Where evidence is found is remembered: it is read again should the agent have to enrol again.
    """
    from handclasp.cli.connection import resolve

    if method != "token":
        _enroll_by_evidence(state, method, name, labels, trust_domain, state_dir, places)
        return
    if token == "-":  # noqa: S105  (not a secret: it says where the secret is)
        token = None
        state.token_file = "-"  # noqa: S105
    settings = resolve(state)
    made = agent_part("", "enroll")(settings, token or settings.token, state_dir, name, pairs(labels, "--label"), trust_domain=trust_domain)
    if state.json:
        terminal.write_json(made)
    _say_enrolled(made, state_dir)


def _enroll_by_evidence(
    state: State, method: str, name: str | None, labels: tuple[str, ...], trust_domain: str | None, state_dir: str, places: dict[str, str]
) -> None:
    from handclasp.cli.connection import resolve

    token_file, state.token_file = state.token_file or "", None  # it is the agent's evidence, and not a token of ours
    enrolment = agent_part("state", "Enrolment")(method=method, token_file=token_file, **places)
    settings = resolve(state)
    made = agent_part("", "enroll")(
        settings, None, state_dir, name, pairs(labels, "--label"), trust_domain=trust_domain, enrolment=enrolment
    )
    if state.json:
        terminal.write_json(made)
    if not made.enrolment.again:
        terminal.say("this evidence serves once: the agent cannot enrol again by itself should its own certificate ever end")
    _say_enrolled(made, state_dir)


def _say_enrolled(made: Any, state_dir: str) -> None:
    terminal.say(f"enrolled as {made.identity}; start it with: handclasp agent run -c agent.yaml --state-dir {state_dir}")


@agent.command(example="handclasp agent run -c /etc/handclasp/agent.yaml")
@_CONFIG
@_STATE_DIR
@log_level_option
def run(config: str, state_dir: str | None, log_level: str) -> None:
    """Look after every identity in the configuration until stopped. SIGHUP reads the configuration again."""
    terminal.start_logging(log_level)
    agent_part("", "run")(config, state_dir)


@agent.command("helper", example="handclasp agent helper -c /etc/handclasp/agent.yaml")
@_CONFIG
@log_level_option
def helper_(config: str, log_level: str) -> None:
    """Deliver, as root, to the targets marked `helper: true`, when the agent asks. SIGHUP reads the configuration again."""
    terminal.start_logging(log_level)
    agent_part("helper.server", "run_helper")(config)


@agent.command(example="handclasp agent check -c agent.yaml")
@_CONFIG
@pass_state
def check(state: State, config: str) -> None:
    """Check a configuration: every mistake is named with its line. Changes nothing."""
    checked = agent_part("", "check")(config)
    names = [managed.name for managed in checked.identities]
    if state.json:
        terminal.write_json({"ok": True, "identities": names})
    else:
        for name in names:
            terminal.write_verdict("ok", "identity", name)
    terminal.say(f"{config} can be used: {len(names)} identit{'y' if len(names) == 1 else 'ies'}")


@agent.command(example="handclasp agent plan -c agent.yaml")
@_CONFIG
@_STATE_DIR
@pass_state
def plan(state: State, config: str, state_dir: str | None) -> None:
    """Say what the agent would do next, identity by identity, and when. Changes nothing."""
    planned = agent_part("", "plan")(config, state_dir)
    if state.json:
        terminal.write_json(planned)
        return
    terminal.write_table(
        ["identity", "when", "what"],
        [[item.identity, When(item.at) if item.at else "never by itself", item.actions] for item in planned],
        empty="there is nothing to look after",
    )
    for target in (target for item in planned for target in item.targets):
        terminal.say("\n  ".join([f"{target.name}{f' (preset {target.preset})' if target.preset else ''}", *target.steps]))


@agent.command(example="handclasp agent presets\nhandclasp agent presets nginx")
@click.argument("name", required=False, help="One preset, to see all of it; without it they are listed.")
@pass_state
def presets(state: State, name: str | None) -> None:
    """Show the presets for targets: what one fills in, and what the service's own configuration must say."""
    load = agent_part("presets", "load_preset")
    found = [load(one) for one in ([name] if name else agent_part("presets", "preset_names")())]
    if state.json:
        terminal.write_json([one.as_json() for one in found] if name is None else found[0].as_json())
    elif name is None:
        terminal.write_table(["preset", "for"], [[one.name, one.title] for one in found])
    else:
        terminal.write_text(found[0].as_text())


@agent.command(example="handclasp agent status\nhandclasp agent status -c agent.yaml --json")
@click.option("-c", "--config", metavar="FILE", help="The agent's configuration, for its state directory.")
@_STATE_DIR
@pass_state
def status(state: State, config: str | None, state_dir: str | None) -> int:
    """Say how the agent of this host is doing, whether it runs or not. Exits 1 when something needs a person."""
    found = agent_status(config, state_dir)
    if state.json:
        terminal.write_json(found)
    else:
        terminal.write_table(
            ["identity", "state", "ends", "renews", "rotations", "targets", "last failure"],
            [
                [
                    i.identity,
                    i.state,
                    _when(i.not_after),
                    _when(i.renew_at),
                    i.rotations,
                    [f"{t.name} {t.state}" for t in i.targets] or (["the socket"] if i.slot.startswith("socket") else []),
                    i.last_failure,
                ]
                for i in found.identities
            ],
        )
    terminal.say(f"{found.agent} {'runs' if found.running else 'does not run'}, for {found.url}")
    for words in found.todo:
        terminal.say(words)
    return 0 if found.healthy else 1


def agent_status(config: str | None, state_dir: str | None) -> Any:
    """Return the status of the agent on this host; raise ``bad_setting`` when none is enrolled."""
    return agent_part("", "status")(_directory(config, state_dir))


def _directory(config: str | None, state_dir: str | None) -> Any:
    if config is None:
        return state_dir or DEFAULT_STATE
    return agent_part("loop", "state_directory")(agent_part("", "check")(config), state_dir)


def _when(text: str | None) -> When | None:
    return When(text) if text else None


@agent.command(example="handclasp agent discover /etc/nginx /srv/app\nhandclasp agent discover /etc -c /etc/handclasp/agent.yaml --json")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", help="Directories and files to look through.")
@click.option("-c", "--config", metavar="FILE", help="The agent's configuration: look only where its section `discover` lets it.")
@click.option("--passwords-file", metavar="FILE", help="Passwords to try on PKCS#12 files, one in a line.")
@pass_state
def discover(state: State, paths: tuple[str, ...], config: str | None, passwords_file: str | None) -> int:
    """Find certificates, keystores and private keys in files, as a scan would. Tells nobody; exits 1 when not all could be read."""
    found = agent_part("discover.local", "discover")(paths, config, passwords_file)
    if state.json:
        terminal.write_json(found)
    else:
        terminal.write_table(
            ["file", "format", "mode", "owner", "holds", "ends", "problem"],
            [
                [one.path, one.format, one.mode, f"{one.owner}:{one.group}", _holds(one), _first_end(one), one.problem]
                for one in found.files
            ],
            empty="no certificates, keystores or private keys were found",
        )
    for path, problem in found.unread.items():
        terminal.say(f"{path}: {problem}")
    for text in (found.problem, found.skipped):
        if text:
            terminal.say(text)
    terminal.say(f"{found.looked_at} files looked at, something found in {len(found.files)}")
    return 1 if found.problem or found.unread or any(one.problem for one in found.files) else 0


def _holds(one: Any) -> list[str]:
    anchors = sum(1 for certificate in one.certificates if certificate.role == "anchor")
    words = [certificate.identity or certificate.subject for certificate in one.certificates if certificate.role != "anchor"]
    words = words[:3] + ([f"and {len(words) - 3} more"] if len(words) > 3 else [])
    words += [f"{anchors} anchor{'' if anchors == 1 else 's'}"] if anchors else []
    if one.private_key is not None:
        kind = "an encrypted private key" if one.private_key.encrypted else "a private key"
        words.append(kind + (" that others may read" if one.private_key.others_read else ""))
    return words


def _first_end(one: Any) -> When | None:
    ends = [certificate.not_after for certificate in one.certificates if certificate.role != "anchor" and certificate.not_after]
    return When(min(ends)) if ends else None


@agent.command(example="handclasp agent forget spiffe://example.org/prod/web --state-dir /var/lib/handclasp-agent")
@click.argument("identity", help="The identity, as `agent status` shows it.")
@click.option("-c", "--config", metavar="FILE", help="The agent's configuration, for its state directory.")
@_STATE_DIR
@pass_state
def forget(state: State, identity: str, config: str | None, state_dir: str | None) -> None:
    """Drop the certificate held for an identity, so that a stopped agent obtains another after a revocation."""
    agent_part("", "forget")(_directory(config, state_dir), identity)
    if state.json:
        terminal.write_json({"ok": True, "identity": identity})
    terminal.say(f"the certificate of {identity} is dropped; another is issued when the agent starts")


agent.add_command(list_)
agent.add_command(show)
