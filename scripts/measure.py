"""Run a command and print, as one JSON line, its wall time and the peak memory of all its processes together.

    python scripts/measure.py .venv/bin/hfsyn demo --out runs/demo

Memory is the sum of PSS (each process's own pages plus its share of common ones, such as torch's libraries), sampled
five times a second from /proc (Linux); the sum of RSS, which counts common pages once a process, stands beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path


def processes_below(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parent = int(text.rsplit(")", 1)[1].split()[1])
        children.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += children.get(pid, [])
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """PSS and RSS of a process in KiB; zeros if it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return sizes.get("Pss", 0), sizes.get("Rss", 0)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    started = time.monotonic()
    child = subprocess.Popen(sys.argv[1:])
    pss = rss = most = 0
    while child.poll() is None:
        pids = processes_below(child.pid)
        sizes = [memory_of(pid) for pid in pids]
        pss, rss, most = max(pss, sum(p for p, _ in sizes)), max(rss, sum(r for _, r in sizes)), max(most, len(pids))
        time.sleep(0.2)
    seconds = time.monotonic() - started
    found = {
        "seconds": round(seconds, 1),
        "peak_pss_gb": round(pss / 2**20, 2),
        "peak_rss_gb": round(rss / 2**20, 2),
        "processes": most,
        "exit_code": child.returncode,
    }
    print(json.dumps(found))
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
