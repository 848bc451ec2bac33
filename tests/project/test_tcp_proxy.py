"""The proxy does to real connections what a network does, when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from ports import HOST, free_port
from processes import holdings, holds_again, wait_until
from proxied import Moment
from tcp_proxy import TcpProxy
from waiting import WAIT_S


class EchoServer:
    """Sends back what it gets.

    Attributes:
        received: all that came, of all connections.
        ends: how each connection ended, "closed" or "reset", when it did.
    """

    def __init__(self) -> None:
        self.received = b""
        self.ends: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake an accept() on Linux
        self._listener.close()
        for thread in self._threads:
            thread.join(WAIT_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._echo, args=(connection,)))
            self._threads[-1].start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.received += data
                    connection.sendall(data)
            except OSError:
                self.ends.put("reset")
            else:
                self.ends.put("closed")

    def next_end(self) -> str:
        return self.ends.get(timeout=WAIT_S)


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[TcpProxy]:
    with TcpProxy(echo.port) as running:
        yield running


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=WAIT_S)


def read(client: socket.socket, size: int) -> bytes:
    """As many bytes, fewer where the connection ends before."""
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def say(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return read(client, len(data))


def is_reset(client: socket.socket) -> bool:
    """Whether the connection ends with a reset, and nothing comes before that."""
    try:
        came = client.recv(1)
    except ConnectionResetError:
        return True
    assert came == b"", "an answer came"
    return False


def test_bytes_of_any_number_pass_both_ways_and_an_end_too(proxy: TcpProxy, echo: EchoServer) -> None:
    data = bytes(range(256)) * 20_000
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        assert read(client, len(data)) == data
        sender.join()
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert read(client, 5) == b"last"
    assert echo.next_end() == "closed"
    wait_until(lambda: proxy.connections == 0)
    assert proxy.accepted == 1


def test_a_cut_resets_both_sides_of_every_connection_also_of_one_just_made(proxy: TcpProxy, echo: EchoServer) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        assert say(first, b"a") == b"a"
        assert say(second, b"b") == b"b"
        with connect(proxy) as third:
            proxy.cut()
            assert proxy.connections == 0
            assert [is_reset(client) for client in (first, second, third)] == [True] * 3
    assert {echo.next_end(), echo.next_end()} == {"reset"}
    with connect(proxy) as again:
        assert say(again, b"c") == b"c"


def test_while_it_refuses_new_connections_are_refused_and_the_others_go_on(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert say(client, b"a") == b"a"
        proxy.accept()
        with connect(proxy) as another:
            assert say(another, b"b") == b"b"
            assert say(client, b"c") == b"c"


def test_what_is_stalled_comes_when_it_goes_on(proxy: TcpProxy, echo: EchoServer) -> None:
    with connect(proxy) as client:
        assert say(client, b"before") == b"before"
        proxy.stall()
        client.sendall(b"during")
        with connect(proxy) as another:
            another.sendall(b"new")
            another.shutdown(socket.SHUT_WR)
            assert proxy.connections == 2
            assert echo.received == b"before"
            proxy.go_on()
            assert read(another, 4) == b"new"
        assert read(client, 6) == b"during"
        assert say(client, b"after") == b"after"


def test_what_was_stalled_when_it_is_cut_never_comes(proxy: TcpProxy, echo: EchoServer) -> None:
    with connect(proxy) as client:
        assert say(client, b"before") == b"before"
        proxy.stall()
        client.sendall(b"during")
        proxy.cut()
        assert is_reset(client)
    assert echo.next_end() == "reset"
    assert echo.received == b"before"


def in_function(marker: bytes) -> Callable[[bytes], bool]:
    return lambda sent: sent.endswith(marker)


@pytest.mark.parametrize("form", [bytes, in_function], ids=["bytes", "function"])
def test_a_cut_before_keeps_the_marker_from_the_server(
    proxy: TcpProxy, echo: EchoServer, form: Callable[[bytes], bytes | Callable[[bytes], bool]]
) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        assert say(client, b"before ") == b"before "
        moment = proxy.cut_before(form(b"COMMIT"))
        assert say(client, b"more ") == b"more "
        client.sendall(b"then COMMIT")
        moment.wait()
        assert is_reset(client)
        assert echo.next_end() == "reset"
        assert echo.received == b"before more "
        assert say(other, b"COMMIT") == b"COMMIT", "once"


@pytest.mark.parametrize("form", [bytes, in_function], ids=["bytes", "function"])
def test_a_cut_after_lets_the_server_have_the_marker_and_the_client_no_answer(
    proxy: TcpProxy, echo: EchoServer, form: Callable[[bytes], bytes | Callable[[bytes], bool]]
) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        assert say(client, b"before ") == b"before "
        moment = proxy.cut_after(form(b"COMMIT"))
        client.sendall(b"then COMMIT")
        moment.wait()
        assert is_reset(client)
        assert echo.next_end() == "reset"
        assert echo.received == b"before then COMMIT"
        assert say(other, b"COMMIT") == b"COMMIT", "once"


def test_a_cut_after_waits_for_the_answer_that_it_is_told_to_wait_for(proxy: TcpProxy, echo: EchoServer) -> None:
    with connect(proxy) as client:
        moment = proxy.cut_after(b"one", answer=b"two")
        client.sendall(b"one")
        wait_until(lambda: echo.received == b"one")
        client.sendall(b"two")
        moment.wait()
        assert is_reset(client)
    assert echo.received == b"onetwo"


def test_a_marker_in_two_pieces_is_found_and_what_came_before_the_call_is_not(
    proxy: TcpProxy, echo: EchoServer
) -> None:
    with connect(proxy) as client:
        assert say(client, b"COMMIT CO") == b"COMMIT CO"
        moment = proxy.cut_before(b"COMMIT")
        assert say(client, b"MMIT") == b"MMIT"
        assert say(client, b"COM") == b"COM"
        client.sendall(b"MIT")
        moment.wait()
        assert is_reset(client)
    assert echo.received == b"COMMIT COMMITCOM"


def test_a_stall_before_holds_the_marker_back_from_the_server_and_stalls_no_other(
    proxy: TcpProxy, echo: EchoServer
) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        moment = proxy.stall_before(b"COMMIT")
        client.sendall(b"COMMIT")
        moment.wait()
        assert say(other, b"other ") == b"other "
        assert echo.received == b"other "
        proxy.go_on()
        assert read(client, 6) == b"COMMIT"
        assert echo.received == b"other COMMIT"


def test_a_stall_after_holds_back_the_answer_of_what_the_server_has_carried_out(
    proxy: TcpProxy, echo: EchoServer
) -> None:
    with connect(proxy) as client:
        moment = proxy.stall_after(b"COMMIT")
        client.sendall(b"COMMIT")
        moment.wait()
        assert echo.received == b"COMMIT"
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(WAIT_S)
        proxy.go_on()
        assert read(client, 6) == b"COMMIT"


def test_a_server_that_refuses_makes_a_reset_and_another_may_take_its_place(proxy: TcpProxy, echo: EchoServer) -> None:
    proxy.forward_to(free_port())
    with pytest.raises(ConnectionResetError), connect(proxy) as client:  # it may come before connect() returns
        say(client, b"a")
    proxy.forward_to(echo.port)
    with connect(proxy) as client:
        assert say(client, b"a") == b"a"


@pytest.mark.parametrize("end", ["cut", "close"])
def test_a_moment_that_cannot_come_any_more_fails_whoever_waits_for_it(
    proxy: TcpProxy, echo: EchoServer, end: str
) -> None:
    with connect(proxy) as client:
        moment = proxy.cut_after(b"a", answer=b"never")
        client.sendall(b"a")
        wait_until(lambda: echo.received)
        if end == "cut":
            proxy.cut()
    with pytest.raises(AssertionError, match="the connection ended before"):
        moment.wait()


def test_a_function_that_fails_fails_whoever_waits(proxy: TcpProxy) -> None:
    def fail(sent: bytes) -> bool:
        raise LookupError(sent)

    moment = proxy.cut_before(fail)
    with connect(proxy) as client:
        client.sendall(b"a")
        with pytest.raises(LookupError):
            moment.wait()
        assert is_reset(client)


@pytest.mark.anyio
async def test_async_code_controls_it_while_its_own_connections_go_on(proxy: TcpProxy, echo: EchoServer) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)

    async def say(data: bytes) -> bytes:
        writer.write(data)
        return await reader.readexactly(len(data))

    moment: Moment = proxy.stall_after(b"COMMIT")
    answer = asyncio.create_task(say(b"COMMIT"))
    await moment.happened()
    assert echo.received == b"COMMIT"
    assert not answer.done()
    proxy.go_on()
    assert await answer == b"COMMIT"
    moment = proxy.cut_after(b"COMMIT")
    answer = asyncio.create_task(say(b"COMMIT"))
    await moment.happened()
    with pytest.raises(ConnectionResetError):
        await answer
    writer.close()
    assert echo.received == b"COMMITCOMMIT"


def test_it_leaves_nothing_behind_whatever_is_open(echo: EchoServer) -> None:
    before = holdings()
    with TcpProxy(echo.port) as proxy, connect(proxy) as client, connect(proxy):
        assert say(client, b"a") == b"a"
        proxy.stall()
        proxy.cut_before(b"a")
        client.sendall(b"a")
    holds_again(before)
