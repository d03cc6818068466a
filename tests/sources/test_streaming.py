"""Streaming from the Hub, against a small server on loopback that speaks as much of its protocol as is used."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Value
from huggingface_hub import HfFileSystem, constants

from builders.errors import DataError
from builders.sources import resolve_revision
from builders.sources.parquet import open_hub
from builders.variants import get_variant

NETTE = get_variant("imagenette")
PINNED, NEWER, CONVERTED = NETTE.hub.revision, "b" * 40, "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories as {(repo id, revision): (commit, {path: bytes})}; counts the bytes of files that it sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.gated, self.sent, self.log = {}, set(), 0, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.log.append(self.path)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/auth-check", self.path):
            return self.refused(found[1]) or self.answer(200, {})
        if found := re.match(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^?]+))?(\?.*)?$", self.path):
            return self.info(found[1], unquote(found[2] or "main"))
        if found := re.match(r"/api/datasets/([^/]+/[^/]+)/tree/([^/?]+)/?([^?]*)", self.path):
            _, files = self.server.repos[found[1], unquote(found[2])]
            inside = [name for name in files if name.startswith(unquote(found[3]))]
            return self.answer(200, [{"type": "file", "path": n, "size": len(files[n]), "oid": "0"} for n in inside])
        found = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        commit, files = self.server.repos[found[1], unquote(found[2])]
        data = files[unquote(found[3])]
        begin, end = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{len(data) - 1}")).groups()
        part = data[int(begin) : int(end) + 1]
        self.server.sent += len(part)
        return self.answer(206, part, X_Repo_Commit=commit, ETag='"0"')

    def refused(self, repo):
        if repo in self.server.gated:
            self.answer(403, {}, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
            return True
        return False

    def info(self, repo, revision):
        if not any(name == repo for name, _ in self.server.repos):
            return self.answer(404, {}, X_Error_Code="RepoNotFound")
        if (repo, revision) not in self.server.repos:
            return self.answer(404, {}, X_Error_Code="RevisionNotFound")
        commit, files = self.server.repos[repo, revision]
        return self.answer(200, {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})


def speak_to(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    HfFileSystem.clear_instance_cache()


def resolve(variant, revision=None):
    return resolve_revision(variant.name, revision)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the suite runs with it set; loopback is not a network
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Hub() as found:
        threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
        speak_to(monkeypatch, found.url)
        yield found
        found.shutdown()


def rows_sorted_by_class(count=12, image_bytes=30_000):
    rng = np.random.default_rng(0)
    return [
        {"image": {"bytes": rng.bytes(image_bytes), "path": f"{wnid}_{number}.JPEG"}, "label": label}
        for label, wnid in enumerate(NETTE.hub_label_wnids)
        for number in range(count)
    ]


def parquet(rows, names=NETTE.hub_label_names, row_group_size=4):
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=features.arrow_schema),
        sink,
        row_group_size=row_group_size,
        compression="none",
    )
    return sink.getvalue().to_pybytes()


def publish(server, repo, revisions, files):
    for revision, commit in revisions.items():
        server.repos[repo, revision] = server.repos[repo, commit] = (commit, files)


def test_a_few_images_of_each_class_are_streamed_without_downloading_the_files(server):
    rows = rows_sorted_by_class()
    files = {
        "README.md": b"card",
        "160px/train-00000-of-00001.parquet": b"another size",
        "full_size/train-00000-of-00002.parquet": parquet(rows[:60]),
        "full_size/train-00001-of-00002.parquet": parquet(rows[60:]),
        "full_size/validation-00000-of-00001.parquet": parquet(rows[:12]),
    }
    publish(server, NETTE.hub.repo_id, {PINNED: PINNED, "main": NEWER}, files)
    source = open_hub(NETTE, "train", limit_per_class=2, token=False)

    entries = list(source.index())
    for_index = server.sent
    images = [row.image for row in source.read(entries)]

    assert [entry.source_id for entry in entries] == [
        f"{wnid}/{wnid}_{number}.JPEG" for wnid in NETTE.hub_label_wnids for number in range(2)
    ]
    assert images == [rows[12 * label + number]["image"]["bytes"] for label in range(10) for number in range(2)]
    whole = sum(map(len, files.values()))
    assert for_index < 0.1 * whole
    assert server.sent - for_index < 0.4 * whole  # a third: one row group of three for each class
    assert PINNED in source.layout
    assert len(source.classes) == 10


def test_a_revision_is_resolved_to_its_commit_and_default_is_the_checked_one(server):
    publish(server, NETTE.hub.repo_id, {PINNED: PINNED, "main": NEWER}, {})

    assert resolve(NETTE) == PINNED
    assert resolve(NETTE, "main") == NEWER
    assert resolve(NETTE, NEWER) == NEWER


def test_the_hubs_own_conversion_is_read_where_the_repository_has_no_parquet(server):
    woof = get_variant("imagewoof")
    rows = [
        {"image": {"bytes": b"x", "path": f"{wnid}_1.JPEG"}, "label": n} for n, wnid in enumerate(woof.hub_label_wnids)
    ]
    publish(server, woof.hub.repo_id, {"main": NEWER}, {"imagewoof.py": b"", "160px/train-0.parquet": b"another size"})
    converted = {"full_size/train/0000.parquet": parquet(rows, woof.hub_label_names)}
    publish(server, woof.hub.repo_id, {"refs/convert/parquet": CONVERTED}, converted)

    source = open_hub(woof, "train")

    assert [entry.wnid for entry in source.index()] == list(woof.hub_label_wnids)
    assert resolve(woof) == CONVERTED
    with pytest.raises(DataError, match=r"has no configuration 'full_size'\. Folders with tables: '160px'"):
        open_hub(woof, "train", revision="main")


def test_sets_for_testing_are_streamed_whatever_their_repository_calls_the_split(server):
    hard, rendered = get_variant("imagenet-a"), get_variant("imagenet-r")
    rows = [{"image": {"bytes": b"x", "path": "0.01_bee.jpg"}, "label": n} for n in range(200)]
    files = {"data/train-00000-of-00001-ab6d.parquet": parquet(rows, hard.hub_label_wnids)}
    publish(server, hard.hub.repo_id, {"main": NEWER}, files)
    features = Features({"image": Image(), "wnid": Value("string"), "class_name": Value("string")})
    rows = [
        {"image": {"bytes": b"x", "path": "art_0.jpg"}, "wnid": wnid, "class_name": "tench"}  # not to be believed
        for wnid in reversed(rendered.hub_label_wnids)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), sink)
    files = {"test/test-00000-of-00001.parquet": sink.getvalue().to_pybytes()}
    publish(server, rendered.hub.repo_id, {rendered.hub.revision: rendered.hub.revision}, files)

    found = {v.name: list(open_hub(v, "test").index()) for v in (hard, rendered)}

    assert [entry.wnid for entry in found["imagenet-a"]] == list(hard.hub_label_wnids)
    assert [entry.wnid for entry in found["imagenet-r"]] == list(reversed(rendered.hub_label_wnids))


def test_an_archive_is_refused_unless_another_revision_has_parquet(server):
    sketch, matched = get_variant("imagenet-sketch"), get_variant("imagenet-v2-matched-frequency")
    names = [", ".join(info.lemmas) for info in sketch.classes]
    names[517] = "crane2"  # a ClassLabel cannot have one name twice
    rows = [{"image": {"bytes": b"x", "path": "sketch_0.JPEG"}, "label": n} for n in (0, 517)]
    publish(server, sketch.hub.repo_id, {"main": NEWER}, {"data/ImageNet-Sketch.zip": b"", "imagenet_sketch.py": b""})
    converted = {"default/train/0000.parquet": parquet(rows, names)}
    publish(server, sketch.hub.repo_id, {"refs/convert/parquet": CONVERTED}, converted)
    publish(server, matched.hub.repo_id, {"main": NEWER}, {matched.hub.archive: b""})
    features = Features({"jpeg": Image(), "__key__": Value("string"), "__url__": Value("string")})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([], schema=features.arrow_schema), sink)
    publish(
        server,
        matched.hub.repo_id,
        {"refs/convert/parquet": CONVERTED},
        {"default/train/0000.parquet": sink.getvalue().to_pybytes()},
    )

    for variant in (sketch, matched):
        with pytest.raises(DataError, match="as an archive"):
            open_hub(variant, "test")
        assert server.log == []
    with pytest.raises(DataError, match=r"no Parquet files of the split 'test'.*hf download songweig/imagenet_sketch"):
        open_hub(sketch, "test", revision="main")
    source = open_hub(sketch, "test", revision="refs/convert/parquet")
    assert [entry.wnid for entry in source.index()] == ["n01440764", "n03126707"]
    with pytest.raises(DataError, match=r"no column of classes 'label'; its columns are 'jpeg', '__key__', '__url__'"):
        list(open_hub(matched, "test", revision="refs/convert/parquet").index())


def test_labels_that_were_renamed_since_are_refused(server):
    names = [*NETTE.hub_label_names[1:], NETTE.hub_label_names[0]]
    files = {"full_size/train-00000-of-00001.parquet": parquet(rows_sorted_by_class(1, 10), names)}
    publish(server, NETTE.hub.repo_id, {PINNED: PINNED}, files)

    with pytest.raises(DataError, match=r"frgfm/imagenette are named otherwise .*'English springer'"):
        list(open_hub(NETTE, "train").index())


def test_refusals_of_the_hub_say_what_to_do(server, monkeypatch):
    monkeypatch.setattr("builders.hub.FIRST_PAUSE", 0)
    thousand = get_variant("imagenet-1k")
    publish(server, thousand.hub.repo_id, {"main": NEWER}, {"data/train-00000-of-00294.parquet": b""})
    server.gated.add(thousand.hub.repo_id)
    publish(server, NETTE.hub.repo_id, {"main": NEWER}, {})

    with pytest.raises(DataError, match=r"gated.*https://huggingface.co/datasets/ILSVRC/imagenet-1k.*hf auth login"):
        open_hub(thousand, "train")
    with pytest.raises(DataError, match="has no revision 'v9'"):
        resolve(NETTE, "v9")
    with pytest.raises(DataError, match="is not there, or not for you"):
        resolve(get_variant("tiny-imagenet"))
    with pytest.raises(DataError, match="is drawn"):
        resolve(get_variant("shapes"))
    speak_to(monkeypatch, "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(DataError, match="cannot be reached"):
        resolve(NETTE, "main")


READS_THROUGH_THE_BUILDER = """
import hashlib, json, sys
from builders.imagenet import ImageNet
from datasets import Image, disable_progress_bars

