"""What `huggingface_hub` calls of the hub's HTTP interface, on loopback, for tests.

Written after its documentation and the requests that it makes. Files of `regular` names lie in
commits, all others in the large file storage, to which requests are sent on, as the hub does.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_of_the_stand_in"
OWNER = "maker"
_REGULAR = (".json", ".md", ".py", ".txt")


class Hub:
    """Repositories, and which faults there are.

    Attributes:
      repositories: by ``OWNER/NAME``: ``private``, and ``branches`` of lists of commits, each the
        content of files by path.
      requests: method and path of each.
      cut: paths of which half is sent before the connection ends.
      answers: statuses by path of a request, in place of what would be done.
    """

    def __init__(self):
        self.repositories, self.objects = {}, {}
        self.requests, self.cut, self.answers = [], set(), {}

    def put(self, name, files, branch="main"):
        """Makes a commit that holds these files and no others; returns its name."""
        repository = self.repositories.setdefault(name, {"private": False, "branches": {}})
        commits = repository["branches"].setdefault(branch, [])
        commits.append(dict(files))
        return self.sha(name, branch)

    def put_folder(self, name, folder):
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.put(name, files)

    def sha(self, name, branch="main", number=None):
        commits = self.repositories[name]["branches"][branch]
        number = len(commits) if number is None else number
        return hashlib.sha1(f"{name} {branch} {number}".encode()).hexdigest()

    def files(self, name, branch="main"):
        """Content by path of the newest commit."""
        return self.repositories[name]["branches"][branch][-1]

    def commit_of(self, name, revision):
        """Name and content of a revision; None if there is none."""
        for branch, commits in self.repositories[name]["branches"].items():
            for number, files in enumerate(commits, 1):
                sha = self.sha(name, branch, number)
                if revision == sha or (revision == branch and number == len(commits)):
                    return sha, files
        return None

    def fetched(self):
        """Paths in repositories whose content was asked for, in order."""
        found = []
        for method, path in self.requests:
            if method == "GET" and (
                match := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path)
            ):
                found.append(match[1])
            if method == "GET" and path.startswith("/storage/"):
                found.append(self.objects[path.removeprefix("/storage/")][0])
        return found


@contextlib.contextmanager
def serving():
    """A hub and its address."""
    hub = Hub()
    handler = type("BoundHandler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def connected(monkeypatch, folder):
    """A hub that `huggingface_hub` calls in this process, with an empty cache and no token."""
    from huggingface_hub import constants

    with serving() as (hub, address):
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr("bsq_jax.training.hub._taken", {})
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _serve(self):
        path = urllib.parse.urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self._body = self._chunks()
        if path in self.hub.answers:
            return self._answer(self.hub.answers[path], {"error": "as asked"})
        for method, pattern, call in _ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                return call(self, *map(urllib.parse.unquote, found.groups()))
        return self._answer(404, {"error": f"no such call: {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = _serve  # noqa: N815

    def _chunks(self):
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for key, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status, code, message=""):
        self._answer(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message)

    @property
    def _authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self):
        if not self._authorized:
            self._answer(401, {"error": "Invalid username or password."})
        return self._authorized

    def _commit(self, name, revision):
        """Name and content of a commit; answers and gives None where there is none."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository["private"] and not self._authorized):
            # The hub does not tell strangers whether a repository exists.
            status = 404 if self._authorized else 401
            return self._refuse(status, "RepoNotFound", "Repository not found")
        found = self.hub.commit_of(name, revision)
        if found is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def whoami(self):
        if self._may_write():
            self._answer(200, {"type": "user", "name": OWNER, "orgs": []})

    def info(self, name, revision="main"):
        if found := self._commit(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            private = self.hub.repositories[name]["private"]
            described = {"id": name, "modelId": name, "sha": found[0], "private": private}
            self._answer(200, {**described, "tags": [], "siblings": siblings})

    def resolve(self, name, revision, path):
        found = self._commit(name, revision)
        if found is None:
            return None
        sha, files = found
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = files[path]
        headers = {"X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        oid = hashlib.sha256(content).hexdigest()
        if not path.endswith(_REGULAR):
            self.hub.objects[oid] = (path, content)
            linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": len(content)}
            # Of another host, which must not see the token.
            place = f"http://localhost:{self.server.server_port}/storage/{oid}"
            return self._answer(302, **headers, **linked, Location=place)
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self._answer(200, content, ETag=f'"{etag}"', **headers)

    def storage(self, oid):
        assert "Authorization" not in self.headers
        path, content = self.hub.objects[oid]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(start[1]) if start else 0
        headers = {"Content_Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        content = content[first:]
        if path in self.hub.cut and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self._answer(206 if start else 200, content, **(headers if start else {}))

    def create(self):
        if not self._may_write():
            return None
        asked = json.loads(self._body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if name.split("/")[0] != OWNER:
            return self._answer(403, {"error": "You don't have the rights to create it"})
        url = {"url": f"http://{self.headers['Host']}/{name}"}
        if name in self.hub.repositories:
            return self._answer(409, {**url, "error": "You already created this model repo"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        branches = {"main": [{".gitattributes": b""}]}
        self.hub.repositories[name] = {"private": private, "branches": branches}
        return self._answer(200, url)

    def branch(self, name, branch):
        if self._may_write():
            branches = self.hub.repositories[name]["branches"]
            if branch in branches:
                return self._answer(409, {"error": "Reference already exists"})
            branches[branch] = [dict(branches["main"][-1])]
            self._answer(200, {})
        return None

    def validate(self):
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name, revision):
        if not self._may_write() or self._commit(name, revision) is None:
            return
        found = []
        for file in json.loads(self._body)["files"]:
            mode = "regular" if file["path"].endswith(_REGULAR) else "lfs"
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self._answer(200, {"files": found})

    def batch(self, name):
        if not self._may_write():
            return
        found = []
        for asked in json.loads(self._body)["objects"]:
            if asked["oid"] not in self.hub.objects:
                href = f"http://{self.headers['Host']}/storage/{asked['oid']}"
                asked["actions"] = {"upload": {"href": href}}
            found.append(asked)
        self._answer(200, {"transfer": "basic", "objects": found})

    def upload(self, oid):
        assert hashlib.sha256(self._body).hexdigest() == oid
        self.hub.objects[oid] = ("", self._body)
        self._answer(200)

    def commit(self, name, revision):
        if not self._may_write() or (found := self._commit(name, revision)) is None:
            return
        files = dict(found[1])
        for line in self._body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]][1]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.put(name, files, revision)
        url = f"http://{self.headers['Host']}/{name}/commit/{sha}"
        self._answer(200, {"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("GET",), f"/api/models/{_NAME}", _Handler.info),
    (("GET",), f"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    (("GET", "HEAD"), f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (("GET", "HEAD"), "/storage/([^/]+)", _Handler.storage),
    (("PUT",), "/storage/([^/]+)", _Handler.upload),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), f"/api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("POST",), f"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
)
