"""What a matrix is made of: arms, tests, and the other columns of its table.

A name of a dataset may hold ``{seed}`` and, if the matrix has variants, ``{variant}``: what the cell has.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hfsyn.judging.measures.fidelity import DEFAULT_FEATURES
from hfsyn.recipes.loading import Count, Part, Text

Name = Annotated[str, Field(pattern=r"^[\w][\w .,+-]{0,60}$")]
Numbers = Annotated[tuple[Annotated[int, Field(ge=0, le=10**9)], ...], Field(min_length=1, strict=False)]
_Some = Annotated[tuple[Text, ...], Field(strict=False)]


class Arm(Part):
    """One kind of training set."""

    train: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    """Datasets, each `[VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT]`; {seed} stands for the seed."""
    split: Text | None = None
    """Split to train on; null is `train`, or the only one."""
    recipe: Text | None = None
    """The recipe that makes its run folders: `--dry-run` says what those cost that are not there yet."""
    generator: Text | None = None
    """The generator that goes with that recipe; null is the recipe's own."""
    order: Text | None = None
    """Filled in by the axis `keep`: the column by which its images are kept, or `random`."""


class Mix(Part):
    """Images that are mixed into every arm."""

    dataset: Text
    """Usually the real set."""
    shares: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1, strict=False)]
    """Share of these images in an epoch, 0 up to but not 1; each value is a point of the mixing curve."""


class Keep(Part):
    """Shares of the images of every arm, which must have scores: those with the largest, and as many at random."""

    by: Annotated[str, Field(pattern=r"^-?[A-Za-z_]\w{0,60}$")]
    """A column of the scores; with a minus before it, the smallest values are kept."""
    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1, strict=False)]
    """Of each class, above 0 to 1; each value is a point of the curve."""


class Real(Part):
    """Real images that are trained on beside those of an arm, in several numbers."""

    dataset: Text
    """The real set; {seed} stands for the seed."""
    numbers: Numbers
    """Images per class; 0 leaves them out."""


class Asked(Part):
    """A column, and which cells it is asked of."""

    arms: _Some | None = None
    """Only of these arms; null is all."""
    variants: _Some | None = None
    """Only of these variants; null is all."""

    def of(self, arm: str, variant: str | None) -> bool:
        """Whether it is asked of an arm's cells of a variant."""
        return (self.arms is None or arm in self.arms) and (self.variants is None or variant in self.variants)


class Test(Asked):
    """One evaluation set."""

    dataset: Text
    """One dataset, written as for training; {seed} stands for the seed."""
    split: Text | None = None
    """Split to test on; null is `validation`, else `test`, else the only one."""


class Membership(Asked):
    """Whether each classifier gives away what stands behind its training."""

    members: Text
    """The real images behind the training."""
    others: Text
    """Images of the same kind that no classifier saw."""
    members_split: Text | None = None
    """Null is `train`, or the only one, without what is held out for choosing."""
    others_split: Text | None = None
    """Null is `validation`, else `test`, else the only one."""
    limit: Count | None = None
    """At most that many images per class of each; null is all."""


class Fidelity(Asked):
    """How near each arm's set is to the real one, and what in it is a copy."""

    real: Text
    """The real set."""
    features: Text = DEFAULT_FEATURES
    """The network whose features are compared: a name of timm, or `random:NAME`."""
    evaluation: Text | None = None
    """What classifiers are tested on: are there copies of it? null does not look."""
    limit: Count | None = None
    """At most that many images per class of each set; null is all."""


class SelectOn(Part):
    """Images on which learning rates and training recipes are chosen, and nothing is reported."""

    dataset: Text
    """A set of its own; or, with `share`, the real set behind the arms."""
    split: Text | None = None
    """Its split; null is `validation`, else `test`; with `share` it is `train`."""
    share: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """This share of the real images is held out, by the hash of their ids: no arm is trained on them, nor on what was
    made from them; above 0, up to 0.5. null holds nothing out.
    """
