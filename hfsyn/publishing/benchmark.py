"""A dataset as a benchmark of the Hub: its ``eval.yaml``, which names what models are tested on.

The form is that of the Hub's documentation (https://huggingface.co/docs/hub/eval-results): a name, a description, the
framework that tests, and tasks with their configuration and split. Models refer to a task by its id.
"""

from __future__ import annotations

from typing import Any

from builders.yaml import dump, load_mapping
from hfsyn.errors import ExitCode, HfsynError

EVAL = "eval.yaml"
FRAMEWORK = "hfsyn"


def eval_text(existing: str | None, repo_id: str, config_name: str, split: str) -> str:
    """The ``eval.yaml`` of a repository with a task for a configuration, whose id is the configuration's name.

    What others wrote into it stays. Raises HfsynError (exit code 3) if it is not a mapping with a list of tasks.
    """
    fields = load_mapping(existing, f"{EVAL} of {repo_id}", EVAL) if existing is not None else {}
    tasks: Any = fields.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        problem = f"{EVAL} of {repo_id} has no list of tasks, and rewriting it would damage it."
        raise HfsynError(problem, "Correct or remove it.", code=ExitCode.PREFLIGHT)
    mine = {"id": config_name, "config": config_name, "split": split}
    known = {
        "name": repo_id.rpartition("/")[2],
        "description": "Synthetic images of ImageNet's classes: how many of them does a classifier get right?",
        "evaluation_framework": FRAMEWORK,
    }
    others = [{**task, **mine} if task.get("id") == config_name else task for task in tasks]
    return dump({**known, **fields, "tasks": others if mine["id"] in [t.get("id") for t in tasks] else [*tasks, mine]})


def task_of(text: str | None, config: str | None, split: str) -> str:
    """The id of the task that a test was: that of its configuration and split in an ``eval.yaml``, or else the
    configuration's name, or ``default``.
    """
    try:
        tasks: Any = load_mapping(text, EVAL, EVAL).get("tasks") if text is not None else None
    except HfsynError:
        tasks = None
    asked = (config or "default", split)
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict) and (task.get("config", "default"), task.get("split")) == asked:
            return str(task.get("id"))
    return config or "default"
