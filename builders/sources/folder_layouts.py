"""The layout of a folder of images: its splits, its classes and their images; or what was found instead.

Two questions are ambiguous, and are decided by the folders beside:

- Is ``train`` a split or a class? Folders named like splits are splits, unless at least two others beside them hold
  images too, and more than there are of them: ``car/ bus/ train/`` are three classes. A class map with these names as
  classes settles it.
- Is ``images`` a class? This and ``labels``, ``masks`` etc. are layouts for detection and segmentation; alone they are
  refused, and among other classes they are classes.

In a flat folder the class of each image comes from a list near it, or from the images' own names:

    val/images/ and val/val_annotations.txt                   Tiny ImageNet
    val/ and LOC_val_solution.csv                             ImageNet as Kaggle gives it
    val/ and imagenet_2012_validation_synset_labels.txt       a wnid for each validation image, in order
    val/ and ILSVRC2012_validation_ground_truth.txt           the devkit's numbers, with map_clsloc.txt or meta.mat
    n01440764_10026.JPEG, ILSVRC2012_val_00000293_n01440764.JPEG      the name contains it

The devkit's numbers are ILSVRC's own, 1 for the kit fox: they are not the positions of the sorted wnids.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.errors import DataError, quoted, shown
from builders.files import as_path
from builders.sources.folder_contents import (
    IMAGES,
    Part,
    class_folders,
    contents,
    folders_below,
    has_images,
    named,
    subfolders,
)
from builders.sources.rows import file_wnid, is_wnid
from builders.variants import SPLIT_WORDS

_SPLIT_OF = {name: split for split, names in SPLIT_WORDS.items() for name in names}
_SPLIT_OF |= {f"{name}{end}": split for name, split in _SPLIT_OF.items() for end in ("_images", "-images")}
_LIKE_SPLIT = re.compile(
    rf"(?:{'|'.join(name for names in SPLIT_WORDS.values() for name in names)}|unlabell?ed)"
    r"(?:[-_ ]?(?:\d+|sets?|images?|imgs?|data|split|annot|labels?|masks?))*"
)
_STRUCTURE = re.compile(
    r"images?|imgs?|labels?|annotations?|masks?|bboxes|boxes|jpegimages|imagesets|segmentation(?:class|object|s)?"
    r"|trimaps?|ground[-_]?truth|gt"
)
_WITHOUT_IMAGES = re.compile(r"annotations?|labels?|masks?|imagesets|segmentation\w*|trimaps?|ground[-_]?truth|gt|meta")
_IN_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_DEEPEST = 4
_SIBLINGS = 2
"""With this many folders of images beside one that may be a split, or part of another layout, all are classes."""
_SORT = "Sort the images (of boxes: what they frame, cut out) into a folder for each class."


@dataclass(frozen=True)
class Layout:
    """The splits in a folder."""

    root: Path  # the given folder, or the one in it that holds everything
    parts: Mapping[str, Part | DataError]
    """Our name of a split, or "" if there are no splits -> its images, or why they cannot be read."""

    @property
    def beside(self) -> list[str]:
        """The folders with images beside the splits."""
        folders = [] if "" in self.parts else subfolders(self.root)
        return [name for name in folders if name.casefold() not in _SPLIT_OF and _any_below(self.root / name)]

    def part(self, names: Sequence[str]) -> Part | None:
        """The first of these splits that exists, None if none does. Raises DataError for one that cannot be read."""
        found = next((self.parts[name] for name in ("", *names) if name in self.parts), None)
        if isinstance(found, DataError):
            raise found
        return found


Known = Callable[[str], bool]  # whether a label is a class of the variant


def folder_layout(top: Path, known: Known | None = None) -> Layout:
    """The layout of a folder; without parts if nothing in it is images of classes.

    If everything lies in one folder further down, as archives unpack, that is taken. Raises DataError if splits and
    classes cannot be told apart, or if a folder cannot be listed.
    """
    known = known or (lambda label: False)
    root: Path | None = top
    for depth in range(_DEEPEST):
        if root is None:
            break
        if parts := _parts(root, top, known):
            # A single class further down may as well be a class folder with subfolders.
            part = parts.get("")
            lone = depth and isinstance(part, Part) and len(part.labels) == 1 and not any(map(known, part.labels))
            return Layout(top, {}) if lone else Layout(root, parts)
        root = _only_folder(root)
    return Layout(top, {})


def _parts(root: Path, top: Path, known: Known) -> dict[str, Part | DataError]:
    found: dict[str, list[Path]] = {}
    for name in subfolders(root):
        if split := _SPLIT_OF.get(name.casefold()):
            found.setdefault(split, []).append(root / name)
    if not found or _are_classes(root, [folder.name for folders in found.values() for folder in folders], known):
        part = _part(root, top, known)
        return {} if part is None else {"": part}
    parts: dict[str, Part | DataError] = {}
    for split, folders in found.items():
        there = [part for folder in folders if (part := _part(folder, top, known, inside=True)) is not None]
        there = [part for part in there if isinstance(part, Part)] or there
        if len(there) > 1:
            parts[split] = DataError(
                f"'{shown(root)}' has {len(there)} folders of the split {split}: "
                f"{quoted(folder.name for folder in folders)}.",
                "Put them together, or move one of them away.",
            )
        elif there:
            parts[split] = there[0]
    return parts


def _are_classes(root: Path, named_so: Sequence[str], known: Known) -> bool:
    """Whether the folders named like splits are classes among others."""
    classes = class_folders(root)
    others = [label for label in classes if label not in named_so and not _is_odd(label)]
    flat = [name for name in named_so if name in classes]
    holders = [name for name in named_so if class_folders(root / name).keys() - {IMAGES}]
    if flat + holders and all(map(known, flat + holders)) and (others or not holders):
        return True
    many = len(others) >= _SIBLINGS and len(others) > len(named_so)
    if holders and many:
        raise DataError(
            f"In '{shown(root)}' the folders {quoted(others)} hold images, while {quoted(holders)} "
            f"{'hold' if len(holders) > 1 else 'holds'} folders of images: splits, or classes like the others?",
            "Give the folder of one split alone, or move the others away. A class map that names all of them as "
            "classes decides it too.",
        )
    return not holders and (many or (not flat and bool(others)))


def _is_odd(label: str) -> bool:
    """Whether a folder's name is that of a part of a layout rather than of a class."""
    word = label.casefold()
    return bool(_LIKE_SPLIT.fullmatch(word) or _STRUCTURE.fullmatch(word))


