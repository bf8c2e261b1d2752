"""A throw-away PostgreSQL server: its own folder, its own socket, no network. Started when a test first asks for it.

PostgreSQL refuses to run as root, so there it runs as `nobody`, in a folder that `nobody` can reach.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

START_S = 60
INSTALLED = "/usr/lib/postgresql/*/bin"  # Where Debian puts them; elsewhere they are on the PATH.
UNPRIVILEGED = "nobody"
FAST = ("fsync=off", "full_page_writes=off", "max_connections=50", "shared_buffers=32MB")

Where = Path | str
"""A database: SQLite's file, or PostgreSQL's URL."""


class PostgresMissing(Exception):
    """There is no PostgreSQL to run; says why."""


class Postgres:
    """A running server."""

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries = binaries
        self._folder = folder
        self._user = user
        self._made = 0

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        self._made += 1
        name = f"test_{self._made}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def emptied(self, url: str) -> str:
        """Return `url` with all rows of its tables deleted, which is much faster than a new database."""
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            names = [name for (name,) in found if name not in ("alembic_version", "writer", "audit_head")]
            connection.execute(f"TRUNCATE {', '.join(names)}")
            connection.execute("UPDATE writer SET generation = generation + 1, holder = ''")
            connection.execute("UPDATE audit_head SET ordinal = 0, hash = ''")
        return url

    def restart(self) -> None:
        """Stop, cutting every connection as a crash does, and start again."""
        self._control("restart", "-m", "immediate")

    def start(self) -> None:
        self._run("initdb", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        settings = " ".join(f"-c {each}" for each in FAST)
        with (self._folder / "data" / "postgresql.auto.conf").open("a") as file:
            file.write(f"listen_addresses = ''\nunix_socket_directories = '{self._folder}'\n")
        self._control("start", "-o", settings)

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-w", "-t", str(START_S), "-l", str(self._folder / "log"), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._folder / "data"), *arguments]
        subprocess.run(
            command,
            check=True,
            timeout=START_S * 2,
            cwd=self._folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=self._user,
            group=None if self._user is None else _group(self._user),
            extra_groups=None if self._user is None else [],
        )

    def _conninfo(self, database: str) -> str:
        return f"host={self._folder} dbname={database} user=postgres"


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server for the length of the block. Raises PostgresMissing."""
    binaries = _binaries()
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="muster-pg-"))  # pytest's own folders are closed to other users.
    server = Postgres(binaries, folder, user)
    try:
        if user is not None:
            shutil.chown(folder, user)
        try:
            server.start()
        except (OSError, LookupError, subprocess.SubprocessError) as error:
            raise PostgresMissing(f"PostgreSQL in {binaries} does not start: {error}") from error
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    """Return the newest folder that has both programs; `initdb` on the PATH may be a link into it."""
    root = Path("/")
    installed = sorted(root.glob(INSTALLED.lstrip("/")), key=lambda path: float(path.parent.name), reverse=True)
    on_path = [Path(found).resolve().parent for found in [shutil.which("pg_ctl")] if found]
    for folder in (*on_path, *installed):
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissing("no initdb, pg_ctl and postgres on the PATH or in /usr/lib/postgresql")


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
