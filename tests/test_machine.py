"""Threads and memory of the process, and what a record says of the machine."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from wmse import machine

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
        ({"cpu.max": "nonsense"}, float("inf")),
    ],
)
def test_a_containers_quota_limits_the_cores(files, quota, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    assert machine.usable_cores() == int(min(3, quota))


def test_half_a_core_is_still_one_thread(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.usable_cores() == 1


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("set_before", "device", "variable", "threads"),
    [(8, "cpu", None, 2), (1, "cpu", None, 1), (8, "cpu", "8", 8), (8, "meta", None, 8)],
)
def test_threads_follow_the_cores_unless_someone_has_said_otherwise(
    set_before, device, variable, threads, monkeypatch, threads_as_before
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    torch.set_num_threads(set_before)
    machine.configure_process(torch.device(device))
    assert torch.get_num_threads() == threads


FAULTS = """
import resource, torch
from wmse import machine
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step(): blocks = [torch.ones(2**22) for _ in range(8)]
def pages():
    for _ in range(10): step()
    before = faults()
    for _ in range(8): step()
    return faults() - before
fresh = pages()
machine.configure_process(torch.device("cpu"))
print(fresh, pages())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="is of Linux's C library")
def test_memory_taken_again_is_not_cleared_again():
    """Eight steps with eight blocks of 16 MiB, fresh from the kernel: 4,096 pages each, or fewer, larger."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    fresh, kept = map(int, done.stdout.split())
    if fresh < 64:
        pytest.skip("the C library keeps memory by itself")
    assert kept < fresh / 4


def test_a_record_knows_its_machine():
    described = machine.describe(CPU)
    assert described["device"] == "cpu" and described["threads"] == torch.get_num_threads()
    assert machine.versions()["torch"] == torch.__version__


def test_the_hash_is_of_the_sources(tmp_path, monkeypatch):
    package = tmp_path / "wmse"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    first = machine.package_hash()
    (package / "notes.txt").write_text("no source")
    assert machine.package_hash() == first
    (package / "a.py").write_text("x = 2\n")
    assert machine.package_hash() != first
    assert machine.git_state() is None, "outside a checkout there is no commit"


def test_the_peak_of_memory_is_what_was_held_at_once():
    code = (
        "import torch; from wmse import machine; cpu = torch.device('cpu'); torch.ones(9); "
        "before = machine.peak_memory_mb(cpu); torch.ones(2**26); print(machine.peak_memory_mb(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 200 < float(done.stdout) < 400  # 256 MiB


def test_durations_in_words():
    assert [machine.duration(value) for value in (33.2, 125, 5000, 6120)] == [
        "33 s",
        "2 min",
        "83 min",
        "1.7 h",
    ]
