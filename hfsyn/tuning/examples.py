"""What a tuning shows: images with the texts that are true of them, of a run, of any dataset, or drawn beforehand.

A dataset is read by `datasets`, at a commit: Parquet, a folder of images with a `metadata.jsonl`, what `save_to_disk`
wrote, or a repository on the Hub. It needs a column of images and one of texts, or of lists of texts, and no classes.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import brief, did_you_mean, quoted
from builders.images.decoding import ImageRejected, decoded
from builders.sources.columns import IMAGE_COLUMNS, holds_images
from builders.variants import get_variant
from hfsyn.cards.facts import source_facts
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.images.generate_stage import SourcePictures
from hfsyn.images.generator import FLAT_RANGE
from hfsyn.images.tuning import BatchSize
from hfsyn.models.loras import OF_SPLIT
from hfsyn.models.pipelines import call_options, size_of
from hfsyn.recipes.parts import SourcePart
from hfsyn.recipes.recipe import Recipe, TunePart
from hfsyn.rules import seed_of
from hfsyn.runs.run import Run, check_complete
from hfsyn.runs.specs import plan
from hfsyn.runs.stage import read_captions

TEXT_COLUMNS = ("prompt", "prompts", "text", "texts", "caption", "captions", "sentence", "sentences")
"""Names of columns that may hold the texts, the first that is there is taken."""
UNREADABLE, SMALL = "image that cannot be read", "image that is smaller than the resolution"
FLAT = "image of the model itself that its safety checker flagged, or in which nothing is"
"""Why an image is left out when it is encoded."""
Pictures = Callable[[Sequence[int]], list[Any]]
"""Of each number its RGB images at the size of the recipe, one for each crop, or why it is left out: `UNREADABLE`,
`SMALL` or `FLAT`.
"""
_SAMPLED = 8  # images whose bytes go into the content of a dataset


@dataclass(frozen=True, slots=True)
class Example:
    """One image to learn from."""

    key: str  # unique: what is random about it follows from this and from the step
    prompts: tuple[str, ...]  # one of them is drawn each time
    group: str = ""  # the name of its class, if it has one
    wnid: str = ""


@dataclass(frozen=True)
class Examples:
    """What is shown, and where it is from."""

    rows: Sequence[Example]
    open: Callable[[DenoisingLoss], Pictures]
    title: str
    reference: str  # how they are named where datasets are; a folder of one's own is `./NAME`, which is not opened
    page: str | None = None
    licence: str = "unknown"
    told: str = "with their texts"  # whose texts these are
    content: str = ""  # what else says which images these are
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all ids and texts, and of the content."""
        lines = "\n".join("\t".join((one.key, *one.prompts)) for one in self.rows)
        return hashlib.sha256(f"{lines}\n{self.content}".encode()).hexdigest()


def _fitting(loss: DenoisingLoss, part: TunePart) -> Callable[[Any], Any]:
    """What makes an image those that are shown; one of the very size is shown as it is.

    The crops lie in the middles of equal parts of the way along the longer side, so that all of it is seen as often.
    """
    places = [(number + 0.5) / part.crops for number in range(part.crops)]

    def fit(image: Any) -> Any:
        if not part.enlarge and (image.width < loss.size[0] or image.height < loss.size[1]):
            return SMALL
        return [image.copy() if image.size == loss.size else loss.fit(image, at) for at in places]

    return fit


def of_run(run: Run, part: TunePart) -> Examples:
    """The captioned images of a run, told the prompts of its recipe's strategy, each its own caption.

    Raises HfsynError if captions are missing, or no image can be used.
    """
    check_complete("caption", run.caption_shards(), run)
    # Captions are exchanged only when something is drawn: here a prompt must be true of its image.
    own = run.recipe.with_fields("prompt", pairing="own", images_per_caption=1)
    taken: Counter[str] = Counter()
    specs = []
    for spec in plan(own, read_captions(run.caption_shards())):
        taken[spec.wnid] += 1
        if part.shots is None or taken[spec.wnid] <= part.shots:
            specs.append(spec)
    if not specs:
        raise HfsynError(f"None of the images of {run.folder} can be used.", f"See: hfsyn status {run.folder}")

    def opened(loss: DenoisingLoss) -> Pictures:
        pictures = SourcePictures(run, _fitting(loss, part))
        return lambda numbers: pictures([specs[number] for number in numbers])

    facts = source_facts(get_variant(own.source.variant))
    told = f"captioned by `{own.caption.model}`" if own.caption else "without captions"
    told = "with the texts of a file" if own.prompt.captions_file else told
    rows = [Example(spec.source_id, (spec.prompt,), spec.class_name, spec.wnid) for spec in specs]
    source = own.source
    named = source.variant if source.path is None else f"{source.variant}=./{Path(source.path).name}"
    named += "" if source.split == SourcePart.model_fields["split"].default else f"{OF_SPLIT}{source.split}"
    return Examples(rows, opened, facts["title"], named, facts["page"], facts["licence"], told)


