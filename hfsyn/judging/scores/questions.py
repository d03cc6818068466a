"""A model that looks at images as a judge: does this show its class? Its answer, and the probability of yes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.variants import ClassInfo
from builders.yaml import is_yaml_name
from hfsyn.captions.questions import Questioner
from hfsyn.judging.scores.pictures import Row, in_batches
from hfsyn.models.finding import pin
from hfsyn.recipes.loading import fragments, load_fragment
from hfsyn.recipes.recipe import BUILTIN, CaptionPart, check_part
from hfsyn.runs.scores import Judge

QUESTION = "Does this image show a {c}? Answer yes or no."
_TOKENS = 5  # of an answer
COLUMNS = {"p_yes": "number", "answer": "text"}


def question_judge(name: str, model: str, classes: Mapping[str, ClassInfo], device: str) -> Judge:
    """A judge from a captioner of `hfsyn captioners ls`, the YAML file of one, or a model of transformers by its place.
    The question of the file takes the place of `QUESTION` if it has a ``{c}`` and a question mark.

    Raises HfsynError if there is none, or as `Questioner`.
    """
    part = asking(model)
    asker = Questioner(part, device, classes=list(classes.values()))
    facts = {"kind": "question", "question": str(part.prompt), "dtype": part.dtype}
    facts |= {"model": BUILTIN if part.model == BUILTIN else Path(part.model).name, "weights": str(part.revision)}

    def say(pictures: Sequence[Any], rows: Sequence[Row]) -> list[Row]:
        said = asker.answers(pictures, [classes[row["wnid"]] for row in rows])
        return [{"p_yes": one.yes, "answer": one.text} for one in said]

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        return in_batches(rows, lambda picture, row: picture, say, part.batch_size)

    return Judge(name, COLUMNS, facts, of, device)


def asking(model: str) -> CaptionPart:
    """The caption part of a recipe that asks the question, its model pinned."""
    known = model in fragments("captioner") or is_yaml_name(model)
    given = load_fragment("captioner", model).part if known else {"model": model}
    asked = str(given.get("prompt") or "")
    question = asked if "{c}" in asked and "?" in asked else QUESTION
    fields = {
        **given,
        "prompt": question,
        "max_new_tokens": _TOKENS,
        "num_beams": 1,
        "top_p": None,
        "temperature": None,
    }
    part: Any = check_part("caption", fields, model)
    return part.model_copy(update={"revision": pin(part.model, part.revision, "captioner")})
