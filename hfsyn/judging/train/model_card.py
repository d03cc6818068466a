"""Publish a trained classifier: a timm model on the Hub, with a card whose results name the data and its version."""

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from builders.files import sha256_of
from builders.hub import page_of
from builders.yaml import dump
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import HubRepo, LocalFile, check_repo_id
from hfsyn.judging.classifier import Classifier, open_classifier
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.progress import teller
from hfsyn.publishing.benchmark import EVAL, task_of

RESULTS = "results.json"


def push_classifier(folder: str | Path, repo_id: str, *, private: bool = False, quiet: bool = False) -> str:
    """Publish the classifier of a training's folder; return the address of its commit. Running it again continues.

    It can then be loaded with ``timm.create_model("hf_hub:USER/NAME", pretrained=True)``. Raises HfsynError if the
    folder holds no finished training, the name is not valid, the Hub refuses (exit code 3) or does not answer in time
    (exit code 4).
    """
    repo = HubRepo(check_repo_id(repo_id), repo_type="model", say=teller(quiet))
    path = Path(folder)
    if not (path / RESULTS).is_file():
        raise HfsynError(f"{folder} holds no finished training.", "Run its `hfsyn train` command to the end first.")
    result = json.loads((path / RESULTS).read_text(encoding="utf-8"))
    classifier = open_classifier(path)
    with tempfile.TemporaryDirectory() as temporary:
        write_timm_folder(classifier, Path(temporary))
        files = {file.name: LocalFile(file, sha256_of(file)) for file in sorted(Path(temporary).iterdir())}
        files["README.md"] = LocalFile.made(card_text(classifier, result, repo_id))
        files[RESULTS] = LocalFile.made(json.dumps(without_paths(result), indent=1))
        files |= _eval_files(result["test"], repo_id, repo)
        repo.create(private=private)
        return f"{page_of(repo_id, 'model')}/commit/{repo.bring(files, 'Add classifier')}"


