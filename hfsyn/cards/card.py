"""The text of a dataset's card: the same facts give the same card.

A card consists of blocks between two marks (see `hfsyn.cards.blocks`), which are written again each time, and of
the text around them, which stays. Its front matter is changed key by key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from builders.runs import layout
from hfsyn.cards import blocks as card_blocks
from hfsyn.cards.facts import TRIED_DATASETS, CardFacts, ChangelogEntry, Progress, source_of
from hfsyn.cards.front_matter import FrontMatter
from hfsyn.cards.metadata import licence_of, metadata
from hfsyn.cards.text import cell, recipe_block, render, uncell
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import BUILTIN
from hfsyn.recipes.strategies import get_strategy

COLUMNS = {
    "data": {
        "image": "the synthetic image, its bytes embedded",
        "label": "class of the real image, as a number with the class names",
        "wnid": "WordNet 3.0 id of that class: the same in all ImageNet variants, whose label numbers differ",
        "class_name": "name of that class, as in the prompt",
        "prompt": "the text that the generator was given",
        "caption": "what the captioner said of the real image; null where the recipe has no captions",
        "seed": "seed of the image's noise; of the last attempt, if it was made again",
        "sample_id": "identity of the image: the source id, `#`, and a number from 0",
        "source_id": "identity of the real image in its source",
        "prompt_tokens": "length of the prompt for the text encoder, in tokens, before any cut",
        "truncated": "whether the text encoder cut the prompt",
        "safety": "whether a safety checker flagged an attempt at this image",
        "retries": "attempts that were thrown away before this one",
        "caption_flags": "what looked wrong with the caption: `empty`, `repeated`, `no-class-word`",
    },
    "captions": {
        "source_id": "identity of the real image in its source; the image itself is not here",
        "wnid": "WordNet 3.0 id of its class",
        "label": "its class, as a number with the class names",
        "class_name": "name of its class",
        "caption": "what the captioner said of it",
        "caption_flags": "what looked wrong with the caption: `empty`, `repeated`, `no-class-word`",
        "source_sha256": "SHA-256 of the image file that was captioned",
        "width": "of the image in pixels, turned as its EXIF says",
        "height": "of the image in pixels, turned as its EXIF says",
    },
}
"""Every column of `builders.runs.rows` and what it means."""

_OWN_ID = "id of the class in the class map (`source.definition` of the recipe): a WordNet 3.0 id, or its author's own"

FLAGS = {
    "truncated": "the text encoder cut the prompt",
    "safety": "a safety checker flagged an attempt",
    "retried": "made again at least once, with another seed",
    "empty": "the caption is empty",
    "repeated": "the caption repeats a word over and over",
    "no-class-word": "the caption has no word of the class's name; common, and no fault by itself",
    "own-class": "images exchange captions between classes, and no caption of another class was left for this one",
}

MODEL_LICENCES = {
    "Salesforce/blip-image-captioning-base": "bsd-3-clause",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
}
"""As the models' pages on the Hub say; other licences are not known."""

# What a digest (see `CardFacts.digest`) must have to be used, and what older ones may lack.
_TEXTS, _NUMBERS = ("config", "what", "folder", "split", "variant", "strategy", "generator"), ("rows", "classes")
_MAYBE = ("captioner", "captioner_revision", "generator_revision", "sample_id", "in_progress")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_VERSION = re.compile(r"v?\d+\.\d+\.\d+")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
_CARRIED = re.compile(r"<!-- hfsyn:facts (\{.*\}) -->")
_ROW = re.compile(r"[ \t]*\|([^|]*)\|([^|]*)\|([^|]*)\|[ \t]*")
_BAR = 20


