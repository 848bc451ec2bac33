"""A TCP proxy on loopback that a test controls: the network between a client and a server, with its faults.

Rules kept here:

- It has a thread and an event loop of its own. Its controls may be called from sync and async code, and return when
  what they say is so; nothing about them is a matter of time.
- A cut is a reset (RST), which both sides get at once. Bytes that were held back are not sent with it.
- What is to happen at a moment of the conversation is said before (``cut_before`` and its like), happens once, on the
  first connection that comes to that moment, and can be waited for.

The moments are found in what the client sends, as it is: over TLS nothing is found.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from ports import HOST, free_port
from proxied import Connection, Matcher, Moment
from waiting import WAIT_S

T = TypeVar("T")


class TcpProxy:
    """Takes connections from the beginning of the ``with`` to its end and passes them on to a server.

    Where the server refuses a connection, the client's is reset.

    Args:
        port, host: the server's; it need not run yet.

    Attributes:
        host, port: where clients connect to.
        accepted: how many connections have come so far.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self.host, self.port = HOST, free_port()
        self.accepted = 0
        self._target = host, port
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp proxy")
        self._listener: socket.socket | None = None
        self._connections: set[Connection] = set()
        self._moments: list[Moment] = []
        self._is_stalled = False

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return self._do(lambda: len(self._connections))

    def forward_to(self, port: int, host: str = HOST) -> None:
        """Another server for the connections that come from now on, as after a failover."""

        def forward() -> None:
            self._target = host, port

        self._do(forward)

    def cut(self) -> None:
        """Reset all connections there are."""

        async def cut() -> None:
            self._take_waiting()
            await asyncio.gather(*(connection.cut() for connection in self._connections))

        asyncio.run_coroutine_threadsafe(cut(), self._loop).result(WAIT_S)

    def refuse(self) -> None:
        """Refuse new connections, as a machine does on which no server listens; those there are go on."""

        def refuse() -> None:
            if self._listener is not None:
                self._loop.remove_reader(self._listener)
                self._listener.close()
                self._listener = None

        self._do(refuse)

    def accept(self) -> None:
        """Take new connections again after :meth:`refuse`, on the same port."""

        def accept() -> None:
            if self._listener is None:
                self._listener = socket.create_server((self.host, self.port), backlog=1024)
                self._listener.setblocking(False)
                self._loop.add_reader(self._listener, self._take_waiting)

        self._do(accept)

    def stall(self) -> None:
        """Hold back all bytes, of new connections too, and the news of an end: a network that drops packets."""

        def stall() -> None:
            self._is_stalled = True
            for connection in self._connections:
                connection.stall()

        self._do(stall)

    def go_on(self) -> None:
        """Pass on what was held back, by :meth:`stall` or at a moment, and all that comes."""

        def go_on() -> None:
            self._is_stalled = False
            for connection in self._connections:
                connection.go_on()

        self._do(go_on)

    def cut_before(self, marker: Matcher) -> Moment:
        """Cut the connection whose client sends this, before the server gets it.

        Args:
            marker: bytes, or a function of all that a connection's client has sent since this call. What came in the
                same piece is not passed on either.
        """
        return self._await(Moment(marker, None, is_cut=True))

    def cut_after(self, marker: Matcher, answer: Matcher = b"") -> Moment:
        """Let the server carry out what the client sends here, and cut before the client learns of it.

        Args:
            marker: as for :meth:`cut_before`.
            answer: which answer tells that the server has carried it out; without it the first bytes after the
                marker. Nothing of it comes to the client. PostgreSQL has committed when it says
                ``postgres_server.IDLE``; before that it may have said that it has read a statement, no more.
        """
        return self._await(Moment(marker, answer, is_cut=True))

    def stall_before(self, marker: Matcher) -> Moment:
        """Hold back what the client sends here, and all that comes later on this connection, until go_on()."""
        return self._await(Moment(marker, None, is_cut=False))

    def stall_after(self, marker: Matcher, answer: Matcher = b"") -> Moment:
        """Let the server carry out what the client sends here, and hold back its answer until go_on().

        The arguments are those of :meth:`cut_after`.
        """
        return self._await(Moment(marker, answer, is_cut=False))

    def _await(self, moment: Moment) -> Moment:
        self._do(lambda: self._moments.append(moment))
        return moment

    def _take_waiting(self) -> None:
        """Take the connections that the system has accepted so far: for their clients they are open."""
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            self.accepted += 1
            connection = Connection(client, self._target, self._connections, self._moments)
            if self._is_stalled:
                connection.stall()

    def _do(self, control: Callable[[], T]) -> T:
        """Run it on the proxy's loop, for all connections that are open for their clients."""

        async def do() -> T:
            self._take_waiting()
            return control()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(WAIT_S)
