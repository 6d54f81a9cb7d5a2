"""A hub over loopback that keeps commits in memory: as much of the protocol as the client speaks.

Small text goes with the commit, all else through LFS, as on the real one.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = r"(?P<kind>models/|datasets/|)(?P<repo>[^/]+/[^/]+)"


@dataclass
class FakeHub:
    """What it holds, and what it was asked.

    Attributes:
        url: where it listens.
        commits: (kind, repository) -> commits in order, each (sha, path -> content).
        private: (kind, repository) -> whether it was created so.
        asked: "METHOD path" of every request.
    """

    url: str = ""
    commits: dict = field(default_factory=dict)
    private: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    blobs: dict = field(default_factory=dict)

    def files(self, repo, revision="main", kind="models"):
        found = self.commits[kind, repo]
        return dict(found[-1][1]) if revision == "main" else dict(found)[revision]

    def commit(self, repo, files, kind="models"):
        history = self.commits.setdefault((kind, repo), [])
        digests = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        text = json.dumps([len(history), digests])
        history.append((hashlib.sha1(text.encode()).hexdigest(), files))
        return history[-1][0]


@contextmanager
def serve():
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _route(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for pattern, act in ROUTES.items():
            method, _, form = pattern.partition(" ")
            found = re.fullmatch(form, path)
            if found and self.command in method.split("|"):
                groups = found.groupdict()
                groups["kind"] = (groups.get("kind") or "models/").rstrip("/")
                return act(self, body, **groups)
        return self._answer(404, {"error": f"no route {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _answer(self, code, value, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def create(self, body, kind):
        asked = json.loads(body)
        kind = {"dataset": "datasets"}.get(asked.get("type"), "models")
        key = kind, f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' * (kind == 'datasets')}{key[1]}"
        if key in self.hub.commits:
            return self._answer(409, {"error": "there is one", "url": url})
        self.hub.private[key] = asked.get("private", asked.get("visibility") == "private")
        self.hub.commit(key[1], {".gitattributes": b""}, kind)
        return self._answer(200, {"url": url})

    def info(self, body, kind, repo, revision="main"):
        try:
            found = self.hub.files(repo, revision, kind)
        except KeyError:
            return self._answer(404, {}, X_Error_Code="RepoNotFound")
        sha = self._sha(kind, repo, revision)
        listed = [{"rfilename": path} for path in sorted(found)]
        return self._answer(200, {"id": repo, "sha": sha, "siblings": listed})

    def tree(self, body, kind, repo, revision):
        found = self.hub.files(repo, revision, kind)
        entry = {"type": "file", "oid": "0", "size": 0}
        return self._answer(200, [{**entry, "path": path} for path in sorted(found)])

    def preupload(self, body, kind, repo, revision):
        files = [
            {
                "path": asked["path"],
                "uploadMode": "regular" if asked["path"].endswith((".json", ".md")) else "lfs",
                "shouldIgnore": False,
            }
            for asked in json.loads(body)["files"]
        ]
        return self._answer(200, {"files": files})

    def batch(self, body, kind, repo):
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        return self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body, kind, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        return self._answer(200, {})

    def commit(self, body, kind, repo, revision):
        files = self.hub.files(repo, kind=kind)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(repo, files, kind)
        where = f"{self.hub.url}/{repo}/commit/{sha}"
        return self._answer(200, {"success": True, "commitOid": sha, "commitUrl": where})

    def resolve(self, body, kind, repo, revision, file):
        try:
            data = self.hub.files(repo, revision, kind)[file]
        except KeyError:
            return self._answer(404, {}, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        sha = self._sha(kind, repo, revision)
        return self._answer(200, data, ETag=etag, X_Repo_Commit=sha)

    def yaml(self, body, kind):
        return self._answer(200, {"errors": [], "warnings": []})

    def _sha(self, kind, repo, revision):
        return self.hub.commits[kind, repo][-1][0] if revision == "main" else revision


ROUTES = {
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.yaml,
    f"GET /api/{REPO}": _Handler.info,
    f"GET /api/{REPO}/revision/(?P<revision>.+)": _Handler.info,
    f"GET /api/{REPO}/tree/(?P<revision>.+)": _Handler.tree,
    f"POST /api/{REPO}/preupload/(?P<revision>.+)": _Handler.preupload,
    f"POST /api/{REPO}/commit/(?P<revision>.+)": _Handler.commit,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": _Handler.batch,
    "PUT /lfs/(?P<oid>[0-9a-f]+)": _Handler.put,
    f"GET|HEAD /{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)": _Handler.resolve,
}