def of_dataset(part: TunePart) -> Examples:
    """The images and texts of `part.dataset`, at the commit that `pinned_dataset` has named.

    Raises HfsynError if it cannot be read, has no such column or split, or no row has a text.
    """
    import datasets

    assert part.dataset is not None
    table = _loaded(part)
    image, text = _columns(table, part)
    texts = table.select_columns([text])[:][text]
    keep = [number for number, told in enumerate(texts) if _texts(told)]
    if not keep:
        raise HfsynError(f"No row of {part.dataset} has a text in its column {text!r}.", "Name another column.")
    images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def opened(loss: DenoisingLoss) -> Pictures:
        fit = _fitting(loss, part)
        return lambda numbers: [_picture(images[keep[number]][image], fit) for number in numbers]

    some = [keep[round(n * (len(keep) - 1) / max(1, _SAMPLED - 1))] for n in range(_SAMPLED)]
    seen = hashlib.sha256(b"".join(_bytes(images[number][image]) for number in some)).hexdigest()
    rows = [Example(str(number), _texts(texts[number])) for number in keep]
    repo = None if Path(part.dataset).expanduser().exists() else _address(part.dataset)[0]
    licence = str(table.info.license or "") or ("that of its card" if repo else "unknown")
    without = len(texts) - len(keep)
    left_out = {"row without a text": without} if without else {}
    title = repo or Path(part.dataset).expanduser().resolve().name
    page = f"https://huggingface.co/datasets/{repo}/tree/{part.dataset_revision}" if repo else None
    named = f"{repo}@{part.dataset_revision}" if repo else f"./{title}"
    named += "" if part.split == TunePart.model_fields["split"].default else f"{OF_SPLIT}{part.split}"
    return Examples(rows, opened, title, named, page, licence, content=seen, left_out=left_out)


def _texts(told: Any) -> tuple[str, ...]:
    """The texts of a row, one or a list; none if all are empty. An empty one in a list is the empty prompt."""
    found = tuple(one or "" for one in ([told] if isinstance(told, str) else told or ()))
    return found if any(one.strip() for one in found) else ()


def _bytes(stored: Mapping[str, Any] | None) -> bytes:
    """The file of an image; none if it is not there."""
    stored = stored or {}
    try:
        return stored.get("bytes") or (Path(stored["path"]).read_bytes() if stored.get("path") else b"")
    except OSError:
        return b""


def _picture(stored: Mapping[str, Any] | None, fit: Callable[[Any], Any]) -> Any:
    try:
        with decoded(_bytes(stored)) as image:
            return fit(image)
    except ImageRejected:
        return UNREADABLE


def _columns(table: Any, part: TunePart) -> tuple[str, str]:
    """The columns of images and of texts."""
    import pyarrow as pa

    schema, where = table.features.arrow_schema, part.dataset

    def is_text(kind: Any) -> bool:
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    able = {
        "image": [one.name for one in schema if holds_images(one.type)],
        "text": [one.name for one in schema if is_text(one.type)],
    }
    found = []
    for what, wanted, usual in (("image", part.image_column, IMAGE_COLUMNS), ("text", part.text_column, TEXT_COLUMNS)):
        names = [name for name in usual if name in able[what]] or (able[what] if len(able[what]) == 1 else [])
        if wanted is not None and wanted not in able[what]:
            said = f"{where} has no column {wanted!r} of {what}s; its columns are {quoted(schema.names)}."
            raise HfsynError(said, f"Name one of {quoted(able[what]) or 'another dataset'}: --{what}-column")
        if wanted is None and (not names or (what == "text" and names[0] not in usual)):
            said = f"{where} has no column of {what}s that is called {quoted(usual)}; its columns are "
            hint = f"Name it: --{what}-column COLUMN"
            if what == "image" and not able["image"]:
                hint = "An image is a file in bytes, or lies beside a metadata.jsonl that has its `file_name`."
            raise HfsynError(f"{said}{quoted(f'{one.name} ({one.type})' for one in schema)}.", hint)
        found.append(wanted or names[0])
    return found[0], found[1]


def _address(place: str) -> tuple[str, str | None, str | None]:
    """Repository, revision and configuration of ``[hf://datasets/]USER/NAME[@REVISION][#CONFIG]``."""
    rest, _, config = place.removeprefix("hf://datasets/").partition("#")
    repo, _, revision = rest.partition("@")
    return repo, revision or None, config or None


