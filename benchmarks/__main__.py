"""All benchmarks: `python -m benchmarks`."""

from benchmarks import loss

loss.main()
