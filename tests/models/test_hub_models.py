"""Where a model is found, which commit a run writes down, and what a user reads where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from conftest import ROOT
from huggingface_hub import errors

from builders.errors import DataError
from builders.hub import said_plainly
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.models.finding import Kind, content_hash, loading, locate, pin
from hfsyn.recipes.recipe import is_content_hash

try:  # the HTTP library of huggingface_hub 2
    import httpx2 as httpx
except ImportError:  # and that of huggingface_hub 1
    import httpx

MARKER = {"captioner": "config.json", "generator": "model_index.json"}
OLD, NEW = "a" * 40, "b" * 40
KINDS: tuple[Kind, ...] = ("captioner", "generator")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's client, which has read its place from the environment long ago."""
    hub = tmp_path / "hf" / "hub"
    hub.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    return hub


def cached(cache: Path, kind: Kind, model: str = "org/name", files: bool = True) -> None:
    """Two snapshots of a model, as the client lays them out: main is the newer one, and v1 the older."""
    repo = cache / f"models--{model.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    for ref, sha in {"main": NEW, "v1": OLD}.items():
        (repo / "refs" / ref).write_text(sha)
        (repo / "snapshots" / sha).mkdir(parents=True)
        if files:
            (repo / "snapshots" / sha / MARKER[kind]).write_text("{}")


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[str, str | None]]:
    """A Hub that gives or raises `answer`, and what it was asked."""
    asked = []

    def model_info(self: Any, repo_id: str, *, revision: str | None = None, **options: Any) -> Any:
        asked.append((repo_id, revision))
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr("builders.hub.FIRST_PAUSE", 0)
    return asked


