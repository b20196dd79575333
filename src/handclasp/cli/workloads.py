"""``handclasp workload``: what this process gets from the SPIFFE Workload API of its host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.parts import agent_part


@click.group(cls=Group)
def workload() -> None:
    """Ask the Workload API of this host, as a workload would."""


@workload.command(
    example="handclasp workload fetch\nhandclasp workload fetch --out-dir /tmp/me\nhandclasp workload fetch --jwt https://api.example.org",
)
@click.option("--socket", "address", metavar="PATH", help="The socket, /path or unix:///path [env: SPIFFE_ENDPOINT_SOCKET].")
@click.option("--jwt", "audience", multiple=True, metavar="AUDIENCE", help="Fetch JWT-SVIDs for this audience instead of certificates.")
@click.option("--identity", default="", metavar="SPIFFE-ID", help="With --jwt: only for this identity.")
@click.option("--out-dir", metavar="DIR", type=click.Path(path_type=Path), help="Write certificate, key and bundles to files there.")
@click.option("--timeout", default=30, show_default=True, metavar="SECONDS", type=click.IntRange(1, 600), help="How long to wait.")
@pass_state
def fetch(state: State, address: str | None, audience: tuple[str, ...], identity: str, out_dir: Path | None, timeout: int) -> None:
    """Fetch what this process may have: certificates, or tokens. Keys are written to files only, and never shown."""
    from handclasp.client.workload import fetch_jwt, fetch_x509, socket_path

    path = socket_path(address)
    if audience:
        tokens = [
            {"identity": svid.spiffe_id, "hint": svid.hint, "token": svid.svid}
            for svid in fetch_jwt(path, audience, identity, timeout=timeout).svids
        ]
        if state.json:
            terminal.write_json({"svids": tokens})
        else:
            click.echo("\n".join(token["token"] for token in tokens))
        return
    answer = fetch_x509(path, timeout=timeout)
    svids = [_described(svid) for svid in answer.svids]
    files = _write(out_dir, answer) if out_dir is not None else []
    if state.json:
        federated = sorted(answer.federated_bundles)
        terminal.write_json({"svids": svids, "federated": federated, "crls": len(answer.crl), "files": [str(file) for file in files]})
        return
    terminal.write_table(
        ["identity", "hint", "ends", "serial"],
        [[svid["identity"], svid["hint"], terminal.When(svid["not_after"]), svid["serial"]] for svid in svids],
    )
    for file in files:
        terminal.say(f"wrote {file}")


@workload.command(
    "list",
    example="handclasp workload list -c /etc/handclasp/agent.yaml\nhandclasp workload list -c /etc/handclasp/agent.yaml --pid 4711",
)
@click.option("-c", "--config", required=True, metavar="FILE", help="The agent's configuration (agent.yaml).")
@click.option("--state-dir", metavar="DIR", help="Where the agent keeps its state; without it the configuration's.")
@click.option("--pid", metavar="PID", type=click.IntRange(1), help="A process: say what it gets, and what it lacks for the rest.")
@pass_state
def list_(state: State, config: str, state_dir: str | None, pid: int | None) -> int:
    """List what the policy lets this agent serve and, with --pid, what a process gets and why not. Exits 1 when that is nothing."""
    found = agent_part("socket.explain", "explain")(config, state_dir, pid)
    if state.json:
        terminal.write_json(found)
    elif pid is None:
        terminal.write_table(
            ["workload", "identity", "selectors"],
            [[one.workload, one.identity, one.selectors] for one in found.workloads],
            empty="the policy gives this agent no workloads",
        )
    else:
        terminal.write_table(
            ["workload", "gets", "lacks"],
            [[one.workload, one.got, one.missing + [f"{kind} once" for kind in one.unfilled]] for one in found.workloads],
            empty="the policy gives this agent no workloads",
        )
        terminal.say(f"process {pid} is: {' '.join(found.selectors)}")
        if found.failed:
            terminal.say(f"could not say: {', '.join(found.failed)}")
    return 0 if pid is None or any(one.got for one in found.workloads) else 1


def _described(svid: Any) -> dict[str, Any]:
    from handclasp.clock import from_datetime, rfc3339
    from handclasp.pki.chains import fingerprint, load
    from handclasp.pki.der import elements

    leaf = elements(svid.x509_svid)[0]
    certificate = load(leaf)
    return {
        "identity": svid.spiffe_id,
        "hint": svid.hint,
        "sha256": fingerprint(leaf).hex(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": rfc3339(from_datetime(certificate.not_valid_before_utc)),
        "not_after": rfc3339(from_datetime(certificate.not_valid_after_utc)),
    }


def _write(directory: Path, answer: Any) -> list[Path]:
    """Write ``svid.N.pem``, ``svid.N.key`` and ``bundle.N.pem`` (the names of SPIRE's command), and federated bundles by trust domain."""
    import base64

    from handclasp.cli.files import write_file
    from handclasp.pki.chains import to_pem
    from handclasp.pki.der import elements

    def pem(chain: bytes) -> bytes:
        return "".join(to_pem(der) for der in elements(chain)).encode("ascii")

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[Path] = []
    for number, svid in enumerate(answer.svids):
        key = base64.encodebytes(svid.x509_svid_key).decode("ascii")
        key_file = directory / f"svid.{number}.key"
        write_file(key_file, f"-----BEGIN PRIVATE KEY-----\n{key}-----END PRIVATE KEY-----\n".encode("ascii"), 0o600)
        certificate, bundle = directory / f"svid.{number}.pem", directory / f"bundle.{number}.pem"
        write_file(certificate, pem(svid.x509_svid), 0o644)
        write_file(bundle, pem(svid.bundle), 0o644)
        written += [certificate, key_file, bundle]
    for name, bundle_der in sorted(answer.federated_bundles.items()):
        file = directory / f"federated.{name.removeprefix('spiffe://')}.pem"
        write_file(file, pem(bundle_der), 0o644)
        written.append(file)
    return written
