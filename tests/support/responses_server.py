"""A real HTTP server on loopback that speaks ``POST /v1/responses`` and its ``/compact``, with scripted answers.

A request with ``"stream": true`` is answered in server-sent events, as the API sends them. The server refuses what
the API refuses and memory gets wrong most often: half of an exchange, and fields that only its output has. So a test
that passes here has sent a valid request.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from waiting import WAIT_S

Json = dict[str, Any]


@dataclass
class Answer:
    """One scripted answer.

    Attributes:
        body: JSON, or bytes to send as they are, or a function of the request's body that makes the JSON.
        gate: if set, the answer waits until the test opens it; a streamed one after its first piece of text.
        cut: a streamed answer ends without its last event.
    """

    body: Json | bytes | Callable[[Json], Json]
    status: int = 200
    content_type: str = "application/json"
    gate: threading.Event | None = None
    cut: bool = False


@dataclass
class ResponsesServer:
    """A running server.

    Attributes:
        url: what OPENAI_BASE_URL is set to.
        requests: the bodies that came, in order.
        headers: the headers of each, names in lower case.
        arrived: gets one entry per request, before it is answered.
        connections: how many were accepted.
        has_forgotten: whether it has no stored response any more, and so finds no reasoning by its id.
    """

    url: str = ""
    requests: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    connections: list[socket.socket] = field(default_factory=list)
    has_forgotten: bool = False
    _script: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)

    def answer(self, *output: Json, gate: threading.Event | None = None, cut: bool = False, **fields: Any) -> None:
        """Scripts a response with these output items; `fields` replace those of a completed response."""
        self._script.put(Answer(response(*output, **fields), gate=gate, cut=cut))

    def answer_with(self, make: Callable[[Json], Json]) -> None:
        """Scripts a response made from the request's body."""
        self._script.put(Answer(make))

    def fail(self, status: int, message: str, code: str | None = None) -> None:
        """Scripts an error, in the API's form."""
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self._script.put(Answer({"error": error}, status))

    def answer_raw(self, body: bytes, content_type: str = "application/json", status: int = 200) -> None:
        """Scripts any bytes."""
        self._script.put(Answer(body, status, content_type))

    def wait_for_request(self) -> None:
        """Blocks until one more request has come than was waited for."""
        self.arrived.get(timeout=WAIT_S)

    def next_answer(self, request: Json, headers: dict[str, str]) -> Answer:
        """Records a request; what to say to it."""
        self.requests.append(request)
        self.headers.append(headers)
        self.arrived.put(len(self.requests))
        refusal = refused(request.get("input", []))
        if refusal:
            return Answer({"error": {"message": refusal, "type": "invalid_request_error"}}, 400)
        if self.has_forgotten or request.get("store") is False:
            for item in request.get("input", []):
                if item.get("type") == "reasoning" and not item.get("encrypted_content"):
                    return Answer({"error": {"message": NOT_FOUND.format(item["id"]), "param": "input"}}, 404)
        try:
            return self._script.get_nowait()
        except queue.Empty:
            return Answer({"error": {"message": "the test scripted no answer for this request"}}, 400)


def response(*output: Json, **fields: Any) -> Json:
    """A completed response, with the fields that the API sends."""
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "test-model",
        "output": list(output),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage,
        **fields,
    }


