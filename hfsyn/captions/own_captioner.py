"""A captioner of the user's: a class in a Python file, ``path/to/file.py:Class``, pinned by the content of its file.

It is made with the recipe's part `caption` and the device. One with `caption` alone (see
`hfsyn.captions.captioner.Captioner`) is asked for the images of a batch. One that also has ``look(image, info)``, which
prepares an RGB image in any thread, and ``ask(views, seeds)``, which returns a function that says the captions of what
`look` gave, is prepared for ahead; it may draw words by the seeds, of which each image has its own.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from builders.errors import brief
from hfsyn.captions.texts import clean
from hfsyn.errors import HfsynError
from hfsyn.models.finding import pin
from hfsyn.recipes.recipe import CaptionPart
from hfsyn.recipes.strategies import content_of, is_user_strategy, loaded_function, split_name

FORM = "A captioner is a class that is made of (part, device) and has caption(images) -> list of str."
is_own_captioner = is_user_strategy
"""Whether the model of a recipe's captioner is a class of the user's."""


def own_captioner(part: CaptionPart, device: str) -> Any:
    """The captioner that ``caption.model`` names; what it returns is checked.

    Raises HfsynError if there is no such class, the file is not the one that the recipe means, the class cannot be
    made, or it has no `caption`.
    """
    pin(part.model, part.revision, "captioner")
    path, name = split_name(part.model, "captioner")
    made = loaded_function(path, name, content_of(part.model), 2, FORM)
    try:
        found: Any = made(part, device)
    except HfsynError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's class raises, but not Ctrl-C
        said = f"{path.name}:{name} cannot be made: {type(error).__name__}: {brief(error)}"
        raise HfsynError(said, "Fix it first.") from None
    label = f"{path.name}:{name}"
    if not callable(getattr(found, "caption", None)):
        raise HfsynError(f"{label} has no method caption.", FORM)
    checked = {"caption": lambda images: _texts(found.caption(images), len(images), label)}
    if hasattr(found, "look") and hasattr(found, "ask"):

        def ask(views: Sequence[Any], seeds: Sequence[int] | None = None) -> Callable[[], list[str]]:
            answer = found.ask(views, seeds)
            return lambda: _texts(answer(), len(views), label)

        checked |= {"look": found.look, "ask": ask}
    elif part.draws:
        said = f"caption.top_p or temperature draw words by each image's seed, which {label} does not take."
        raise HfsynError(said, "Set both to null, or give it look(image, info) and ask(views, seeds).")
    return SimpleNamespace(**checked)


def _texts(said: Any, count: int, label: str) -> list[str]:
    """What a captioner said of `count` images, checked."""
    if not isinstance(said, list) or len(said) != count or not all(isinstance(text, str) for text in said):
        told = f"{label} said {brief(repr(said), 120)} of {count} images."
        raise HfsynError(told, "It must return a list with one str for each image.")
    return [clean(text) for text in said]
