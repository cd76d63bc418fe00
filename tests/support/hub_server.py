"""A hub on the loopback device: data sets, models, and archives beside them, for the real clients.

Models can be made, written and collected as well, by the tokens that the server knows; and a test can order
what goes wrong: see `Fault`.
"""

import base64
import contextlib
import fnmatch
import hashlib
import io
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants

GO = threading.Event()
GO.set()
LARGE = (".safetensors", ".png", ".parquet")  # kept as LFS objects
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "other")
COUNT = itertools.count()


@dataclass
class Fault:
    """What goes wrong with the first `times` requests that `where` is found in.

    Attributes:
        where: a regular expression for "METHOD path".
        status: is answered in place of what was asked for.
        headers: of that answer.
        error: its text.
        cut: the connection is closed without an answer: "asked", half-way through what the client sends;
            "done", after the request has had its effect.
        wait: seconds before the request is looked at.
        first: is called before the request is.
        times: requests that it happens to.
    """

    where: str
    status: int | None = None
    headers: dict[str, str] | None = None
    error: str = "ordered by the test"
    cut: str | None = None
    wait: float = 0.0
    first: Callable[[], None] | None = None
    times: int = 1


class Repo(dict):
    """Files by path, by commit; `heads` names the commits that branches are at."""

    def __init__(self, *args, private=False):
        super().__init__(*args)
        self.heads, self.private = {}, private

    def at(self, revision):
        return self.heads.get(revision, revision)

    def commit(self, files, branch="main"):
        """Puts these files, in place of all that is there, on the branch."""
        sha = hashlib.sha1(str(next(COUNT)).encode()).hexdigest()
        self[sha] = files
        self.heads[branch] = sha
        return sha


class RefusedError(Exception):
    """An answer that is an error: status, and code or message."""

    def __init__(self, status, code="", message="", **more):
        self.status, self.content = status, {"error": message or code, **more}
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self.headers = {name: value for name, value in named.items() if value}


