"""Timing in turns, and tables: printed, and kept as JSON, from which the book's page on speed is made."""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.page import shown
from wmse import machine, records
from wmse.distributed import choose_device

RESULTS = Path(__file__).parent / "results"  # a folder a machine, a file a benchmark: the latest


@dataclass
class Table:
    """What a benchmark found: `columns` maps each key of a row to its heading, unit included."""

    benchmark: str
    title: str
    columns: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: str = ""  # Markdown: what was compared, and how


def parse(
    description: str, *more: tuple[str, dict], arguments: list[str] | None = None, prepare: bool = True
) -> argparse.Namespace:
    """Parsed flags, `--device`, `--out` and `more` of them; `device` is a torch.device, prepared for work."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cpu, cuda, ...; CUDA where there is any if left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON (%(default)s)")
    for name, options in more:
        parser.add_argument(name, **options)
    options = parser.parse_args(arguments)
    options.device = choose_device(options.device)
    if options.device.type not in ("cpu", "cuda"):
        parser.error(f"--device {options.device}: only cpu and cuda are timed")
    if options.device.index is not None:
        torch.cuda.set_device(options.device)  # whose streams are waited for
    if prepare:
        machine.configure_process(options.device)
    return options


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, the GPU's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def medians(
    forms: dict[str, Callable[[], Any]], rounds: int, device: torch.device, block: int = 1
) -> dict[str, float]:
    """Median seconds of each form over `rounds` calls, in turns, so that all meet the same machine.

    A turn is `block` calls one after another, as code is called in a loop of its own; the first turn of each
    form does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(1 + max(1, rounds // block)):
        for name, work in forms.items():
            taken = [seconds(work, device) for _ in range(block)]
            times[name] += taken if turn else []
    return {name: statistics.median(values) for name, values in times.items()}


def machine_name(device: torch.device) -> str:
    """What the machine is called in tables: its GPU, or its processor and cores."""
    known = machine.describe(device)
    if "gpu" in known:
        return known["gpu"]
    cores = machine.usable_cores()
    return f"{known['cpu'] or known['platform']}, {cores} core{'s' * (cores > 1)}"


def finish(table: Table, device: torch.device, out: Path) -> Path:
    """Print a table, and write it with what it was measured on to `out`/MACHINE/BENCHMARK.json: that path."""
    name = machine_name(device)
    print(f"\n{table.title} ({name}, torch {torch.__version__})\n{as_text(table)}\n", flush=True)
    content = asdict(table) | {
        "machine": name,
        "measured": records.now(),
        "git": machine.git_state(),
        "package_sha256": machine.package_hash(),  # names the code where a copy is no repository
        "versions": machine.versions(),
        "hardware": machine.describe(device),
    }
    folder = out / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.benchmark}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(records.plain(content), indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)
    return path


def as_text(table: Table) -> str:
    """The table in columns for a terminal."""
    lines = [list(table.columns.values())]
    lines += [[shown(row.get(key)) for key in table.columns] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = [[isinstance(row.get(key), str) for key in table.columns] for row in table.rows]
    left = words[0] if words else [True] * len(widths)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )
