"""What is known about a variant, by name: for people, and for the tables that the README shows."""

from __future__ import annotations

from typing import Any

from builders.variants.variant import Variant

_FOUND = "found by its name"


def facts_of(variant: Variant) -> dict[str, Any]:
    """All that a row of the table says, and how to get at the images; None where there is nothing to say."""
    hub = variant.hub
    wnids = variant.hub_label_wnids
    return {
        "name": variant.name,
        "title": variant.title,
        "classes": len(variant.classes),
        "splits": dict(variant.splits),
        "images": variant.images,
        "licence": variant.licence,
        "hub": hub.repo_id if hub else None,
        "config": hub.config if hub else None,
        "revision": (hub.revision or "the newest") if hub else None,
        "columns": {"image": hub.image_column or _FOUND, "label": hub.label_column or _FOUND} if hub else None,
        "repository's splits": dict(hub.splits) if hub else None,
        "labels": _labels(variant, wnids) if hub and hub.archive is None else None,
        "access": how_to_get(variant),
        "homepage": variant.homepage or None,
        "facts": dict(variant.facts),
    }


def access(variant: Variant) -> str:
    """How the images are had, in a word."""
    if variant.hub is None:
        return "drawn" if variant.drawn else "folder"
    return "archive" if variant.hub.archive else "gated" if variant.gated else "streamed"


def how_to_get(variant: Variant) -> str:
    """One sentence: where the images come from, and what to do where they do not come by themselves."""
    hub = variant.hub
    if variant.drawn:
        return "drawn by this package, with no network"
    if hub is None:
        return "a local folder: --set source.path=FOLDER"
    if hub.archive is not None:
        at = f" --revision {hub.revision}" if hub.revision else ""
        return (
            f"an archive, which cannot be streamed: hf download {hub.repo_id} {hub.archive} --repo-type dataset{at} "
            f"--local-dir . , unpack it, and --set source.path={variant.archive_folder or 'FOLDER'}"
        )
    if variant.gated:
        return f"gated: ask for access at {hub.url}, then hf auth login with a token that may read"
    return "streamed from the Hub without an account"


def _labels(variant: Variant, wnids: tuple[str, ...]) -> str:
    """How the labels of the repository become wnids."""
    assert variant.hub is not None
    if variant.hub.label_column == "wnid":
        return "wnids as they stand"
    order = "in the order of the classes" if list(wnids) == [info.wnid for info in variant.classes] else "by a map"
    names = "names compared when read" if variant.hub_label_names is None else "names known and compared when read"
    return f"numbers 0 to {len(wnids) - 1} {order}, the first {wnids[0]}, the last {wnids[-1]}; {names}"