def _part(folder: Path, top: Path, known: Known, *, inside: bool = False) -> Part | DataError | None:
    """The images of one folder by their class; why they cannot be read; None if it holds none.

    Inside a split, a folder named like one is a class if there are others: ``train/car, train/train``.
    """
    inner = folder / IMAGES
    try:
        # Where the validation images were sorted into class folders, the list is still there, but images/ is empty.
        if (folder / ANNOTATIONS).is_file() and has_images(inner):
            return labelled_images(folder, inner, top)
        classes = class_folders(folder)
        odd = [label for label in classes if _is_odd(label) and not known(label)]
        plain = len(classes) - len(odd)
        lone = len(classes) == 1 and not known(next(iter(classes))) and has_images(folder)
        many = plain >= _SIBLINGS and plain > len(odd)
        if inside and plain and not any(_STRUCTURE.fullmatch(label.casefold()) for label in odd):
            many = True
        if classes and not lone and (many or not odd):
            nested = any(place.name == IMAGES for places in classes.values() for place in places)
            return Part(folder, classes, f"class folders{', images in images/' if nested else ''}")
        for place in (folder, inner):
            if (place == folder or not plain) and (part := labelled_images(folder, place, top)):
                return part
    except DataError as error:
        return error
    if classes and plain:
        return DataError(
            f"In '{shown(folder)}' it is unclear which folders are classes: images lie in {quoted(classes)}"
            f"{' and beside it' if lone else ''}{_found(folder, top)}.",
            f"Move what is not a class away; or name all of them in a class map by hand. {_SORT}",
        )
    flat = [place for place in (folder, inner, folder / next(iter(classes), "")) if has_images(place)]
    return _unlabelled(flat[0], top, known) if flat else None


def _unlabelled(place: Path, top: Path, known: Known) -> DataError:
    hint = f"{_SORT} If all of them are one class, give the folder above." if place == top else _SORT
    if known(place.name):
        hint = f"'{shown(place.name)}' is a class: give the folder above it, {shown(place.parent)}."
    elif place != top and any(not _is_odd(label) for label in class_folders(place.parent)):
        hint = f"{hint} If '{shown(place.name)}' is a class itself, name it in a class map by hand."
    return DataError(f"'{shown(place)}' holds images, but nothing there says their classes{_found(place, top)}.", hint)


