"""A hub on the loopback device that serves data sets, and archives beside them, to the real clients."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

ROUTE = re.compile(
    r"/(?:api/)?datasets/(?P<id>[^/]+/[^/]+)/(?P<verb>resolve|tree|paths-info|revision)/(?P<rest>.+)"
)

GO = threading.Event()
GO.set()


class HubServer:
    """Serves `repos[id][revision][path]` as a hub does, and `files[name]` under /archives/.

    Attributes:
        url: of the hub.
        log: (method, path) of each request.
        stops: by path or name, what comes half-way through a file: an Event to wait for, or None, the end.
    """

    def __init__(self):
        self.repos, self.files, self.log, self.stops = {}, {}, [], {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlsplit(self.path).path)
                hub.log.append((self.command, path))
                hub.respond(self, path, sent)

            do_GET = do_HEAD = do_POST = answer  # noqa: N815 - the names that the base class calls

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def respond(self, request, path, sent):
        name = path.removeprefix("/archives/")
        if name in self.files:
            return self.send_file(request, name, self.files[name])
        match = ROUTE.fullmatch(path)
        revisions = self.repos.get(match["id"]) if match else None
        if revisions is None:
            return send(request, b"", 404, {"X-Error-Code": "RepoNotFound"})
        revision, _, inside = match["rest"].partition("/")
        if revision not in revisions:
            return send(request, b"", 404, {"X-Error-Code": "RevisionNotFound"})
        files = revisions[revision]
        match match["verb"]:
            case "resolve" if inside not in files:
                return send(request, b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": revision})
            case "resolve":
                tags = {"X-Repo-Commit": revision, "ETag": f'"{oid(files[inside])}"'}
                return self.send_file(request, inside, files[inside], tags)
            case "revision":
                named = {
                    "id": match["id"],
                    "sha": revision,
                    "siblings": [{"rfilename": name} for name in files],
                }
                return send_json(request, named | {"private": False, "gated": False, "tags": []})
            case "tree":
                folder = f"{inside}/" if inside else ""
                under = [name for name in files if name.startswith(folder)]
                folders = {folder + name[len(folder) :].split("/")[0] for name in under} - set(under)
                found = [name for name in under if "/" not in name[len(folder) :]]
                named = [{"type": "directory", "path": name, "oid": oid(b"")} for name in sorted(folders)]
                return send_json(request, named + [entry(name, files[name]) for name in found])
            case "paths-info":
                found = [name for name in json.loads(sent)["paths"] if name in files]
        send_json(request, [entry(name, files[name]) for name in found])
        return None

    def send_file(self, request, name, content, headers=None):
        """Sends the file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return send(request, content, 200, headers, self.stops.get(name, GO))
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return send(request, content[first : last + 1], 206, {**(headers or {}), **span})


def entry(name, content):
    return {"type": "file", "path": name, "size": len(content), "oid": oid(content)}


def oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def send_json(request, value):
    send(request, json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def send(request, content, status=200, headers=None, stop=GO):
    request.send_response(status)
    for name, value in {"Content-Length": len(content), "Accept-Ranges": "bytes", **(headers or {})}.items():
        request.send_header(name, str(value))
    request.end_headers()
    if request.command == "HEAD":
        return
    half = len(content) // 2
    request.wfile.write(content[:half])
    if stop is None:
        request.close_connection = True
        return
    stop.wait(60)
    with contextlib.suppress(OSError):  # the client may have been killed meanwhile
        request.wfile.write(content[half:])
