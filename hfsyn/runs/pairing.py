"""Pairing: whose caption an image gets if ``prompt.pairing`` is ``across-classes``.

Captions carry over what goes with what in the real images. Spread over the other classes, they keep the contexts of the
set and break their tie to the class. The rule stands in `hfsyn.rules`, so that anyone can check a published set by it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from builders.variants import ClassInfo
from hfsyn.recipes.strategies import with_article
from hfsyn.rules import seed_of

NO_CLASS_WORD, OWN_CLASS = "no-class-word", "own-class"
"""Flags: the text names its own class by no word that could be replaced; no text of another class was left."""


class Told:
    """What is told about each image: the text for its prompts, the text's flags, and whose text it was.

    Args:
        ids, classes, texts: of the images, side by side; a text is None or empty if there is none.
        flags: of the texts that have some, by number.
        seed: the recipe's, from which the images exchange their texts; None if each keeps its own.
    """

    def __init__(
        self,
        ids: Sequence[str],
        classes: Sequence[ClassInfo],
        texts: Sequence[str | None],
        flags: Mapping[int, tuple[str, ...]],
        seed: int | None,
    ) -> None:
        self._ids, self._classes, self._texts, self._flags = ids, classes, texts, flags
        self._donors: dict[int, int] = {}
        if seed is not None:
            told = [number for number, text in enumerate(texts) if text]
            found = donors([ids[number] for number in told], [classes[number].wnid for number in told], seed)
            self._donors = {told[taker]: told[giver] for taker, giver in enumerate(found)}

    def of(self, number: int) -> tuple[str | None, tuple[str, ...], str | None]:
        """Text, flags, and the id of the image that the text describes; None if each image has its own."""
        donor = self._donors.get(number)
        at = number if donor is None else donor
        text, flags = self._texts[at], self._flags.get(at, ())
        if donor is None or text is None:
            return text, flags, None
        own, target = self._classes[donor], self._classes[number]
        if own is target:
            return text, (*flags, OWN_CLASS), self._ids[donor]
        text, named = retold(text, own, target)
        kept = tuple(flag for flag in flags if flag != NO_CLASS_WORD)
        return text, kept if named else (*kept, NO_CLASS_WORD), self._ids[donor]


def donors(source_ids: Sequence[str], classes: Sequence[str], seed: int) -> list[int]:
    """For each image the number of the one whose text it gets: a permutation, by the rule of pairing.

    Args:
        source_ids: of the images that have a text, in any order.
        classes: the wnid of each.
        seed: the recipe's.

    Of n images, those of a class with m > n / 2 keep 2m - n texts of that class; no other image gets one of its own.
    """

    def drawn(purpose: str) -> list[int]:
        return sorted(
            range(len(source_ids)), key=lambda i: (seed_of(seed, source_ids[i], purpose=purpose), source_ids[i])
        )

    takers, givers = drawn("pairing-image"), drawn("pairing-text")
    count = len(takers)
    exhausted: set[str] = set()
    for at in range(count):
        own = classes[takers[at]]
        if classes[givers[at]] != own or own in exhausted:
            continue
        for step in range(1, count):
            other = (at + step) % count
            if own not in (classes[givers[other]], classes[takers[other]]):
                givers[at], givers[other] = givers[other], givers[at]
                break
        else:
            exhausted.add(own)  # nor will a later place find one: exchanges only use them up
    found = [0] * count
    for taker, giver in zip(takers, givers, strict=True):
        found[taker] = giver
    return found


def retold(text: str, own: ClassInfo, target: ClassInfo) -> tuple[str, bool]:
    """The text with the words for its own class replaced by the target's name; and whether there was one to replace.

    The words are the name and the lemmas, or the hypernym if none of these occurs, in the singular or plural and in
    any case; a preceding *a* or *an* is fitted to the new word.
    """
    name = _plain(target.name)

    def put(match: re.Match[str]) -> str:
        article, word = match["article"], match["word"]
        if word.casefold() not in singular:
            return (match["before"] or "") + _plurals(name)[0]
        if not article:
            return name
        new = f"{with_article(name).partition(' ')[0]}{match['space']}{name}"
        return new[0].upper() + new[1:] if article[0].isupper() else new

    for words in ((own.name, *own.lemmas), (own.hypernym,)):
        pattern, singular = _matching(words)
        found, count = pattern.subn(put, text) if singular else (text, 0)
        if count:
            return found, True
    return text, False


@lru_cache(maxsize=4096)
def _matching(words: tuple[str, ...]) -> tuple[re.Pattern[str], frozenset[str]]:
    """Matches any of the words and their plurals, the longest first, with an article before it; and the singulars."""
    singular = frozenset(plain.casefold() for word in words if (plain := _plain(word)))
    every = sorted({form for word in singular for form in (word, *_plurals(word))}, key=lambda form: (-len(form), form))
    before = r"(?P<before>(?P<article>\ban?)(?P<space>\s+))?"
    return re.compile(
        rf"{before}(?<![\w-])(?P<word>{'|'.join(map(re.escape, every))})(?![\w-])", re.IGNORECASE
    ), singular


def _plain(name: str) -> str:
    """A name without what stands in brackets to tell it from others: *crane (bird)*."""
    return re.sub(r"\s*\([^)]*\)", "", name).replace("_", " ").strip()


def _plurals(word: str) -> tuple[str, ...]:
    """Regular English plurals that a word may have, the right one first."""
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return (word[:-1] + "ies", word + "s")
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es", word + "s")
    return (word + "s", word + "es")
