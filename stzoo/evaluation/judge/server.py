"""The page on which a person judges: a small server for one browser on this machine.

It listens on the loopback interface only. Other users of the machine do not know the random token in the
address, and a web page that a browser has open elsewhere can neither read nor answer: the Host header must
name the loopback interface (against DNS rebinding), answers must be JSON, no CORS header is sent, and the
page may load nothing from elsewhere. Texts are put into the page as text, never as HTML.

GET  /TOKEN/         the page; judge.css and judge.js next to it
GET  /TOKEN/state    the pair to judge, and the counts
POST /TOKEN/answer   {"place": place of the pair, "grade": 0, 1, 2 or null to skip it}
POST /TOKEN/undo     {}
POST /TOKEN/finish   {}
"""

import json
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError, StzooError
from stzoo.evaluation.judge.answers import GRADES, Answers

HOST = "127.0.0.1"
MAX_BODY = 4096
FILES = {
    "": ("judge.html", "text/html"),
    "judge.css": ("judge.css", "text/css"),
    "judge.js": ("judge.js", "text/javascript"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class JudgeServer(ThreadingHTTPServer):
    """Serves the page until the judge finishes.

    Args:
        answers: The answers, which are saved one by one.
        texts: Question, title and text of each pair.
        finish: Called when the judge finishes, before the page says so.
        port: Port to listen on; 0 for any free one.

    Raises:
        OutputError: If the port cannot be used.
    """

    daemon_threads = True

    def __init__(
        self,
        answers: Answers,
        texts: Sequence[tuple[str, str, str]],
        finish: Callable[[], object],
        port: int = 0,
    ):
        self.answers, self.texts, self.finish = answers, texts, finish
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()
        self.finished = False
        self.failure: StzooError | None = None
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OutputError(
                f"port {port} cannot be used: {error.strerror or error}. Choose another --port, or 0."
            ) from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores connections that the browser closes; see socketserver."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def serve(self) -> None:
        """Serves until the judge finishes.

        Raises:
            StzooError: If an answer or the end could not be saved.
        """
        try:
            self.serve_forever(poll_interval=0.1)
        finally:
            self.server_close()
        if self.failure:
            raise self.failure

    def state(self) -> dict[str, Any]:
        """What the page shows. Nothing in it depends on the systems' scores or ranks."""
        answers, place = self.answers, self.answers.position
        state: dict[str, Any] = {
            "place": place,
            "pairs": len(answers.pairs),
            "answered": answers.answered,
            "counts": answers.counts,
            "finished": self.finished,
        }
        if place < len(answers.pairs):
            question, title, text = self.texts[place]
            query = answers.pairs[place][0]
            of_query = [number for number, pair in enumerate(answers.pairs) if pair[0] == query]
            state |= {"question": question, "title": title, "text": text}
            state |= {"passage": of_query.index(place) + 1, "passages": len(of_query)}
        return state

    def act(self, action: str, body: dict[str, Any]) -> HTTPStatus:
        """Answers, undoes or finishes, and returns the status of the response."""
        if self.finished or self.failure:
            return HTTPStatus.CONFLICT
        try:
            if action == "undo":
                self.answers.undo()
            elif action == "finish":
                self.finish()
                self.finished = True
            else:
                grade = body.get("grade", -1)
                if grade is not None and (type(grade) is not int or grade not in range(len(GRADES))):
                    return HTTPStatus.BAD_REQUEST
                # a second click, or a second window, that saw an earlier pair
                if body.get("place") != self.answers.position or body["place"] >= len(self.answers.pairs):
                    return HTTPStatus.CONFLICT
                self.answers.give(grade)
        except StzooError as error:  # e.g. the disk is full; the command ends with this message
            self.failure = error
            return HTTPStatus.INTERNAL_SERVER_ERROR
        return HTTPStatus.OK


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    server_version, sys_version = "stzoo", ""
    timeout = 30

    def do_GET(self) -> None:
        path = self._path()
        if path in FILES:
            name, kind = FILES[path]
            content = Path(__file__).with_name(name).read_bytes()
            self._send(HTTPStatus.OK, content, f"{kind}; charset=utf-8")
        elif path == "state":
            with self.server.lock:
                state = self.server.state()
            self._send_json(HTTPStatus.OK, state)
        elif path is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        if path not in ("answer", "undo", "finish"):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdecimal():
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
            return
        if int(length) > MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        with self.server.lock:
            status = self.server.act(path, body)
            state = self.server.state()
        self._send_json(status, state)
        if self.server.finished or self.server.failure:
            threading.Thread(target=self.server.shutdown, daemon=True).start()

    def _path(self) -> str | None:
        """The path after the token; None if the request was refused."""
        port = self.server.server_port
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in hosts or origin not in (None, *(f"http://{h}" for h in hosts)):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        _, token, *rest = [*self.path.split("/", 2), ""][:3]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return rest[0]

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, f"{status.value} {status.phrase}\n".encode(), "text/plain; charset=utf-8")

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in http.server
        """Logs nothing, as the terminal is for the command's own messages."""
