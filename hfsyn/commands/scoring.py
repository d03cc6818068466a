"""The commands that say what each image is worth, keep the better ones, and find what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hfsyn.commands.hub import token_option
from hfsyn.commands.options import Finite, answer_options, echo, number, processes_option, table_text


@click.command("score", short_help="Let judges say something of each image of RUN.")
@click.argument("run")
@click.option("--judge", multiple=True, metavar="[NAME=]JUDGE", help="Who says something; repeatable.")
@click.option("--from", "training", metavar="TRAINING", help="What this training has shown, with `train --record`.")
@click.option("--out", metavar="DIR", help="Folder for the scores of a published set.")
@click.option("--config-name", metavar="NAME", help="A configuration of a published set.")
@click.option("--overwrite", is_flag=True, help="Delete the scores that a judge of this name has left.")
@processes_option("Processes on this machine. Default: one per GPU, or one per CPU core.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda. Default: each process's own GPU, or the CPU.")
@click.option("--budget-hours", type=Finite(0, 1e6, min_open=True), metavar="H", help="Begin no shard after this long.")
@answer_options
def score_command(as_json: bool, quiet: bool, **words: Any) -> None:
    """Let judges say something of each image of RUN, or of USER/NAME@VERSION. Prints the path of the scores.

    \b
    hfsyn score runs/cip --judge out/real                     a classifier: p_label, margin, entropy, predicted
    hfsyn score runs/cip --judge crossfit:out/parts           the same by networks that have not seen the image
    hfsyn score runs/cip --judge copies --judge copies:source copies within the set, and of the real images
    hfsyn score runs/cip --judge vlm:smolvlm                  does this show a CLASS? answer, p_yes
    hfsyn score runs/cip --judge safety:opennsfw              p_sfw, p_nsfw
    hfsyn score runs/cip --judge mine.py:sharpness            a function (image, row) of your own
    hfsyn score runs/cip --from out/cip                       early_loss, margin, forgotten, likeness, influence

    \b
    The same command continues. `hfsyn look RUN --by COLUMN` shows the best and the worst, `hfsyn select` keeps some.
    """
    from hfsyn import score

    found = score(**words, quiet=quiet or as_json)
    if found is None:
        return
    if not (as_json or quiet):
        click.echo("\n".join(found.lines()), err=True)
    echo(found.as_dict(), found.table, as_json=as_json, quiet=quiet)


@click.command("select", short_help="Keep those rows of RUN that a rule keeps.")
@click.argument("run")
@click.option("--out", metavar="DIR", help="The new run folder.")
@click.option("--where", metavar="CONDITION", help="True for the rows to keep, as after SQL's WHERE.")
@number("--per-class", help="Of these at most N of each class.")
@click.option("--by", metavar="COLUMN", help="Whose largest values go first; with - before it, the smallest.")
@click.option("--scores", metavar="DIR", help="Where `hfsyn score --out` put the scores of a published set.")
@click.option("--columns", is_flag=True, help="Give each row its scores as columns; every shard is written again.")
@click.option("--dry-run", is_flag=True, help="Say what would stay; write nothing.")
@click.option("--config-name", metavar="NAME", help="A configuration of a published set.")
@token_option
@answer_options
def select_command(as_json: bool, quiet: bool, **words: Any) -> None:
    """Keep those rows of RUN, or of USER/NAME@VERSION, that a rule keeps. Prints the new run folder.

    \b
    hfsyn select runs/cip --where "p_label >= 0.5 and not copy" --out runs/cip-kept
    hfsyn select runs/cip --per-class 100 --by margin --out runs/cip-100
    hfsyn select runs/cip --where "not truncated" --dry-run

    What would stay of each class is printed before anything is written. The condition may name columns of the set and
    of its scores; the result is a run that can be verified, published and scored again.
    """
    from hfsyn import select

    def tell(found: Any) -> None:
        if not (as_json or quiet):
            click.echo(table_text(found.classes), err=True)
            click.echo("\n".join(found.lines()), err=True)

    found = select(**words, quiet=quiet or as_json, tell=tell)
    text = found.lines()[-1] if found.run is None else found.run
    echo(found.as_dict(), text, as_json=as_json, quiet=quiet)


@click.command("audit", short_help="Say what MODEL lacks, in words, and write a recipe for it.")
@click.argument("model")
@click.option("--factors", required=True, metavar="NAME|FILE", help="What varies: shapes, photo-basics, or a file.")
@click.option("--out", required=True, metavar="AUDIT", help="Folder of the audit; run again, it continues.")
@click.option("--recipe", metavar="RECIPE", help="Who draws, and which classes.  [default: the factor file's]")
@click.option("--generator", metavar="NAME", help="Generate with this model of `hfsyn generators ls`, or a file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field of the recipe.")
@number("--images", default=1600, show_default=True, help="Images of all classes with all levels.")
@number("--confirm", least=0, help="Most new images of what seems wrong in those.  [default: half as many]")
@number("--repair", least=0, default=300, show_default=True, help="Images of the repair recipe; 0 writes none.")
@click.option("--classes", metavar="NAMES", help="Of these classes alone, with commas between.")
@click.option("--reader", metavar="NAME", help="Reads back what images show: a captioner, vlm:NAME, none.")
@number("--seed", least=0, most=2**31 - 1, default=0, show_default=True, help="Of the design.")
@processes_option("Processes on this machine. Default: one per GPU, or one per CPU core.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda. Default: each process's own GPU, or the CPU.")
@click.option("--budget-hours", type=Finite(0, 1e6, min_open=True), metavar="H", help="Begin no shard after this long.")
@answer_options
def audit_command(as_json: bool, quiet: bool, **words: Any) -> None:
    """Say what MODEL lacks: where it is wrong more often than elsewhere, the most costly first.

    Images of all classes with all levels of some factors (colour, background, weather, ...) are made, those that do not
    show what they should are left out, and MODEL, any classifier of `hfsyn evaluate`, judges the others. Prints the
    path of a page with all of it; AUDIT/repair.yaml is a recipe of images for what was found.

    \b
    hfsyn audit out/real --factors shapes --out out/audit
    hfsyn audit resnet50.a1_in1k --factors photo-basics --recipe imagenette-basic --reader blip-base --out out/audit
    hfsyn build out/audit/repair.yaml --out runs/repair
    hfsyn train --train-dataset imagenette --train-dataset runs/repair --out out/repaired
    """
    from hfsyn import audit

    found = audit(**words, quiet=quiet or as_json)
    if found is None:
        return
    if not (as_json or quiet):
        click.echo(found.text())
    echo(found.as_dict(), found["page"], as_json=as_json, quiet=quiet)


_EXAMPLE = """\
recipe: shapes-basic        # who draws
factors: shapes             # what can be drawn: classes, and levels of factors
train: shapes               # the training recipe
start: []                   # sets that every classifier is trained on, too
policy: hard-classes        # uniform, hard-classes, uncertain, not-learned-early, audit, or path/to/file.py:function
images: 200                 # of a round
rounds: 3                   # after the first one, in which images are of all kinds alike
candidates: 4               # of uncertain: for each image that is kept
strength: 0.5               # of not-learned-early: how much of the image that it begins from is drawn over
steer: {dataset: shapes, split: "train[held 5%]"}      # what a policy may know
test: {dataset: shapes, split: test}
weights: new                # or last: go on from those of the last round
stop: {images: null, hours: null, without_gain: null}  # end before the last round; without_gain: 2 is of two rounds
"""


def _print_example(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(_EXAMPLE, nl=False)
        context.exit()


@click.command("loop", short_help="Draw what the last classifier lacks, train again, round by round.")
@click.argument("file", metavar="LOOP.yaml")
@click.option("--out", required=True, metavar="LOOP", help="Folder of the loop; run again, it continues.")
@processes_option("Processes that draw and judge. Default: one per GPU, or one per CPU core.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda. Default: each process's own GPU, or the CPU.")
@click.option(
    "--example", is_flag=True, is_eager=True, expose_value=False, callback=_print_example, help="Print a LOOP.yaml."
)
@answer_options
def loop_command(as_json: bool, quiet: bool, **words: Any) -> None:
    """Draw what the last classifier lacks, train again, and so on; `uniform` runs beside. Prints the path of the curve.

    Each round has images as its policy plans them, from what is known of the last classifier on real images that are
    not the test: `hard-classes` by the error of each class, `uncertain` by its entropy, `not-learned-early` by the
    losses of its training, `audit` by what `hfsyn audit` finds, a function of your own by whatever it likes. Rounds are
    ordinary run and training folders; LOOP/POLICY/to-round-K is a run of all their images.

    \b
    hfsyn loop --example > loop.yaml
    hfsyn plan loop.yaml                    images, hours and disk by round
    hfsyn loop loop.yaml --out out/loop
    hfsyn status out/loop                   which round is at what
    hfsyn report out/loop                   a page: the curve, what was planned, pictures
    """
    from hfsyn import loop

    found = loop(**words, quiet=quiet or as_json)
    if not (as_json or quiet):
        click.echo(found.text(), err=True)
    echo(found.as_dict(), str(Path(found["out"]) / "curve.json"), as_json=as_json, quiet=quiet)


SCORING = (score_command, select_command, audit_command, loop_command)
