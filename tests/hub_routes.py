"""The Hub's HTTP protocol, one function for each kind of request, on top of `hub_store.py`.

As much of it as the clients use for repositories: written after the installed client, which is the specification.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mimetypes
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlencode

import yaml
from hub_store import Refused, Repo, RepoType, Token, content_of, describe, git_id, matches

if TYPE_CHECKING:
    from hub_server import Hub

CHUNK = 1 << 20


@dataclass
class Request:
    """What a route is given: the path and query are split, the body is read on demand."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    base: str
    chunks: Callable[[], Iterator[bytes]]
    token: Token | None = None

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body() or b"{}")
        except ValueError as error:
            raise Refused(400, f"Invalid JSON: {error}") from error
        if not isinstance(found, dict):
            raise Refused(400, "Invalid JSON: not an object")
        return found

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def user(self) -> Token:
        if self.token is None:
            raise Refused(401, "Invalid username or password.")
        return self.token


@dataclass
class Response:
    """What a route answers: a JSON value or bytes, or `span` of the file at `path` as (first byte, length)."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    span: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            self.headers.setdefault("Content-Type", "application/json; charset=utf-8")
            self.body = b"" if self.path else json.dumps({} if self.body is None else self.body).encode()

    @property
    def length(self) -> int:
        return self.span[1] if self.path else len(self.body)

    def chunks(self, limit: int) -> Iterator[bytes]:
        """The first `limit` bytes of the body."""
        if self.path is None:
            yield self.body[:limit]
            return
        with self.path.open("rb") as source:
            source.seek(self.span[0])
            while limit > 0 and (chunk := source.read(min(CHUNK, limit))):
                limit -= len(chunk)
                yield chunk


Route = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []

API = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
WEB = r"/(?:(datasets|spaces)/)?([^/]+/[^/]+?)"
Access = Literal["see", "files", "write"]


def route(method: str, pattern: str, access: Access | None = None) -> Callable[[Route], Route]:
    """Register a function for requests of `method` (several with |) whose path is all of `pattern`.

    Its arguments are the hub, the request, and the pattern's groups, unquoted. The path is matched while it is quoted,
    since a slash that belongs to a revision or to a path inside a repository comes as %2F. With `access`, the first two
    groups name a repository, and the function is given that instead, once the token was found good enough.
    """

    def register(function: Route) -> Route:
        def opened(hub: Hub, request: Request, kind: str | None, repo_id: str, *rest: str | None) -> Response:
            repo = hub.store.repo(
                singular(kind), repo_id, request.token, write=access == "write", files=access == "files"
            )
            return function(hub, request, repo, *rest)

        ROUTES.extend((one, re.compile(pattern), opened if access else function) for one in method.split("|"))
        return function

    return register


def singular(plural: str | None) -> RepoType:
    return {None: "model", "models": "model", "datasets": "dataset", "spaces": "space"}[plural]  # type: ignore[return-value]


def web_path(repo: Repo) -> str:
    return ("" if repo.type == "model" else f"/{repo.type}s") + f"/{repo.id}"


# Accounts


@route("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Response:
    token = request.user()
    access: dict[str, Any] = {"displayName": "test", "role": token.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    if token.role == "fineGrained":
        scoped = [
            {"entity": {"_id": git_id(name.encode())[:24], "type": kind, "name": name}, "permissions": permissions}
            for kind, name, permissions in token.scoped
        ]
        access["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
    member = [org for org, members in hub.store.orgs.items() if token.user in members]
    orgs = [
        {"type": "org", "id": git_id(org.encode())[:24], "name": org, "fullname": org, "roleInOrg": "write"}
        for org in member
    ]
    about = {
        "type": "user",
        "id": git_id(token.user.encode())[:24],
        "name": token.user,
        "fullname": token.user.capitalize(),
        "isPro": False,
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": access},
    }
    return Response(body=about)


@route("GET", API + "/auth-check(/write)?")
def auth_check(hub: Hub, request: Request, kind: str, repo_id: str, write: str | None) -> Response:
    hub.store.repo(singular(kind), repo_id, request.token, write=write is not None, files=True)
    return Response()


# Repositories


@route("POST", "/api/repos/create")
def create_repo(hub: Hub, request: Request) -> Response:
    token, asked = request.user(), request.json()
    kind: RepoType = asked.get("type") or "model"
    namespace = asked.get("organization") or token.user
    repo_id, private = (
        f"{namespace}/{asked['name']}",
        asked.get("visibility") == "private" or bool(asked.get("private")),
    )
    if not hub.store.may_write(token, namespace):
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    url = request.base + web_path(Repo(kind, repo_id))
    try:
        hub.store.create(kind, repo_id, private)
    except Refused as refused:
        refused.body["url"] = url  # clients with exist_ok read it from the refusal
        raise
    return Response(body={"url": url, "name": repo_id, "id": git_id(repo_id.encode())[:24]})


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: Hub, request: Request) -> Response:
    token, asked = request.user(), request.json()
    repo_id = f"{asked.get('organization') or token.user}/{asked['name']}"
    hub.store.delete(hub.store.repo(asked.get("type") or "model", repo_id, token, write=True))
    return Response()


@route("PUT", API + "/settings", "write")
def settings(hub: Hub, request: Request, repo: Repo) -> Response:
    asked = request.json()
    private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private")
    if asked.get("gated") not in (None, False, "auto", "manual"):
        raise Refused(400, '"gated" must be one of [auto, manual, false]')
    hub.store.set(repo, private=private, gated=asked.get("gated"))
    return Response(body={"private": repo.private, "gated": repo.gated})


@route("POST", API + "/user-access-request/grant", "write")
def grant_access(hub: Hub, request: Request, repo: Repo) -> Response:
    hub.store.set(repo, grant=request.json()["user"])
    return Response()


@route("GET", "/api/(models|datasets|spaces)")
def list_repos(hub: Hub, request: Request, kind: str) -> Response:
    author = request.query.get("author", [None])[0]
    repos = [
        repo
        for repo in list(hub.store.repos.values())
        if repo.type == singular(kind) and author in (None, repo.namespace) and hub.store.may_see(request.token, repo)
    ]
    return Response(body=[info_of(hub, repo, "main", False) for repo in repos])


@route("GET", API + "(?:/revision/([^/]+))?", "see")
def repo_info(hub: Hub, request: Request, repo: Repo, revision: str | None) -> Response:
    info = info_of(hub, repo, revision or "main", request.flag("blobs"))
    if expand := request.query.get("expand", []) + request.query.get("expand[]", []):
        info = {name: info[name] for name in ("_id", "id", *expand) if name in info}
    return Response(body=info)


def info_of(hub: Hub, repo: Repo, revision: str, blobs: bool) -> dict[str, Any]:
    oid = repo.resolve(revision)
    files = repo.commits[oid].files
    card: dict[str, Any] = {}
    if "README.md" in files:
        with suppress(ValueError):
            card = front_matter(hub.store.read(files["README.md"]).decode(errors="replace")) or {}
    tags = [str(tag) for tag in as_list(card.get("tags"))]
    for name in ("task_categories", "language", "license", "size_categories"):
        tags += [f"{name}:{value}" for value in as_list(card.get(name))]
    siblings: list[dict[str, Any]] = []
    for path, file in sorted(files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            found = describe(path, file)
            sibling |= {"size": file.size, "blobId": file.git}
            if lfs := found.get("lfs"):
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    info = {
        "_id": git_id(f"{repo.type}/{repo.id}".encode())[:24],
        "id": repo.id,
        "author": repo.namespace,
        "sha": oid,
        "lastModified": repo.commits[repo.branches["main"]].date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "cardData": card,
        "siblings": siblings,
        "usedStorage": sum(file.size for file in files.values()),
    }
    if repo.type == "model":
        info["modelId"] = repo.id
        info |= {name: card[name] for name in ("pipeline_tag", "library_name") if name in card}
    return info


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# History


@route("GET", API + "/refs", "see")
def refs(hub: Hub, request: Request, repo: Repo) -> Response:
    with hub.store.lock:
        found: dict[str, Any] = {
            "branches": named(repo.branches, "refs/heads/"),
            "converts": [],
            "tags": named(repo.tags, "refs/tags/"),
        }
        if request.flag("include_prs"):
            found["pullRequests"] = named(repo.pulls, "refs/pr/")
    return Response(body=found)


def named(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
    return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()]


@route("GET", API + "/commits/([^/]+)", "see")
def commits(hub: Hub, request: Request, repo: Repo, revision: str) -> Response:
    listed = [
        {"id": oid, "title": made.title, "message": made.message, "authors": [{"user": made.author}], "date": made.date}
        for oid, made in ((oid, repo.commits[oid]) for oid in repo.history(repo.resolve(revision)))
    ]
    return page(request, listed, 50)


@route("POST", API + "/tag/([^/]+)", "write")
def create_tag(hub: Hub, request: Request, repo: Repo, revision: str) -> Response:
    hub.store.add_ref(repo, "tags", request.json().get("tag", ""), revision)
    return Response()


@route("DELETE", API + "/tag/([^/]+)", "write")
def delete_tag(hub: Hub, request: Request, repo: Repo, tag: str) -> Response:
    hub.store.drop_ref(repo, "tags", tag)
    return Response()


@route("POST", API + "/branch/([^/]+)", "write")
def create_branch(hub: Hub, request: Request, repo: Repo, branch: str) -> Response:
    hub.store.add_ref(repo, "branches", branch, request.json().get("startingPoint") or "main")
    return Response()


@route("DELETE", API + "/branch/([^/]+)", "write")
def delete_branch(hub: Hub, request: Request, repo: Repo, branch: str) -> Response:
    hub.store.drop_ref(repo, "branches", branch)
    return Response()


DISCUSSIONS_A_PAGE = 10


@route("GET", API + "/discussions", "see")
def list_pulls(hub: Hub, request: Request, repo: Repo) -> Response:
    asked = {name: values[0] for name, values in request.query.items()}
    status, number = asked.get("status", "all"), int(asked.get("p", 0)) * DISCUSSIONS_A_PAGE
    found = [
        about_pull(repo, name)
        for name, pull in reversed(repo.requests.items())
        if asked.get("author") in (None, pull.author)
        and asked.get("type", "all") != "discussion"
        and (status == "all" or (status == "open") == (pull.status in ("open", "draft")))
    ]
    shown = found[number : number + DISCUSSIONS_A_PAGE]
    return Response(body={"discussions": shown, "count": len(found), "start": number})


@route("POST", API + "/discussions", "see")
def open_pull(hub: Hub, request: Request, repo: Repo) -> Response:
    """A pull request without a commit yet, which is how folders are uploaded into one."""
    asked = request.json()
    if request.user().role == "read" or not asked.get("pullRequest"):
        raise Refused(403, "This token cannot open pull requests, and there are no discussions here.")
    if not 3 <= len(asked.get("title", "")) <= 200:
        raise Refused(400, "A title has 3 to 200 characters")
    return Response(body={"num": int(hub.store.open_pull(repo, asked["title"], request.user().user))})


def about_pull(repo: Repo, number: str) -> dict[str, Any]:
    if number not in repo.requests:
        raise Refused(404, f"There is no discussion {number}")
    pull = repo.requests[number]
    return {
        "title": pull.title,
        "num": int(number),
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "status": pull.status,
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": repo.type},
    }


@route("GET", API + r"/discussions/(\d+)", "see")
def show_pull(hub: Hub, request: Request, repo: Repo, number: str) -> Response:
    about, pull = about_pull(repo, number), repo.requests[number]
    conflicts = hub.store.conflicts(repo, number) if pull.status in ("open", "draft") else []
    changes = {"base": "refs/heads/main", "mergeCommitId": pull.merged}
    return Response(body={**about, "events": [], "filesWithConflicts": conflicts, "changes": changes})


@route("POST", API + r"/discussions/(\d+)/status", "write")
def turn_pull(hub: Hub, request: Request, repo: Repo, number: str) -> Response:
    about, status = about_pull(repo, number), request.json().get("status")
    if status not in ("open", "closed"):
        raise Refused(400, '"status" must be one of [open, closed]')
    hub.store.turn_pull(repo, number, status)
    event = {"id": git_id(number.encode())[:24], "type": "status-change", "createdAt": about["createdAt"]}
    return Response(body={"newStatus": {**event, "author": about["author"], "data": {"status": status}}})


@route("POST", API + r"/discussions/(\d+)/merge", "write")
def merge_pull(hub: Hub, request: Request, repo: Repo, number: str) -> Response:
    about_pull(repo, number)
    hub.store.merge(repo, number, request.user().user)
    return Response()


@route("POST", API + "/super-squash/([^/]+)", "write")
def super_squash(hub: Hub, request: Request, repo: Repo, branch: str) -> Response:
    hub.store.squash(repo, branch, request.json().get("message", ""), request.user().user)
    return Response()


# Listings


def page(request: Request, entries: list[Any], size: int) -> Response:
    """One page of `entries`, and in the Link header where the next is."""
    start = int(request.query.get("cursor", ["0"])[0])
    response = Response(body=entries[start : start + size])
    if start + size < len(entries):
        query = urlencode({**request.query, "cursor": [start + size]}, doseq=True)
        link = f"{request.base}{request.path}?{query}"
        response.headers["Link"] = f'<{link}>; rel="next"'
    return response


def expanded(repo: Repo, oid: str, entry: dict[str, Any]) -> dict[str, Any]:
    changed = repo.last_change(oid, entry["path"])
    made = repo.commits[changed]
    return {**entry, "lastCommit": {"id": changed, "title": made.title, "date": made.date}}


@route("GET", API + "/tree/([^/]+)(?:/(.*))?", "see")
def tree(hub: Hub, request: Request, repo: Repo, revision: str, folder: str | None) -> Response:
    oid, expand = repo.resolve(revision), request.flag("expand")
    entries = repo.tree(oid, (folder or "").strip("/"), request.flag("recursive"))
    for entry in entries:
        if hub.xet and "lfs" in entry and (found := hub.xet.find(entry["lfs"]["oid"])):
            entry["xetHash"] = found.xet_hash
    if expand:
        entries = [expanded(repo, oid, entry) for entry in entries]
    return page(request, entries, min(50, hub.page_size) if expand else hub.page_size)


@route("POST", API + "/paths-info/([^/]+)", "see")
def paths_info(hub: Hub, request: Request, repo: Repo, revision: str) -> Response:
    if request.headers.get("Content-Type", "").startswith("application/json"):
        asked = request.json()
        paths, expand = asked.get("paths", []), bool(asked.get("expand"))
    else:
        form = parse_qs(request.body().decode())
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() == "true"
    oid = repo.resolve(revision)
    known = {entry["path"]: entry for entry in repo.tree(oid, recursive=True)}
    found = [known[path.strip("/")] for path in paths if path.strip("/") in known]
    return Response(body=[expanded(repo, oid, entry) for entry in found] if expand else found)


# Uploads


@route("POST", API + "/preupload/([^/]+)")
def preupload(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    pull = request.flag("create_pr")
    repo = hub.store.repo(singular(kind), repo_id, request.token, write=not pull)
    oid, asked = repo.resolve(revision), request.json()
    committed = repo.commits[oid].files
    ignored = asked.get("gitIgnore")
    if ignored is None and ".gitignore" in committed:
        ignored = hub.store.read(committed[".gitignore"]).decode()
    patterns = [line.strip() for line in (ignored or "").splitlines() if line.strip() and not line.startswith("#")]
    answers = []
    for file in asked.get("files", []):
        path, old = file["path"], committed.get(file["path"])
        answer = {
            "path": path,
            "uploadMode": "lfs" if hub.store.is_large(repo, oid, path, file["size"]) else "regular",
            "shouldIgnore": matches(path, patterns),
        }
        if old is not None:
            answer["oid"] = old.sha256 if old.large else old.git
        answers.append(answer)
    return Response(body={"files": answers})


@route("POST", WEB + r"\.git/info/lfs/objects/batch", "write")
def lfs_batch(hub: Hub, request: Request, repo: Repo) -> Response:
    asked = request.json()
    answers = []
    for one in asked.get("objects", []):
        sha256, size = one["oid"], one["size"]
        answer: dict[str, Any] = {"oid": sha256, "size": size}
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            answer["error"] = {"code": 422, "message": f"Invalid oid: {sha256}"}
        elif not hub.store.has_large(repo, sha256):
            target = f"{request.base}/lfs-storage/{repo.type}s/{repo.id}/{sha256}?size={size}"
            answer["actions"] = {
                "upload": {"href": target},
                "verify": {"href": f"{request.base}{web_path(repo)}.git/info/lfs/verify"},
            }
            part = hub.lfs_part_size
            if part is not None and size > part and "multipart" in asked.get("transfers", []):
                parts = {str(n + 1): f"{target}&part={n + 1}" for n in range(-(-size // part))}
                answer["actions"]["upload"] = {"href": target, "header": {"chunk_size": str(part), **parts}}
        answers.append(answer)
    return Response(body={"transfer": "basic", "objects": answers})


def stored_for(hub: Hub, kind: str, repo_id: str) -> Repo:
    """The repository of an upload address. Like the signed addresses of the real storage, it comes without a token."""
    repo = hub.store.repos.get((singular(kind), repo_id))
    if repo is None:
        raise Refused(404, "Repository not found", "RepoNotFound")
    return repo


LFS_STORAGE = r"/lfs-storage/(models|datasets|spaces)/([^/]+/[^/]+)/([0-9a-f]{64})"


@route("PUT", LFS_STORAGE)
def lfs_put(hub: Hub, request: Request, kind: str, repo_id: str, sha256: str) -> Response:
    repo = stored_for(hub, kind, repo_id)
    if "part" in request.query:
        data = request.body()
        part = hub.store.incoming / f"{sha256}.{int(request.query['part'][0])}"
        part.write_bytes(data)
        hub.count(lfs_bytes=len(data))
        return Response(headers={"ETag": hashlib.sha256(data).hexdigest()})
    hub.count(lfs_bytes=hub.store.receive(repo, sha256, int(request.query["size"][0]), request.chunks()), lfs_files=1)
    return Response()


@route("POST", LFS_STORAGE)
def lfs_complete(hub: Hub, request: Request, kind: str, repo_id: str, sha256: str) -> Response:
    parts = [hub.store.incoming / f"{sha256}.{part['partNumber']}" for part in request.json()["parts"]]
    if not all(part.exists() for part in parts):
        raise Refused(400, "A part was never uploaded")
    hub.store.receive(
        stored_for(hub, kind, repo_id), sha256, int(request.query["size"][0]), (part.read_bytes() for part in parts)
    )
    for part in parts:
        part.unlink()
    hub.count(lfs_files=1)
    return Response()


@route("POST", WEB + r"\.git/info/lfs/verify", "write")
def lfs_verify(hub: Hub, request: Request, repo: Repo) -> Response:
    asked = request.json()
    if not hub.store.has_large(repo, asked["oid"]) or hub.store.blob(asked["oid"]).stat().st_size != asked["size"]:
        raise Refused(422, f"{asked['oid']} was not uploaded")
    return Response()


@route("POST", API + "/commit/([^/]+)")
def commit(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    pull, author = request.flag("create_pr"), request.user()
    repo = hub.store.repo(singular(kind), repo_id, request.token, write=not pull)
    if pull and author.role == "read":
        raise Refused(403, "This token cannot open pull requests.")
    try:
        lines = [json.loads(line) for line in request.body().splitlines() if line.strip()]
        operations = [(line["key"], line["value"]) for line in lines]
        header = dict(operations.pop(0)[1])
    except (ValueError, KeyError, IndexError) as error:
        raise Refused(400, f"Invalid commit: {error}") from error
    if not header.get("summary"):
        raise Refused(400, "A commit needs a summary")
    for key, value in operations:
        if key == "file" and value.get("path") == "README.md":
            text = content_of(value).decode(errors="replace")
            if errors := judge_card(text, repo.type)["errors"]:
                raise Refused(400, f"Invalid metadata in README.md: {errors[0]['message']}")
    take_from_xet(hub, repo, operations)
    oid, number = hub.store.commit(
        repo,
        revision,
        operations,
        title=header["summary"],
        message=header.get("description", ""),
        author=author.user,
        parent=header.get("parentCommit"),
        pull=pull,
    )
    hub.count(commits=1, largest_commit=len(operations))
    url = f"{request.base}{web_path(repo)}"
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
    if number is not None:
        answer["pullRequestUrl"] = f"{url}/discussions/{number}"
    return Response(body=answer)


# Xet


@route("GET", API + "/xet-(read|write)-token/([^/]+)", "see")
def xet_token(hub: Hub, request: Request, repo: Repo, kind: str, revision: str) -> Response:
    """Where contents are: in a folder of this machine, which the client's own library reads and writes."""
    if hub.xet is None:
        raise Refused(404, "Not found")
    hub.store.repo(repo.type, repo.id, request.token, write=kind == "write", files=kind == "read")
    expires = int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": hub.xet.url, "X-Xet-Access-Token": "any", "X-Xet-Token-Expiration": str(expires)}
    return Response(body={"casUrl": hub.xet.url, "accessToken": "any", "exp": expires}, headers=headers)


