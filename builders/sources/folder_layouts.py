"""What lies in a folder that people give: splits, classes and their images; or what was found instead.

Every command asks here, and nowhere else. Two questions need judgement, and are decided by what lies side by side:

- Is ``train`` a split or a class? Folders that are named like splits are splits, unless at least two others beside them
  hold images as they do, more than there are of them: ``car/ bus/ train/`` are three classes. A class map that has
  these names as its classes decides it by itself.
- Is ``images`` a class? It, ``labels``, ``masks`` and their like are how detection and segmentation are laid out; alone
  they are refused, and among other classes they are classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders.errors import DataError
from builders.file_names import is_litter, shown
from builders.sources.folder_contents import IMAGES, class_folders, has_images, subfolders
from builders.sources.image_lists import ANNOTATIONS, labelled_images
from builders.variants import SPLIT_WORDS
from builders.wording import quoted

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
_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_DEEPEST = 4
_SIBLINGS = 2
"""So many folders of images beside one that may be a split, or a part of another layout, show that all are classes."""
_SORT = "Sort the images (of boxes: what they frame, cut out) into a folder for each class."


@dataclass(frozen=True)
class Part:
    """The images of one split."""

    folder: Path
    labels: Mapping[str, Sequence[Path]]
    """What the folder or a list calls a class -> the folders that hold its images."""
    words: str
    """How its images say their class."""
    names: Mapping[str, Sequence[str]] | None = None
    """Label -> file names, where a list or the names themselves say the class; else every image of the folders."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What is not read, beside what lies in the class folders: reason -> number."""


@dataclass(frozen=True)
class Layout:
    """What a folder holds."""

    root: Path
    """The folder that was given, or the one in it in which everything lies."""
    parts: Mapping[str, Part | DataError]
    """Our name of a split, or an empty one where there are no splits -> its images, or why they cannot be read."""

    @property
    def beside(self) -> list[str]:
        """The folders with images that lie beside the splits, and are in none."""
        folders = [] if "" in self.parts else subfolders(self.root)
        return [name for name in folders if name.casefold() not in _SPLIT_OF and _any_below(self.root / name)]

    def part(self, names: Sequence[str]) -> Part | None:
        """The first of some splits that is there; None where none is. Raises DataError for one that cannot be read."""
        found = next((self.parts[name] for name in ("", *names) if name in self.parts), None)
        if isinstance(found, DataError):
            raise found
        return found


Known = Callable[[str], bool]
"""Whether a label is a class of the variant that is asked for."""


def folder_layout(top: Path, known: Known | None = None) -> Layout:
    """What a folder holds; without parts where nothing in it is images of classes.

    Where all of it lies in one folder deeper down, as archives unpack, that is taken. Raises DataError where it cannot
    be told what is a split and what a class, or where a folder cannot be listed.
    """
    known = known or (lambda label: False)
    root: Path | None = top
    for depth in range(_DEEPEST):
        if root is None:
            break
        if parts := _parts(root, top, known):
            # A lone folder of folders may also be a class with an order of its own: then there is one class only.
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
    read = {split: [_part(folder, top, known, inside=True) for folder in folders] for split, folders in found.items()}
    parts: dict[str, Part | DataError] = {}
    for split, several in read.items():
        there = [part for part in several if part is not None]
        there = [part for part in there if isinstance(part, Part)] or there
        if len(there) > 1:
            parts[split] = DataError(
                f"'{shown(root)}' has {len(there)} folders of the split {split}: "
                f"{quoted(folder.name for folder in found[split])}.",
                "Put them together, or move one of them away.",
            )
        elif there:
            parts[split] = there[0]
    return parts


def _are_classes(root: Path, named_so: Sequence[str], known: Known) -> bool:
    """Whether the folders that are named like splits are classes among others."""
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
    """Whether a folder is rather a part of some layout than a class, by its name."""
    word = label.casefold()
    return bool(_LIKE_SPLIT.fullmatch(word) or _STRUCTURE.fullmatch(word))


def _part(folder: Path, top: Path, known: Known, *, inside: bool = False) -> Part | DataError | None:
    """The images of one folder by their class; why they cannot be read; None where it holds none.

    Inside a split a folder that is named like one is a class, if there is any other: ``train/car, train/train``.
    """
    inner = folder / IMAGES
    try:
        # People sort the validation images into class folders and leave the list behind: images/ is then gone or empty.
        if (folder / ANNOTATIONS).is_file() and has_images(inner):
            return _listed_part(folder, inner, top)
        classes = class_folders(folder)
        odd = [label for label in classes if _is_odd(label) and not known(label)]
        plain = len(classes) - len(odd)
        lone = len(classes) == 1 and not known(next(iter(classes))) and has_images(folder)
        many = plain >= _SIBLINGS and plain > len(odd)
        if inside and plain and not any(_STRUCTURE.fullmatch(label.casefold()) for label in odd):
            many = True
        if classes and not lone and (many or not odd):
            return Part(folder, classes, f"class folders{_nested(classes)}")
        for place in (folder, inner):
            if (place == folder or not plain) and (part := _listed_part(folder, place, top)):
                return part
    except DataError as error:
        return error
    if classes and plain:
        return DataError(
            f"In '{shown(folder)}' it cannot be told what is a class: images lie in {quoted(classes)}"
            f"{' and beside it' if lone else ''}{_found(folder, top)}.",
            f"Move what is not a class away; or name all of them in a class map by hand. {_SORT}",
        )
    flat = [place for place in (folder, inner, folder / next(iter(classes), "")) if has_images(place)]
    return _unlabelled(flat[0], top, known) if flat else None


def _nested(classes: Mapping[str, Sequence[Path]]) -> str:
    return ", images in images/" if any(path.name == IMAGES for paths in classes.values() for path in paths) else ""


def _listed_part(folder: Path, place: Path, top: Path) -> Part | None:
    found = labelled_images(place, top) if place.is_dir() else None
    if found is None:
        return None
    return Part(folder, {label: [place] for label in found.names}, f"by {found.source}", found.names, found.left_out)


def _unlabelled(place: Path, top: Path, known: Known) -> DataError:
    """The refusal of images that lie in one folder."""
    hint = f"{_SORT} If all of them are one class, give the folder above." if place == top else _SORT
    if known(place.name):
        hint = f"'{shown(place.name)}' is a class: give the folder above it, {shown(place.parent)}."
    elif place != top and any(not _is_odd(label) for label in class_folders(place.parent)):
        hint = f"{hint} If '{shown(place.name)}' is a class itself, name it in a class map by hand."
    return DataError(f"'{shown(place)}' holds images, but nothing there says their classes{_found(place, top)}.", hint)


def _found(place: Path, top: Path) -> str:
    """What lies in and beside a folder and tells what it was laid out for: "; found 'labels', as YOLO has them"."""
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
"""Pattern of a name -> what such a file or folder is for."""


def _only_folder(root: Path) -> Path | None:
    """The one folder in which all images lie; None where there is none, or several."""
    kaggle = next((root / inner for inner in _KAGGLE if (root / inner).is_dir()), None)
    if kaggle is not None:
        return kaggle
    names = [name for name in subfolders(root) if not _WITHOUT_IMAGES.fullmatch(name.casefold())]
    found = [root / name for name in names if _any_below(root / name)]
    return found[0] if len(found) == 1 else None


def _any_below(folder: Path) -> bool:
    for inner, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        if has_images(Path(inner)):
            return True
    return False