def _found(place: Path, top: Path) -> str:
    """What near a folder shows which layout it has: "; found 'labels': boxes for detection, as YOLO has them"."""
    names: set[str] = set()
    for folder in (place, *(above for above in place.parents if above.is_relative_to(top))):
        names |= {*subfolders(folder), *(path.name for path in folder.iterdir() if path.name.lower().endswith(_LISTS))}
    for pattern, words in _SIGNS:
        if signs := sorted(name for name in names if re.fullmatch(pattern, name.casefold())):
            return f"; found {quoted(signs, 3)}: {words}"
    return ""


_LISTS = (".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", "classes.txt")
_SIGNS = (
    (r"labels?|data\.ya?ml|classes\.txt", "boxes for detection, as YOLO has them"),
    (r".*coco.*\.json|instances_.*\.json|annotations?\.json", "boxes for detection, as COCO has them"),
    (r"jpegimages|segmentation(class|object)|imagesets", "boxes and masks, as Pascal VOC has them"),
    (r"masks?|.*annot|.*[-_]masks?|trimaps?|ground[-_]?truth|gt|segmentations?", "masks for segmentation"),
    (r"annotations?", "annotations for detection or segmentation"),
    (r".*\.(csv|tsv|jsonl|json|xml)", "lists such as this are not read"),
)
"""Pattern of a name -> what this file or folder is for."""


def _only_folder(root: Path) -> Path | None:
    """The one folder that holds all images; None if there is none, or several."""
    kaggle = next((root / inner for inner in _IN_KAGGLE if (root / inner).is_dir()), None)
    if kaggle is not None:
        return kaggle
    names = [name for name in subfolders(root) if not _WITHOUT_IMAGES.fullmatch(name.casefold())]
    found = [root / name for name in names if _any_below(root / name)]
    return found[0] if len(found) == 1 else None


def _any_below(folder: Path) -> bool:
    return any(map(has_images, folders_below(folder)))


ANNOTATIONS = "val_annotations.txt"
_SOLUTION = "LOC_val_solution.csv"
_IN_ORDER = "imagenet_2012_validation_synset_labels.txt"
_NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = ("map_clsloc.txt", "ILSVRC2012_mapping.txt")
_META = "meta.mat"
_DEVKIT = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "devkit", "data")
_CLASSES = 1000
_ORIGINAL = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


_Listed = tuple[Mapping[str, Sequence[str]], str, Mapping[str, int]]
"""Label -> file names as the system has them; where the labels come from; reason -> number of things left out."""


def labelled_images(split: Path, place: Path, top: Path) -> Part | None:
    """The images directly in a folder of a split, by label; None if there are no labels.

    Lists are looked for beside the images and in the folders above, up to `top`. Raises DataError for a list that
    cannot be read, has no labels, or names none of the images.
    """
    images = contents(place).images if place.is_dir() else []
    found = _labelled(images, place, top) if images else None
    if found is None:
        return None
    names, source, left_out = found
    return Part(split, {label: [place] for label in names}, f"by {source}", names, left_out)