def take_from_xet(hub: Hub, repo: Repo, operations: list[tuple[str, dict[str, Any]]]) -> None:
    """Contents that a commit names and that came by way of Xet, which the commit is the first to say."""
    if hub.xet is None:
        return
    for key, value in operations:
        if key == "lfsFile" and not hub.store.has_large(repo, value["oid"]) and (found := hub.xet.find(value["oid"])):
            size = hub.store.receive(repo, value["oid"], found.size, hub.xet.read(found))
            hub.count(lfs_bytes=size, lfs_files=1)


# Cards


def front_matter(text: str) -> dict[str, Any] | None:
    """The metadata of a card, None without any; ValueError where it is not a mapping in YAML."""
    found = re.match(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return None
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"YAML Metadata Error: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise ValueError("YAML Metadata Error: the metadata must be an object")
    return json.loads(json.dumps(data, default=str))


POWERS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
SIZES = ["n<1K", *(f"{low}<n<{high}" for low, high in itertools.pairwise(POWERS)), "n>1T"]
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")


def judge_card(text: str, kind: str) -> dict[str, list[dict[str, str]]]:
    """Errors and warnings about a card's metadata: those of the Hub that a dataset card of ours could meet."""
    errors: list[str] = []
    warnings: list[str] = []
    try:
        card = front_matter(text)
    except ValueError as error:
        card = {}
        errors.append(str(error))
    if card is None:
        warnings.append("empty or missing yaml metadata in repo card")
    for name, value in (card or {}).items():
        if name in ("language", "license", "size_categories", "task_categories", "tags", "annotations_creators"):
            if not all(isinstance(one, str) for one in as_list(value)):
                errors.append(f'"{name}" must be a string or an array of strings')
            elif name == "language" and not all(LANGUAGE.fullmatch(one) for one in as_list(value)):
                errors.append('"language" must be an ISO 639-1, 639-2 or 639-3 code, "code" or "multilingual"')
            elif name == "size_categories" and kind == "dataset" and not set(as_list(value)) <= set(SIZES):
                errors.append(f'"size_categories" must be one of [{", ".join(SIZES)}]')
        elif name == "pretty_name" and not isinstance(value, str):
            errors.append('"pretty_name" must be a string')
        elif name == "configs" and kind == "dataset":
            named_well = isinstance(value, list) and all(
                isinstance(one, dict) and isinstance(one.get("config_name"), str) for one in value
            )
            if not named_well:
                errors.append('"configs" must be an array of objects with a "config_name"')
    return {"errors": [{"message": one} for one in errors], "warnings": [{"message": one} for one in warnings]}


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Response:
    asked = request.json()
    verdict = judge_card(asked.get("content", ""), asked.get("repoType", "model"))
    return Response(400 if verdict["errors"] else 200, verdict)


# Downloads


def byte_span(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, length) of a Range header; None means everything, for what HTTP says to ignore."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header or "")
    if found is None or found.groups() == ("", ""):
        return None
    if found[1] == "":
        length = min(int(found[2]), size)
        first = size - length
    else:
        first = int(found[1])
        last = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < first:
            return None
        length = last - first + 1
    if length <= 0:
        raise Refused(416, "Range Not Satisfiable")
    return first, length


@route("GET|HEAD", WEB + "/(?:resolve|raw)/([^/]+)/(.+)", "files")
def resolve(hub: Hub, request: Request, repo: Repo, revision: str, path: str) -> Response:
    oid = repo.resolve(revision)
    headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    file = repo.commits[oid].files.get(path)
    if file is None:
        refused = Refused(404, "Entry not found", "EntryNotFound")
        refused.headers = headers  # clients remember by commit that there is no such file
        raise refused
    tag = f'"{file.sha256 if file.large else file.git}"'
    headers |= {"ETag": tag, "X-Linked-Etag": tag, "X-Linked-Size": str(file.size)}
    headers["Content-Type"] = "application/octet-stream"
    if hub.xet and file.large and (found := hub.xet.find(file.sha256)):
        headers["X-Xet-Hash"] = found.xet_hash
        headers["X-Xet-Refresh-Route"] = f"{request.base}/api/{repo.type}s/{repo.id}/xet-read-token/{oid}"
    try:
        span = byte_span(request.headers.get("Range"), file.size) if request.method == "GET" else None
    except Refused as refused:
        refused.headers = {"Content-Range": f"bytes */{file.size}"}
        raise
    if span is None:
        return Response(headers=headers, path=hub.store.blob(file.sha256), span=(0, file.size))
    headers["Content-Range"] = f"bytes {span[0]}-{span[0] + span[1] - 1}/{file.size}"
    return Response(206, headers=headers, path=hub.store.blob(file.sha256), span=span)


@route("GET", r"/static/(spaces)/([^/]+/[^/]+)/(.*)", "see")
def static_space(hub: Hub, request: Request, repo: Repo, path: str) -> Response:
    """A file of a static Space as a browser gets it, which on the Hub has a host of its own: the front matter of the
    README says that it is static, and which page is the first.
    """
    files = repo.commits[repo.resolve("main")].files
    about = front_matter(hub.store.read(files["README.md"]).decode()) or {}
    path = path or about.get("app_file", "index.html")
    if about.get("sdk") != "static" or path not in files:
        raise Refused(404, "Not a file of a static Space", "EntryNotFound")
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return Response(body=hub.store.read(files[path]), headers={"Content-Type": kind})


@route("GET", r"/(?!api/|static/)(?:(datasets|spaces)/)?([^/]+/[^/]+)(?:/tree/([^/]+))?", "see")
def web_page(hub: Hub, request: Request, repo: Repo, revision: str | None) -> Response:
    """What is at the address that a client prints: not the Hub's page, but enough for a person to see what happened."""
    files = repo.commits[repo.resolve(revision or "main")].files
    names = {**repo.branches, **repo.tags}
    lines = [f"{repo.type} {repo.id}, {'private' if repo.private else 'public'}, gated: {repo.gated or 'no'}", ""]
    lines += [f"{oid}  {name}" for name, oid in names.items()] + [""]
    lines += [f"{file.size:12,}  {path}" for path, file in sorted(files.items())]
    if "README.md" in files:
        lines += ["", hub.store.read(files["README.md"]).decode(errors="replace")]
    return Response(body="\n".join(lines).encode(), headers={"Content-Type": "text/plain; charset=utf-8"})
