"""Every setting of the experiment; committed before what it decides was first run."""

from __future__ import annotations

LIMIT: int | None = None
"""Training photographs of each class of ImageNette, and a thirtieth of Flickr8k's photographs; None is all."""
TUNING: tuple[str, ...] = ()
"""Fields of the recipe's part `tune` that are set otherwise than in photographs.yaml."""

# --- the captioner ----------------------------------------------------------------------------------------------------

TESTED, TUNED_ON = 1000, 500
"""Photographs of Flickr8k whose captions are not learnt: the first by SHA-256 of the id are tested on, once; the next
show how the training goes, and chose nothing else.
"""
FEWEST = 3
"""A word is learnt if it occurs so often in the captions of the others."""
LONGEST = 24
"""Words of a caption that are learnt."""
CAPTIONER = {"width": 256, "layers": 4, "heads": 8, "dropout": 0.3}
EPOCHS, CAPTIONS_A_STEP, ALIKE = 8, 160, 20
"""Captions of a step are about as long as each other: those of 20 steps are drawn together and sorted by length. There
were 12 epochs until the fourth was done; they were lowered for want of time, when nothing was known but the loss.
"""
CAPTIONER_LR, CAPTIONER_DECAY, WARMUP, SMOOTHING, AVERAGING = 6e-4, 0.05, 200, 0.1, 0.998
BEAMS, NEW_WORDS = 3, 20
"""How captions are said when their quality is measured; also measured is each of these temperatures, drawing words."""
TEMPERATURES = (0.5, 0.7, 1.0)

# --- what is true of a class ------------------------------------------------------------------------------------------

NOUNS = {
    "n01440764": ("tench", ("tench", "fish", "fishes", "carp", "catch")),
    "n02102040": ("English springer", ("dog", "dogs", "puppy", "puppies", "spaniel", "springer")),
    "n02979186": (
        "cassette player",
        ("cassette", "player", "radio", "stereo", "recorder", "tape", "machine", "device"),
    ),
    "n03000684": ("chain saw", ("saw", "chainsaw", "chain")),
    "n03028079": ("church", ("church", "cathedral", "chapel", "building", "buildings", "tower", "steeple")),
    "n03394916": ("French horn", ("horn", "horns", "trumpet", "tuba", "trombone", "instrument", "instruments")),
    "n03417042": ("garbage truck", ("truck", "trucks", "vehicle", "garbage", "trash")),
    "n03425413": ("gas pump", ("pump", "pumps", "gas", "station")),
    "n03445777": ("golf ball", ("ball", "balls", "golf")),
    "n03888257": ("parachute", ("parachute", "parachutes", "parachuting", "parachutist", "parasail", "glider")),
}
"""The words any of which is true of a photograph of a class; written down before the captioner was trained."""

# --- the generator ----------------------------------------------------------------------------------------------------

PIXELS = 32
LATENT_CHANNELS, LATENT_SCALE = 16, 4.0
"""Principal components of a patch of 4 x 4 pixels; they are stored a fourth as large as the network sees them, because
the decoder of an `AutoencoderTiny` bounds them at 3.
"""
DECODER_WIDTH, DECODER_BLOCKS = 32, (3, 2, 1)
DECODER_STEPS, DECODER_BATCH, DECODER_LR, LATENT_NOISE = 6000, 32, 2e-3, 0.08
"""With 1,500 steps the autoencoder had 29.0 dB, below the 30.8 of the components alone; nothing had been drawn yet."""
TEXT_STEPS, PAIRS_A_STEP, TEXT_LR = 1200, 192, 1e-3
VIEWS, CROP = 8, (0.72, 1.0)
"""Views of each of ImageNette's photographs that the generator learns: two whole, the others crops of such an area. So
Flickr8k's, one view each, are 14 % of what it sees.
"""
WORDINGS, HEAT = 5, 0.5
"""Captions drawn for each photograph that the generator learns, and their temperature; beside them stands the likeliest
caption, twice, and three times the name of the class alone.
"""

# --- the table --------------------------------------------------------------------------------------------------------

GENERATORS, GENERATION_SEEDS, CLASSIFIER_SEEDS = (0, 1), (0, 1), (0, 1, 2)
CHECKPOINT_STEPS = 500
IMAGES = 150  # of each class, in every arm
CLASSIFIER = "test_resnet"
OPTIMISE: dict[str, int] = {}
"""Fields of the part `optimise` that are set otherwise than in classifier.yaml."""


def rehearse() -> None:
    """Make everything so small that all stages together take a few minutes; what comes out means nothing."""
    small = {
        "LIMIT": 12,
        "TUNING": ("tune.steps=20", "tune.batch_size=8", "tune.warmup_steps=2"),
        "TESTED": 60,
        "TUNED_ON": 60,
        "CAPTIONER": {"width": 32, "layers": 1, "heads": 2, "dropout": 0.1},
        "EPOCHS": 1,
        "DECODER_STEPS": 10,
        "TEXT_STEPS": 10,
        "PAIRS_A_STEP": 32,
        "VIEWS": 2,
        "WORDINGS": 1,
        "GENERATORS": (0,),
        "GENERATION_SEEDS": (0,),
        "CLASSIFIER_SEEDS": (0, 1),
        "CHECKPOINT_STEPS": 10,
        "IMAGES": 3,
        "OPTIMISE": {"epochs": 2, "batch_size": 8, "warmup_epochs": 0},
    }
    globals().update(small)
