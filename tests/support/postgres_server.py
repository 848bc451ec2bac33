"""A PostgreSQL server of a test's own: started, stopped, killed, frozen, configured, and followed by a standby.

Rules kept here:

- The standard library is enough, without agentmem and pytest: ``with_postgres.py`` runs before anything is installed.
- It is on 127.0.0.1 alone and trusts whoever connects, lives in a folder of its own, and leaves nothing behind,
  also where the tests are killed.
- Tests connect as a role that owns its database and nothing else, since agentmem needs no more than that.
- A control goes another way than the connections under test: as superuser over a socket in the folder, with one of the
  connections that PostgreSQL keeps for superusers. So it works also when no other is left.

The signals are those of https://www.postgresql.org/docs/current/server-shutdown.html.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import postgres_wire
from ports import HOST, free_port
from postgres_caretaker import Caretaker
from postgres_programs import Programs
from process_table import children, wait_until_ended, wait_until_stopped
from waiting import WAIT_S, wait_until

IDLE = b"Z\x00\x00\x00\x05I"
"""What the server ends its answer with outside of any transaction: what came before is committed (ReadyForQuery)."""


class PostgresServer:
    """A server that runs from the beginning of the ``with`` to its end, where everything of it is removed.

    Args:
        settings: of postgresql.conf, from the start on.

    Attributes:
        host, port: where it listens, the same after each start.
        folder: what it keeps: ``data`` and its ``log``.

    Raises:
        OSError: this machine has no PostgreSQL, or cannot run it.
    """

    def __init__(self, **settings: object) -> None:
        self._programs = Programs()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._caretaker: Caretaker | None = None
        self.host, self.port = HOST, free_port()
        # A short name: the path of a socket has at most about 100 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="agentmem-pg-"))

    @property
    def url(self) -> str:
        """What a test connects to; the role owns the database, and may not do more."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The same behind another port, such as a proxy's."""
        return f"postgresql://agentmem@{self.host}:{port}/test"

    def __enter__(self) -> Self:
        try:
            self._caretaker = Caretaker(self.folder)
            self._programs.hand_over(self.folder)
            self._make_cluster()
            self.start()
            self._make_database()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.is_running:
                self.go_on()
                self.stop("immediate")
            else:
                self._remove_shared_memory()
        finally:
            self._tell_caretaker()
            if self._caretaker is not None:
                self._caretaker.dismiss()

    def start(self) -> None:
        """Start it, with recovery where it was killed; returns when it takes connections.

        Raises:
            OSError: it ended instead; the message is the end of its log.
        """
        assert not self.is_running, "it runs"
        self._process = self._programs.start(
            "postgres", "-D", str(self._data), folder=self.folder, log=self.folder / "log"
        )
        self._tell_caretaker()
        wait_until(self._has_started)

    def _tell_caretaker(self) -> None:
        if self._caretaker is not None:
            self._caretaker.watch(self._process.pid if self._process is not None and self.is_running else 0)

    def _remove_shared_memory(self) -> None:
        """What one that was killed leaves in the system, outside of its folder: the next start would do it."""
        with contextlib.suppress(FileNotFoundError):  # no killed one has left the first, or there is no ipcrm
            _, segment = self._pid_file()[6].split()
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)

    def _pid_file(self) -> list[str]:
        """The lines of postmaster.pid: https://doxygen.postgresql.org/pidfile_8h.html."""
        return (self._data / "postmaster.pid").read_text().split("\n")

    def _has_started(self) -> bool:
        """Whether it says so in postmaster.pid, which is how pg_ctl knows."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise OSError(f"PostgreSQL did not start: {self.log()[-2000:]}")
        try:
            lines = self._pid_file()
        except FileNotFoundError:
            return False
        # One that was killed has left its file, with its own number in it.
        return lines[0] == str(self._process.pid) and len(lines) > 7 and lines[7].strip() in ("ready", "standby")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: "fast" ends the sessions and rolls back; "immediate" is a crash that it is told of."""
        signals = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        postmaster = self._running
        postmaster.send_signal(signals[mode])
        postmaster.wait(WAIT_S)
        self._tell_caretaker()

    def restart(self) -> None:
        """Stop it, which ends all sessions, and start it again."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """``kill -9`` of all its processes, frozen or not. What it had not flushed is still the system's to write."""
        postmaster = self._running
        self.freeze()  # so that it cannot react to the end of one while others go on
        processes = self.processes()
        for process in processes:
            os.kill(process, signal.SIGKILL)
        postmaster.wait(WAIT_S)
        for process in processes:
            wait_until_ended(process)  # as long as one is left, the next start is refused
        self._tell_caretaker()

    def freeze(self) -> None:
        """Stop all its processes where they are (SIGSTOP): connections stay open, and nobody answers."""
        frozen: list[int] = []
        while more := [process for process in self.processes() if process not in frozen]:
            for process in more:  # the postmaster first; it may have been starting another meanwhile
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
                    wait_until_stopped(process)
            frozen += more

    def go_on(self) -> None:
        """Let it go on after :meth:`freeze`."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        assert self._process.poll() is None, f"it does not run: {self.log()[-2000:]}"
        return self._process

    def processes(self) -> list[int]:
        """The ids of its processes, that of the postmaster first."""
        return [self._running.pid, *children(self._running.pid)]

    def log(self) -> str:
        """All that it has said so far."""
        try:
            return (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def sql(self, statement: str, database: str = "test") -> str:
        """Run statements as superuser, each in a transaction of its own; returns rows as lines, columns by "|".

        Raises:
            RuntimeError: one failed, and those after it were not run; the message is the server's.
        """
        rows = postgres_wire.execute(self.folder / f".s.PGSQL.{self.port}", "postgres", database, statement)
        return "\n".join(map("|".join, rows))

    def configure(self, **settings: object) -> None:
        """Set settings of postgresql.conf, or reset them with None; restarts the server where one needs it.

        What needs no restart holds for new connections, and for those that are open from their next statement on.
        """
        for name, value in settings.items():
            self.sql(f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = {_literal(value)}")
        names = ", ".join(map(_literal, settings))
        if self.sql(f"SELECT 1 FROM pg_settings WHERE name IN ({names}) AND context = 'postmaster' LIMIT 1"):
            self.restart()
        else:
            before = self.sql("SELECT pg_conf_load_time()")
            self.sql("SELECT pg_reload_conf()")  # returns before the postmaster has read them
            wait_until(lambda: self.sql("SELECT pg_conf_load_time()") != before)

    @contextlib.contextmanager
    def configured(self, **settings: object) -> Iterator[None]:
        """These settings until the end of the ``with``, and then the first ones again."""
        self.configure(**settings)
        try:
            yield
        finally:
            if not self.is_running:
                self.start()
            self.configure(**dict.fromkeys(settings))

    def standby(self, **settings: object) -> Standby:
        """A copy that follows this server from the beginning of its ``with`` on."""
        return Standby(self, **settings)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _make_cluster(self) -> None:
        how = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self._data), *how)
        self._write_settings()

    def _write_settings(self) -> None:
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.folder,
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",  # files in the folder, which go with it also after a kill
            "log_line_prefix": "%m [%p] ",
            **self._settings,
        }
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = {_literal(value)}\n" for name, value in settings.items())

    def _make_database(self) -> None:
        self.sql("CREATE ROLE agentmem LOGIN; CREATE DATABASE test OWNER agentmem", database="postgres")

    def _run(self, program: str, *args: str) -> str:
        return self._programs.run(program, *args, folder=self.folder)


def _literal(value: object) -> str:
    """A value in quotes, as SQL and postgresql.conf both take it."""
    return "'" + str(value).replace("'", "''") + "'"


class Standby(PostgresServer):
    """A streaming standby: what its primary commits comes here too, and it may be read."""

    def __init__(self, primary: PostgresServer, **settings: object) -> None:
        super().__init__(**settings)
        self._primary = primary

    def promote(self) -> None:
        """Make it a primary of its own, whether the other still runs or not; returns when it may be written to."""
        assert self.sql("SELECT pg_promote(true, 60)") == "t", self.log()[-2000:]

    def catch_up(self) -> None:
        """Wait until all that the primary has committed so far may be read here."""
        there = self._primary.sql("SELECT pg_current_wal_lsn()")
        wait_until(lambda: self.sql(f"SELECT pg_last_wal_replay_lsn() >= '{there}'") == "t")

    def _make_cluster(self) -> None:
        source = ["-h", str(self._primary.folder), "-p", str(self._primary.port), "-U", "postgres"]
        self._run("pg_basebackup", "-D", str(self._data), *source, "-X", "stream", "-c", "fast", "-R", "--no-sync")
        self._write_settings()

    def _make_database(self) -> None:
        pass  # it came with the copy
