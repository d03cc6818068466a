"""What the commands do, in Python: a function by the name of each command, with the same words and defaults."""
