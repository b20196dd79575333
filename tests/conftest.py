"""What every test run has: databases, and one line about what could not be run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support import migrated, needs
from support.postgres import Run, byte_code, shared_cluster

_RUN = pytest.StashKey[Run]()

# How fast an example runs says something about the machine and its other work, and nothing about the code.
settings.register_profile("handclasp", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("handclasp")


def pytest_configure(config: pytest.Config) -> None:
    """Make the run's directory, once: xdist's workers are children of the controller and find it in their environment."""
    if not hasattr(config, "workerinput"):
        config.stash[_RUN] = Run()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what the tests of this run shared."""
    run = config.stash.get(_RUN, None)
    if run is not None:
        run.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole systems: some of those take minutes, most of it waiting, and at the end everybody else would wait for them."""
    items.sort(key=lambda item: "whole" not in item.path.parts)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the tests what was done already: looking through everything that was collected for garbage, and compiling for each child again.

    The collected tests live as long as the process, and are far more than what one test makes: an agent, which collects garbage after
    each change, was busy with that for longer than with the change.
    """
    os.environ |= byte_code()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for all tests that were skipped because a program is not installed."""
    reports = terminalreporter.stats.get("skipped", [])
    line = needs.summary(report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    if line:
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """Give the URL of an empty PostgreSQL database of the test's own; skip where PostgreSQL is not installed."""
    needs.needs("postgresql")
    cluster = shared_cluster()
    name = cluster.create_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database, and run the test on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'handclasp.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of a database that is empty and at the newest schema (a copy: migrating takes longer), on each kind."""
    if request.param == "sqlite":
        path = tmp_path / "handclasp.db"
        path.write_bytes(migrated.sqlite())
        yield f"sqlite:///{path}"
        return
    needs.needs("postgresql")
    cluster = shared_cluster()
    name = cluster.create_database(migrated.postgresql())
    yield cluster.url(name)
    cluster.drop_database(name)
