"""The parts of scripts/plant_bugs.py."""
