"""What a card's front matter says: the values of our keys, given those that are there."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from builders.runs import layout
from builders.variants import VARIANTS, get_variant
from hfsyn.cards.facts import CardFacts, size_category, source_of
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import BUILTIN

IMAGENET_TERMS = {
    "license": "other",
    "license_name": "imagenet-terms-of-access",
    "license_link": get_variant("imagenet-1k").homepage,
}
Digests = Mapping[str, Mapping[str, Any]]  # name of a configuration -> `CardFacts.digest` of it


def data_files(digest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The `data_files` of a configuration's entry: its own shards, and not files of others beside them."""
    kind = layout.CAPTIONS if digest["what"] == "captions" else layout.DATA
    prefix = f"{digest['folder']}/" if digest["folder"] else ""
    shards = digest.get("shards")
    which = f"*-of-{shards:05d}" if isinstance(shards, int) and shards > 0 else "*"
    return [{"split": digest["split"], "path": f"{prefix}{kind}/{digest['split']}-{which}.parquet"}]


def licence_of(digests: Digests) -> dict[str, str | None]:
    """The licence keys: only what is known for every part, else `other` with ImageNet's terms, else `unknown`."""
    if any(digest["variant"] in VARIANTS and not source_of(digest)["drawn"] for digest in digests.values()):
        return dict(IMAGENET_TERMS)
    if not all(source_of(digest)["drawn"] for digest in digests.values()):  # images of the user's own
        return {"license": "unknown", "license_name": None, "license_link": None}
    ours = all(
        not digest.get("lora")
        and digest["captioner"] in (None, BUILTIN)
        and (digest["generator"] == BUILTIN or digest["what"] == "captions")
        for digest in digests.values()
    )
    return {"license": "apache-2.0" if ours else "unknown", "license_name": None, "license_link": None}