def render_card(
    facts: CardFacts,
    *,
    existing: str | None = None,
    repo_id: str | None = None,
    version: str | None = None,
    default_config: str | None = None,
    changelog: Sequence[ChangelogEntry] = (),
    licence: str | None = None,
    progress: Progress | None = None,
) -> str:
    """The text of README.md, front matter included.

    Args:
        facts: of the configuration that is published.
        existing: the README.md that is there; its line ends are kept, so read it without translating them.
        repo_id: where the dataset is published; None leaves a placeholder.
        version: the tag that it is published under.
        default_config: the configuration that `load_dataset` takes where none is named; None leaves it as it is, and
            the first published one becomes it.
        changelog: new entries; those of `existing` stay.
        licence: the Hub's name of a licence, which overrides what is known of the source's.
        progress: of a run that is still at work; None removes the block.

    Raises:
        HfsynError: the front matter of `existing` cannot be read, or the default or the name of the configuration
            cannot be had beside what is there.
    """
    if repo_id is not None and not _REPO.fullmatch(repo_id):
        raise HfsynError(f"{repo_id!r} is not the id of a repository.", "It looks like USER/NAME.")
    if version is not None and not _REVISION.fullmatch(version):
        raise HfsynError(f"{version!r} is not a version.", "It looks like v1.0.0.")
    card = FrontMatter(existing or "")
    there = card_blocks.blocks(card.body)
    before = _digests(there)
    # Without a version the entry keeps the one that it has: a card of unfinished work has none.
    number = {"version": version.removeprefix("v")} if version and _VERSION.fullmatch(version) else {}
    after = {**before, facts.config_name: {**facts.digest, **number}}
    title = repo_id.rpartition("/")[2] if repo_id else facts.recipe.name
    values = metadata(card.values, facts, before, after, title=title, default_config=default_config, licence=licence)
    shared = _shared(after, values["configs"])
    shared |= {"repo": repo_id or "PATH_OR_REPO_ID", "published": repo_id is not None, "version": version}
    entries = _changelog(changelog, there.get("changelog", ""))
    name, config = facts.config_name, {**shared, **_config(facts, after[facts.config_name])}
    blocks = {
        "intro": render("intro", shared),
        "progress": render("progress", _progress(progress)) if progress else None,
        f"config={name}": render(facts.what, config),
        "use": render("use", shared),
        f"made={name}": render(f"made_{facts.what}", config),
        "licence": render("licence", {**shared, **_licences(after), "stated": values["license"]}),
        "again": render("again", shared) if shared["data"] else None,
        "changelog": render("changelog", {"entries": entries}) if entries else None,
        "citation": render("citation", shared),
    }
    body = card.body if card.body.strip() else f"{card.newline}# {title}{card.newline}"
    return card.updated(values) + card_blocks.merge(body, blocks, card.newline)


