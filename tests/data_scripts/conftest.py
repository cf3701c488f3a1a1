"""A file server as public datasets have it: it knows ranges, and can be told to misbehave."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

SCRIPTS = Path(__file__).parents[2] / "data_scripts"


class FileServer(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    knows_ranges: ClassVar[bool] = True
    breaks_off_after: ClassVar[int | None] = None
    """Bytes of the body after which the connection drops, though more were announced."""
    ranges_asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        asked = self.headers.get("Range")
        self.ranges_asked.append(asked)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if asked and self.knows_ranges:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match, asked
            start = int(match[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.breaks_off_after])

    def log_message(self, format: str, *args: object) -> None:
        """Silence: what a test fails with is in its own output."""


class Server:
    """A running server: put files, see what was asked."""

    def __init__(self, handler: type[FileServer], url: str) -> None:
        self.handler = handler
        self.url = url

    def put(self, name: str, content: bytes) -> None:
        self.handler.files[f"/{name}"] = content


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("Handler", (FileServer,), {"files": {}, "ranges_asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Server(handler, f"http://127.0.0.1:{running.server_port}")
        running.shutdown()
        thread.join()


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a data script as a person does; proxies of the surroundings are left out."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPTS / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(SCRIPTS.parent),
                "COLUMNS": "200",
                "NO_PROXY": "127.0.0.1",
            },
        )

    return run
