"""Looking at the images of a run or a published set, beside the real ones."""
