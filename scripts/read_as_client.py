"""What `scripts/check_clients.py` runs in each environment: loads, and says as JSON what came out.

It imports nothing of hfsyn, and works with every `datasets` since 2.14.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the job from standard input; the last line of the output is the answer."""
    job = json.load(sys.stdin)
    answer = {
        "loads": [
            {how: attempt(load, one, how == "streamed") for how in ("whole", "streamed")} for one in job["loads"]
        ],
        "folders": [tables(one) for one in job["folders"]],
    }
    print(json.dumps(answer))


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or its error in words."""
    try:
        return call(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def load(one: dict[str, Any], streaming: bool) -> dict[str, Any]:
    """Rows (of an image the hash of its bytes), columns, names of the labels, version."""
    from datasets import Image, load_dataset

    rows = load_dataset(one["repo"], one["config"], split=one["split"], revision=one["tag"], streaming=streaming)
    decodes = False
    if "image" in rows.features:
        decodes = next(iter(rows))["image"].size[0] > 1
        rows = rows.cast_column("image", Image(decode=False))
    found = []
    for row in rows:
        if "image" in row:
            row = {**row, "image": hashlib.sha256(row["image"]["bytes"]).hexdigest()}
        found.append(row)
    return {
        "rows": found,
        "columns": list(rows.features),
        "label_names": rows.features["label"].names,
        "version": str(rows.info.version),
        "decodes": decodes,
    }


def tables(one: dict[str, Any]) -> dict[str, Any]:
    """Ids and columns as each reader finds them: in the downloaded folder, and by ``hf://``."""
    import duckdb
    import pandas
    import polars
    import pyarrow.dataset
    from huggingface_hub import HfFileSystem, snapshot_download

    prefix = "" if one["config"] == "default" else f"{one['config']}/"
    inside = f"{prefix}{one['what']}"
    local = Path(snapshot_download(one["repo"], repo_type="dataset", revision=one["tag"])) / inside
    remote = f"datasets/{one['repo']}@{one['tag']}/{inside}"
    hub = HfFileSystem()

    def in_duckdb(place: str) -> Any:
        connection = duckdb.connect()
        if place.startswith("hf://"):
            connection.register_filesystem(hub)
        return connection.read_parquet(f"{place}/*").fetch_arrow_table()

    readers: dict[str, Callable[[], Any]] = {
        "pandas": lambda: pandas.read_parquet(local),
        "pyarrow": lambda: pyarrow.parquet.read_table(local),
        "polars": lambda: polars.read_parquet(local).to_arrow(),
        "duckdb": lambda: in_duckdb(str(local)),
        "pandas by hf://": lambda: pandas.read_parquet(f"hf://{remote}"),
        "pyarrow by hf://": lambda: pyarrow.parquet.read_table(remote, filesystem=hub),
        "polars by hf://": lambda: (
            polars.scan_pyarrow_dataset(pyarrow.dataset.dataset(remote, filesystem=hub, format="parquet"))
            .collect()
            .to_arrow()
        ),
        "duckdb by hf://": lambda: in_duckdb(f"hf://{remote}"),
    }
    return {name: attempt(lambda reader=reader: ids(reader())) for name, reader in readers.items()}


def ids(table: Any) -> dict[str, Any]:
    """The ids and columns of a pandas or Arrow table."""
    columns = list(getattr(table, "column_names", None) or table.columns)
    key = "sample_id" if "sample_id" in columns else "source_id"
    values = table[key]
    return {"ids": values.to_pylist() if hasattr(values, "to_pylist") else list(values), "columns": columns}


if __name__ == "__main__":
    main()
