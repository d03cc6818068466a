"""The rules of sample ids, seeds and order, which anyone can apply to a published set without this code.

*Sample id.* ``{source_id}#{k}`` for the k-th image (from 0) made from one real image.

*Seed.* The UTF-8 text ``hfsyn-seed-v1``, the recipe's seed (or that of the class in ``class_seeds``) and the sample id,
each followed by a newline, is hashed with SHA-256. The seed is the first 8 bytes, read big-endian, shifted right by one
bit: 0 to 2^63 - 1. A retry (of an image that was flagged, NaN or flat) appends the number of the attempt (1, 2, ...)
and a newline to that text. The initial noise is drawn by ``torch.Generator("cpu").manual_seed(seed)``.

*Choice.* A strategy that chooses at random gets ``random.Random(s)``, where s follows the seed rule with
``hfsyn-prompt-v1`` in place of ``hfsyn-seed-v1``.

*Pairing.* With ``prompt.pairing: across-classes`` the images that have a text exchange their texts. They are sorted
twice, by the seed rule with ``hfsyn-pairing-image-v1`` and the source id in place of the sample id, and by the one with
``hfsyn-pairing-text-v1``; the n-th of the first row gets the text of the n-th of the second. Then, from the first place
to the last, a place whose image and text are of one class exchanges its text with the next place (after the last comes
the first) whose image and text are both of other classes, if there is one.

*Holding out.* The UTF-8 text ``hfsyn-held-out-v1`` and the source id, each followed by a newline, is hashed with
SHA-256. Of the part ``[held 10%]`` of a split are the images for which the first 8 bytes, read big-endian, are below a
tenth of 2^64, and those that were made from them.

*Folds.* An image is in the part f of N parts, f the first 8 bytes (big-endian) of the SHA-256 of ``hfsyn-fold-v1``, a
newline, its id and a newline, modulo N.

*Order.* Samples are sorted by the SHA-256 of their id, so that each shard, and each prefix of an interrupted run, is a
fair sample of all classes, and a stream of the result is not sorted by class.
"""

import hashlib


def sample_id_of(source_id: str, k: int) -> str:
    """The id of the k-th image made from a real one."""
    return f"{source_id}#{k}"


def seed_of(recipe_seed: int, sample_id: str, attempt: int = 0, *, purpose: str = "seed") -> int:
    """The seed of a sample; 0 <= seed < 2^63. `purpose` is the middle of the text's first line."""
    text = f"hfsyn-{purpose}-v1\n{recipe_seed}\n{sample_id}\n" + (f"{attempt}\n" if attempt else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fold_of(image_id: str, parts: int) -> int:
    """The part of an image, 0 <= part < parts."""
    return int.from_bytes(hashlib.sha256(f"hfsyn-fold-v1\n{image_id}\n".encode()).digest()[:8], "big") % parts


def order_of(sample_id: str, *, by_class: bool = False) -> bytes:
    """The sort key of a sample in the plan; `by_class` puts those of a class, with which an id begins, together."""
    key = hashlib.sha256(sample_id.encode()).digest()
    return sample_id.partition("/")[0].encode() + b"\0" + key if by_class else key


def share_of(image_id: str) -> float:
    """Where an image stands among those that may be held out, 0 up to but not 1: by the id of a real image, or by that
    of the real one that a synthetic one was made from.
    """
    source, sign, k = image_id.rpartition("#")
    text = f"hfsyn-held-out-v1\n{source if sign and k.isdigit() else image_id}\n"
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53
