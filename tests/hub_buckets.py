"""Buckets of the Hub: files by path, without versions, whose contents come by way of Xet; written after the client."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from hub_routes import Request, Response, byte_span, route
from hub_store import Refused, write_atomically

if TYPE_CHECKING:
    from hub_server import Hub

BUCKET = r"/api/buckets/([^/]+/[^/]+)"
_one_at_a_time = threading.Lock()


def files_of(hub: Hub, bucket: str) -> dict[str, dict[str, Any]]:
    """What the Hub has of each file, by path."""
    index = hub.store.root / "buckets" / bucket / "files.json"
    if not index.is_file():
        raise Refused(404, "Bucket not found", "RepoNotFound")
    found: dict[str, dict[str, Any]] = json.loads(index.read_text())
    return found


def add_bucket(hub: Hub, bucket: str) -> None:
    """Create an empty bucket."""
    (hub.store.root / "buckets" / bucket).mkdir(parents=True)
    write_atomically(hub.store.root / "buckets" / bucket / "files.json", b"{}")


@route("GET", BUCKET)
def bucket_info(hub: Hub, request: Request, bucket: str) -> Response:
    files = files_of(hub, bucket)
    sizes = sum(file["size"] for file in files.values())
    body = {"id": bucket, "private": True, "createdAt": "2026-01-01T00:00:00.000Z", "size": sizes}
    return Response(body={**body, "totalFiles": len(files)})


@route("GET", BUCKET + "/tree(?:/(.*))?")
def bucket_tree(hub: Hub, request: Request, bucket: str, prefix: str | None) -> Response:
    files, prefix = files_of(hub, bucket), unquote(prefix or "")
    found = {path: {"type": "file", "path": path, **file} for path, file in files.items() if path.startswith(prefix)}
    if not request.flag("recursive"):
        start = len(prefix.rstrip("/")) + 1 if prefix else 0
        deep = {path for path in found if "/" in path[start:]}
        tops = {path[: path.index("/", start)] for path in deep}
        found = {path: info for path, info in found.items() if path not in deep}
        found |= {top: {"type": "directory", "path": top, "uploadedAt": None} for top in tops}
    return Response(body=[found[path] for path in sorted(found)])


@route("POST", BUCKET + "/paths-info")
def bucket_paths(hub: Hub, request: Request, bucket: str) -> Response:
    files = files_of(hub, bucket)
    asked = request.json().get("paths", [])
    return Response(body=[{"type": "file", "path": path, **files[path]} for path in asked if path in files])


@route("GET", BUCKET + "/xet-(read|write)-token")
def bucket_token(hub: Hub, request: Request, bucket: str, kind: str) -> Response:
    files_of(hub, bucket)
    if kind == "write" and request.user().role == "read":
        raise Refused(403, "Forbidden: this token cannot write")
    assert hub.xet is not None, "a bucket needs Xet"
    headers = {"X-Xet-Cas-Url": hub.xet.url, "X-Xet-Access-Token": "any", "X-Xet-Token-Expiration": "4000000000"}
    return Response(body={"casUrl": hub.xet.url, "accessToken": "any", "exp": 4000000000}, headers=headers)


@route("POST", BUCKET + "/batch")
def bucket_batch(hub: Hub, request: Request, bucket: str) -> Response:
    if request.user().role == "read":
        raise Refused(403, "Forbidden: this token cannot write")
    operations = [json.loads(line) for line in request.body().splitlines() if line]
    with _one_at_a_time:
        files, failed = files_of(hub, bucket), []
        for operation in operations:
            path = operation["path"]
            if operation["type"] == "deleteFile":
                files.pop(path, None)
                continue
            assert hub.xet is not None
            content = hub.xet.find(operation["xetHash"])
            if content is None:
                failed.append({"path": path, "error": "no such content"})
                continue
            blob = hub.store.root / "buckets" / bucket / content.xet_hash
            if not blob.exists():
                write_atomically(blob, b"".join(hub.xet.read(content)))
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            files[path] = {"size": content.size, "xetHash": content.xet_hash, "mtime": now, "uploadedAt": now}
        write_atomically(hub.store.root / "buckets" / bucket / "files.json", json.dumps(files).encode())
    return Response(422 if failed else 200, {"success": not failed, "failed": failed})


@route("GET|HEAD", r"/buckets/([^/]+/[^/]+)/resolve/(.+)")
def bucket_file(hub: Hub, request: Request, bucket: str, path: str) -> Response:
    file = files_of(hub, bucket).get(unquote(path))
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound")
    blob = hub.store.root / "buckets" / bucket / file["xetHash"]
    headers = {"ETag": f'"{file["xetHash"]}"', "X-Linked-Size": str(file["size"])}
    span = byte_span(request.headers.get("Range"), file["size"]) if request.method == "GET" and file["size"] else None
    if span is None:
        return Response(headers=headers, path=blob, span=(0, file["size"]))
    headers["Content-Range"] = f"bytes {span[0]}-{span[0] + span[1] - 1}/{file['size']}"
    return Response(206, headers=headers, path=blob, span=span)
