"""``python -m hfsyn``, and what ``accelerate launch -m hfsyn`` starts in every process."""

from hfsyn.cli import main

main()
