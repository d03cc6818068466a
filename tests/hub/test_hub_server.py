"""The Hub on loopback, seen by the real clients: what they do against it is what they do against the real one."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hub_server import Hub, Refused

MODELS = ROOT / "hfsyn" / "models"

# What every client process below begins with; `seen` is printed at its end.
PRELUDE = """
import json, os, sys, time, urllib.request
import httpx2
from huggingface_hub import *
from huggingface_hub import errors, hf_api

seen = {}
api = HfApi()

def says(function, *args, **kwargs):
    "What comes of a call: its exception by name and status, or ok."
    try:
        function(*args, **kwargs)
    except httpx2.TransportError:
        return "TransportError"  # which one depends on whether the client was still writing
    except Exception as error:
        response = getattr(error, "response", None)
        return type(error).__name__ + (f" {response.status_code}" if response is not None else "")
    return "ok"

def ask(method, path, value=None):
    "The server's own side door."
    data = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(os.environ["HF_ENDPOINT"] + path, data, method=method)
    return json.load(urllib.request.urlopen(request))
"""

Client = Callable[..., dict[str, Any]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", page_size=100) as found:
        yield found


def run_client(hub: Hub, folder: Path, code: str, **environment: str) -> dict[str, Any]:
    """Run code as a client of `hub` in a process of its own, in `folder`; what it put into `seen`."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(seen))\n"],
        cwd=folder,
        env={**hub.env(home=folder / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def client(tmp_path: Path, hub: Hub) -> Client:
    return partial(run_client, hub, tmp_path)


def call(
    hub: Hub, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request with nothing in between: status, headers and body."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_a_folder_of_many_files_becomes_one_commit_that_tags_and_branches_hold_on_to(hub: Hub, client: Client):
    hub.lfs_part_size = 100_000
    seen = client("""
        import pathlib
        folder = pathlib.Path("folder")
        (folder / "data").mkdir(parents=True)
        for number in range(130):
            (folder / f"data/{number:03}.parquet").write_bytes(f"shard {number}".encode())
            (folder / f"data/{number:03}.json").write_text(f"sidecar {number}")
        (folder / "data/big.parquet").write_bytes(bytes(range(256)) * 1000)
        (folder / "empty.parquet").touch()
        (folder / "README.md").write_text("---\\nlicense: mit\\n---\\nFirst.")
        on = dict(repo_id="alice/shapes", repo_type="dataset")

        seen["who"] = (api.whoami()["name"], [org["name"] for org in api.whoami()["orgs"]])
        seen["new"] = api.create_repo(**on).repo_id
        seen["again"] = says(api.create_repo, **on)
        seen["exist_ok"] = api.create_repo(**on, exist_ok=True).repo_id
        seen["start"] = api.list_repo_files(**on)
        first = api.upload_folder(**on, folder_path=folder)
        api.create_tag(**on, tag="v1.0.0", revision=first.oid)
        seen["tag again"] = says(api.create_tag, **on, tag="v1.0.0")
        seen["tag again, exist_ok"] = says(api.create_tag, **on, tag="v1.0.0", exist_ok=True)
        seen["tag of nothing"] = says(api.create_tag, **on, tag="v9", revision="nothing")

        ask("DELETE", "/_log")
        seen["same folder, same commit"] = api.upload_folder(**on, folder_path=folder).oid == first.oid
        (folder / "README.md").write_text("---\\nlicense: mit\\n---\\nSecond.")
        second = api.upload_folder(**on, folder_path=folder, parent_commit=first.oid)
        seen["second upload"] = ask("GET", "/_log")["counters"]

        change = [CommitOperationDelete("data/000.json"), CommitOperationDelete("data/big.parquet"),
                  CommitOperationAdd("deep/er/new.txt", b"new")]
        seen["stale parent"] = says(
            api.create_commit, **on, operations=change, commit_message="m", parent_commit=first.oid)
        change = [CommitOperationDelete("data/000.json"), CommitOperationAdd("deep/er/new.txt", b"new"),
                  CommitOperationCopy("data/big.parquet", "copy.parquet"), CommitOperationDelete("nowhere.txt")]
        seen["one bad operation"] = says(api.create_commit, **on, operations=change, commit_message="m")
        third = api.create_commit(**on, operations=change[:-1], commit_message="third", commit_description="why",
                                  parent_commit=second.oid)
        api.create_branch(**on, branch="feature/one", revision="v1.0.0")
        on_branch = api.upload_file(**on, path_or_fileobj=b"b", path_in_repo="b.txt", revision="feature/one").oid
        seen["files on branch"] = "b.txt" in api.list_repo_files(**on, revision="feature/one")
        pull = api.upload_file(**on, path_or_fileobj=b"p", path_in_repo="p.txt", create_pr=True)
        seen["pull"] = (pull.pr_revision, "p.txt" in api.list_repo_files(**on, revision=pull.pr_revision))

        refs = api.list_repo_refs(**on, include_pull_requests=True)
        seen["tags"] = {ref.name: ref.target_commit == first.oid for ref in refs.tags}
        seen["branches"] = {ref.name: ref.target_commit for ref in refs.branches} == {
            "main": third.oid, "feature/one": on_branch}
        seen["commits"] = [commit.title for commit in api.list_repo_commits(**on)]
        listed = list(api.list_repo_tree(**on, recursive=True))
        seen["listed"] = len([entry for entry in listed if isinstance(entry, hf_api.RepoFile)])
        seen["folders"] = [entry.path for entry in listed if isinstance(entry, hf_api.RepoFolder)]
        seen["expanded"] = {entry.path: entry.last_commit.title for entry in api.list_repo_tree(**on, expand=True)}
        info = api.get_paths_info(**on, paths=["README.md", "copy.parquet", "data", "nowhere"])
        seen["paths"] = {entry.path: getattr(entry, "blob_id", "a folder") for entry in info}
        seen["lfs"] = info[1].lfs
        about = api.dataset_info("alice/shapes", revision="v1.0.0", files_metadata=True)
        seen["about"] = (about.sha == first.oid, about.card_data.license, len(about.siblings),
                         sum(one.lfs is not None for one in about.siblings), about.gated, about.private)
        seen["only"] = sorted(vars(api.dataset_info("alice/shapes", expand=["sha"])).keys() & {"sha"})
        api.delete_tag(**on, tag="v1.0.0")
        seen["revision gone"] = says(api.dataset_info, "alice/shapes", revision="v1.0.0")
        api.super_squash_history(**on)
        seen["squashed"] = len(api.list_repo_commits(**on))
        seen["as text"] = HfFileSystem().read_text("datasets/alice/shapes@feature%2Fone/README.md")
        api.delete_repo(**on)
        seen["deleted"] = says(api.dataset_info, "alice/shapes")
        seen["deleted twice"] = says(api.delete_repo, **on)
    """)
    count = 130 * 2 + 4  # with .gitattributes, which a new repository starts with
    assert seen == {
        "who": ["alice", ["lab"]],
        "new": "alice/shapes",
        "again": "HfHubHTTPError 409",
        "exist_ok": "alice/shapes",
        "start": [".gitattributes"],
        "tag again": "HfHubHTTPError 409",
        "tag again, exist_ok": "ok",
        "tag of nothing": "RevisionNotFoundError 404",
        "same folder, same commit": True,
        "second upload": {"lfs_bytes": 0, "lfs_files": 0, "commits": 1, "largest_commit": 1},
        "stale parent": "HfHubHTTPError 412",
        "one bad operation": "RemoteEntryNotFoundError 404",
        "files on branch": True,
        "pull": ["refs/pr/1", True],
        "tags": {"v1.0.0": True},
        "branches": True,
        "commits": [
            "third",
            "Upload folder using huggingface_hub",
            "Upload folder using huggingface_hub",
            "initial commit",
        ],
        "listed": count + 1,
        "folders": ["data", "deep", "deep/er"],
        "expanded": {
            ".gitattributes": "initial commit",
            "README.md": "Upload folder using huggingface_hub",
            "copy.parquet": "third",
            "data": "third",
            "deep": "third",
            "empty.parquet": "Upload folder using huggingface_hub",
        },
        "paths": {
            # What `git hash-object` says of the text, and of the pointer to the large file.
            "README.md": "b80233779d2a4ef15fcb6b0e6e63bc4eddc694bf",
            "copy.parquet": "feedf8840b916e37f1f4f03075e345637fa518c4",
            "data": "a folder",
        },
        "lfs": {
            "size": 256_000,
            "sha256": "b57b64b198d5d59ce5a22a9b9f25e72a7d081476d432051aa923f3dbebb90934",
            "pointer_size": 131,
        },
        "about": [True, "mit", count, 131, False, False],
        "only": ["sha"],
        "revision gone": "RevisionNotFoundError 404",
        "squashed": 1,
        "as text": "---\nlicense: mit\n---\nFirst.",
        "deleted": "RepositoryNotFoundError 404",
        "deleted twice": "RepositoryNotFoundError 404",
    }


def test_who_may_do_what(hub: Hub, client: Client):
    hub.add_repo("dataset", "alice/open", {"a.txt": b"a"})
    hub.add_repo("dataset", "alice/hidden", {"a.txt": b"a"}, private=True)
    hub.add_repo("dataset", "alice/gated", {"a.txt": b"a"}, gated="manual")
    hub.add_repo("dataset", "lab/open", {"a.txt": b"a"})
    seen = client("""
        tokens = dict(write="hf_alice_write", read="hf_alice_read", fine="hf_alice_fine", bob="hf_bob_write",
                      nobody=False, unknown="hf_unknown")
        for name, token in tokens.items():
            api = HfApi(token=token)
            what, kind = seen.setdefault(name, {}), dict(repo_type="dataset")
            def add(repo):
                api.upload_file(path_or_fileobj=name.encode(), path_in_repo=f"{name}.txt", repo_id=repo, **kind)
            def download(repo):
                hf_hub_download(repo, "a.txt", **kind, token=token, cache_dir=name)
            for repo in ("alice/open", "alice/hidden", "alice/gated", "lab/open", "alice/missing"):
                what[repo] = [
                    says(api.dataset_info, repo), says(download, repo), says(api.auth_check, repo, **kind),
                    says(api.auth_check, repo, **kind, write=True), says(add, repo)]
            what["create"] = [says(api.create_repo, f"{owner}/{name}", **kind) for owner in ("alice", "lab")]
            what["settings"] = says(api.update_repo_settings, "alice/open", **kind, private=False)
        seen["roles"] = {name: api.whoami(tokens[name])["auth"]["accessToken"]["role"]
            for name in ("write", "read", "fine", "bob")}
        seen["scopes"] = {scope["entity"]["name"]: scope["permissions"]
            for scope in api.whoami(tokens["fine"])["auth"]["accessToken"]["fineGrained"]["scoped"]}
        seen["who is unknown"] = says(api.whoami, "hf_unknown")
        api = HfApi(token="hf_alice_write")
        api.grant_access("alice/gated", "bob", repo_type="dataset")
        seen["granted"] = says(hf_hub_download, "alice/gated", "a.txt", repo_type="dataset", token="hf_bob_write")
        api.update_repo_settings("alice/gated", repo_type="dataset", gated=False, private=True)
        seen["now private"] = says(HfApi(token="hf_bob_write").dataset_info, "alice/gated")
    """)
    forbidden, missing, stranger = "HfHubHTTPError 403", "RepositoryNotFoundError 404", "RepositoryNotFoundError 401"
    allowed, none = ["ok"] * 5, [missing] * 5
    assert seen.pop("write") == {
        **dict.fromkeys(("alice/open", "alice/hidden", "alice/gated", "lab/open"), allowed),
        "alice/missing": none,
        "create": ["ok", "ok"],
        "settings": "ok",
    }
    assert seen.pop("read") == {
        **dict.fromkeys(("alice/open", "alice/hidden", "alice/gated", "lab/open"), ["ok"] * 3 + [forbidden] * 2),
        "alice/missing": none,
        "create": [forbidden, forbidden],
        "settings": forbidden,
    }
    assert seen.pop("fine") == {
        **dict.fromkeys(("alice/open", "alice/hidden", "alice/gated"), allowed),
        "lab/open": ["ok"] * 3 + [forbidden] * 2,
        "alice/missing": none,
        "create": ["ok", forbidden],
        "settings": "ok",
    }
    assert seen.pop("bob") == {
        **dict.fromkeys(("alice/open", "lab/open"), ["ok"] * 3 + [forbidden] * 2),
        "alice/hidden": none,
        "alice/gated": ["ok", "GatedRepoError 403", "GatedRepoError 403", forbidden, forbidden],
        "alice/missing": none,
        "create": [forbidden, forbidden],
        "settings": forbidden,
    }
    unauthorized = "HfHubHTTPError 401"
    assert seen.pop("nobody") == {
        **dict.fromkeys(("alice/open", "lab/open"), ["ok"] * 3 + [unauthorized] * 2),
        "alice/gated": ["ok", "GatedRepoError 401", "GatedRepoError 401", unauthorized, unauthorized],
        **dict.fromkeys(("alice/hidden", "alice/missing"), [stranger] * 5),
        "create": [unauthorized, unauthorized],
        "settings": unauthorized,
    }
    unknown = seen.pop("unknown")
    assert {
        answer for answers in unknown.values() for answer in ([answers] if isinstance(answers, str) else answers)
    } == {unauthorized}
    assert seen == {
        "roles": {"write": "write", "read": "read", "fine": "fineGrained", "bob": "write"},
        "scopes": {"alice": ["repo.content.read", "repo.write"], "lab": ["repo.content.read"]},
        "who is unknown": unauthorized,
        "granted": "ok",
        "now private": missing,
    }
    assert set(hub.files("dataset", "lab/open")) == {".gitattributes", "a.txt", "write.txt"}


@pytest.mark.slow
def test_datasets_and_their_cards_by_tag_whole_streamed_and_offline(hub: Hub, client: Client):
    seen = client("""
        import pathlib
        import datasets
        datasets.disable_progress_bars()
        for tag in ("v1", "v2"):
            rows = datasets.Dataset.from_dict({"tag": [tag] * 3, "number": [1, 2, 3]})
            rows.push_to_hub("alice/rows", config_name="default", commit_message=tag)
            api.create_tag("alice/rows", tag=tag, repo_type="dataset")
        for tag in ("v1", "v2"):
            seen[tag] = [
                datasets.load_dataset("alice/rows", revision=tag, split="train")[0]["tag"],
                next(iter(datasets.load_dataset("alice/rows", revision=tag, split="train", streaming=True)))["tag"],
                pathlib.Path(snapshot_download("alice/rows", repo_type="dataset", revision=tag)).name
                == api.dataset_info("alice/rows", revision=tag).sha]
        seen["nothing"] = says(datasets.load_dataset, "alice/rows", revision="v3")
        seen["missing"] = says(datasets.load_dataset, "alice/missing", revision="v1")

        card = DatasetCard.load("alice/rows")
        seen["configs"] = [config["config_name"] for config in card.data.to_dict()["configs"]]
        card.data.license, card.data.language, card.data.size_categories = "mit", ["en"], ["n<1K"]
        card.text += "\\nAbout."
        card.validate()
        card.push_to_hub("alice/rows")
        about = api.dataset_info("alice/rows")
        seen["card"] = (about.card_data.license, sorted(about.tags))
        seen["metadata_update"] = says(metadata_update, "alice/rows", {"pretty_name": "Rows"}, repo_type="dataset")
        card.data.size_categories = ["few"]
        seen["bad value"] = says(card.validate)
        bad = CommitOperationAdd("README.md", b"---\\nlicense: [\\n---\\n")
        seen["bad yaml"] = says(api.create_commit, "alice/rows", [bad], commit_message="m", repo_type="dataset")
        with_warning = RepoCard("no metadata", ignore_metadata_errors=True)
        seen["no metadata"] = says(with_warning.validate, repo_type="dataset")
    """)
    assert seen == {
        "v1": ["v1", "v1", True],
        "v2": ["v2", "v2", True],
        "nothing": "DatasetNotFoundError",
        "missing": "DatasetNotFoundError",
        "configs": ["default"],
        "card": ["mit", ["language:en", "license:mit", "size_categories:n<1K"]],
        "metadata_update": "ok",
        "bad value": "ValueError",
        "bad yaml": "ValueError",
        "no metadata": "ok",
    }
    requests = len(hub.log)
    offline = client(
        """
        import pathlib
        folders = [snapshot_download("alice/rows", repo_type="dataset", revision=tag) for tag in ("v1", "v2")]
        seen["files"] = [len(list(pathlib.Path(folder).rglob("*.parquet"))) for folder in folders]
        seen["two states"] = folders[0] != folders[1]
        seen["never fetched"] = says(snapshot_download, "alice/rows", repo_type="dataset", revision="v3")
        """,
        HF_HUB_OFFLINE="1",
    )
    assert offline == {"files": [1, 1], "two states": True, "never fetched": "LocalEntryNotFoundError"}
    assert len(hub.log) == requests


@pytest.mark.slow
def test_models_load_by_name_in_transformers_diffusers_and_timm(hub: Hub, client: Client):
    for name in ("captioner", "generator"):
        folder = MODELS / name
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        hub.add_repo("model", f"alice/{name}", files)
    pinned = hub.head("model", "alice/captioner")
    hub.add_commit("model", "alice/captioner", {"config.json": b"{}"})  # main is of no use from here on
    seen = client(f"""
        import torch
        torch.set_num_threads(1)
        from transformers import AutoModelForImageTextToText, AutoProcessor
        on = dict(revision={pinned!r})
        model = AutoModelForImageTextToText.from_pretrained("alice/captioner", **on)
        processor = AutoProcessor.from_pretrained("alice/captioner", **on)
        seen["captioner"] = type(model).__name__

        from PIL import Image
        inputs = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")
        seen["captions"] = len(processor.batch_decode(model.generate(**inputs, max_new_tokens=3)))
        seen["missing"] = says(AutoProcessor.from_pretrained, "alice/missing")

        from diffusers import AutoPipelineForText2Image
        pipeline = AutoPipelineForText2Image.from_pretrained("alice/generator", torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        seen["generator"] = type(pipeline).__name__
        seen["image"] = pipeline("a", num_inference_steps=1).images[0].size[0] > 0

        import timm
        model = timm.create_model("test_vit", num_classes=5)
        timm.models.push_to_hf_hub(model, "alice/judge", model_config=dict(label_names=list("abcde")))
        again = timm.create_model("hf-hub:alice/judge", pretrained=True)
        seen["judge"] = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    """)
    assert seen == {
        "captioner": "BlipForConditionalGeneration",
        "captions": 1,
        "missing": "OSError",
        "generator": "StableDiffusionPipeline",
        "image": True,
        "judge": True,
    }


def test_everything_that_can_go_wrong_goes_wrong_when_asked_for_from_another_process(hub: Hub, client: Client):
    hub.add_repo("dataset", "alice/rows", {"a.txt": b"a", "large.bin": bytes(range(256)) * 1000})
    seen = client(
        """
        on = dict(repo_id="alice/rows", repo_type="dataset")
        number = 0

        def fail(kind, **fault):
            ask("POST", "/_faults", {"kind": kind, **fault})

        def add(size=10, **kwargs):
            "A commit of one new large file; what came of it, how it moved main, and the requests that it took."
            global number
            number += 1
            files = [CommitOperationAdd(f"{number}.bin", bytes([number]) * size)]
            ask("DELETE", "/_log")
            before = len(api.list_repo_commits(**on))
            came = says(api.create_commit, **on, operations=files, commit_message="m", **kwargs)
            log = ask("GET", "/_log")["log"]
            ask("DELETE", "/_faults")
            parts = ("validate-yaml", "preupload", "objects/batch", "lfs-storage", "lfs/verify", "/commit/")
            met = [part for entry in log for part in parts if part in entry["path"]]
            return [came, len(api.list_repo_commits(**on)) - before, " ".join(part.strip("/") for part in met)]

        def download():
            "What came of it, the requests that it took, and the time."
            global number
            number += 1
            ask("DELETE", "/_log")
            start = time.monotonic()
            try:
                data = open(hf_hub_download(**on, filename="large.bin", cache_dir=f"cache{number}"), "rb").read()
                came = "ok" if data == bytes(range(256)) * 1000 else "wrong"
            except Exception as error:
                came = type(error).__name__
            took = time.monotonic() - start
            log = ask("GET", "/_log")["log"]
            ask("DELETE", "/_faults")
            return came, [(entry["method"], entry["status"], entry["sent"]) for entry in log], took

        seen["nothing"] = add()
        fail(503, path="/preupload/")
        seen["503 where it is retried"] = add()
        fail(429, path="objects/batch", retry_after=0)
        seen["429"] = add()
        fail(500, method="PUT")
        seen["500 at the upload"] = add()
        for status in (401, 409, 412, 429, 503):
            fail(status, path="/commit/")
            seen[f"{status} at the commit"] = add()[:2]
        fail("cut-before", path="/commit/")
        seen["cut-before"] = add()[:2]
        fail("cut-after", path="/commit/")
        seen["cut-after"] = add()[:2]
        fail("cut-after", path="/commit/", keep=0.5)
        seen["cut-after in the body"] = add()[:2]
        fail("timeout", path="/commit/", seconds=0.2)
        seen["timeout at the commit"] = add()[:2]
        fail("cut-before", method="PUT")
        seen["cut-before at the upload"] = add(size=3_000_000)[:2]
        for attempt in (1, 2):  # what was uploaded before the fault is not uploaded again
            fail(400, method="PUT", after=2, times=None)
            files = [CommitOperationAdd(f"{name}.bin", name.encode()) for name in "abcd"]
            ask("DELETE", "/_log")
            came = says(api.create_commit, **on, operations=files, commit_message="m", num_threads=1)
            seen[f"two uploads an attempt, {attempt}"] = [came, ask("GET", "/_log")["counters"]["lfs_files"]]
            ask("DELETE", "/_faults")

        seen["download"] = download()[:2]
        fail("cut-after", method="GET", path="/resolve/", keep=0.25)
        seen["cut download"] = download()[:2]
        fail("delay", method="HEAD", seconds=0.3)
        came, _, took = download()
        seen["delay"] = [came, 0.3 < took < 3]
        fail("timeout", method="HEAD", seconds=20)
        came, log, took = download()
        seen["timeout"] = [came, [status for _, status, _ in log], 1 < took < 6]
        fail(404, path="/resolve/")
        seen["404"] = download()[0]
        try:
            fail("no such kind")
        except urllib.error.HTTPError as error:
            seen["no such kind"] = error.code
        """,
        HF_HUB_ETAG_TIMEOUT="1",
    )
    whole = "preupload objects/batch lfs-storage lfs/verify commit"
    full = 256_000
    assert seen == {
        "nothing": ["ok", 1, whole],
        "503 where it is retried": ["ok", 1, f"preupload {whole}"],
        "429": ["ok", 1, whole.replace("objects/batch", "objects/batch objects/batch")],
        "500 at the upload": ["ok", 1, whole.replace("lfs-storage", "lfs-storage lfs-storage")],
        # Neither a status nor a lost connection makes the client repeat a commit: it may have been carried out.
        **{f"{status} at the commit": [f"HfHubHTTPError {status}", 0] for status in (401, 409, 412, 429, 503)},
        "cut-before": ["TransportError", 0],
        "cut-after": ["TransportError", 1],
        "cut-after in the body": ["TransportError", 1],
        "timeout at the commit": ["TransportError", 0],
        "cut-before at the upload": ["ok", 1],
        "two uploads an attempt, 1": ["RuntimeError", 2],
        "two uploads an attempt, 2": ["ok", 2],
        "download": ["ok", [["HEAD", 200, 0], ["GET", 200, full]]],
        "cut download": ["ok", [["HEAD", 200, 0], ["GET", 200, full // 4], ["GET", 200, full]]],
        "delay": ["ok", True],
        "timeout": ["ok", [0, 200, 200], True],
        "404": "LocalEntryNotFoundError",
        "no such kind": 400,
    }


def test_of_commits_at_the_same_time_none_is_lost_and_only_one_is_on_top_of_the_same_parent(hub: Hub, client: Client):
    hub.add_repo("dataset", "alice/rows")
    seen = client("""
        from concurrent.futures import ThreadPoolExecutor
        on = dict(repo_id="alice/rows", repo_type="dataset")
        head = api.dataset_info("alice/rows").sha

        def add(name, **kwargs):
            return says(api.upload_file, **on, path_or_fileobj=name.encode(), path_in_repo=f"{name}.bin", **kwargs)

        with ThreadPoolExecutor(8) as pool:
            seen["one parent"] = sorted(pool.map(lambda n: add(f"a{n}", parent_commit=head), range(8)))
            seen["any parent"] = sorted(pool.map(lambda n: add(f"b{n}"), range(8)))
    """)
    assert seen == {"one parent": ["HfHubHTTPError 412"] * 7 + ["ok"], "any parent": ["ok"] * 8}
    files = hub.files("dataset", "alice/rows")
    assert {name: data for name, data in files.items() if name[0] == "b"} == {f"b{n}.bin": b"b%d" % n for n in range(8)}
    assert len(files) == 1 + 1 + 8
    assert len(hub.history("dataset", "alice/rows")) == 1 + 1 + 8


def test_by_way_of_xet_a_folder_may_take_several_commits_and_is_the_same_in_the_end(tmp_path: Path):
    with Hub(tmp_path / "hub", xet=True) as hub:
        seen = run_client(
            hub,
            tmp_path,
            """
        import pathlib, random, struct
        on, folder = dict(repo_id="alice/shapes", repo_type="dataset"), pathlib.Path("folder")
        folder.mkdir()
        for number in range(260):
            (folder / f"{number:03}.parquet").write_text(f"shard {number}")
        (folder / "random.parquet").write_bytes(random.Random(0).randbytes(300_000))
        (folder / "repeated.parquet").write_bytes(b"compressible" * 50_000)
        (folder / "floats.parquet").write_bytes(struct.pack("<60001f", *(1 + n / 1e5 for n in range(60_001))) + b"odd")
        (folder / "notes.txt").write_text("small")
        api.create_repo(**on)
        first = api.upload_folder(**on, folder_path=folder)
        seen["commits"] = len(api.list_repo_commits(**on)) > 2
        ask("DELETE", "/_log")
        seen["again"] = api.upload_folder(**on, folder_path=folder).oid == first.oid
        pathlib.Path("folder/notes.txt").write_text("changed")
        pull = api.upload_folder(**on, folder_path=folder, create_pr=True)
        seen["pull"] = pull.pr_revision
        seen["uploaded again"] = ask("GET", "/_log")["counters"]["lfs_files"]
        got = pathlib.Path(snapshot_download(**on, revision="refs/pr/1"))
        seen["same"] = all((got / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
        seen["plain"] = sum(entry["path"].endswith(".parquet") and entry["method"] == "GET"
            for entry in ask("GET", "/_log")["log"])
        part = HfFileSystem().read_bytes("datasets/alice/shapes/floats.parquet", start=100_001, end=100_101)
        seen["part"] = part == (folder / "floats.parquet").read_bytes()[100_001:100_101]
        """,
        )
        assert seen == {
            "commits": True,
            "again": True,
            "pull": "refs/pr/1",
            "uploaded again": 0,
            "same": True,
            "plain": 0,
            "part": True,
        }
        sent = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
        kept = hub.files("dataset", "alice/shapes", "refs/pr/1")
        assert kept.pop(".gitattributes")
        assert kept == sent


@pytest.mark.parametrize(
    ("asked", "status", "first", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=5-", 206, 5, 100),
        ("bytes=-7", 206, 93, 100),
        ("bytes=-700", 206, 0, 100),
        ("bytes=90-900", 206, 90, 100),
        ("bytes=99-99", 206, 99, 100),
        ("bytes=100-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=9-3", 200, 0, 100),
        ("bytes=0-1,4-5", 200, 0, 100),
        ("lines=0-1", 200, 0, 100),
    ],
)
def test_ranges(hub: Hub, asked: str, status: int, first: int, end: int):
    data = bytes(range(100))
    hub.add_repo("model", "alice/m", {"a.bin": data})
    got, headers, body = call(hub, "GET", "/alice/m/resolve/main/a.bin", Range=asked)
    assert got == status
    if status == 416:
        assert headers["Content-Range"] == "bytes */100"
        return
    assert body == data[first:end]
    assert headers.get("Content-Range") == (f"bytes {first}-{end - 1}/100" if status == 206 else None)
    assert headers["X-Repo-Commit"] == hub.head("model", "alice/m")


def test_a_revision_asked_for_is_the_revision_answered(hub: Hub):
    """One that takes names and tags of the newest commit for all is what makes old versions read as new ones."""
    first = hub.add_repo("dataset", "alice/d", {"a.txt": b"old", "a.bin": b"old"})
    hub.add_tag("dataset", "alice/d", "v1")
    second = hub.add_commit("dataset", "alice/d", {"a.txt": b"new", "a.bin": b"new", "c.txt": b"c"})
    answers = {}
    for revision in ("v1", first, first[:8], "main", "refs%2Fheads%2Fmain"):
        for name in ("a.txt", "a.bin"):
            status, head, nothing = call(hub, "HEAD", f"/datasets/alice/d/resolve/{revision}/{name}")
            _, got, body = call(hub, "GET", f"/datasets/alice/d/resolve/{revision}/{name}")
            assert (status, nothing, head["ETag"]) == (200, b"", got["ETag"])
            answers[revision, name] = (head["X-Repo-Commit"], head["ETag"], head["X-Linked-Size"], body)
    for name in ("a.txt", "a.bin"):
        old, new = answers["v1", name], answers["main", name]
        assert (old[0], old[3], new[0], new[3]) == (first, b"old", second, b"new")
        assert old[1] != new[1]
        assert answers[first, name] == answers[first[:8], name] == old
        assert answers["refs%2Fheads%2Fmain", name] == new
    for page in ("", "/tree/v1"):
        status, _, text = call(hub, "GET", f"/datasets/alice/d{page}")
        assert (status, b"c.txt" in text) == (200, page == "")
    status, headers, _ = call(hub, "HEAD", "/datasets/alice/d/resolve/v1/c.txt")
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", first)


def test_what_was_not_uploaded_as_announced_is_refused(hub: Hub):
    repo, alice = "/datasets/alice/d", {"Authorization": "Bearer hf_alice_write"}
    hub.add_repo("dataset", "alice/d", {"known.bin": b"known"})
    known = hashlib.sha256(b"known").hexdigest()
    oid = "0" * 64
    batch = json.dumps({"objects": [{"oid": oid, "size": 3}, {"oid": known, "size": 5}]}).encode()
    status, _, body = call(hub, "POST", f"{repo}.git/info/lfs/objects/batch", batch, **alice)
    asked, there = json.loads(body)["objects"]
    assert (status, "actions" in there) == (200, False)
    upload = asked["actions"]["upload"]["href"].removeprefix(hub.url)
    assert call(hub, "PUT", upload, b"abc")[0] == 422
    assert call(hub, "PUT", upload, b"abcd")[0] == 422
    verify = json.dumps({"oid": oid, "size": 3}).encode()
    assert call(hub, "POST", f"{repo}.git/info/lfs/verify", verify, **alice)[0] == 422

    def commit(*lines: dict[str, Any]) -> tuple[int, str]:
        whole = [{"key": "header", "value": {"summary": "s"}}, *lines]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in whole)
        status, _, answer = call(hub, "POST", f"/api{repo}/commit/main", body, **alice)
        return status, json.loads(answer).get("error", "")

    head = hub.head("dataset", "alice/d")
    good = {"key": "file", "value": {"path": "good.txt", "content": "good"}}
    for bad in (
        {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": oid, "size": 3}},
        {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": known, "size": 6}},
        {"key": "file", "value": {"path": "../x", "content": ""}},
        {"key": "file", "value": {"path": ".git/config", "content": ""}},
        {"key": "file", "value": {"path": "good.txt/inside", "content": ""}},
        {"key": "file", "value": {"path": "README.md", "content": "---\nlicense: [\n---\n"}},
        {"key": "unheard of", "value": {"path": "x"}},
    ):
        status, error = commit(good, bad)
        assert (status, bool(error)) == (400, True), bad
    assert hub.head("dataset", "alice/d") == head
    assert hub.counters.commits == hub.counters.lfs_files == 0
    assert commit(good)[0] == 200
    assert hub.files("dataset", "alice/d")["good.txt"] == b"good"


def test_a_restart_keeps_everything_and_closes_what_clients_left_open(tmp_path: Path):
    with Hub(tmp_path / "hub") as hub:
        hub.add_repo("dataset", "alice/d", {"a.txt": b"a", "b.bin": b"b"}, private=True, gated="manual")
        hub.add_tag("dataset", "alice/d", "v1")
        hub.add_commit("dataset", "alice/d", {"a.txt": None})
        hub.add_repo("model", "lab/gone")
        hub.store.delete(hub.store.repos["model", "lab/gone"])
        port = int(hub.url.rsplit(":", 1)[1])
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        idle.request("GET", "/api/datasets")
        assert idle.getresponse().read() == b"[]"
        before = (hub.store.repos, hub.files("dataset", "alice/d", "v1"), hub.refs("dataset", "alice/d"))
    (tmp_path / "hub" / "repos" / "dataset" / "alice" / ".d.json.half").write_text("{")  # as a kill leaves it
    with Hub(tmp_path / "hub", port) as hub:
        assert (hub.store.repos, hub.files("dataset", "alice/d", "v1"), hub.refs("dataset", "alice/d")) == before
        assert set(hub.files("dataset", "alice/d")) == {".gitattributes", "b.bin"}
        assert idle.sock.recv(1) == b""
        with pytest.raises(Refused, match="already"):
            hub.add_repo("dataset", "alice/d")
    idle.close()


def test_by_hand_it_says_what_to_copy_and_stops_on_control_c(tmp_path: Path):
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "hub_server.py", "--root", tmp_path / "hub"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        settings = dict(word.split("=", 1) for word in next(line for line in lines if "HF_TOKEN" in line).split()[1:])
        headers = {"Authorization": f"Bearer {settings['HF_TOKEN']}"}
        request = urllib.request.Request(settings["HF_ENDPOINT"] + "/api/whoami-v2", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["name"] == "alice"
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=10)
        assert (server.returncode, errors) == (0, "")
    finally:
        server.kill()
        server.wait()