def write_timm_folder(classifier: Classifier, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` as timm reads them from the Hub or with ``local-dir:``."""
    from timm.models import save_for_hf

    given = classifier.preprocessing
    save_for_hf(
        classifier.network,
        str(folder),
        model_config={"label_names": list(classifier.wnids), "label_descriptions": classifier.classes},
        data_config={
            "input_size": (3, *given.extent),
            "mean": given.mean,
            "std": given.std,
            "interpolation": given.interpolation,
            "crop_pct": given.crop,
            "crop_mode": given.crop_mode,
        },
        safe_serialization=True,
    )


def card_text(classifier: Classifier, result: Mapping[str, Any], repo_id: str) -> str:
    """The model card: front matter with the results as the Hub reads them, then the same for people."""
    from huggingface_hub import ModelCardData

    training, test, name = result["training"], result["test"], repo_id.rsplit("/", 1)[-1]
    data = ModelCardData(
        model_name=name,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "hfsyn"],
        datasets=sorted({made["hub"] for made in training["sets"] if made["hub"]}),
        eval_results=_eval_results(test) if test else None,
    )
    sets = "\n".join(f"- {_described(made)}: {made['share']:.0f} images per epoch" for made in training["sets"])
    shown = f"{training['budget']} images per epoch, {training['epochs']} epochs, seed {classifier.seed}"
    return f"""---
{data.to_yaml()}
---

# {name}

A `{classifier.name}` that tells {len(classifier.wnids)} ImageNet classes apart, trained with hfsyn
({shown}) on:

{sets}

{_tested(test)}
```python
import timm
model = timm.create_model("hf_hub:{repo_id}", pretrained=True)
```

The outputs are these classes, in order: {", ".join(classifier.names)}.
The whole recipe, the software and every measure are in `{RESULTS}`.
"""


def _tested(test: Mapping[str, Any] | None) -> str:
    if not test:
        return "It was not tested.\n"
    known = f", {test['overlap']} of which are among the training images too" if test.get("overlap") else ""
    if test.get("overlap", 0) is None:
        known = ", of which nobody checked whether any are among the training images"
    rows = [
        f"| {title} | {found['value']:.4f} | {found['low']:.4f} to {found['high']:.4f} |\n"
        for title, key in (("top-1 accuracy", "top1"), ("top-5 accuracy", "top5"), ("calibration error", "ece"))
        if (found := test["metrics"][key])["value"] is not None  # four classes have no top-5
    ]
    return (
        f"Tested on {_described(test['dataset'])}, {test['n']} images{known}:\n\n"
        f"| measure | value | 95 % interval |\n|---|---|---|\n{''.join(rows)}"
    )


def _described(data: Mapping[str, Any]) -> str:
    """A set in words: on the Hub by its commit, anywhere else by its fingerprint."""
    if data["hub"]:
        return f"`{data['reference']}`, split {data['split']}, revision {data['revision'] or 'none'}"
    known = f", fingerprint `{data['fingerprint'][:16]}`" if data.get("fingerprint") else ""
    return f"`{_without_path(data['reference'])}` (not on the Hub), split {data['split']}{known}"


def _eval_results(test: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    data = test["dataset"]
    repository = data["hub"]
    return [
        EvalResult(
            # The type is an identifier on the Hub; a set that is not there must not be taken for one that is.
            task_type="image-classification",
            dataset_type=repository or data.get("variant") or "local",
            dataset_name=_without_path(data["reference"]),
            dataset_config=parse_dataset(data["reference"]).config if repository else None,
            dataset_split=data["split"],
            dataset_revision=data["revision"] if repository else None,
            metric_type="accuracy",
            metric_name=title,
            metric_value=round(test["metrics"][key]["value"], 6),
        )
        for title, key in (("Top 1 accuracy", "top1"), ("Top 5 accuracy", "top5"))
        if test["metrics"][key]["value"] is not None
    ]


def _eval_files(test: Mapping[str, Any] | None, repo_id: str, repo: HubRepo) -> dict[str, LocalFile]:
    """The result of the test where leaderboards look, ``.eval_results/DATASET.yaml``; of sets on the Hub alone."""
    if not test or not test["dataset"]["hub"]:
        return {}
    data = test["dataset"]
    there, tasks = HubRepo(data["hub"], token=repo.token, say=repo.say), None
    config = parse_dataset(data["reference"]).config
    with suppress(HfsynError):  # the set may be closed to this token: then nobody knows its tasks here
        tasks = there.text(EVAL, data["revision"]) if EVAL in there.tree(data["revision"]) else None
    name = f"{data['hub'].replace('/', '_')}{f'_{config}' if config else ''}_{data['split']}"
    text = eval_results_text(test, task_of(tasks, config, data["split"]), repo_id)
    return {f".eval_results/{name}.yaml": LocalFile.made(text)}


def eval_results_text(test: Mapping[str, Any], task: str, repo_id: str) -> str:
    """The top-1 accuracy of a test on a set of the Hub, as `huggingface_hub.parse_eval_result_entries` reads it."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    data, found = test["dataset"], test["metrics"]["masked"] or test["metrics"]
    entry = EvalResultEntry(
        dataset_id=data["hub"],
        task_id=task,
        value=round(found["top1"]["value"], 6),
        dataset_revision=data["revision"],
        source_url=f"{page_of(repo_id, 'model')}/blob/main/{RESULTS}",
        source_name="results of hfsyn",
        notes=f"top-1 accuracy, {data['split']}, {test['n']} images, among {found['classes']} classes",
    )
    return dump(eval_result_entries_to_yaml([entry]))


def without_paths(value: Any) -> Any:
    """A result to be published: of every local path only its last name is left."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return _without_path(value) if isinstance(value, str) else value


_PLACE = re.compile(r"([\w.@-]*[=:])?((?:~|\.{1,2})?/(?!/).*|~|\.\.)", re.DOTALL)
"""A path on this machine, alone or with a prefix: ``VARIANT=/photographs``, ``local-dir:/trained``."""
_WITHIN = re.compile(r"""(?<![\w:/.~-])(?:~|\.{1,2})?/(?!/)[^\s,;:'"()]*/[^\s,;:'"()]+""")
"""One in the middle of a sentence."""


def _without_path(text: str) -> str:
    """``VARIANT=/home/me/photographs:0.5`` is ``VARIANT=photographs:0.5``; a name on the Hub stays as it is."""
    if found := _PLACE.match(text):
        return f"{found[1] or ''}{Path(found[2]).name}"
    stated, sign, place = text.rpartition("=")
    if "/" in place and len(place) < 256 and Path(place).exists():
        return f"{stated}{sign}{Path(place).name}"
    return _WITHIN.sub(lambda found: Path(found[0]).name, text)
