"""A small web server on this machine that misbehaves on request."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Files by path, and what goes wrong with each answer in turn.

    Attributes:
        files: what is served.
        faults: one name an answer, taken from the front: ``break`` ends after half of what is left,
            ``stall`` after one byte, ``longer`` and ``shorter`` lie about the length, ``500`` and
            ``404`` refuse, ``ok`` is honest. Afterwards all answers are honest.
        resumes: whether Range is understood.
        tag: the ETag; None sends none.
        asked: path and Range of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    resumes: bool = True
    tag: str | None = '"one"'
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Site:
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        site, span = self.site, self.headers.get("Range")
        site.asked.append((self.path, span))
        fault = site.faults.pop(0) if site.faults else "ok"
        data = site.files.get(self.path)
        if data is None or fault.isdigit():
            self.send_error(int(fault) if fault.isdigit() else 404)
            return
        same = self.headers.get("If-Range") in (None, site.tag)
        first = int(span[6:-1]) if span and site.resumes and same else 0
        if first >= len(data) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        rest = data[first:]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        lie = {"longer": 1000, "shorter": -10}.get(fault, 0)
        if fault != "unsaid":
            self.send_header("Content-Length", str(len(rest) + lie))
        if site.tag:
            self.send_header("ETag", site.tag)
        self.end_headers()
        part = {"break": len(rest) // 2, "stall": 1}.get(fault, len(rest))
        self.wfile.write(rest[:part])
        self.close_connection = True
