"""The documentation against the code: nothing undocumented, nothing stale, no command in a guide that does not exist, no broken link."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@cache
def tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import docs
    finally:
        sys.path.pop(0)
    return docs


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "name",
    [
        "reference/cli.md",
        "reference/settings.md",
        "reference/api.md",
        "reference/kinds.md",
        "reference/log-entries.md",
        "reference/presets.md",
        "architecture.md",
    ],
)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert name in tool().PAGES
    assert tool().stale(name) == "", "run `make docs`"


def test_every_command_has_a_help_text_and_a_place_in_the_reference() -> None:
    page = text("reference/cli.md")
    for command, context in tool().command_tree():
        assert f"\n## {context.command_path}\n" in page, context.command_path
        assert command.help, f"{context.command_path} has no help text"
        for param in command.get_params(context):
            if isinstance(param, click.Option) and not param.hidden:
                assert param.help, f"{context.command_path} {param.opts[0]} has no help text"


def test_every_setting_is_described() -> None:
    page = text("reference/settings.md")
    for setting in tool().settings():
        assert setting.help.strip(), setting.name
        assert f"| `{setting.name}` |" in page, setting.name


def test_every_endpoint_is_described() -> None:
    page = text("reference/api.md")
    for method, path, operation in tool().operations(tool().openapi()):
        assert f"\n### {method} {path}\n" in page, (method, path)
        assert operation.get("summary") or operation.get("description"), f"{method} {path} does not say what it does"


def test_every_kind_of_error_is_listed_and_says_what_to_do() -> None:
    from handclasp.errors import Kind

    page, advice = text("reference/kinds.md"), text("troubleshooting.md")
    for kind in Kind:
        assert f"| `{kind.value}` |" in page, kind
        assert f"\n### {kind.value}\n" in advice, f"docs/troubleshooting.md does not say what to do about {kind.value}"
    told = set(re.findall(r"^### ([a-z_]+)$", advice, re.MULTILINE))
    assert told <= {kind.value for kind in Kind}, "a kind that does not exist"


def test_every_type_of_log_entry_is_described() -> None:
    from handclasp.log.entries import ENTRY_TYPES

    page = text("reference/log-entries.md")
    for name, meaning in ENTRY_TYPES.items():
        assert f"| `{name}` |" in page, name
        assert meaning.strip(), name


def test_every_guide_is_reachable_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{path.name})" in readme, path.name


def test_every_decision_is_in_the_index() -> None:
    index = text("decisions/README.md")
    for path in sorted((ROOT / "docs/decisions").glob("*.md")):
        assert path.name == "README.md" or f"]({path.name})" in index, path.name


def _without_code(markdown: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.MULTILINE | re.DOTALL))


@cache
def _anchors(path: Path) -> frozenset[str]:
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return frozenset(tool().slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE))


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_no_link_is_broken(path: Path) -> None:
    broken = []
    # Links are looked for in the text with code taken out, but a link's own text may be code.
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
            broken.append(target)
    assert not broken


def blocks(path: Path, language: str) -> Iterator[str]:
    """Give the fenced blocks of one language in a page."""
    for match in re.finditer(rf"^( *)```{language}\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
        yield re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE)


def handclasp_lines(path: Path) -> Iterator[list[str]]:
    """Give the arguments of every call of ``handclasp`` in the shell blocks of a page."""
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for match in re.finditer(r"(?:^|[\s(])(?:\.venv/bin/|/opt/handclasp/bin/)?handclasp (.*)", line):
                lexer = shlex.shlex(match[1], posix=True, punctuation_chars="|&;<>()")
                lexer.whitespace_split = True
                words = []
                for word in lexer:
                    if word[0] in "|&;<>()":
                        break
                    words.append(word)
                yield words


def wrong_usage(words: list[str]) -> str | None:
    """Return what is wrong with a call of ``handclasp``: a command or an option that does not exist."""
    command = tool().root_command()
    context = click.Context(command, info_name="handclasp")
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            child = command.get_command(context, word)
            if child is None:
                return f"{context.command_path} has no command {word}"
            command, context = child, click.Context(child, info_name=word, parent=context)
        elif word.startswith("-") and word != "-":
            option = word.split("=")[0]
            if option not in {name for param in command.get_params(context) for name in (*param.opts, *param.secondary_opts)}:
                return f"{context.command_path} has no option {option}"
    return f"{context.command_path} needs a command" if isinstance(command, click.Group) and words and words[-1] != "--help" else None


@pytest.mark.parametrize("path", [path for path in WRITTEN if "reference" not in path.parts], ids=relative)
def test_every_command_in_a_guide_exists(path: Path) -> None:
    wrong = [(" ".join(words), problem) for words in handclasp_lines(path) if (problem := wrong_usage(words))]
    assert not wrong


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_every_example_file_in_a_guide_is_valid(path: Path) -> None:
    from handclasp.access.cases import run_cases
    from handclasp.access.policy import EMPTY, parse_policy
    from handclasp.agent.config import parse_config
    from handclasp.ownership.document import parse_ownership
    from handclasp.pki.profiles import load_profiles

    policy = EMPTY
    for block in blocks(path, "yaml"):
        if block.startswith("# policy.yaml"):
            policy = parse_policy(block, "policy.yaml")
        elif block.startswith("# cases.yaml"):
            assert [result for result in run_cases(policy, block, "cases.yaml") if not result.ok] == []
        elif block.startswith("# profiles.yaml"):
            load_profiles(block, "profiles.yaml")
        elif block.startswith("# agent.yaml"):
            parse_config(block, "agent.yaml", ROOT)
        elif block.startswith("# ownership.yaml"):
            parse_ownership(block, "ownership.yaml")


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_every_python_example_in_a_guide_compiles(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, relative(path), "exec")


def test_lock_files_are_pinned_hashed_and_free_of_addresses() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert [path.stem for path in files] == ["assets", "build", "dev", "runtime", "server"]
    pins: dict[str, set[str]] = {}
    for path in files:
        content = path.read_text()
        assert "://" not in content, f"{path.name} holds an address"
        requirements = [item for item in content.replace("\\\n", " ").splitlines() if item.strip()]
        for requirement in requirements:
            match = re.match(r"([a-z0-9._-]+)==(\S+) .*--hash=sha256:[0-9a-f]{64}", requirement)
            assert match, f"{path.name}: {requirement[:80]}"
            pins.setdefault(match[1], set()).add(match[2])
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}, "the lock files disagree"
