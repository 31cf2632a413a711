"""All benchmarks, one after another: `python -m benchmarks [--device cuda] [--only loss --only step]`.

Each prints a table and leaves it, with hardware and versions, in `benchmarks/results/MACHINE/`, from where it
comes onto the book's page on speed when the book is built again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from wmse.distributed import choose_device

NAMES = ("loss", "views", "step", "reference", "evaluation", "book")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cpu, cuda, ...; CUDA where there is any if left out")
    parser.add_argument("--out", type=Path, help="folder for the JSON (benchmarks/results)")
    parser.add_argument("--only", action="append", choices=NAMES, help="run this one, may be repeated")
    parser.add_argument("--profile", action="store_true", help="list what takes the time of a step, too")
    options = parser.parse_args(arguments)
    on_gpu = choose_device(options.device).type != "cpu"
    names = options.only or [name for name in NAMES if name != "book" or not on_gpu]  # it needs none
    flags = ["--device", options.device] if options.device else []
    flags += ["--out", str(options.out)] if options.out else []
    # Each in a process of its own: threads and memory are set for a process, and peaks are of one.
    failed = [
        name
        for name in names
        if subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *flags]
            + ["--profile"] * (options.profile and name == "step")
        ).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
