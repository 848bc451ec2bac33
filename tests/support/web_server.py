"""A web app behind a real server: uvicorn, in a process of its own, with as many workers as a test asks for."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from waiting import WAIT_S, wait_until

# Several workers do not close the socket that they all listen at.
FLAGS = ("-W", "error", "-W", "ignore:unclosed <socket.socket:ResourceWarning")


class Server:
    """A uvicorn process.

    Attributes:
        log: what it wrote so far.
        url: where it answers.
        workers: the ids of the processes that answer, in the order in which they began; one that dies is replaced.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.url = ""
        self.workers: list[int] = []
        self._reader = threading.Thread(target=self._read, name="uvicorn-log")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if found := re.search(r"running on (http://\S+)", line):
                self.url = found[1]
            if found := re.search(r"Started server process \[(\d+)\]", line):
                self.workers.append(int(found[1]))

    def wait_for(self, workers: int) -> None:
        """Until so many workers have begun to serve, from the first on.

        Raises:
            AssertionError: the server ended instead; the message is what it wrote.
        """

        def have_begun() -> bool:
            if self.process.poll() is not None:
                self._reader.join(WAIT_S)
                raise AssertionError("\n".join(self.log))
            # A single process says where it listens after its lifespan has begun, several before.
            return bool(self.url) and sum("startup complete" in line for line in self.log) >= workers

        wait_until(have_begun)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)


@contextmanager
def uvicorn(app: str, *, app_dir: Path, folder: Path, env: Mapping[str, str], workers: int = 1) -> Iterator[Server]:
    """The app on a free port of loopback; ended with SIGTERM unless the test ended it.

    Args:
        app: as uvicorn takes it, in `app_dir`.
        folder: where it runs.
    """
    command = [sys.executable, *FLAGS, "-m", "uvicorn", "--app-dir", str(app_dir), "--workers", str(workers)]
    command += ["--port", "0", "--no-access-log", app]
    from uvicorn import Config  # only where it is to run

    if "timeout_worker_healthcheck" in inspect.signature(Config).parameters:  # others have 5 seconds
        command += ["--timeout-worker-healthcheck", str(WAIT_S)]
    with subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, encoding="utf-8") as process:
        server = Server(process)
        try:
            server.wait_for(workers)
            yield server
        finally:
            server.end()