def refusal(call: Any, *args: Any) -> HfsynError:
    with pytest.raises(HfsynError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


# --- locate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_builtin_is_the_shipped_folder_and_is_pinned_by_its_content(kind: Kind) -> None:
    assert Path(locate("builtin", kind)).parent == ROOT / "hfsyn/models"
    assert (Path(locate("builtin", kind)) / MARKER[kind]).is_file()
    pinned = pin("builtin", None, kind)
    assert pinned == pin(locate("builtin", kind), None, kind) == pin("builtin", pinned, kind)
    assert is_content_hash(pinned)


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_folder_is_taken_by_any_of_its_names(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "user" / "model"
    folder.mkdir(parents=True)
    (folder / MARKER[kind]).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), "user/model", "./user/model", "~/user/model"):
        assert locate(name, kind) == str(folder)
        assert pin(name, None, kind) == content_hash(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_model_whose_content_has_changed_is_refused(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / MARKER[kind]).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = pin(str(tmp_path), None, kind)
    (tmp_path / "README.md").write_text("a card decides nothing")
    assert loading(str(tmp_path), before, kind)[1] == {"trust_remote_code": False, "use_safetensors": True}
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    for refused in (pin, loading):
        problem = refusal(refused, str(tmp_path), before, kind)
        assert "is not the one that the recipe means" in problem.message
    assert "is the content of a local folder" in refusal(pin, "org/name", before, kind).message


def test_what_from_pretrained_is_told() -> None:
    where, options = loading("org/name", "a" * 40, "generator")
    assert (where, options) == ("org/name", {"revision": "a" * 40, "trust_remote_code": False, "use_safetensors": True})
    assert "use_safetensors" not in loading("org/name", None, "generator", allow_pickle=True)[1]


def test_a_folder_of_the_other_kind_or_of_none_is_refused(tmp_path: Path) -> None:
    assert "it holds a generator" in refusal(locate, locate("builtin", "generator"), "captioner").message
    assert "it holds a captioner" in refusal(locate, locate("builtin", "captioner"), "generator").message
    for kind in KINDS:
        problem = refusal(pin, str(tmp_path), None, kind)
        assert f"{tmp_path} is not a {kind}: it has no {MARKER[kind]}" in problem.message


def test_a_single_file_is_refused_with_the_way_to_make_it_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    problem = refusal(locate, str(tmp_path / "model.safetensors"), "generator")
    assert "is a file" in problem.message
    assert "from_single_file" in problem.hint


@pytest.mark.parametrize(
    "model",
    [
        "",
        " ",
        "a b",
        "org/",
        "/org",
        "org/name/more",
        "../name",
        "./name",
        "/nowhere/at/all",
        "~/nowhere",
        "a..b",
        "org/--name",
        "-org/name",
        "org/name.git",
        "org/name@v1",
        "x" * 100,
        "https://huggingface.co/org/name",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_id_is_refused_without_asking_the_hub(
    model: str, kind: Kind, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked = hub(monkeypatch, NEW)
    for problem in (refusal(locate, model, kind), refusal(pin, model, None, kind)):
        assert f"There is no {kind} at {model!r}" in problem.message
        assert "builtin" in problem.hint
        assert ("A revision goes into its own field" in problem.message) is ("@" in model)
    assert not asked


@pytest.mark.parametrize("model", ["gpt2", "org/name", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/b.c_d-e"])
def test_a_hub_id_is_left_as_it_is(model: str) -> None:
    assert locate(model, "generator") == model


# --- pin ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", [True, False])
def test_a_local_model_has_no_revision_of_the_hub(kind: Kind, local: bool, tmp_path: Path) -> None:
    (tmp_path / MARKER[kind]).write_text("{}")
    model = str(tmp_path) if local else "builtin"
    problem = refusal(pin, model, "main", kind)
    field = {"captioner": "caption", "generator": "generate"}[kind]
    assert f"{field}.revision is 'main', but {model} is a local model" in problem.message


@pytest.mark.parametrize("revision", [None, "main", "v1", OLD])
def test_online_the_hub_says_which_commit_a_revision_is(
    revision: str | None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked = hub(monkeypatch, "c" * 40)
    assert pin("org/name", revision, "generator") == "c" * 40
    assert asked == [("org/name", revision)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_commit_needs_no_hub(kind: Kind, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    asked = hub(monkeypatch, RuntimeError("not to be asked"))
    cached(cache, kind)
    assert pin("org/name", OLD, kind) == OLD
    assert not asked


UNREACHABLE = [
    None,  # the real client, offline
    httpx.ConnectError("no route to host"),
    httpx.ReadTimeout("too slow"),
    OSError("no network"),
    errors.HfHubHTTPError("502 Bad Gateway", response=httpx.Response(502, request=httpx.Request("GET", "http://x"))),
]


@pytest.mark.parametrize("failure", UNREACHABLE, ids=lambda failure: type(failure).__name__)
def test_without_the_hub_the_cache_answers(
    failure: Exception | None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    if failure is not None:
        hub(monkeypatch, failure)
    for kind in KINDS:
        cached(cache, kind, f"org/{kind}")
        assert pin(f"org/{kind}", None, kind) == NEW
        assert pin(f"org/{kind}", "v1", kind) == OLD
        assert pin(f"org/{kind}", NEW, kind) == NEW
        for revision in ("v2", "c" * 40):
            assert (
                f"org/{kind} at {revision} is not in the local cache"
                in refusal(pin, f"org/{kind}", revision, kind).message
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_cached_is_told_with_what_to_do(kind: Kind, cache: Path) -> None:
    cached(cache, kind, "org/empty", files=False)
    for model in ("org/name", "org/empty"):
        problem = refusal(pin, model, None, kind)
        assert problem.message == f"The {kind} {model} is not in the local cache, and HF_HUB_OFFLINE is set."
        assert f"hf download {model}" in problem.hint
        assert f"--set {'caption' if kind == 'captioner' else 'generate'}.model=builtin" in problem.hint
        assert problem.code == ExitCode.USAGE


def test_a_cached_model_of_the_other_kind_does_not_count(cache: Path) -> None:
    cached(cache, "captioner")
    assert "is not in the local cache" in refusal(pin, "org/name", None, "generator").message


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (errors.GatedRepoError, "org/name is gated, and you have no access", ExitCode.PREFLIGHT),
        (errors.RepositoryNotFoundError, "org/name is not there, or not for you", ExitCode.USAGE),
        (errors.RevisionNotFoundError, "has no revision 'v9'", ExitCode.USAGE),
    ],
)
def test_what_the_hub_refuses_is_not_looked_for_in_the_cache(
    error: type[errors.HfHubHTTPError], message: str, code: ExitCode, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    cached(cache, "generator")
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/org/name"))
    hub(monkeypatch, error("long\nstory", response=response))
    problem = refusal(pin, "org/name", "v9", "generator")
    assert message in problem.message
    assert problem.code == code


def test_a_mistake_of_ours_is_not_taken_for_a_missing_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cached(cache, "generator")
    hub(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        pin("org/name", None, "generator")


def test_a_version_without_its_v_is_told_its_tag() -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.test/api"))
    error = errors.RevisionNotFoundError("404", response=response)
    with pytest.raises(DataError) as told, said_plainly("alice/shapes", "1.0.0"):
        raise error
    assert "alice/shapes@v1.0.0" in str(told.value)
    with pytest.raises(DataError) as told, said_plainly("alice/shapes", "main2"):
        raise error
    assert "tag" not in str(told.value)


def test_a_place_that_the_hub_does_not_have_is_answered_with_the_folder_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    error = errors.RepositoryNotFoundError(
        "404", response=httpx.Response(404, request=httpx.Request("GET", "http://x"))
    )
    for place, said in (("photos/cat", "there is no folder photos/cat"), ("alice/cat", "alice/cat is not there")):
        with pytest.raises(DataError) as told, said_plainly(place, "main"):
            raise error
        assert said in str(told.value).lower()
        assert ("Did you mean 'photos/cats'?" in str(told.value)) == (place == "photos/cat")
