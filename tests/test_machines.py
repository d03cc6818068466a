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
from test_end_to_end import SMALL, workers_of

import hfsyn


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    overrides = [word for word in SMALL[2:] if word != "--set"]
    hfsyn.build("shapes-cip", run, overrides=["source.limit_per_class=2", *overrides], num_processes=1, quiet=True)
    return run


class Machine:
    """A host with an address, as far as its processes see: a network namespace, or this machine's loopback."""

    def __init__(self, address: str, prefix: tuple[str, ...] = (), interface: str = "lo") -> None:
        self.address, self.prefix, self.interface = address, prefix, interface

    def start(self, *command: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        return subprocess.Popen(
            [*self.prefix, *command], env=environment | {"GLOO_SOCKET_IFNAME": self.interface},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip


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
            ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
            for i, name in enumerate(names):
                ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
            machines = [
                Machine(f"10.77.0.{i + 1}", ("ip", "netns", "exec", name), "cable") for i, name in enumerate(names)
            ]
        except (OSError, subprocess.CalledProcessError):
            machines = [Machine("127.0.0.1"), Machine("127.0.0.2")]
        yield machines
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_machines_under_accelerate_make_the_bytes_of_one_process(alone: Path, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    with two_machines() as machines:
        launched = [
            machine.start(
                sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2",
                "--machine_rank", str(rank), "--main_process_ip", machines[0].address,
                "--main_process_port", str(port), "--num_processes", "2", "--mixed_precision", "no",
                "--dynamo_backend", "no", "-m", "hfsyn", "build", "shapes-cip", *SMALL, "--out", str(run),
            )
            for rank, machine in enumerate(machines)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=150) for process in launched]
        finally:
            for process in launched:
                process.kill()
    assert [process.returncode for process in launched] == [0, 0], said
    assert [out for out, _ in said] == [f"{run}\n", ""]  # the first process of all talks to the user
    assert parquet_bytes(run) == parquet_bytes(alone)
    assert (run / "manifest.json").read_bytes() == (alone / "manifest.json").read_bytes()
    assert {worker.split(" of ")[1] for worker in workers_of(run)} == {"2"}
