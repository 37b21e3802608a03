"""A Hub in memory, on the loopback interface alone: as much of its API as huggingface_hub and transformers need to create, fill, tag, list
and read repositories of models.

    with Hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "any"}
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = r"(?P<repository>[\w.-]+/[\w.-]+?)"
REVISION = r"(?P<revision>[^/]+)"
# What the real one keeps outside git; anything else arrives inside the commit.
LARGE = (".safetensors", ".bin", ".parquet")


class Refusal(Exception):
    """An HTTP error with the code that huggingface_hub turns into an exception."""

    def __init__(self, status, code, **headers):
        super().__init__(code)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": code, **headers}


class Repository:
    def __init__(self, name):
        self.name, self.commits, self.refs = name, {}, {}  # sha -> {path: bytes}; branch or tag -> sha
        self.commit("main", {})

    def commit(self, branch, files):
        text = repr((len(self.commits), sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha

    def resolve(self, revision):
        sha = self.refs.get(unquote(revision), revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound")
        return sha


class Hub:
    """Repositories by id, and every request as (method, path); the context manager serves them at `url`."""

    def __init__(self):
        self.repositories, self.large, self.requests = {}, {}, []
        self.lock = threading.Lock()

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository, revision="main"):
        held = self.repositories[repository]
        return held.commits[held.resolve(revision)]

    def answer(self, method, target, body, signed_in):
        """Status, headers and bytes of the answer."""
        split = urlsplit(target)
        self.requests.append((method, split.path))
        for methods, pattern, route in ROUTES:
            if method in methods and (match := re.fullmatch(pattern, split.path)):
                # the address of a large file is a secret of its own, as the real one's
                if (method == "POST" or route is Hub.who) and not signed_in:
                    raise Refusal(401, "Unauthorized")
                named = match.groupdict()
                if "repository" in named:
                    named["repository"] = self.repositories.get(named["repository"])
                    if named["repository"] is None:
                        raise Refusal(404, "RepoNotFound")
                return route(self, body=body, query=parse_qs(split.query), **named)
        raise Refusal(404, "RepoNotFound")

    def who(self, **request):
        return _json({"type": "user", "name": "tester", "orgs": [], "auth": {"accessToken": {"displayName": "t", "role": "write"}}})

    def accept(self, **request):
        return _json({})

    def create(self, body, **request):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        new = self.repositories.setdefault(name, held := Repository(name)) is held
        return _json({"url": f"{self.url}/{name}", "name": name, "error": "You already created this repo"}, 200 if new else 409)

    def ask_before(self, body, repository, revision, **request):
        files = json.loads(body)["files"]
        modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False} for f in files]
        return _json({"files": modes})

    def large_files(self, body, **request):
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.url}/large/{wanted['oid']}"}, "verify": {"href": f"{self.url}/large"}}
            objects.append({**wanted, **({} if wanted["oid"] in self.large else {"actions": upload})})
        return _json({"transfer": "basic", "objects": objects})

    def store(self, body, sha256, **request):
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refusal(400, "BadRequest")
        self.large[sha256] = body
        return _json({})

    def commit(self, body, repository, revision, **request):
        files = dict(repository.commits[repository.resolve(revision)])
        for line in body.splitlines():
            step = json.loads(line)
            kind, value = step["key"], step["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            elif kind != "header":
                raise Refusal(400, "BadRequest")
        sha = repository.commit(unquote(revision), files)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repository.name}/commit/{sha}"})

    def tag(self, body, repository, revision, **request):
        repository.refs[json.loads(body)["tag"]] = repository.resolve(revision)
        return _json({})

    def describe(self, repository, revision=None, **request):
        sha = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        return _json({"id": repository.name, "modelId": repository.name, "sha": sha, "private": False, "tags": [], "siblings": siblings})

    def listing(self, repository, revision, folder=None, **request):
        held = repository.commits[repository.resolve(revision)]
        inside = {path: data for path, data in held.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise Refusal(404, "EntryNotFound")
        return _json([{"type": "file", "path": path, "size": len(data), "oid": _tag(path, data)} for path, data in sorted(inside.items())])

    def download(self, repository, revision, path, **request):
        sha = repository.resolve(revision)
        data = repository.commits[sha].get(unquote(path))
        if data is None:
            raise Refusal(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"ETag": f'"{_tag(path, data)}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        return 200, headers | ({"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))} if path.endswith(LARGE) else {}), data


ROUTES = [
    (["GET"], "/api/whoami-v2", Hub.who),
    (["POST"], "/api/validate-yaml|/large", Hub.accept),
    (["POST"], "/api/repos/create", Hub.create),
    (["POST"], rf"/api/models/{REPOSITORY}/preupload/{REVISION}", Hub.ask_before),
    (["POST"], rf"/{REPOSITORY}\.git/info/lfs/objects/batch", Hub.large_files),
    (["PUT"], r"/large/(?P<sha256>\w+)", Hub.store),
    (["POST"], rf"/api/models/{REPOSITORY}/commit/{REVISION}", Hub.commit),
    (["POST"], rf"/api/models/{REPOSITORY}/tag/{REVISION}", Hub.tag),
    (["GET"], rf"/api/models/{REPOSITORY}(/revision/{REVISION})?", Hub.describe),
    (["GET"], rf"/api/models/{REPOSITORY}/tree/{REVISION}(/(?P<folder>.+))?", Hub.listing),
    (["GET", "HEAD"], rf"/{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)", Hub.download),
]


def _json(value, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _tag(path, data):
    return hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serve(self):
        body = self._body()
        try:
            with self.hub.lock:
                status, headers, data = self.hub.answer(self.command, self.path, body, "Authorization" in self.headers)
        except Refusal as error:
            status, headers, data = error.status, error.headers, b"{}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *arguments):
        """Nothing on the terminal."""
