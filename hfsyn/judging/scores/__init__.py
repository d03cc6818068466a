"""Judges of single images, whose scores `hfsyn.runs.scores` keeps."""