def pinned_dataset(part: TunePart) -> TunePart:
    """The part with the place of a local dataset made absolute, or the commit of one on the Hub filled in."""
    from builders.hub import resolve

    if part.dataset is None:
        return part
    path = Path(part.dataset).expanduser()
    if path.exists():
        return part.model_copy(update={"dataset": str(path.resolve())})
    repo, revision, _ = _address(part.dataset)
    if part.dataset.startswith((".", "/", "~")) or repo.count("/") != 1:
        said = f"There is no dataset {part.dataset!r} here, and it is not USER/NAME on the Hub either."
        raise HfsynError(said, "Name a folder, a file or a dataset of the Hub.")
    sha = resolve(repo, part.dataset_revision or revision or "main").sha
    return part.model_copy(update={"dataset_revision": sha})


_FILES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}


def _loaded(part: TunePart) -> Any:
    """The dataset's split, as `datasets` opens it."""
    import datasets

    from builders.hub import is_offline
    from builders.published import find_published, load_version, open_published

    assert part.dataset is not None
    path = Path(part.dataset).expanduser()
    with _no_bars():
        try:
            if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
                found = datasets.load_from_disk(path)
            elif path.is_file() and path.suffix in _FILES:
                found = datasets.load_dataset(_FILES[path.suffix], data_files={part.split: str(path)})
            elif path.exists():
                found = datasets.load_dataset(str(path))
            else:
                repo, _, config = _address(part.dataset)
                revision = part.dataset_revision or "main"
                # `datasets` alone would silently take another version from its cache if the Hub does not answer.
                published = find_published(repo, revision, config)
                if published is not None or is_offline():
                    published = published or open_published(repo, revision, config)  # which says what is wrong
                    return load_version(repo, revision, published.config_name, split=part.split)
                found = datasets.load_dataset(repo, config, revision=revision)
        except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            said = f"{part.dataset} cannot be read: {type(error).__name__}: {brief(error)}"
            raise HfsynError(said, "It must be something that `datasets.load_dataset` reads.") from None
    if not isinstance(found, Mapping):
        return found
    if part.split not in found:
        said = f"{part.dataset} has no split {part.split!r}.{did_you_mean(part.split, found)}"
        raise HfsynError(said, f"It has {quoted(found)}: --set tune.split=NAME")
    return found[part.split]


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of `datasets` where they would end up in a log."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def prior(recipe: Recipe, examples: Examples) -> Examples | None:
    """The images that the generator draws by itself before it is tuned; None if the recipe wants none.

    Raises HfsynError if there are neither prompts nor classes.
    """
    part = recipe.tune
    assert part is not None
    if not part.prior_images:
        return None
    groups = dict.fromkeys(one.group for one in examples.rows if one.group)
    prompts = part.prior_prompts or [f"a photo of {group}" for group in groups]
    if not prompts:
        said = f"tune.prior_images is {part.prior_images}, and {examples.title} has no classes to draw."
        raise HfsynError(said, "Say what: --set tune.prior_prompts=[...]")
    rows = [Example(f"prior/{n}", (prompts[n % len(prompts)],)) for n in range(part.prior_images)]

    def opened(loss: DenoisingLoss) -> Pictures:
        def pictures(numbers: Sequence[int]) -> list[Any]:
            found: dict[int, Any] = {}
            for attempt in range(recipe.generate.max_retries + 1):
                if not (left := [number for number in numbers if number not in found]):
                    break
                seeds = [seed_of(recipe.seed, rows[number].key, attempt, purpose="tune-prior") for number in left]
                images = drawn(loss, recipe, [rows[number].prompts[0] for number in left], seeds)
                # What the safety checker flags is painted black.
                spans = [max(high - low for low, high in image.convert("RGB").getextrema()) for image in images]
                drawn_now = zip(left, images, spans, strict=True)
                found |= {number: [image] for number, image, span in drawn_now if span >= FLAT_RANGE}
            return [found.get(number, FLAT) for number in numbers]

        return pictures

    return Examples(rows, opened, "images that the model drew itself", "")


def drawn(loss: DenoisingLoss, recipe: Recipe, prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
    """Images of the pipeline as it is now, each of its own seed, in batches of the recipe's size at most."""
    import torch

    draw, was_training = recipe.generate, loss.network.training

    def some(asked: Sequence[tuple[str, int]]) -> list[Any]:
        images: list[Any] = loss.pipe(
            [prompt for prompt, _ in asked],
            num_inference_steps=draw.steps,
            generator=[torch.Generator().manual_seed(seed) for _, seed in asked],
            **size_of(loss.pipe, draw),
            **call_options(loss.pipe, draw, recipe.prompt.negative, len(asked)),
        ).images
        return images

    loss.network.eval()
    with torch.no_grad():
        batches = BatchSize(draw.batch_size).over(list(zip(prompts, seeds, strict=True)), some)
    loss.network.train(was_training)
    return [image for batch in batches for image in batch]
