"""A temporary PostgreSQL for tests: one cluster a test run, one database a test.

The cluster lives in a directory that the controlling process of the run makes and removes; the first test that asks for a
database starts it, whichever xdist worker that test runs in, and a file lock makes the others wait. The directory is not pytest's own
base directory, because PostgreSQL refuses to run as root and its user cannot enter that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg

from support.needs import postgresql_bin

RUN_VARIABLE = "PYTEST_HANDCLASP_RUN"
_PREFIX = "handclasp-tests-"


def _server_user() -> str | None:
    """Return the user to run PostgreSQL as when this is root; None when this user can run it."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("PostgreSQL cannot run as root, and there is no other user to run it as")


def _run(directory: Path, *command: str | Path) -> None:
    user = _server_user()
    identity = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    # A developer's PGDATA or PGPORT would change what the programs do.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C.UTF-8"}
    # To a file and not to a pipe: the server inherits it, and a pipe would stay open for as long as the server runs.
    with (directory / "commands.log").open("ab") as output:
        done = subprocess.run(  # type: ignore[call-overload]
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, **identity
        )
    if done.returncode:
        logs = [
            path.read_text(errors="replace")[-2000:] for path in (directory / "commands.log", directory / "server.log") if path.exists()
        ]
        raise RuntimeError(f"{Path(command[0]).name} failed with {done.returncode}:\n" + "\n".join(logs))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """A running PostgreSQL server: on a loopback port, and on a unix socket in ``directory``."""

    directory: str
    binaries: str
    port: int
    password: str

    def url(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Create an empty database, or a copy of another one, and return its name."""
        name = f"test_{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, throwing out whoever is still connected."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement on a connection of its own."""

        async def run() -> None:
            connection = await asyncpg.connect(self.url(database))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    def start(self) -> None:
        """Start the server; returns when it accepts connections."""
        self._control("start", "-w", "-l", f"{self.directory}/server.log")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast`` disconnects everyone, ``immediate`` is a crash."""
        self._control("stop", "-w", "-m", mode)

    def _control(self, verb: str, *options: str) -> None:
        _run(Path(self.directory), f"{self.binaries}/pg_ctl", "-D", f"{self.directory}/data", verb, *options)


def start_cluster(directory: Path, *, durable: bool = False) -> Cluster:
    """Make a cluster under ``directory`` (which exists, and is reachable for everyone) and start it.

    ``durable`` keeps fsync on, for measurements and for tests about what survives; everything else is faster without.
    """
    binaries = postgresql_bin()
    if binaries is None:
        raise RuntimeError("PostgreSQL is not installed")
    user = _server_user()
    if user:
        shutil.chown(directory, user)
    password = secrets.token_hex(16)
    secret = directory / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if user:
        shutil.chown(secret, user)
    # "password" and not scram: the password protects a throw-away server from other users here, and scram costs milliseconds a connection.
    _run(
        directory, binaries / "initdb", "-D", directory / "data", "-U", "postgres", "--pwfile", secret,
        "--auth=password", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions", *([] if durable else ["--no-sync"]),
    )  # fmt: skip
    for attempt in range(5):
        cluster = Cluster(str(directory), str(binaries), _free_port(), password)
        settings = [
            "listen_addresses = '127.0.0.1'",
            f"port = {cluster.port}",
            f"unix_socket_directories = '{directory}'",
            "max_connections = 200",
            "shared_buffers = 64MB",
            "max_wal_size = 1GB",
            "timezone = 'UTC'",
        ]
        if not durable:
            settings += ["fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off"]
        (directory / "data/conf.d.conf").write_text("\n".join(settings) + "\n")
        with (directory / "data/postgresql.conf").open("a") as file:
            file.write("include_if_exists = 'conf.d.conf'\n")
        try:
            cluster.start()
        except RuntimeError:
            if attempt == 4:
                raise
            continue  # somebody took the port between the probe and the start
        return cluster
    raise AssertionError("unreachable")


def run_directory() -> Path:
    """Return the directory of this test run, made by :func:`begin_run`."""
    return Path(os.environ[RUN_VARIABLE])


def byte_code() -> dict[str, str]:
    """Return the variable that has Python processes of this run keep what they compiled: doing it costs more than the rest of a start."""
    return {"PYTHONPYCACHEPREFIX": str(run_directory() / "pycache")}


@contextlib.contextmanager
def _locked(path: Path, flags: int = fcntl.LOCK_EX) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, flags)
        yield


def shared_cluster() -> Cluster:
    """Return the cluster of this test run, started by whoever comes first."""
    directory = run_directory()
    described = directory / "cluster.json"
    with _locked(directory / "lock"):
        if described.exists():
            return Cluster(**json.loads(described.read_text()))
        home = directory / "postgres"
        home.mkdir(mode=0o755)
        cluster = start_cluster(home)
        described.touch(mode=0o600)
        described.write_text(json.dumps(asdict(cluster)))
        return cluster


class Run:
    """The controlling process's hold on the run's directory; its lock tells a living run from one that was killed."""

    def __init__(self) -> None:
        _remove_abandoned()
        # Directly under the temporary directory: the path of a unix socket may have 107 bytes and no more.
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.directory.chmod(0o711)
        self._alive = (self.directory / "alive").open("a")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        os.environ[RUN_VARIABLE] = str(self.directory)

    def end(self) -> None:
        """Stop what was started and remove everything."""
        _remove(self.directory)
        self._alive.close()
        os.environ.pop(RUN_VARIABLE, None)


def _remove(directory: Path) -> None:
    described = directory / "cluster.json"
    if described.exists():
        with contextlib.suppress(RuntimeError):
            Cluster(**json.loads(described.read_text())).stop("immediate")
    shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned() -> None:
    """Clean up after runs whose process was killed: nothing else would stop their servers."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            with (directory / "alive").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(directory)
        except OSError:
            continue  # alive, or already gone