def events(response: Json) -> Iterator[Json]:
    """The events of a streamed response; texts come in pieces of three characters."""
    yield {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}}
    for index, item in enumerate(response["output"]):
        yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "status": "in_progress"}}
        for place, part in enumerate(item.get("content", [])):
            where = {"item_id": item["id"], "output_index": index, "content_index": place}
            kind, text = ("refusal", part["refusal"]) if "refusal" in part else ("output_text", part["text"])
            for start in range(0, len(text), 3):
                yield {"type": f"response.{kind}.delta", **where, "delta": text[start : start + 3], "logprobs": []}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def message(text: str, **fields: Any) -> Json:
    """A message from the model, as the API sends it."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
        **fields,
    }


def call(name: str, /, call_id: str = "call_1", **arguments: Any) -> Json:
    """A function call, as the API sends it."""
    return {
        "id": f"fc_{call_id}",
        "type": "function_call",
        "status": "completed",
        "name": name,
        "call_id": call_id,
        "arguments": json.dumps(arguments),
    }


def reasoning(**fields: Any) -> Json:
    """A reasoning item, as the API sends it."""
    return {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "opaque", **fields}


def program(call_id: str = "p1") -> Json:
    """A program that calls tools, as the API sends it."""
    return {"id": f"prog_{call_id}", "type": "program", "call_id": call_id, "code": "…", "fingerprint": "…"}


def program_output(call_id: str = "p1", result: str = "…") -> Json:
    """The end of a program, as the API sends it."""
    item = {"id": f"po_{call_id}", "type": "program_output", "call_id": call_id, "result": result}
    return {**item, "status": "completed"}


def custom_call(call_id: str = "custom_1", **fields: Any) -> Json:
    """The call of a custom tool, as the API sends it."""
    return {"id": f"ctc_{call_id}", "type": "custom_tool_call", "call_id": call_id, "name": "n", "input": "x", **fields}


NOT_FOUND = (
    "Item with id '{}' not found. Items are not persisted when `store` is set to false. Try again with `store` set to "
    "true, or remove this item from your input."
)
"""What the API answers, with 404, to reasoning that it is sent by its id alone and does not have."""

OWNED_BY_P1: Json = {"caller": {"type": "program", "caller_id": "p1"}}
"""What a call has that the program ``p1`` made, and its output."""


def refused(items: list[Json]) -> str | None:
    """Why the API would answer 400 to this input; None where it would not."""
    refusal = refused_calls(items) or refused_programs(items)
    if refusal:
        return refusal
    for index, item in enumerate(items):
        follower = items[index + 1] if index + 1 < len(items) else {"role": "user"}
        if item.get("type") == "reasoning":
            if follower.get("role") == "user" or follower.get("type") == "function_call_output":
                return f"Item '{item['id']}' of type 'reasoning' was provided without its required following item."
            if "status" in item:
                return f"Unknown parameter: 'input[{index}].status'."
        if "created_by" in item:
            return f"Unknown parameter: 'input[{index}].created_by'."
    return None


def refused_calls(items: list[Json]) -> str | None:
    """Why the calls in this input are no valid ones: each has one output, apart from asynchronous ones, after it."""
    for kind, name in (("function_call", "function call"), ("custom_tool_call", "custom tool call")):
        calls = [item["call_id"] for item in items if item.get("type") == kind]
        outputs = [item["call_id"] for item in items if item.get("type") == f"{kind}_output"]
        pending = {item["call_id"] for item in items if item.get("type") == kind and item.get("async")}
        for call_id in sorted({*calls} - {*outputs} - pending):
            return f"No tool output found for {name} {call_id}."
        for call_id in sorted({*outputs} - {*calls}):
            return f"No tool call found for {name} output with call_id {call_id}."
        for call_id in (each for each in outputs if outputs.count(each) > calls.count(each)):
            return f"Duplicate output found for {name} {call_id}."
    return None


def refused_programs(items: list[Json]) -> str | None:
    """Why the programs in this input are no valid ones: each is there before its calls, and has some or an output."""
    programs, owners = set(), set()
    for item in items:
        if item.get("type") == "program":
            programs.add(item["call_id"])
        owner = item["call_id"] if item.get("type") == "program_output" else None
        if isinstance(item.get("caller"), dict):
            owner = item["caller"].get("caller_id")
        if owner is not None and owner not in programs:
            return f"No program found for call_id {owner}."
        owners.add(owner)
    for call_id in sorted(programs - owners):
        return f"No output found for program {call_id}."
    return None


@contextmanager
def responses_server() -> Iterator[ResponsesServer]:
    """Runs a server on a free port of loopback."""
    state = ResponsesServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, as the API does
        wbufsize = -1  # headers and body in one packet: in two, the second waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.path in ("/v1/responses", "/v1/responses/compact"):
                answer = state.next_answer(body, headers)
            else:
                answer = Answer({"error": {"message": f"no such path: {self.path}"}}, 404)
            content = answer.body(body) if callable(answer.body) else answer.body
            if body.get("stream") and answer.status == 200 and isinstance(content, dict):
                self.stream(answer, content)
                return
            if answer.gate is not None:
                answer.gate.wait(WAIT_S)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def stream(self, answer: Answer, content: Json) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for number, event in enumerate(events(content)):
                if answer.cut and "status" in event.get("response", {}) and number:
                    break
                data = f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
                if answer.gate is not None and event["type"].endswith(".delta"):
                    answer.gate.wait(WAIT_S)
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # so that server_close() waits for them

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            state.connections.append(connection)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away in the middle is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    # A short poll, because each test's server is shut down.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="responses-server")
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        for connection in state.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)  # ends the thread that waits for a next request on it
            except OSError:
                continue  # closed already
        server.server_close()