def digest(rows):
    rows = rows.cast_column("image", Image(decode=False))
    return [(row["source_id"], hashlib.sha256(row["image"]["bytes"]).hexdigest()) for row in rows]

if __name__ == "__main__":
    disable_progress_bars()
    found = {}
    for limit in (None, 2):
        builder = ImageNet(config_name="imagenette", cache_dir=sys.argv[1], limit_per_class=limit)
        streamed = digest(builder.as_streaming_dataset("train"))
        builder.download_and_prepare(num_proc=2)
        assert digest(builder.as_dataset("train")) == streamed
        found[str(limit)] = streamed
    print(json.dumps(found))
"""


def test_the_builder_streams_and_prepares_the_hubs_rows_with_two_processes(server, tmp_path):
    rows = rows_sorted_by_class(count=3, image_bytes=500)
    files = {
        "full_size/train-00000-of-00002.parquet": parquet(rows[:15]),
        "full_size/train-00001-of-00002.parquet": parquet(rows[15:]),
        "full_size/validation-00000-of-00001.parquet": parquet(rows[:3]),
    }
    publish(server, NETTE.hub.repo_id, {PINNED: PINNED}, files)
    script = tmp_path / "read.py"
    script.write_text(READS_THROUGH_THE_BUILDER)
    # In a process of its own: huggingface_hub takes the address of the Hub from the environment when it is imported.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cache")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = [
        [
            f"{row['image']['path'].split('_')[0]}/{row['image']['path']}",
            hashlib.sha256(row["image"]["bytes"]).hexdigest(),
        ]
        for row in rows
    ]
    assert found["None"] == expected
    assert found["2"] == [pair for place, pair in enumerate(expected) if place % 3 < 2]
