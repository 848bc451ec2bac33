"""Running a workload on a system: in a process of its own, with its durability verified in that process.

Importing some systems takes seconds, so each has a *host*: a process that imports it once, does nothing else, and
starts a process for every job, on Linux as a copy of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from .bench import SCALES, Bench, Metrics
from .durability import Refused, verify_durability
from .material import History
from .process_workloads import START_METHOD
from .rivals import SYSTEMS
from .server import NoServer
from .systems import System, Unsupported
from .workloads import WORKLOADS


@dataclass(frozen=True)
class Outcome:
    """What came of one job.

    Attributes:
        status: "ok", "unsupported", "refused" (another durability), "failed", "not installed" or "no server".
        detail: why it is not "ok".
        failures: of calls within a workload that went on nevertheless: how many, by error.
        took_s: the whole job, with all that was not timed.
    """

    status: str
    detail: str = ""
    metrics: Metrics = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0


class Host:
    """The process that starts a system's jobs; ``wait`` for it before the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name), name=f"host of {name}")
        self._process.start()
        theirs.close()
        self._hello = Outcome("failed", "it was not waited for")

    def wait(self) -> tuple[Outcome, dict[str, str]]:
        """Wait until it is ready; returns whether the system is installed, and the versions of its packages."""
        self._hello = self._answer()
        return self._hello, self._pipe.recv() if self._hello.status == "ok" else {}

    def build(self, history: History, path: Path) -> Outcome:
        """Make the system's file with this history."""
        return self._call(_build, self._name, history, str(path), timeout_s=3_600.0)

    def run(self, workload: str, scale: str, history: Path | None, folder: Path) -> Outcome:
        """Run a workload once; `folder` is where its own files go, which are deleted afterwards."""
        return self._call(_run, self._name, workload, scale, history, folder, timeout_s=300.0)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, function: Callable[..., Outcome], *args: object, timeout_s: float) -> Outcome:
        if self._hello.status != "ok":
            return self._hello
        begun = perf_counter()
        self._pipe.send((function, args, timeout_s))
        return replace(self._answer(), took_s=round(perf_counter() - begun, 3))

    def _answer(self) -> Outcome:
        try:
            outcome: Outcome = self._pipe.recv()
        except EOFError:
            return Outcome("failed", "its process ended")
        return outcome


def _serve(pipe: Any, name: str) -> None:
    try:
        SYSTEMS[name].load()
    except ImportError as error:
        pipe.send(Outcome("not installed", str(error)))
        return
    except NoServer as error:
        pipe.send(Outcome("no server", str(error)))
        return
    pipe.send(Outcome("ok"))
    pipe.send(dict(_versions(SYSTEMS[name])))
    context: Any = multiprocessing.get_context(START_METHOD)
    while True:
        try:
            function, args, timeout_s = pipe.recv()
            pipe.send(_in_own_process(context, function, args, timeout_s))
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            os._exit(0)  # there is nothing to put away, and what some systems do at exit takes seconds


def _versions(system: type[System]) -> Iterator[tuple[str, str]]:
    for package in system.packages:
        with contextlib.suppress(PackageNotFoundError):
            yield package, version(package)
    yield from system.other_versions().items()


def _in_own_process(context: Any, function: Callable[..., Outcome], args: Any, timeout_s: float) -> Outcome:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            return Outcome("failed", f"not done after {timeout_s:.0f} s")
        outcome: Outcome = ours.recv()
        process.join(3.0)
    except EOFError:
        process.join()
        return Outcome("failed", f"its process ended with code {process.exitcode}")
    finally:
        if process.is_alive():
            process.kill()  # done, but something that it left open keeps it from ending
            process.join()
    return outcome


def _send_outcome(pipe: Any, function: Callable[..., Outcome], args: Any) -> None:
    try:
        outcome = function(*args)
    except Unsupported as error:
        outcome = Outcome("unsupported", str(error))
    except Refused as error:
        outcome = Outcome("refused", str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error}"[:500]
        outcome = Outcome("failed", f"{detail} ({Path(where.filename).name}:{where.lineno})")
    pipe.send(outcome)


def _build(name: str, history: History, path: str) -> Outcome:
    SYSTEMS[name](path).build(history)
    return Outcome("ok")


def _run(name: str, workload: str, scale: str, history: Path | None, folder: Path) -> Outcome:
    run = WORKLOADS[workload].run
    with tempfile.TemporaryDirectory(dir=folder) as own, open(os.devnull, "w") as nowhere:
        bench = Bench(SYSTEMS[name], SCALES[scale], Path(own), history)
        try:
            with contextlib.redirect_stdout(nowhere):
                metrics: Metrics = asyncio.run(run(bench)) if inspect.iscoroutinefunction(run) else run(bench)
            verify_durability(bench)
        finally:
            bench.kind.clean(bench.folder)
    return Outcome("ok", metrics=metrics, failures=bench.failures)