def _labelled(images: Sequence[str], folder: Path, top: Path) -> _Listed | None:
    near = [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    if folder.name == IMAGES and (file := folder.parent / ANNOTATIONS).is_file():
        return _listed(_annotations(file), images, file)
    for place in near:
        if (file := place / _SOLUTION).is_file():
            return _listed(_kaggle(file), images, file)
    devkits = [place / inner for place in near for inner in _DEVKIT]
    for file in (place / name for name in (_IN_ORDER, _NUMBERS) for place in devkits):
        if file.is_file():
            labels = _lines(file) if file.name == _IN_ORDER else _of_numbers(file, devkits)
            originals = ((name, found) for name in images if (found := _ORIGINAL.fullmatch(name)))
            known = ((name, int(found[1])) for name, found in originals)  # there may be fewer images than labels
            return _listed([(name, labels[n - 1]) for name, n in known if 0 < n <= len(labels)], images, file)
    # Else by the wnids in the images' own names, if most have one.
    by_wnid: dict[str, list[str]] = {}
    for name in images:
        if wnid := file_wnid(name):
            by_wnid.setdefault(wnid, []).append(name)
    silent = len(images) - sum(map(len, by_wnid.values()))
    if 2 * silent >= len(images):
        return None
    return by_wnid, "the images' names", {"image whose name says no class": silent} if silent else {}


def _listed(rows: Iterable[tuple[str, str]], images: Sequence[str], file: Path) -> _Listed:
    """The rows whose image exists; the others are counted."""
    there, absent, labels = set(images), [], dict[str, set[str]]()
    counts: Counter[str] = Counter()
    for text, label in rows:
        name = text if text in there else as_path(text)
        if name in there:
            counts[name] += 1
            labels.setdefault(name, set()).add(label)
        else:
            absent.append(text)
    if not labels:
        raise DataError(
            f"{shown(file)} names none of the images beside it"
            f"{f', such as {shown(min(images))}' if absent else ': it lists nothing'}.",
            "Expected a line per image: its file name, then its wnid.",
        )
    found: dict[str, list[str]] = {}
    for name in sorted(labels):
        if len(labels[name]) == 1:
            found.setdefault(min(labels[name]), []).append(name)
    unlisted = sorted(there - labels.keys())
    doubtful = [name for name in labels if len(labels[name]) > 1]
    again = [name for name in labels if counts[name] > 1 and len(labels[name]) == 1]
    left = [
        (f"row of {file.name} whose image is not there", absent, len(absent)),
        (f"image that {file.name} does not list", unlisted, len(unlisted)),
        (f"image with two classes in {file.name}", doubtful, len(doubtful)),
        (f"row of {file.name} for an image that it lists before", again, sum(counts[name] - 1 for name in again)),
    ]
    return found, shown(file.name), {named(what, names): count for what, names, count in left if count}


def _annotations(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(file), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < 2 or not fields[0] or not fields[1]:
            said = f"Line {number} of {shown(file)} is '{shown(line[:60])}'."
            raise DataError(said, "Expected: file name, tab, wnid, ...")
        yield fields[0], fields[1]


def _kaggle(file: Path) -> Iterator[tuple[str, str]]:
    """``ImageId,PredictionString``, of which the first word is the wnid."""
    for line in _lines(file)[1:]:
        image, _, said = (part.strip().strip('"') for part in line.partition(","))
        if not image or not said.strip():
            problem = f"{shown(file)} has no class in the line '{shown(line[:60])}'."
            raise DataError(problem, "Expected the columns ImageId and PredictionString.")
        yield f"{image}.JPEG", said.split()[0]


def _of_numbers(file: Path, devkits: Sequence[Path]) -> list[str]:
    wnids = _synsets(devkits)
    if wnids is None:
        raise DataError(
            f"{shown(file)} numbers the classes from 1 to 1000 in ILSVRC's own order, and no file here maps these "
            "numbers to wnids.",
            f"Put the devkit's {_SYNSETS[0]} beside it (or its {_META}, with scipy installed); or use {_SOLUTION}; or "
            "sort the images into folders named by wnid.",
        )
    numbers = _lines(file)
    if wrong := next((line for line in numbers if not line.isdecimal() or not 1 <= int(line) <= _CLASSES), None):
        raise DataError(f"{shown(file)} has a line '{shown(wrong[:40])}'.", "Expected numbers from 1 to 1000.")
    return [wnids[int(line)] for line in numbers]


def _synsets(places: Sequence[Path]) -> dict[int, str] | None:
    """ILSVRC's number of a class -> its wnid, None if no file has them."""
    files = [place / name for place in places for name in _SYNSETS] + [place / _META for place in places]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        return None
    found = {}
    if file.name == _META:
        try:
            from scipy.io import loadmat  # type: ignore[import-untyped]  # not a dependency of ours
        except ImportError:
            return None
        synsets: Any = loadmat(file, squeeze_me=True)["synsets"]
        found = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    else:
        for words in map(str.split, _lines(file)):
            wnid = next(filter(is_wnid, words), None)
            number = next((int(word) for word in words if word.isdecimal()), None)
            if wnid is not None and number is not None:
                found[number] = wnid
    known = {number: wnid for number, wnid in found.items() if 1 <= number <= _CLASSES}
    if len(known) != _CLASSES or len(set(known.values())) != _CLASSES:
        said = f"{shown(file)} does not number a thousand classes from 1 to 1000."
        raise DataError(said, "Copy it from the devkit again.")
    return known


def _lines(file: Path) -> list[str]:
    """The non-empty lines of a list. Raises DataError for a file that is not text."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{shown(file)} cannot be read: {said}.", "Save it as UTF-8, or move it away.") from None
    return [line for line in text.split("\n") if line.strip()]
