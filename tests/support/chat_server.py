"""A server on the loopback device that speaks the part of OpenAI's API that `stzoo ask` uses."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-of-the-test"


class ChatServer:
    """Answers chat completions.

    Attributes:
        url: the base URL.
        models: names that it lists, and that it accepts.
        key: key that it wants; None for any.
        log: the body of each request for a completion.
        fault: what goes wrong, a name of `_fault`; "" for nothing.
        faults: requests that it happens to.
        wait: seconds before each answer.
        answer: makes the content of a message from the request's body.
        unknown: parameters that are refused.
    """

    def __init__(self):
        self.models, self.key, self.log, self.wait = ["small"], None, [], 0.0
        self.fault, self.faults, self.answer, self.unknown = "", 10**9, queries, ()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits for 40 ms

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.send(
                    200, {"object": "list", "data": [{"id": one, "object": "model"} for one in server.models]}
                )

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.log.append(body)
                time.sleep(server.wait)
                with contextlib.suppress(ConnectionError):
                    server.respond(self, body)

            def send(self, status, value, kind="application/json", cut=0):
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - cut])
                self.close_connection = self.close_connection or bool(cut)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def respond(self, handler, body):
        given = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            # as OpenAI does, which repeats the key
            return handler.send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        if self.faults > 0 and self.fault:
            self.faults -= 1
            return self._fault(handler)
        if body["model"] not in self.models:
            return handler.send(404, {"error": {"message": f"The model `{body['model']}` does not exist"}})
        if refused := [name for name in self.unknown if name in body]:
            return handler.send(400, {"error": {"message": f"Unsupported parameter: '{refused[0]}'"}})
        return handler.send(200, completion(self.answer(body)))

    def _fault(self, handler):
        if self.fault.isdigit():
            return handler.send(int(self.fault), {"error": {"message": "ordered by the test"}})
        if self.fault == "html":
            return handler.send(200, b"<html>Welcome</html>", "text/html")
        if self.fault == "half":  # of the response
            return handler.send(200, b'{"id": "x", "choices": [{"message"', cut=0)
        if self.fault == "nested":
            return handler.send(200, b"[" * 100_000)
        if self.fault == "closed":
            handler.close_connection = True
            return None
        if self.fault == "no choices":
            return handler.send(200, {"id": "x", "object": "chat.completion", "choices": []})
        if self.fault == "null":
            return handler.send(200, completion(None))
        raise AssertionError(self.fault)


def completion(content, reason="stop"):
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [
            {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content}}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def passage_of(body):
    """The passage in a request."""
    return re.search(r"<(PASSAGE-\w+)>\n(.*?)\n</\1>", body["messages"][1]["content"], re.DOTALL)[2]


def queries(body):
    """Good queries, as many as are asked for: some words of the passage, in another order."""
    number = int(re.match(r"Write (\d+)", body["messages"][1]["content"])[1])
    words = sorted(set(passage_of(body).split()))
    return json.dumps({"queries": [f"which {' '.join(words[at : at + 4])} is it" for at in range(number)]})
