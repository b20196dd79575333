"""``handclasp policy``: the grants in force, and what a file would change."""

from __future__ import annotations

from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.documents import apply_document, diff_document, write_document
from handclasp.cli.files import read_text

_FILE = click.option("-f", "--file", "file", required=True, metavar="FILE", help="The policy (YAML); - reads stdin.")


@click.group(cls=Group)
def policy() -> None:
    """The grants in force: who may obtain which identities, from which profiles, for how long."""


@policy.command(client=True, example="handclasp policy show > policy.yaml")
@pass_state
def show(state: State) -> None:
    """Write the policy in force to stdout, as it was applied."""
    from handclasp.wire import Policy

    found = state.api().get("/v1/policy", Policy)
    if state.json:
        terminal.write_json(found)
        return
    write_document(found, "no policy was ever applied: only tokens grant anything")


@policy.command(client=True, example="handclasp policy diff -f policy.yaml")
@_FILE
@click.option("--exit-code", is_flag=True, help="Exit 1 when something would change (for scripts).")
@pass_state
def diff(state: State, file: str, exit_code: bool) -> int:
    """Show what applying a policy would change. Changes nothing."""
    return diff_document(state, "/v1/policy", read_text(file), exit_code=exit_code)


@policy.command(client=True, example="handclasp policy apply -f policy.yaml")
@_FILE
@pass_state
def apply(state: State, file: str) -> None:
    """Put a policy in force. It is checked whole first, and replaces the one before."""
    apply_document(state, "/v1/policy", read_text(file))


@policy.command(client=True, example="handclasp policy test -f cases.yaml --policy policy.yaml")
@click.option("-f", "--file", "file", required=True, metavar="FILE", help="The cases (YAML); - reads stdin.")
@click.option("--policy", "policy_file", metavar="FILE", help="Policy to test, offline; without it the one in force on the server.")
@click.option("--profiles", "profiles_file", metavar="FILE", help="Custom profiles of the cases; the built-in ones are always there.")
@pass_state
def test(state: State, file: str, policy_file: str | None, profiles_file: str | None) -> int:
    """Run example requests against a policy and compare with what each expects."""
    from handclasp.access.cases import run_cases
    from handclasp.access.policy import parse_policy
    from handclasp.pki.profiles import all_profiles, load_profiles

    if policy_file is not None:
        text, source = read_text(policy_file), policy_file
    else:
        text, source = _policy_in_force(state), "the policy in force"
    profiles = all_profiles(load_profiles(read_text(profiles_file), profiles_file) if profiles_file is not None else {})
    results = list(run_cases(parse_policy(text, source), read_text(file), file, profiles))
    failed = [result for result in results if not result.ok]
    if state.json:
        terminal.write_json({"ok": not failed, "cases": [_case(result) for result in results]})
    else:
        width = max((len(result.name) for result in results), default=0)
        for result in results:
            told = result.reason if result.ok else f"expected {result.expected}, got {result.got}: {result.reason}"
            terminal.write_verdict("ok" if result.ok else "fail", result.name, told, width=width)
    terminal.say(f"{len(results) - len(failed)} of {len(results)} cases are as expected")
    return 1 if failed else 0


def _policy_in_force(state: State) -> str:
    from handclasp.wire import Policy

    return state.api().get("/v1/policy", Policy).text


def _case(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("name", "ok", "expected", "got", "reason")}
