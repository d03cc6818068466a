"""How good the captions are: against people's on held-out photographs, and by the nouns that are true of a class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from hfsyn.recipes.parts import CaptionPart
from hfsyn.rules import seed_of
from scripts.photographs import features, settings
from scripts.photographs.captioner import Captioner
from scripts.photographs.photographs import thirds
from scripts.photographs.train_captioner import parts

BATCH = 100


def saying(out: Path, **how: Any) -> Captioner:
    """The trained captioner, with fields of a recipe's part `caption`."""
    part = CaptionPart(model="captioner.py:Captioner", max_new_tokens=settings.NEW_WORDS, **how)
    return Captioner(part, "cpu", out / "captioner")


def said(captioner: Captioner, names: list[str], grid: Any, pooled: Any, wording: int = 0) -> list[str]:
    """Captions of photographs, by their features without the mirror images; `wording` counts the seeds."""
    import torch

    texts: list[str] = []
    for start in range(0, len(names), BATCH):
        rows = slice(start, start + BATCH)
        views = (torch.from_numpy(part[rows, 0]) for part in (grid, pooled))
        seeds = [seed_of(wording, name, purpose="caption") for name in names[rows]]
        texts += captioner.say(*views, seeds if captioner.part.draws else None)
    return texts


def against_people(texts: list[str], references: list[tuple[str, ...]]) -> dict[str, float]:
    """BLEU-1 and BLEU-4 of the whole, ROUGE-L against the likest reference, words of a caption, different captions."""
    from torchmetrics.functional.text import bleu_score
    from torchmetrics.functional.text.rouge import rouge_score

    told = [list(some) for some in references]
    rouge = rouge_score(texts, told, accumulate="best", rouge_keys="rougeL", tokenizer=str.split)
    return {
        "bleu1": float(bleu_score(texts, told, n_gram=1)),
        "bleu4": float(bleu_score(texts, told, n_gram=4)),
        "rougeL": float(rouge["rougeL_fmeasure"]),
        "words": sum(len(text.split()) for text in texts) / len(texts),
        "different": len(set(texts)) / len(texts),
    }


def ways(out: Path) -> dict[str, Captioner]:
    """The ways to say captions that are measured."""
    drawn = {f"drawn, temperature {heat:g}": saying(out, temperature=heat) for heat in settings.TEMPERATURES}
    return {"likeliest": saying(out), f"{settings.BEAMS} beams": saying(out, num_beams=settings.BEAMS), **drawn}


def measure(data: Path, out: Path) -> dict[str, Any]:
    """Measure, print, and write OUT/captioner/quality.json."""
    tested, _, _ = parts(data)
    names, grid, pooled = features.load(out / "features" / "flickr")
    rows = [names.index(one.name) for one in tested]
    grid, pooled, names = grid[rows], pooled[rows], [one.name for one in tested]
    people = [one.captions for one in tested]
    found: dict[str, Any] = {"photographs": len(tested)}
    # A person's caption can only be compared with the four others; so is the captioner's, once.
    found["people, against four"] = against_people([one[0] for one in people], [one[1:] for one in people])
    for name, captioner in ways(out).items():
        texts = said(captioner, names, grid, pooled)
        found[name] = against_people(texts, people)
        if name.endswith("beams"):
            found[f"{name}, against four"] = against_people(texts, [one[1:] for one in people])
            found["examples"] = dict(list(zip(names, texts, strict=True))[:10])
    for name, one in found.items():
        if isinstance(one, dict) and "bleu4" in one:
            print(f"{name:28} " + "  ".join(f"{key} {value:.3f}" for key, value in one.items()))
    found["nouns"] = nouns(data, out)
    atomic_text(out / "captioner" / "quality.json", json.dumps(found, indent=1) + "\n")
    return found


def nouns(data: Path, out: Path) -> dict[str, Any]:
    """Of each class of ImageNette's last third: in how many captions one of its true nouns is, in percent; and in how
    many captions of the other classes, where it is mostly false.
    """
    wanted = {one.name: one.wnid for one in thirds(data)[1]}
    names, grid, pooled = features.load(out / "features" / "imagenette")
    rows = [number for number, name in enumerate(names) if name in wanted]
    names, grid, pooled = [names[number] for number in rows], grid[rows], pooled[rows]
    found: dict[str, Any] = {}
    for way, captioner in ways(out).items():
        texts = [set(text.split()) for text in said(captioner, names, grid, pooled)]
        for wnid, (title, true) in settings.NOUNS.items():
            named = [bool(text & set(true)) for text in texts]
            mine = [hit for hit, name in zip(named, names, strict=True) if wanted[name] == wnid]
            rest = [hit for hit, name in zip(named, names, strict=True) if wanted[name] != wnid]
            found.setdefault(title, {})[way] = [100 * sum(mine) / len(mine), 100 * sum(rest) / len(rest)]
    for title, of in found.items():
        print(f"{title:18} " + "  ".join(f"{way}: {mine:.0f} % ({rest:.0f} %)" for way, (mine, rest) in of.items()))
    return found
