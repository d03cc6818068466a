"""Starts commands of hfsyn as processes that have imported everything already, so that they can be killed at work.

Each line of the input is JSON: ``{"arguments": [...]}`` forks a process that runs the command, ``{"python": "..."}``
one that runs code, in a folder ``"cwd"`` and with the variables of ``"environment"`` alone, where these are given; the
answer is its ``{"pid": ...}``. ``{"wait": pid}`` answers with its exit code (negative: the signal), what it said, and
its peak memory in kilobytes. With the argument ``models`` everything that draws, captions and trains is imported too.
Nothing here starts a thread or a connection before the fork.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def run(order: dict[str, Any], folder: Path) -> None:
    """The child's life."""
    from hfsyn.cli import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 1
    try:
        if "environment" in order:
            home = os.environ["HF_HOME"]
            os.environ.clear()
            os.environ.update({"HF_HOME": home, **order["environment"]})
            datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_HOME"], "datasets")
        if "cwd" in order:
            os.chdir(order["cwd"])
        if "python" in order:
            exec(compile(order["python"], "<test>", "exec"), {})
            code = 0
        else:
            main(order["arguments"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pid: int, folder: Path) -> dict[str, Any]:
    _, status, usage = os.wait4(pid, 0)
    out, err = (folder / f"{pid}.{name}" for name in ("out", "err"))
    texts = {path.suffix[1:]: path.read_text() if path.exists() else "" for path in (out, err)}
    return {"code": os.waitstatus_to_exitcode(status), "kilobytes": usage.ru_maxrss, **texts}


def import_models() -> None:
    """What draws, captions and trains: ten seconds of each command that does."""
    import timm.data
    import timm.loss
    import timm.optim
    import timm.scheduler  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForImageTextToText,
        AutoProcessor,
        BlipForConditionalGeneration,
        BlipProcessor,
        CLIPTextModel,
        CLIPTokenizer,
    )


if __name__ == "__main__":
    import datasets
    import huggingface_hub  # noqa: F401
    import jinja2  # noqa: F401
    import torch  # noqa: F401

    import dataset_cards  # noqa: F401
    import hfsyn.checks.diff
    import hfsyn.checks.verify
    import hfsyn.cli
    import hfsyn.publishing.publication
    import hfsyn.publishing.reading_back
    import hfsyn.publishing.watching  # noqa: F401

    if sys.argv[1:] == ["models"]:
        import_models()
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as temporary:
        for line in sys.stdin:
            asked = json.loads(line)
            if "wait" in asked:
                found = wait(asked["wait"], Path(temporary))
            else:
                pid = os.fork()
                if pid == 0:
                    run(asked, Path(temporary))
                found = {"pid": pid}
            print(json.dumps(found), file=answers, flush=True)
