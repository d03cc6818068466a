"""Every setting of the experiment; committed before what it decides was first run."""

from __future__ import annotations

# --- what the captioner sees of a photograph --------------------------------------------------------------------------

LITE0 = "tf_efficientnet_lite0"
LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3
SEEN = 192
"""Pixels: photographs of 128 x 128 are enlarged to this, so that the last map of features has 6 x 6 cells."""
CELLS = 36
BLOCKS = (2, 3, 4)
"""Stages of the network, at 1/8, 1/16 and 1/32 of the size, averaged to the cells of the last: 40 + 112 + 320 values."""
GRID_WIDTH, POOLED_WIDTH = 472, 1280

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
EPOCHS, IMAGES_A_STEP = 18, 32  # each image with all five of its captions
CAPTIONER_LR, CAPTIONER_DECAY, WARMUP, SMOOTHING, AVERAGING = 6e-4, 0.05, 200, 0.1, 0.998
BEAMS, NEW_WORDS = 3, 20
"""How captions are said when their quality is measured; also measured is each of these temperatures, drawing words."""
TEMPERATURES = (0.5, 0.7, 1.0)
