"""Hub server on the loopback interface, with the routes that huggingface_hub uses.

    with LoopbackHub() as hub: ...   # clients are processes with HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1

`hub.fault(...)` makes requests fail, wait or lose their connection; `hub.requests` lists all requests.
"""

import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from .answers import ROUTES, Answer, Call, failure
from .store import Store


@dataclass
class Fault:
    """Failure of the next requests whose "METHOD /path" matches a pattern."""

    pattern: str
    times: int
    status: int | None = None  # status code of the response, instead of handling the request
    cut: str | None = None  # close the connection "before" or "after" the request is handled
    wait: threading.Event | None = None  # the request waits for this event
    barrier: threading.Barrier | None = None  # the requests wait for each other
    seen: threading.Event = field(default_factory=threading.Event)

    def block(self) -> None:
        self.seen.set()
        if self.wait is not None:
            self.wait.wait(120)
        if self.barrier is not None:
            self.barrier.wait(120)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: "LoopbackHub"

    def handle_call(self) -> None:
        try:
            self.answer_call()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has closed the connection

    def answer_call(self) -> None:
        body = self.read_body()
        line = f"{self.command} {unquote(self.path)}"
        self.hub.requests.append(line)
        fault = self.hub.take_fault(line)
        if fault is not None:
            fault.block()
        if fault is not None and fault.cut == "before":
            return self.close_without_response()
        answer = failure(fault.status, "failure of the test") if fault and fault.status else self.dispatch(body)
        if fault is not None and fault.cut == "after":
            return self.close_without_response()
        self.send(answer)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def close_without_response(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def dispatch(self, body: bytes) -> Answer:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match and self.command in method.split("|"):
                with self.hub.store.lock:  # one request at a time
                    call = Call(self.hub, self.command, query, body, bearer, dict(self.headers), {})
                    call.names = {name: unquote(value) for name, value in match.groupdict().items() if value}
                    return answer(call)
        return failure(404, f"no such route: {self.command} {parts.path}")

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_call  # noqa: N815  (http.server finds them by these names)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing; `hub.requests` has the requests."""


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of killed clients."""


class LoopbackHub:
    """Server in a thread of this process, used as a context manager."""

    def __init__(self, part_size: int | None = None):
        self.store = Store()
        self.part_size = part_size  # large files are uploaded in parts of this many bytes
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # Another host name than the Hub's, because clients do not follow redirects to the Hub itself.
        self.storage_url = self.url.replace("127.0.0.1", "localhost")
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, pattern: str, times: int = 1, **settings: Any) -> Fault:
        self.faults.append(Fault(pattern, times, **settings))
        return self.faults[-1]

    def take_fault(self, line: str) -> Fault | None:
        with self.store.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def called(self, pattern: str) -> list[str]:
        return [line for line in self.requests if re.search(pattern, line)]

    def model(self, name: str) -> Any:
        return self.store.repositories["models", name]
