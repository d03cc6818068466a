# /// script
# requires-python = ">=3.11"
# dependencies = ["hfsyn"]
#
# [tool.uv.sources]
# hfsyn = { index = "wheels" }
#
# [[tool.uv.index]]
# name = "wheels"
# url = "/wheels"
# format = "flat"
# explicit = true
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "12h"
# secrets = ["HF_TOKEN"]
# volumes = ["dist:/wheels"]
# ///
"""Makes and publishes a dataset on Hugging Face Jobs:

    pip wheel --no-deps -w dist .                                   # hfsyn itself, which the job installs
    hf jobs uv run scripts/hf_jobs.py imagenette-cip alice/imagenette --version 1.0.0
    hf jobs uv run scripts/hf_jobs.py imagenette-cip alice/imagenette --version 1.0.0 --bucket alice/runs/cip

The table above is read by `hf jobs uv run`; its options override it: --flavor, --timeout, --secrets. A job's disk is
gone when the job ends, and a job without a timeout of its own ends after 30 minutes. So finished shards go to the Hub
while others are made, to the branch hfsyn-work/default. --hours ends the work at a shard's end, before the timeout
would; what is finished by then is sent, and the exit code is 4. A job that is cut off loses what it finished in the
last two minutes. Either way the same command starts a job that brings back what is on the Hub and goes on. One job at a
time: two would make the same shards.

With --bucket the run folder is in a bucket of the Hub (`hf buckets create alice/runs`), and any number of jobs work on
it at once. A job that is cut off loses the shards that it was at. One of them publishes the finished run.
"""

from __future__ import annotations

import time

import click

from hfsyn.cli import run_command


@click.command()
@click.argument("recipe")
@click.argument("repo_id")
@click.option("--version", required=True, metavar="X.Y.Z", help="The version of the finished dataset.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field: generate.steps=20.")
@click.option("--hours", type=float, default=11.5, show_default=True, help="End after so many; less than the timeout.")
@click.option("--out", default="run", show_default=True, metavar="RUN", help="The run folder.")
@click.option("--bucket", metavar="USER/BUCKET[/RUN]", help="Keep the run in a bucket, where several jobs share it.")
def job(
    recipe: str, repo_id: str, version: str, overrides: tuple[str, ...], hours: float, out: str, bucket: str | None
) -> None:
    """Make RECIPE, publish it as REPO_ID. The same command continues what an earlier job did not finish."""
    from hfsyn import build, publish
    from hfsyn.errors import ExitCode, HfsynError
    from hfsyn.hub.repo import HubRepo
    from hfsyn.progress import teller
    from hfsyn.publishing.watching import send_finished
    from hfsyn.publishing.working import continue_from
    from hfsyn.recipes.recipe import load_recipe
    from hfsyn.runs.claims import lock

    begun = time.monotonic()  # the time to fetch counts
    chosen = load_recipe(recipe, overrides)
    if bucket is not None:
        run = build(chosen, f"hf://buckets/{bucket}", budget_hours=hours)
        with lock(run.folder, "publish", wait=False) as held:
            if held:
                publish(run, repo_id, version)
            else:
                click.echo("hf_jobs.py: the run is finished, and another job publishes it", err=True)
        click.echo(f"{repo_id}@v{version}")
        return
    run = continue_from(chosen, out, repo_id, say=teller(False))
    try:
        left = max(1e-9, hours - (time.monotonic() - begun) / 3600)
        build(chosen, out, budget_hours=left, push_to_hub=repo_id, version=version)
    except HfsynError as error:
        if error.code == ExitCode.PARTIAL:
            send_finished(run, HubRepo(repo_id, say=teller(False)), "default")
        raise
    click.echo(f"{repo_id}@v{version}")


if __name__ == "__main__":
    run_command(job, "hf_jobs.py")
