"""What the prompt part of a recipe must say, and what of it is this machine's own and no part of a name.

Two of its fields name files of the user's: the function that writes the prompts, and the texts that stand in them. A
run pins both by their content, as it does models; where they lie is left out of the fingerprint and of what is
published, and a stranger's recipe may name neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.recipes.parts import CaptionPart, PromptPart
from hfsyn.recipes.strategies import get_strategy, is_user_strategy

HUB = "hf://datasets/"
"""How a dataset of the Hub is named where a file may stand too."""
PINS = {"strategy": "strategy_sha256", "captions_file": "captions_revision"}
"""Fields of the prompt part that name a file, each with the field that names its content."""
_EXAMPLE = "Salesforce/blip-image-captioning-base"


def check_prompt(prompt: PromptPart, caption: CaptionPart | None) -> None:
    """Refuse a prompt part whose fields do not fit each other or the caption part.

    Raises:
        HfsynError: see the messages.
    """
    strategy = get_strategy(prompt.strategy)
    name, file = strategy.name, prompt.captions_file
    check_domain(prompt)
    if prompt.captions_revision is not None and file is None:
        raise HfsynError(
            f"prompt.captions_revision is {prompt.captions_revision[:80]!r}, and there is no prompt.captions_file.",
            "Name the file that it is of, or leave it out.",
        )
    if prompt.strategy_sha256 is not None and not is_user_strategy(name):
        raise HfsynError(
            f"prompt.strategy_sha256 is {prompt.strategy_sha256[:80]!r}, and strategy {name!r} has no file.",
            "Leave it out: it is for a function of one's own.",
        )
    if strategy.text_from == "file" and file is None:
        raise HfsynError(
            f"Strategy {name!r} needs the texts of a file, and prompt.captions_file is null.",
            '--set prompt.captions_file=texts.jsonl, lines such as {"source_id": "n01440764/0.jpg", "prompt": "..."}',
        )
    if file is not None and caption is not None:
        raise HfsynError(
            f"The captions come from {file}, and the recipe has a captioner too, {caption.model}.",
            "Keep one of them: --set caption=null, or --set prompt.captions_file=null",
        )
    if file is not None and not strategy.needs_caption and not is_user_strategy(name):
        raise HfsynError(
            f"prompt.captions_file is {file!r}, and strategy {name!r} has no place for its texts.",
            "--strategy captions-file takes them as they are, cip puts the class before them.",
        )
    if strategy.needs_caption and caption is None and file is None:
        what = "a language model that writes its texts" if strategy.text_from == "class" else "captions"
        raise HfsynError(
            f"Strategy {name!r} needs {what}, and the recipe has no caption part.",
            "Give it one: --captioner of `hfsyn captioners ls`, or prompt.captions_file."
            if strategy.text_from == "class"
            else f"Give it one, e.g. `caption: {{model: {_EXAMPLE}}}`.",
        )
    if caption is not None and caption.draws and caption.num_beams > 1:
        raise HfsynError(
            f"caption.num_beams is {caption.num_beams}, and caption.top_p or temperature draw tokens at random.",
            "Set num_beams to 1, or top_p and temperature to null.",
        )


def check_domain(prompt: PromptPart) -> None:
    """Refuse a domain for which the strategy has no place, and a strategy that lacks its domain.

    Raises:
        HfsynError: see the messages.
    """
    name = prompt.strategy
    if name == "domain" and not prompt.domain:
        raise HfsynError("Strategy 'domain' needs a word, and prompt.domain is null.", "--set prompt.domain=pet")
    if name != "domain" and prompt.domain is not None:
        raise HfsynError(
            f"prompt.domain is {prompt.domain!r}, and strategy {name!r} has no place for it.",
            "--set prompt.domain=null, or --strategy domain",
        )


def drop_stale_pins(fields: Mapping[str, Any], overridden: set[str]) -> None:
    """Where another function or file was named, forget the content that was the other one's."""
    prompt = fields.get("prompt")
    for key, pin in PINS.items():
        if isinstance(prompt, dict) and f"prompt.{key}" in overridden and f"prompt.{pin}" not in overridden:
            prompt[pin] = None


def refuse_own_files(fields: Mapping[str, Any], where: str, overridden: set[str]) -> None:
    """Refuse the recipe of a stranger that would read a file of this machine, or run one; not where the user says
    which.
    """
    prompt = fields.get("prompt")
    if not isinstance(prompt, Mapping):
        return
    strategy, file = str(prompt.get("strategy")), prompt.get("captions_file")
    if is_user_strategy(strategy) and "prompt.strategy" not in overridden:
        raise HfsynError(
            f"The prompts of {where} were written by a function of its author's, {strategy!r}, and hfsyn runs no code "
            "of others.",
            "If you have the file and trust it: --strategy path/to/file.py:function",
        )
    if file is not None and not str(file).startswith(HUB) and "prompt.captions_file" not in overridden:
        raise HfsynError(
            f"The captions of {where} come from a file of its author's, {file!r}.",
            "If you have it: --set prompt.captions_file=FILE; or take the published captions: --captions",
        )


def leave_out_places(prompt: dict[str, Any]) -> None:
    """Reduce the prompt part of a fingerprint to what decides bytes: content, not where it lies."""
    if prompt.get("strategy_sha256") is not None:
        prompt["strategy"] = prompt["strategy"].rpartition(":")[2]
    if prompt.get("captions_revision") is not None:
        if prompt["captions_file"].startswith(HUB):
            prompt["captions_file"] = prompt["captions_file"].partition("@")[0]
        else:
            del prompt["captions_file"]


def published_prompt(prompt: PromptPart) -> PromptPart:
    """The prompt part without the folders of this machine."""
    changes = {}
    if is_user_strategy(prompt.strategy):
        changes["strategy"] = f"./{PurePath(prompt.strategy).name}"
    if prompt.captions_file is not None and not prompt.captions_file.startswith(HUB):
        changes["captions_file"] = f"./{PurePath(prompt.captions_file).name}"
    return prompt.model_copy(update=changes)
