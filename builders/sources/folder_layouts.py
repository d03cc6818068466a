"""The layout of a folder of images: its splits, its classes and their images; or what was found instead.

Two questions are ambiguous, and are decided by the folders beside:

- Is ``train`` a split or a class? Folders named like splits are splits, unless at least two others beside them hold
  images too, and more than there are of them: ``car/ bus/ train/`` are three classes. A class map with these names as
  classes settles it.
- Is ``images`` a class? This and ``labels``, ``masks`` etc. are layouts for detection and segmentation; alone they are
  refused, and among other classes they are classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders.errors import DataError
from builders.file_names import shown
from builders.sources.folder_contents import IMAGES, Part, class_folders, folders_below, has_images, subfolders
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
"""With this many folders of images beside one that may be a split, or part of another layout, all are classes."""
_SORT = "Sort the images (of boxes: what they frame, cut out) into a folder for each class."


@dataclass(frozen=True)
class Layout:
    """The splits in a folder."""

    root: Path
    """The given folder, or the one in it that holds everything."""
    parts: Mapping[str, Part | DataError]
    """Our name of a split, or "" where there are no splits -> its images, or why they cannot be read."""

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


Known = Callable[[str], bool]
"""Whether a label is a class of the variant."""


def folder_layout(top: Path, known: Known | None = None) -> Layout:
    """The layout of a folder; without parts where nothing in it is images of classes.

    If everything lies in one folder further down, as archives unpack, that is taken. Raises DataError where splits and
    classes cannot be told apart, or where a folder cannot be listed.
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
    """The images of one folder by their class; why they cannot be read; None where it holds none.

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
    """The one folder that holds all images; None where there is none, or several."""
    kaggle = next((root / inner for inner in _KAGGLE if (root / inner).is_dir()), None)
    if kaggle is not None:
        return kaggle
    names = [name for name in subfolders(root) if not _WITHOUT_IMAGES.fullmatch(name.casefold())]
    found = [root / name for name in names if _any_below(root / name)]
    return found[0] if len(found) == 1 else None


def _any_below(folder: Path) -> bool:
    return any(map(has_images, folders_below(folder)))