def metadata(
    old: Mapping[str, Any],
    facts: CardFacts,
    before: Digests,
    after: Digests,
    *,
    title: str,
    default_config: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """The values of our keys, given the `old` front matter; None for a key that is to go.

    `before` are the digests of the configurations in the card, `after` the same with this one; see `render_card`.

    Raises:
        HfsynError: an entry of that name has other data, or the default is not possible.
    """
    from huggingface_hub import DatasetCardData

    configs = _with_default(_configs(old, before, after, facts.config_name), old, facts.config_name, default_config)
    sources = [source_of(digest)["repo_id"] for digest in after.values()]
    data = [digest for digest in after.values() if digest["what"] == "data"]
    values: dict[str, Any] = {
        "pretty_name": old.get("pretty_name") or title,
        "language": old.get("language") or ["en"],
        **_licence(old, before, after, licence),
        "annotations_creators": old.get("annotations_creators") or ["machine-generated"],
        "task_categories": _union(old.get("task_categories"), ["image-classification"] if data else ["image-to-text"]),
        "task_ids": _union(old.get("task_ids"), ["multi-class-image-classification"] if data else []),
        "size_categories": _size(old, before, after),
        "source_datasets": _union(
            old.get("source_datasets"), [f"extended|{repo_id}" if repo_id else "original" for repo_id in sources]
        ),
        "tags": _union(
            old.get("tags"), ["synthetic", "hfsyn", *(d["strategy"] for d in data)] if data else ["captions", "hfsyn"]
        ),
        "configs": configs,
        "dataset_info": _infos(old, facts, configs),
    }
    # As the Hub's own class spells them, and without shared objects.
    known = DatasetCardData(**{key: value for key, value in values.items() if value is not None}).to_dict()
    return {key: copy.deepcopy(known.get(key)) for key in values}


def _union(old: Any, ours: Sequence[str]) -> Any:
    """The old values, then those of ours that are missing; unchanged (also a single string) where none is."""
    there = [] if old is None else list(old) if isinstance(old, list) else [old]
    missing = [name for name in dict.fromkeys(ours) if name not in there]
    return [*there, *missing] if missing else old


def _licence(old: Mapping[str, Any], before: Digests, after: Digests, licence: str | None) -> dict[str, Any]:
    keys = ("license", "license_name", "license_link")
    there = {key: old.get(key) for key in keys}
    if licence:
        return {**dict.fromkeys(keys), "license": licence}
    # Our own entry may change with a new configuration; a person's may not.
    return licence_of(after) if not there["license"] or (before and there == licence_of(before)) else there


def _size(old: Mapping[str, Any], before: Digests, after: Digests) -> Any:
    there = old.get("size_categories")
    ours_before = [size_category(sum(digest["rows"] for digest in before.values()))]
    if there and not (before and there == ours_before):
        return there
    return [size_category(sum(digest["rows"] for digest in after.values()))]


def _configs(old: Mapping[str, Any], before: Digests, after: Digests, name: str) -> list[dict[str, Any]]:
    """The entries: a person's as they are, ours replaced or added, also those of ours that were lost.

    The key `version` is for `datasets` before 2.16, which caches a configuration by name and version alone: without it
    every version would be the first one that was loaded.
    """
    there = old.get("configs") or []
    if not isinstance(there, list) or not all(isinstance(e, dict) and e.get("config_name") for e in there):
        raise HfsynError(
            "`configs` in the front matter of the dataset's README.md is not a list of entries with a `config_name`.",
            "Fix it, or remove it: hfsyn writes its own entries.",
        )
    entries = [dict(entry) for entry in there]
    for other, digest in after.items():
        files = data_files(digest)
        entry = next((entry for entry in entries if entry["config_name"] == other), None)
        number = digest.get("version")
        if entry is None:
            entry = {"config_name": other, "data_files": files}
            entries.append(entry)
        elif other == name and entry.get("data_files") != files:
            if name not in before:
                raise HfsynError(
                    f"The dataset has a configuration {name!r} that is not hfsyn's: {entry.get('data_files')}.",
                    "Publish under another configuration name, or remove that entry from its README.md.",
                )
            mine = {digest["split"], before[name]["split"]}
            entry["data_files"] = [*files, *_splits_of_others(entry.get("data_files"), mine)]
        if isinstance(number, str) and re.fullmatch(r"\d+\.\d+\.\d+", number):
            entry["version"] = number
    return _with_scores(entries, before, after)


def _with_scores(entries: list[dict[str, Any]], before: Digests, after: Digests) -> list[dict[str, Any]]:
    """The entries with those of scores, which go when there are none any more."""
    for other, digest in after.items():
        name = layout.scores_config(other)
        there = next((entry for entry in entries if entry["config_name"] == name), None)
        had = bool(before.get(other, {}).get("scores"))
        if there is not None and not had and digest.get("scores"):
            said = f"The dataset has a configuration {name!r}, which is where the scores of {other} would go."
            raise HfsynError(said, "Publish under another configuration name, or rename that one in its README.md.")
        if there is not None and had:
            entries = [entry for entry in entries if entry is not there]
        if digest.get("scores"):
            prefix = f"{digest['folder']}/" if digest["folder"] else ""
            files = [{"split": digest["split"], "path": f"{prefix}{layout.SCORES_TABLE}"}]
            number = {"version": digest["version"]} if digest.get("version") else {}
            entries = [*entries, {"config_name": name, "data_files": files, **number}]
    return entries


def _splits_of_others(data_files: Any, mine: Collection[str]) -> list[dict[str, Any]]:
    """Splits that a person added to an entry of ours."""
    items = data_files if isinstance(data_files, list) else []
    return [item for item in items if isinstance(item, dict) and item.get("split") not in mine]


def _with_default(
    entries: list[dict[str, Any]], old: Mapping[str, Any], name: str, wanted: str | None
) -> list[dict[str, Any]]:
    """The entries with `default: true` on exactly one: the wanted one, else the one that had it, else this one.

    `load_dataset` takes a configuration named `default` for the default, whatever the entries say.
    """
    names = [entry["config_name"] for entry in entries]
    if wanted is not None and wanted not in names:
        problem = f"There is no configuration {wanted!r} to be the default."
        raise HfsynError(problem, f"The dataset has: {', '.join(names)}.")
    there = [entry for entry in old.get("configs") or [] if isinstance(entry, dict)]
    was = [
        entry["config_name"] for entry in there if entry.get("default") or entry["config_name"] == layout.DEFAULT_CONFIG
    ]
    if not was and len(there) == 1:
        was = [there[0]["config_name"]]
    chosen = wanted or (was[0] if was else layout.DEFAULT_CONFIG if layout.DEFAULT_CONFIG in names else name)
    if layout.DEFAULT_CONFIG in names and chosen != layout.DEFAULT_CONFIG:
        raise HfsynError(
            f"{chosen!r} cannot be the default beside a configuration named 'default': load_dataset would refuse both.",
            "Publish under another name (--config-name NAME), or make 'default' the default (--set-default).",
        )
    for entry in entries:
        if entry["config_name"] != chosen:
            entry.pop("default", None)
        elif entry.get("default") is not True:
            entry.pop("default", None)
            entry["default"] = True  # as the last key
    return entries


def _infos(old: Mapping[str, Any], facts: CardFacts, configs: Sequence[Mapping[str, Any]]) -> Any:
    """`dataset_info` with ours replaced or added: one mapping, or a list of several, as `datasets` writes it."""
    there = old.get("dataset_info") or []
    infos: dict[str, dict[str, Any]] = {}
    for info in [there] if isinstance(there, dict) else there:
        if not isinstance(info, dict):
            raise HfsynError(
                "`dataset_info` in the front matter of the dataset's README.md is not a mapping or a list of mappings.",
                "Remove it: hfsyn writes its own.",
            )
        infos[info.get("config_name", layout.DEFAULT_CONFIG)] = info
    entry = next(entry for entry in configs if entry["config_name"] == facts.config_name)
    others = [item["split"] for item in _splits_of_others(entry["data_files"], {facts.split})]
    infos[facts.config_name] = _with_splits(_info(facts), infos.get(facts.config_name, {}), others)
    if len(infos) == 1 and len(configs) == 1:
        name, info = next(iter(infos.items()))
        rest = {key: value for key, value in info.items() if key != "config_name"}
        return rest if name == layout.DEFAULT_CONFIG else {"config_name": name, **rest}
    return [
        {"config_name": name, **{k: v for k, v in info.items() if k != "config_name"}} for name, info in infos.items()
    ]


def _with_splits(info: dict[str, Any], old: Mapping[str, Any], others: Sequence[str]) -> dict[str, Any]:
    """The information with a person's own splits; without sizes where one of these has none.

    `load_dataset` refuses a configuration that has other splits than these.
    """
    if not others or "splits" not in info:
        return info
    stated = old.get("splits")
    there = [one for one in stated if isinstance(one, dict)] if isinstance(stated, list) else []
    kept = [one for one in there if one.get("name") in others]
    if {one["name"] for one in kept} != set(others):
        return {key: value for key, value in info.items() if key not in ("splits", "download_size", "dataset_size")}
    more = sum(int(one.get("num_bytes") or 0) for one in kept)
    sizes = {key: info[key] + more for key in ("download_size", "dataset_size")}
    return {**info, "splits": [*info["splits"], *kept], **sizes}


def _info(facts: CardFacts) -> dict[str, Any]:
    """Features, splits and sizes of one configuration; of an unfinished one the features alone, as the rest changes."""
    from datasets import DatasetInfo
    from datasets.splits import SplitDict, SplitInfo

    from builders.runs.rows import captioned_features, synthetic_features

    names = [info.name for info in facts.variant.classes]
    paired = facts.recipe.prompt.pairing != "own"
    scores = (facts.manifest.get("selection") or {}).get("columns")
    made = synthetic_features(names, paired=paired, scores=scores)
    features = captioned_features(names) if facts.what == "captions" else made
    if facts.in_progress:
        return json.loads(json.dumps({"features": features._to_yaml_list()}))
    size = facts.download_bytes
    # The bytes of the Parquet files stand for the decoded size too: images are stored in them as they are.
    splits = SplitDict({facts.split: SplitInfo(facts.split, num_bytes=size, num_examples=facts.rows)})
    info = DatasetInfo(features=features, splits=splits, download_size=size, dataset_size=size)
    return json.loads(json.dumps(info._to_yaml_dict()))
