"""A web server on this machine that can be told to misbehave, and a stand-in for gdown."""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `asked` has the Range header of each request, "" for none.

    ranges: whether they are honoured; "wrong" for the right status with other bytes. cut: connections that end after
    so many bytes each, one after the other. announce: whether the length is. kind: the content type.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.ranges: bool | str = True
        self.cut: list[int] = []
        self.announce = True
        self.kind = "application/octet-stream"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.strip("/"))
        wanted = self.headers.get("Range", "")
        self.server.asked.append(wanted)
        if content is None:
            return self.send_error(404)
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
            start = 1 if self.server.ranges == "wrong" else start
        self.send_response(206 if wanted and self.server.ranges else 200)
        if wanted and self.server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", self.server.kind)
        if self.server.announce:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut.pop(0) if self.server.cut else None])

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fake_gdown(monkeypatch, files: dict[str, bytes | Exception | None]) -> list[str]:
    """Stand in for gdown: contents by file id; returns the list of the ids that it is asked for."""
    asked = []

    def download(id: str, output: str, quiet: bool, resume: bool) -> str | None:
        asked.append(id)
        content = files[id]
        if isinstance(content, Exception):
            raise content
        if content is None:
            return None
        Path(output).write_bytes(content)
        return output

    module = types.ModuleType("gdown")
    module.download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gdown", module)
    return asked