class HubServer:
    """Serves `repos[id]` as a hub does, and `files[name]` under /archives/.

    Attributes:
        url: of the hub.
        users: what whoami answers, by token.
        objects: content of large files, by sha256.
        collections: by slug.
        log: (method, path) of each request.
        stops: by path or name, what comes half-way through a file: an Event to wait for, or None, the end.
        faults: what is to go wrong.
    """

    def __init__(self):
        self.repos, self.files, self.log, self.stops = {}, {}, [], {}
        self.users, self.objects, self.collections, self.faults = {}, {}, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits for 40 ms

            def log_message(self, *_):
                pass

            def answer(self):
                with contextlib.suppress(ConnectionError):  # the client may have been killed
                    self.answer_to_the_end()

            def answer_to_the_end(self):
                raw = urlsplit(self.path).path
                path = unquote(raw)
                hub.log.append((self.command, path))
                fault = hub.fault(f"{self.command} {path}")
                if fault.cut == "asked":
                    self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                    self.close_connection = True
                    return
                self.sent = body(self)
                time.sleep(fault.wait)
                if fault.first:
                    fault.first()
                try:
                    if fault.status:
                        raise RefusedError(fault.status, message=fault.error)
                    if fault.cut == "done":
                        self.wfile = io.BytesIO()
                        self.close_connection = True
                    hub.respond(self, raw)
                except RefusedError as refused:
                    headers = {"Content-Type": "application/json"} | refused.headers | (fault.headers or {})
                    send(self, json.dumps(refused.content).encode(), refused.status, headers)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the base class calls these

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def stand_in(self, patch, **more):
        """Makes this process take it for the Hub; `more` of huggingface_hub's constants are set as well."""
        at = {"ENDPOINT": self.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        at["HUGGINGFACE_CO_URL_TEMPLATE"] = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (at | more).items():
            patch.setattr(constants, name, value)

    def add_user(self, token, name, orgs=(), role="write"):
        """Lets a token in; `role` is its own: read or write."""
        groups = [{"name": org, "type": "org"} for org in orgs]
        access = {"accessToken": {"displayName": "test", "role": role}}
        self.users[token] = {"type": "user", "name": name, "orgs": groups, "auth": access}

    def asked(self, method):
        """Paths that were asked for by this method."""
        return [path for used, path in self.log if used == method]

    def fault(self, request):
        for fault in self.faults:
            if fault.times and re.search(fault.where, request):
                fault.times -= 1
                return fault
        return Fault("")

    def respond(self, request, path):
        name = path.removeprefix("/archives/")
        if name in self.files:
            self.send_file(request, name, self.files[name])
            return
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and re.fullmatch(method, request.command):
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part}
                answer(self, request, **parts)
                return
        raise RefusedError(404, "RepoNotFound")

    def user(self, request):
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.users:
            raise RefusedError(401, message="Invalid username or password.")
        return self.users[token]

    def writer(self, request, owner):
        user = self.user(request)
        if user["auth"]["accessToken"]["role"] == "read":
            raise RefusedError(403, message="You need a token with the right to write")
        if owner not in owners(user):
            raise RefusedError(403, message=f"You don't have the rights to create a model under {owner!r}")

    def repo(self, request, repo_id):
        repo = self.repos.get(repo_id)
        if repo is None:
            raise RefusedError(404, "RepoNotFound", "Repository not found")
        if repo.private and repo_id.split("/")[0] not in owners(self.user(request)):
            raise RefusedError(404, "RepoNotFound", "Repository not found")
        return repo

    def revision(self, request, repo_id, revision):
        """The repository, and the commit that a branch or a commit names."""
        repo = self.repo(request, repo_id)
        if repo.at(revision) not in repo:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, repo.at(revision)

    # Reading

    def resolve(self, request, repo_id, revision, path):
        repo, commit = self.revision(request, repo_id, revision)
        if path not in repo[commit]:
            send(request, b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = repo[commit][path]
        tags = {"X-Repo-Commit": commit, "ETag": f'"{oid(content)}"'}
        if path.endswith(LARGE):
            tags |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": len(content)}
        self.send_file(request, path, content, tags)

    def info(self, request, repo_id, revision="main"):
        repo, commit = self.revision(request, repo_id, revision)
        named = {"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in repo[commit]]}
        facts = {"private": repo.private, "gated": False, "tags": [], "cardData": front_matter(repo[commit])}
        send_json(request, named | facts)

    def tree(self, request, repo_id, revision, path=""):
        repo, commit = self.revision(request, repo_id, revision)
        files, folder = repo[commit], f"{path}/" if path else ""
        under = [name for name in files if name.startswith(folder)]
        if folder and not under:
            raise RefusedError(404, "EntryNotFound")
        if "recursive=true" in urlsplit(request.path).query.lower():
            send_json(request, [entry(name, files[name]) for name in under])
            return
        folders = {folder + name[len(folder) :].split("/")[0] for name in under} - set(under)
        found = [name for name in under if "/" not in name[len(folder) :]]
        named = [{"type": "directory", "path": name, "oid": oid(b"")} for name in sorted(folders)]
        send_json(request, named + [entry(name, files[name]) for name in found])

    def paths_info(self, request, repo_id, revision):
        repo, commit = self.revision(request, repo_id, revision)
        found = [name for name in json.loads(request.sent)["paths"] if name in repo[commit]]
        send_json(request, [entry(name, repo[commit][name]) for name in found])

    def send_file(self, request, name, content, headers=None):
        """Sends the file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return send(request, content, 200, headers, self.stops.get(name, GO))
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return send(request, content[first : last + 1], 206, {**(headers or {}), **span})

    # Writing

    def whoami(self, request):
        send_json(request, self.user(request))

    def validate(self, request):
        """As the real one: YAML, licences it knows, and bases that have the form of an id."""
        errors = []
        try:
            front = front_matter({"README.md": json.loads(request.sent)["content"].encode()})
        except yaml.YAMLError as error:
            front, errors = {}, [{"message": f"YAML Metadata Error: {error.problem}"}]
        if front.get("license", "mit") not in LICENCES:
            errors.append({"message": f'"license" must be one of [{", ".join(LICENCES)}]'})
        bases = front.get("base_model", [])
        for base in [bases] if isinstance(bases, str) else bases:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
                errors.append({"message": f'"base_model" with value "{base}" is not valid.'})
        if errors:
            raise RefusedError(400, errors=errors, warnings=[])
        send_json(request, {"errors": [], "warnings": []})

    def create(self, request):
        asked = json.loads(request.sent)
        owner = asked["organization"] or self.user(request)["name"]
        repo_id = f"{owner}/{asked['name']}"
        self.writer(request, owner)
        if repo_id in self.repos:
            raise RefusedError(
                409, message="You already created this model repo", url=f"{self.url}/{repo_id}"
            )
        self.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
        self.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        send_json(request, {"url": f"{self.url}/{repo_id}", "id": repo_id, "name": repo_id})

    def preupload(self, request, repo_id, revision):
        self.writer(request, repo_id.split("/")[0])
        repo, commit = self.revision(request, repo_id, revision)
        asked, files = json.loads(request.sent), repo[commit]
        rules = asked.get("gitIgnore", files.get(".gitignore", b"").decode()).splitlines()
        send_json(request, {"files": [self.mode(file["path"], files, rules) for file in asked["files"]]})

    def mode(self, path, files, rules):
        large, content = path.endswith(LARGE), files.get(path)
        return {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": any(fnmatch.fnmatch(path, rule) for rule in rules),
            "oid": content if content is None else sha256(content) if large else oid(content),
        }

    def batch(self, request, repo_id):
        self.writer(request, repo_id.split("/")[0])
        objects = [{"oid": one["oid"], "size": one["size"]} for one in json.loads(request.sent)["objects"]]
        for one in objects:
            if one["oid"] not in self.objects:
                where = f"{self.url}/lfs/{one['oid']}"
                one["actions"] = {"upload": {"href": where}, "verify": {"href": f"{where}/verify"}}
        send_json(request, {"transfer": "basic", "objects": objects})

    def put(self, request, sha):
        if sha256(request.sent) != sha:
            raise RefusedError(400, message="the content has another checksum")
        self.objects[sha] = request.sent
        send_json(request, {})

    def verify(self, request, sha):
        if sha not in self.objects:
            raise RefusedError(404, "EntryNotFound")
        send_json(request, {})

    def commit(self, request, repo_id, revision):
        self.writer(request, repo_id.split("/")[0])
        repo = self.repo(request, repo_id)
        if revision not in repo.heads:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        lines = [json.loads(line) for line in request.sent.splitlines()]
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repo.heads[revision]) != repo.heads[revision]:
            raise RefusedError(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repo[repo.heads[revision]])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        raise RefusedError(400, message="LFS pointer pointed to a file that does not exist")
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
        sha = repo.commit(files, revision)
        send_json(
            request, {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"}
        )

    def branch(self, request, repo_id, revision):
        self.writer(request, repo_id.split("/")[0])
        repo = self.repo(request, repo_id)
        if request.command == "DELETE":
            del repo.heads[revision]
        elif revision in repo.heads:
            raise RefusedError(409, message=f"Reference already exists: {revision}")
        else:
            repo.heads[revision] = repo.at(json.loads(request.sent).get("startingPoint", "main"))
        send_json(request, {})

    def collect(self, request):
        asked = json.loads(request.sent)
        self.writer(request, asked["namespace"])
        words = re.sub(r"\W+", "-", asked["title"].lower())
        slug = f"{asked['namespace']}/{words}-{hashlib.md5(words.encode()).hexdigest()[:24]}"
        if slug in self.collections:
            raise RefusedError(409, message="Collection already exists", slug=slug)
        fixed = dict(lastUpdated="2026-01-01T00:00:00.000Z", position=0, theme="green", upvotes=0, items=[])
        owner = {"name": asked["namespace"]}
        made = dict(slug=slug, title=asked["title"], owner=owner, private=asked["private"], **fixed)
        self.collections[slug] = made
        send_json(request, made)

    def collection(self, request, slug):
        if slug not in self.collections:
            raise RefusedError(404, message="Collection not found")
        send_json(request, self.collections[slug])

    def add_item(self, request, slug):
        if slug not in self.collections:
            raise RefusedError(404, message="Collection not found")
        self.writer(request, slug.split("/")[0])
        items, asked = self.collections[slug]["items"], json.loads(request.sent)["item"]
        if asked["id"] in [item["id"] for item in items]:
            raise RefusedError(409, message="Item already exists")
        items.append({"_id": str(len(items)), "position": len(items), **asked})
        send_json(request, self.collections[slug])


ID, REV = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
KIND = "(?:datasets|models)"
ROUTES = [
    ("GET|HEAD", rf"/(?:datasets/)?{ID}/resolve/{REV}/(?P<path>.+)", HubServer.resolve),
    ("GET", rf"/api/{KIND}/{ID}(?:/revision/{REV})?", HubServer.info),
    ("GET", rf"/api/{KIND}/{ID}/tree/{REV}/?(?P<path>.*)", HubServer.tree),
    ("POST", rf"/api/{KIND}/{ID}/paths-info/{REV}", HubServer.paths_info),
    ("GET", "/api/whoami-v2", HubServer.whoami),
    ("POST", "/api/validate-yaml", HubServer.validate),
    ("POST", "/api/repos/create", HubServer.create),
    ("POST", rf"/api/models/{ID}/preupload/{REV}", HubServer.preupload),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", HubServer.batch),
    ("PUT", "/lfs/(?P<sha>[0-9a-f]{64})", HubServer.put),
    ("POST", "/lfs/(?P<sha>[0-9a-f]{64})/verify", HubServer.verify),
    ("POST", rf"/api/models/{ID}/commit/{REV}", HubServer.commit),
    ("POST|DELETE", rf"/api/models/{ID}/branch/{REV}", HubServer.branch),
    ("POST", "/api/collections", HubServer.collect),
    ("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)", HubServer.collection),
    ("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items", HubServer.add_item),
]  # fmt: skip


def owners(user):
    """Under whose names a user may write."""
    return [user["name"], *(org["name"] for org in user["orgs"])]


def front_matter(files):
    found = re.match(r"---\n(.*?\n)---\n", files.get("README.md", b"").decode(), re.DOTALL)
    return yaml.safe_load(found[1]) or {} if found else {}


def entry(name, content):
    large = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    facts = {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
    return facts | ({"lfs": large} if name.endswith(LARGE) else {})


def oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def body(request):
    """What a request brings, whole or in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


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
    request.wfile.write(content[half:])
