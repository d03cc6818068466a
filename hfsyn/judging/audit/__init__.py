"""The audit: what a classifier lacks, in words, and the images that would give it."""