def _shared(digests: Mapping[str, Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the templates of several blocks show; `entries` are the configurations of the front matter."""
    every = digests.values()
    data = [digest for digest in every if digest["what"] == "data"]
    default = next((digests.get(str(entry.get("config_name"))) for entry in entries if entry.get("default")), None)
    return {
        "first": default or [*data, *every][0],
        "images": sum(digest["rows"] for digest in data),
        "texts": sum(digest["rows"] for digest in every if digest["what"] == "captions"),
        "classes": max((digest["classes"] for digest in data), default=0),
        "unfinished": any(digest["in_progress"] for digest in data),
        "titles": "; ".join(dict.fromkeys(cell(source_of(digest)["title"]) for digest in data or every)),
        "configs": [{**digest, "title": source_of(digest)["title"]} for digest in every],
        "data": data,
        "captions": any(_captioned(digest) for digest in every),
        "least": TRIED_DATASETS[0],
        "tried": TRIED_DATASETS,
        "starting": [digest["config"] for digest in every if digest.get("starts_from") == "source"],
        "tuned_on": sorted({str(d[key]) for d in every for key in ("lora_tuned_on", "tuned_on") if d.get(key)}),
        "strategies": {digest["strategy"]: get_strategy(digest["strategy"]) for digest in every},
    }


def changelog_of(card: str) -> list[ChangelogEntry]:
    """The entries of a card's changelog, newest first."""
    return _changelog((), card_blocks.blocks(FrontMatter(card).body).get("changelog", ""))


def _config(facts: CardFacts, digest: Mapping[str, Any]) -> dict[str, Any]:
    """What the template of a configuration's block shows."""
    manifest, variant = facts.manifest, facts.variant
    named = {entry["wnid"] for entry in manifest["classes"]}
    return {
        "facts": facts,
        "recipe": facts.recipe,
        "variant": variant,
        "strategy": facts.strategy,
        "manifest": manifest,
        "judges": manifest.get("judges", {}),
        "selection": manifest.get("selection"),
        "scores": layout.scores_config(facts.config_name),
        "builtin": BUILTIN,
        "place": f"{facts.folder}/" if facts.folder else "",
        "preview": f"{layout.PREVIEW}/{layout.SAMPLES}",
        "columns": COLUMNS[facts.what]
        | _paired_columns(facts)
        | _score_columns(manifest)
        | ({"wnid": _OWN_ID} if facts.recipe.source.definition else {}),
        "flags": FLAGS,
        "rejected": [(*reason.partition(": ")[::2], count) for reason, count in manifest["rejected"].items()],
        "unreadable": manifest.get("unreadable_classes", []),
        "left_out": manifest.get("left_out", {}),
        "unused_weights": manifest.get("unused_weights", {}),
        "without": [info.name for info in variant.classes if info.wnid not in named] if named else [],
        "recipe_text": recipe_block(facts.recipe),
        # Only strings can hold these characters, which would end the comment or look like a link.
        "digest": re.sub(r"[<>`\[\]]|-(?=-)", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(digest)),
    }


def _paired_columns(facts: CardFacts) -> dict[str, str]:
    """What the columns of captions mean if images exchange them."""
    if facts.what != "data" or facts.recipe.prompt.pairing == "own":
        return {}
    told = "the caption in the prompt: of a real image of another class, the words for that class replaced"
    return {"caption": told, "caption_source_id": "identity of the real image that the caption was written for"}


def _score_columns(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What the columns of scores mean that the rows of a selection have."""
    wanted = (manifest.get("selection") or {}).get("columns", {})
    every = manifest.get("judges", {}).items()
    told = {c: f"what the judge {name} says: its {own}" for name, judge in every for c, own in judge["columns"].items()}
    return {column: told.get(column, "a score") for column in wanted}


def _captioned(digest: Mapping[str, Any]) -> bool:
    """Whether a configuration has texts about real images: from a captioner or a file, not from a language model."""
    source = get_strategy(digest["strategy"]).text_from
    return source in ("image", "file") or (digest["captioner"] is not None and source != "class")


def _digests(there: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The digests that the blocks of a card carry; damaged ones are ignored."""
    found = {}
    for key, text in there.items():
        match = _CARRIED.search(text)
        if not key.startswith("config=") or not match:
            continue
        try:
            digest = json.loads(match[1])
            source_of(digest)
            get_strategy(digest["strategy"])
        except (ValueError, KeyError, TypeError, HfsynError):
            continue
        whole = all(type(digest.get(name)) is str for name in _TEXTS)
        whole &= all(type(digest.get(name)) is int for name in _NUMBERS)
        if whole and digest["config"] == key.removeprefix("config="):
            found[digest["config"]] = {**dict.fromkeys(_MAYBE), **digest}
    return found


def _changelog(new: Sequence[ChangelogEntry], there: str) -> list[ChangelogEntry]:
    """New entries and those of the existing block, newest first; a new entry replaces the old one of its version."""
    rows = [found.groups() for line in there.splitlines() if (found := _ROW.fullmatch(line))]
    old = [ChangelogEntry(*map(uncell, row)) for row in rows]
    old = [entry for entry in old if entry.version != "version" and not set(entry.version) <= set(":-")]
    entries = {uncell(entry.version): entry for entry in [*old, *new]}

    def age(entry: ChangelogEntry) -> tuple[str, list[int]]:
        return entry.date, [int(digits) for digits in re.findall(r"\d+", entry.version)]

    return sorted(entries.values(), key=age, reverse=True)


def _progress(progress: Progress) -> dict[str, Any]:
    share = min(1.0, max(0.0, progress.done / progress.total)) if progress.total else 0.0
    full = int(share * _BAR)
    return {"progress": progress, "bar": "█" * full + "░" * (_BAR - full), "percent": int(share * 100)}


def _licences(digests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of every source and model: what it is, its name, its page or "", what is known of its licence."""
    parts: dict[tuple[str, str], tuple[str, str]] = {}
    for digest in digests.values():
        source = source_of(digest)
        # The page of a class map is whatever its author wrote: it becomes a link only where it can be one.
        page = source["page"] if re.fullmatch(r"https?://[\w./~%#?=&+:-]+", source["page"]) else ""
        parts["source", digest["variant"].partition("@")[0]] = (page, source["licence"])
        for role in ("captioner", "generator"):
            model = digest[role]
            if model and not (role == "generator" and digest["what"] == "captions"):
                parts[role, model] = _model_licence(model, digest[f"{role}_revision"])
        if isinstance(lora := digest.get("lora"), str):
            parts["LoRA", lora] = _model_licence(lora, str(digest.get("lora_revision")))
    return {
        "parts": [(role, name, page, text) for (role, name), (page, text) in parts.items()],
        "known": licence_of(digests)["license"],
        "photographs": any(not source_of(digest)["drawn"] for digest in digests.values()),
    }


def _model_licence(model: str, revision: str | None) -> tuple[str, str]:
    """The page of a model and what is known of its licence."""
    if model == BUILTIN:
        return "", "Apache-2.0: a small model that comes with hfsyn"
    page = f"https://huggingface.co/{model}" if _REPO.fullmatch(model) else ""
    if model in MODEL_LICENCES:
        return page, f"{MODEL_LICENCES[model]}, as its page says; read there what it asks of users"
    if page and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return page, "not known to hfsyn: see its page"
    return "", "not known: the model was read from a local folder, or its revision was not recorded"
