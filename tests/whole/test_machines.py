"""Two machines that share a run folder: under accelerate they make the bytes of one process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import parquet_bytes
from test_docs import blocks
from test_end_to_end import workers_of

import hfsyn


class Machine:
    """A host with an address, as far as its processes see: a network namespace, or this machine's loopback."""

    def __init__(self, address: str, interface: str, prefix: tuple[str, ...] = ()) -> None:
        self.address, self.interface, self.prefix = address, interface, prefix

    def start(self, command: str, folder: Path) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            [*self.prefix, "bash", "-c", f"exec env {command}"],
            cwd=folder,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def two_machines() -> Iterator[list[Machine]]:
    """Two network namespaces with a cable between them; two loopback addresses where that is not permitted."""
    names = [f"hfsyn-{os.getpid()}-{i}" for i in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
            for i, name in enumerate(names):
                ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
            machines = [
                Machine(f"10.77.0.{i + 1}", "eth0", ("ip", "netns", "exec", name)) for i, name in enumerate(names)
            ]
        except (OSError, subprocess.CalledProcessError):
            machines = [Machine("127.0.0.1", "lo"), Machine("127.0.0.2", "lo")]
        yield machines
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_two_machines_under_accelerate_make_the_bytes_of_one_process(tmp_path: Path) -> None:
    """The README's commands: as written, or with loopback in place of the network that is not permitted."""
    (block,) = blocks("machines")
    written = block.splitlines()
    with two_machines() as machines:
        if not machines[0].prefix:
            there = {"10.77.0.1": machines[0].address, "IFNAME=eth0": "IFNAME=lo", "29500": str(free_port())}
            for old, new in there.items():
                written = [line.replace(old, new) for line in written]
        launched = [machine.start(line, tmp_path) for machine, line in zip(machines, written, strict=True)]
        try:
            said = [process.communicate(timeout=150) for process in launched]
        finally:
            for process in launched:
                process.kill()
    assert [process.returncode for process in launched] == [0, 0], said
    assert [out for out, _ in said] == ["runs/two\n", ""]  # the first process of all talks to the user
    run, alone = tmp_path / "runs" / "two", tmp_path / "alone"
    assert {worker.split(" of ")[1] for worker in workers_of(run)} == {"2"}
    hfsyn.build("shapes-cip", alone, overrides=["source.limit_per_class=2"], num_processes=1, quiet=True)
    assert parquet_bytes(run) == parquet_bytes(alone)
    assert (run / "manifest.json").read_bytes() == (alone / "manifest.json").read_bytes()
