"""The table of variants: complete, unambiguous, and honest about where its facts are from."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.resources import files

import pytest

from builders.errors import DataError
from builders.variants import VARIANTS, facts_of, get_variant, how_to_get

EVERY = list(VARIANTS.values())
ON_HUB = [variant for variant in EVERY if variant.hub is not None]

TEST_ONLY = [
    "imagenet-v2-matched-frequency",
    "imagenet-v2-threshold-0.7",
    "imagenet-v2-top-images",
    "imagenet-sketch",
    "imagenet-r",
    "imagenet-a",
    "imagenet-c",
    "objectnet",
]

DRAWN_WNIDS = {
    "circle": "n13873502",
    "square": "n13878634",
    "triangle": "n13879320",
    "star": "n13881644",
    "cross": "n04681387",
    "ring": "n13875392",
    "heart": "n13865904",
    "crescent": "n13896217",
    "arrow": "n06818121",
    "hourglass": "n03544143",
}


def test_each_variant_has_as_many_classes_as_its_authors_say():
    counts = {variant.name: len(variant.classes) for variant in EVERY}

    assert counts == {
        "imagenette": 10,
        "imagenette-320": 10,
        "imagenette-160": 10,
        "imagewoof": 10,
        "imagenet-100": 100,
        "tiny-imagenet": 200,
        "imagenet-1k": 1000,
        "imagenet-v2-matched-frequency": 1000,
        "imagenet-v2-threshold-0.7": 1000,
        "imagenet-v2-top-images": 1000,
        "imagenet-sketch": 1000,
        "imagenet-r": 200,
        "imagenet-a": 200,
        "imagenet-c": 1000,
        "objectnet": 113,
        "shapes": 10,
        "shapes-context": 10,
    }
    assert list(VARIANTS) == list(counts)


def test_each_variant_has_as_many_images_as_its_authors_say():
    counts = {variant.name: dict(variant.splits) for variant in EVERY}

    assert counts == {
        "imagenette": {"train": 9_469, "validation": 3_925},
        "imagenette-320": {"train": 9_469, "validation": 3_925},
        "imagenette-160": {"train": 9_469, "validation": 3_925},
        "imagewoof": {"train": 9_025, "validation": 3_929},
        "imagenet-100": {"train": 126_689, "validation": 5_000},
        "tiny-imagenet": {"train": 100_000, "validation": 10_000},
        "imagenet-1k": {"train": 1_281_167, "validation": 50_000},
        "imagenet-v2-matched-frequency": {"test": 10_000},
        "imagenet-v2-threshold-0.7": {"test": 10_000},
        "imagenet-v2-top-images": {"test": 10_000},
        "imagenet-sketch": {"test": 50_889},
        "imagenet-r": {"test": 30_000},
        "imagenet-a": {"test": 7_500},
        "imagenet-c": {"test": 15 * 5 * 50_000},
        "objectnet": {"test": 0},  # not known
        "shapes": {"train": 5_000, "test": 2_000},
        "shapes-context": {"train": 5_000, "test": 2_000},
    }


def test_what_is_only_there_for_testing_says_so():
    assert [v.name for v in EVERY if v.tests_only] == [v.name for v in EVERY if "for testing" in v.title] == TEST_ONLY


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_class_names_are_unique_in_any_case_and_read_like_names(variant):
    names = [info.name for info in variant.classes]

    assert [name for name, count in Counter(map(str.casefold, names)).items() if count > 1] == []
    for name in names:
        assert name == name.strip()
        assert not re.search(r"[_/,]|\bor\b", name), name
    bracketed = [name for name in names if "(" in name]
    assert all(re.fullmatch(r"[\w' -]+ \(\w+\)", name) for name in bracketed)


@pytest.mark.parametrize("variant", EVERY, ids=lambda v: v.name)
def test_every_class_is_whole(variant):
    for index, info in enumerate(variant.classes):
        assert info.index == index
        assert re.fullmatch(r"n\d{8}", info.wnid)
        assert info.lemmas
        assert info.definition
        assert info.hypernym
        assert "_" not in "".join((*info.lemmas, info.hypernym))
        assert variant.by_wnid[info.wnid] is info
    assert len(variant.by_wnid) == len(variant.classes)


def test_a_class_has_the_same_name_in_every_variant():
    names: dict[str, set[str]] = {}
    for variant in EVERY:
        for info in variant.classes:
            names.setdefault(info.wnid, set()).add(info.name)
    drawn_hourglass = DRAWN_WNIDS["hourglass"]

    assert {wnid: found for wnid, found in names.items() if len(found) > 1} == {}
    assert drawn_hourglass in get_variant("imagenet-1k").by_wnid  # the one wnid that is both photographed and drawn


def test_classes_that_wordnet_calls_alike_are_told_apart():
    by_wnid = get_variant("imagenet-1k").by_wnid
    names = {wnid: by_wnid[wnid].name for wnid in ("n02012849", "n03126707", "n03710637", "n03710721")}

    assert names == {
        "n02012849": "crane (bird)",
        "n03126707": "crane (machine)",
        "n03710637": "maillot (tights)",
        "n03710721": "maillot (swimsuit)",
    }
    assert by_wnid["n04355933"].name != by_wnid["n04356056"].name  # the two kinds of sunglasses
    assert by_wnid["n02113186"].name != by_wnid["n02963159"].name  # the dog and the jacket called cardigan
    assert by_wnid["n04008634"].name != by_wnid["n03773504"].name  # the two missiles


def test_the_photographs_classes_are_sorted_by_wnid_as_folders_are():
    for variant in ON_HUB:
        wnids = [info.wnid for info in variant.classes]
        assert wnids == sorted(wnids)


def test_imagenette_is_the_part_of_imagenet_1k_that_it_is_known_to_be():
    thousand = get_variant("imagenet-1k").by_wnid

    found = [thousand[info.wnid].index for info in get_variant("imagenette").classes]

    assert found == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def test_imagenet_r_and_imagenet_a_are_the_parts_of_imagenet_1k_that_timm_and_their_authors_know():
    thousand = get_variant("imagenet-1k").by_wnid
    indices = {
        name: [thousand[info.wnid].index for info in get_variant(name).classes] for name in ("imagenet-r", "imagenet-a")
    }

    for name, found in indices.items():
        theirs = files("timm").joinpath("data", "_info", f"{name.replace('-', '_')}_indices.txt").read_text().split()
        assert found == [int(number) for number in theirs]
    # From the lists in the authors' own eval.py, as a check that is not timm's.
    assert (indices["imagenet-r"][:5], indices["imagenet-a"][:5]) == ([1, 2, 4, 6, 8], [6, 11, 13, 15, 17])
    assert len(set(indices["imagenet-r"]) & set(indices["imagenet-a"])) == 86


def test_the_sizes_of_imagenette_differ_in_nothing_but_their_size():
    whole = get_variant("imagenette")

    for name, config in (("imagenette-320", "320px"), ("imagenette-160", "160px")):
        small = get_variant(name)
        assert (small.hub.repo_id, small.hub.config, small.hub.revision) == (
            whole.hub.repo_id,
            config,
            whole.hub.revision,
        )
        assert (small.classes, small.splits, small.hub_label_wnids, small.hub_label_names) == (
            whole.classes,
            whole.splits,
            whole.hub_label_wnids,
            whole.hub_label_names,
        )


def test_the_drawn_variants_share_one_list_of_classes_in_a_fixed_order():
    for name in ("shapes", "shapes-context"):
        variant = get_variant(name)
        assert {info.name: info.wnid for info in variant.classes} == DRAWN_WNIDS
        assert [info.name for info in variant.classes] == list(DRAWN_WNIDS)
        assert variant.splits == {"train": 5_000, "test": 2_000}
        assert variant.drawn
        assert variant.hub_label_wnids == ()


@pytest.mark.parametrize("variant", ON_HUB, ids=lambda v: v.name)
def test_every_label_of_a_hub_repository_has_one_class(variant):
    assert sorted(variant.hub_label_wnids) == [info.wnid for info in variant.classes]
    names = variant.hub_label_names
    if names is not None:
        assert len(set(names)) == len(names) == len(variant.classes)


@pytest.mark.parametrize("variant", ON_HUB, ids=lambda v: v.name)
def test_each_row_says_all_that_reading_it_needs(variant):
    found = facts_of(variant)

    assert {info.wnid for info in variant.classes} <= get_variant("imagenet-1k").by_wnid.keys()
    assert len({info.wnid for info in variant.classes}) == found["classes"]
    assert all(count > 0 for count in found["splits"].values())
    needed = {"title", "images", "licence", "hub", "revision", "columns", "repository's splits", "access", "homepage"}
    assert [key for key in needed if not found[key]] == []
    # A revision is a commit that was seen, or said to be unknown.
    assert found["revision"] == "the newest" or re.fullmatch(r"[0-9a-f]{40}", found["revision"])
    if variant.hub.archive is None:
        assert found["labels"]
        assert len(variant.hub_label_wnids) == len(set(variant.hub_label_wnids)) == len(variant.classes)


def test_what_is_not_simply_there_says_how_to_get_it():
    assert how_to_get(get_variant("imagenet-1k")).startswith(
        "gated: ask for access at https://huggingface.co/datasets/ILSVRC/imagenet-1k"
    )
    sketch = how_to_get(get_variant("imagenet-sketch"))
    assert "hf download songweig/imagenet_sketch data/ImageNet-Sketch.zip" in sketch
    assert "source.path=sketch" in sketch
    archives = {v.name for v in ON_HUB if "an archive" in how_to_get(v)}
    assert archives == {name for name in TEST_ONLY if name.startswith(("imagenet-v2", "imagenet-sketch"))}


def test_imagenet_100_says_which_of_the_lists_of_that_name_it_is():
    hundred = get_variant("imagenet-100")

    assert "Contrastive Multiview Coding" in hundred.title
    assert "HobbitLong/CMC" in hundred.facts["classes"]
    assert "other lists" in hundred.facts["classes"]
    # CMC's list is in no order, and begins so.
    assert hundred.hub_label_wnids[:3] == ("n02869837", "n01749939", "n02488291")


def test_tiny_imagenets_wrong_label_names_are_corrected():
    tiny = get_variant("tiny-imagenet")
    corrected = {
        name: wnid for name, wnid in zip(tiny.hub_label_names, tiny.hub_label_wnids, strict=True) if name != wnid
    }

    assert len(corrected) == 18
    assert corrected["n02666347"] == "n02666196"  # abacus: the slab of a column; the counting frame
    assert corrected["n07646821"] == "n01855672"  # goose: the meat; the bird
    assert not set(corrected) & set(tiny.by_wnid)


def test_imagewoofs_label_names_are_not_taken_for_the_names_of_its_labels():
    woof = get_variant("imagewoof")

    assert woof.hub_label_names[0] == "Australian terrier"
    assert "shih-tzu" in [lemma.casefold() for lemma in woof.by_wnid[woof.hub_label_wnids[0]].lemmas]


@pytest.mark.parametrize("variant", ON_HUB, ids=lambda v: v.name)
def test_facts_say_where_they_are_from(variant):
    assert {"classes", "labels"} & set(variant.facts)
    assert all(len(source) > 10 for source in variant.facts.values())
    assert variant.licence
    assert variant.homepage.startswith("http")
    assert set(variant.hub.splits) == set(variant.splits)
    # What cannot be streamed says where to find it: in the error, as an archive and the folder in it.
    assert bool(variant.hub.archive) <= bool(variant.archive_folder)


def test_no_two_archives_unpack_to_folders_of_one_name():
    folders = [variant.archive_folder for variant in EVERY if variant.archive_folder]

    assert len(set(folders)) == len(folders) == len(TEST_ONLY) - 1  # ImageNet-C has several


def test_gates_are_known():
    assert [variant.name for variant in EVERY if variant.gated] == ["imagenet-1k"]
    assert get_variant("imagenet-1k").hub.url == "https://huggingface.co/datasets/ILSVRC/imagenet-1k"


@pytest.mark.parametrize("name", ["imagenet_1k.json", "drawn.json", "subsets.json"])
def test_class_lists_say_their_provenance_and_licence(name):
    content = json.loads(files("builders.variants").joinpath("data", name).read_text(encoding="utf-8"))

    assert content["provenance"]
    if "classes" in content:
        assert "WordNet 3.0 Copyright 2006 by Princeton University" in content["licence"]
    else:
        assert all(subset["provenance"] for subset in content["subsets"].values())


def test_an_unknown_variant_is_refused_with_the_nearest_and_with_all():
    with pytest.raises(DataError, match="Did you mean 'imagenette'") as error:
        get_variant("imagenete")

    assert "no variant 'imagenete'" in error.value.message
    assert all(name in error.value.hint for name in VARIANTS)


def test_a_name_of_several_sets_is_answered_with_all_of_them():
    with pytest.raises(DataError) as error:
        get_variant("ImageNet-V2")

    v2 = [name for name in VARIANTS if name.startswith("imagenet-v2-")]
    assert error.value.message.endswith("Did you mean " + " or ".join(f"'{name}'" for name in v2) + "?")
    with pytest.raises(DataError, match="Did you mean 'imagenet-1k'"):
        get_variant("imagenet1k")


def test_a_splits_other_names_are_understood_and_a_missing_one_is_refused():
    tiny = get_variant("tiny-imagenet")

    assert [tiny.split(name) for name in ("train", "val", "valid", "validation")] == ["train"] + ["validation"] * 3
    with pytest.raises(DataError, match=r"no split 'test'. It has: train, validation"):
        tiny.split("test")


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_set_for_testing_has_one_split_by_all_its_names(name):
    variant = get_variant(name)

    assert {variant.split(split) for split in ("test", "val", "valid", "validation")} == {"test"}
    with pytest.raises(DataError, match=r"no split 'train'. It has: test"):
        variant.split("train")
    with pytest.raises(DataError, match=r"no split 'val'. It has: train, test"):
        get_variant("shapes").split("val")  # its test images are not for choosing a model


def test_errors_keep_their_parts_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(DataError("This is wrong.", "Do that.")))

    assert (error.message, error.hint, str(error)) == ("This is wrong.", "Do that.", "This is wrong. Do that.")


def test_the_table_needs_the_standard_library_only():
    code = (
        "import sys; import builders.variants as v; v.get_variant('imagenette').classes; "
        "heavy = {'datasets', 'pyarrow', 'PIL', 'numpy', 'torch', 'huggingface_hub'} & set(sys.modules); "
        "assert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
