"""Images that a model refuses: set aside with the reason, one by one; but a model that takes none is broken.

A batch that fails is asked again in halves, padded to the same size, until the images are found that it fails for; the
others get the captions that they would have had.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from builders.errors import first_line
from hfsyn.captions.token_drawing import Refused
from hfsyn.errors import HfsynError
from hfsyn.images.tuning import is_out_of_memory
from hfsyn.runs.run import REFUSES

T = TypeVar("T")
MOST = 32  # images that a model may refuse before it has taken any
_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:\\|/|~/)[^\s'\",;:)]+")


class Reason(str):
    """Why the text is missing."""

    __slots__ = ()


def is_refusal(error: Exception) -> bool:
    """Whether an error may be one image's fault: neither a lack of memory, nor a message for the user already."""
    return not is_out_of_memory(error) and (isinstance(error, Refused) or not isinstance(error, HfsynError))


@dataclass(eq=False)
class Tally:
    """What a model took and refused in this process. Images are looked at by one thread, and asked about by another.

    `model` is its name, empty if no model is asked and earlier captions are taken; `elsewhere` tells whether it has
    taken an image in another process, or earlier.
    """

    model: str
    elsewhere: Callable[[], bool]
    looked: int = 0  # images that the model's processor took
    taken: int = 0  # images that the model gave a text for
    _refused: list[str] = field(default_factory=list)

    @property
    def doubtful(self) -> bool:
        """Whether the model has refused images, and taken none."""
        return bool(self.model and self._refused) and not self.taken and not self.elsewhere()

    def refuse(self, error: Exception, *, asked: bool) -> str:
        """The reason, for an image that is set aside, without paths of this machine; `asked`: by the model itself,
        whose processor took it.

        Raises HfsynError if many were refused, and none was taken.
        """
        said = error.reason if isinstance(error, Refused) else _PATH.sub("...", first_line(error))
        reason = f"{REFUSES}: {' '.join(said.split())[:160]}"
        self._refused.append(reason)
        known = self.taken if asked else self.looked
        if self.model and len(self._refused) >= MOST and not known and not self.elsewhere():
            raise self.broken() from error
        return reason

    def broken(self) -> HfsynError:
        """The error of a model that has taken no image."""
        said = f"{self.model} took none of the first {len(self._refused)} images; the first: {self._refused[0]}."
        return HfsynError(said, "Nothing was set aside. Name another caption.model, or check the images.")

    def asked(
        self, ask: Callable[[Sequence[T]], Sequence[str | None]], items: Sequence[T]
    ) -> list[str | Reason | None]:
        """The text of each of at least one item, or why the model refuses it.

        Raises HfsynError if the model is broken.
        """
        try:
            texts = list(ask(items))
        except Exception as error:  # libraries raise anything if one image is at fault
            if not is_refusal(error):
                raise
            if len(items) == 1:
                return [Reason(self.refuse(error, asked=True))]
        else:
            self.taken += len(texts)
            return list(texts)
        half = (len(items) + 1) // 2
        return [*self.asked(ask, items[:half]), *self.asked(ask, items[half:])]
