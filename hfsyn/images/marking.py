"""The mark that a synthetic image carries: an XMP packet which says that a model made it, and which one.

The properties are those of the IPTC Photo Metadata Standard 2025.1: `DigitalSourceType`, with a term of IPTC's
vocabulary of the same name, `AISystemUsed` and `AISystemVersionUsed`; and XMP's own `CreatorTool`. Pixels are not
touched. The packet of a recipe is the same for all of its images, so that it costs no time, and the version of hfsyn in
it can be read back: another version makes the same images, marked with its own name.
"""

import io
import re

from PIL import Image

from hfsyn import __version__
from hfsyn.recipes.recipe import Recipe, published_recipe

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DRAWN, DRAWN_OVER = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""A model's own picture; one that a model drew over a real image."""
_LONGEST, _LONGEST_REVISION = 80, 40  # letters; an image must not grow by more than 700 bytes
_ODD = re.compile(r"[^\w./@:+ -]", re.ASCII)  # what a local folder may be called, and what XML would not take
_TOOL = re.compile(rb' xmp:CreatorTool="hfsyn ([0-9A-Za-z.+-]{1,40})"')


def mark_of(recipe: Recipe, version: str = __version__) -> bytes | None:
    """The packet in each image of a recipe, in UTF-8; None if its images are not marked.

    `recipe` is pinned, as a run folder has it, so that the generator's revision is known.
    """
    if not recipe.store.mark:
        return None
    made = published_recipe(recipe).generate  # without the folders of this machine
    kind = DRAWN_OVER if made.init == "source" else DRAWN
    system = {"AISystemUsed": made.model[-_LONGEST:]}
    if made.revision is not None:
        system["AISystemVersionUsed"] = made.revision[:_LONGEST_REVISION]
    stated = "".join(f' Iptc4xmpExt:{name}="{_ODD.sub("_", value)}"' for name, value in system.items())
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}{kind}"{stated} xmp:CreatorTool="hfsyn {version}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
    return packet.encode()


def stored_mark(image: bytes, recipe: Recipe) -> bytes | None:
    """The mark of a stored image if it is this recipe's, by whichever version of hfsyn; None if it is not, or there is
    none.
    """
    found = _packet(image)
    tool = _TOOL.search(found)
    expected = mark_of(recipe, tool[1].decode()) if tool else None
    return expected if expected == found else None


def mark_problem(image: bytes, recipe: Recipe) -> str | None:
    """What is wrong with the mark of a stored image: not there, another, or there although the recipe has none."""
    found = _packet(image)
    if not recipe.store.mark:
        return "it is marked, and the recipe says store.mark: false" if found else None
    if not found:
        return "it is not marked as made by a model, and the recipe says store.mark: true"
    return None if stored_mark(image, recipe) else "its mark is not the one of its recipe"


def _packet(image: bytes) -> bytes:
    """The XMP packet of an image file that can be opened, else nothing."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            found = opened.info.get("xmp", b"")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    return found if isinstance(found, bytes) else b""
