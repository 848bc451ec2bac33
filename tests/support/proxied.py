"""One connection through the proxy of ``tcp_proxy.py``, and the moments of its conversation at which something happens.

All of it lives on the proxy's event loop; only a :class:`Moment` is waited for from elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Future

from waiting import WAIT_S

Matcher = bytes | Callable[[bytes], bool]
"""Bytes that must be among those that came, or a function that tells whether these are the ones."""


class Moment:
    """When something is to happen to a connection, once.

    Args:
        marker: what the client has sent then.
        answer: and what the server has answered since; None for the moment before the server gets the marker.
        is_cut: whether the connection is cut then; else it is stalled.
    """

    def __init__(self, marker: Matcher, answer: Matcher | None, *, is_cut: bool) -> None:
        self.marker = marker
        self.answer = answer
        self.is_cut = is_cut
        self.outcome: Future[None] = Future()

    def wait(self) -> None:
        """Block until it has happened; fails when the connection ends before."""
        self.outcome.result(WAIT_S)

    async def happened(self) -> None:
        """The same for async code: the event loop goes on."""
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self.outcome)), WAIT_S)


class _Cut(Exception):  # noqa: N818  # it is no error
    """The moment to cut has come."""


class Connection:
    """Passes on what a client and its server send each other, until one of them ends it or the proxy cuts it.

    Args:
        client: the accepted socket.
        target: the server's host and port.
        connections: those of the proxy; this one is among them as long as it is open.
        moments: those of the proxy that have not come yet; this connection takes out the one that it comes to.
    """

    def __init__(
        self, client: socket.socket, target: tuple[str, int], connections: set[Connection], moments: list[Moment]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._client, self._server = client, socket.socket()
        for side in (self._client, self._server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections = connections
        connections.add(self)
        self._moments = moments
        self._sent: dict[Moment, bytes] = {}
        self._moment: Moment | None = None
        self._answer = b""
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._is_over = False
        self._task = self._loop.create_task(self._pass_on())
        self._task.add_done_callback(self._close)  # also where the task is cancelled before it begins

    def stall(self) -> None:
        """Hold back what comes from now on, and what has come and was not passed on."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Pass it on."""
        self._goes_on.set()

    async def cut(self) -> None:
        """Reset both sides; returns when that is done."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _pass_on(self) -> None:
        await self._goes_on.wait()
        await self._loop.sock_connect(self._server, self._target)
        directions = [
            self._loop.create_task(self._pump(self._client, self._server, self._from_client)),
            self._loop.create_task(self._pump(self._server, self._client, self._from_server)),
        ]
        try:
            await asyncio.gather(*directions)
            self._is_over = True
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    async def _pump(self, source: socket.socket, to: socket.socket, pass_on: Callable[[bytes], bytes]) -> None:
        while True:
            data = await self._loop.sock_recv(source, 1 << 16)
            await self._goes_on.wait()
            if not data:
                to.shutdown(socket.SHUT_WR)
                return
            data = pass_on(data)
            await self._goes_on.wait()  # it may just have come to a moment
            await self._loop.sock_sendall(to, data)

    def _from_client(self, data: bytes) -> bytes:
        for moment in self._moments:
            self._sent[moment] = self._sent.get(moment, b"") + data  # a marker may come in pieces
            if _is_there(moment.marker, self._sent[moment], moment):
                self._moments.remove(moment)
                self._moment, self._answer = moment, b""
                if moment.answer is None:
                    self._come_to(moment)
                break
        return data

    def _from_server(self, data: bytes) -> bytes:
        """What the client gets of it now."""
        if self._moment is None or self._moment.answer is None:
            return data
        self._answer += data
        if not _is_there(self._moment.answer, self._answer, self._moment):
            return b""
        self._come_to(self._moment)
        return self._answer

    def _come_to(self, moment: Moment) -> None:
        if moment.is_cut:
            raise _Cut
        self._moment = None
        self.stall()
        moment.outcome.set_result(None)

    def _close(self, task: asyncio.Task[None]) -> None:
        for side in (self._client, self._server):
            if not self._is_over:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
            side.close()
        self._connections.discard(self)
        error = None if task.cancelled() else task.exception()
        if self._moment is not None:
            if isinstance(error, _Cut):
                self._moment.outcome.set_result(None)
            else:
                self._moment.outcome.set_exception(AssertionError(f"the connection ended before: {error!r}"))
        if not isinstance(error, _Cut | OSError | None):
            raise error


def _is_there(matcher: Matcher, data: bytes, moment: Moment) -> bool:
    """Whether these bytes are the ones; a function that fails makes whoever waits for the moment fail."""
    if isinstance(matcher, bytes):
        return matcher in data
    try:
        return matcher(data)
    except Exception as error:
        moment.outcome.set_exception(error)
        raise ConnectionError("the test's own function failed") from error
