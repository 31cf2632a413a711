"""The time of each part of a training step, its share, and how far it is from what the machine allows.

    python -m benchmarks.step [--recipe cifar10/w-mse-2] [--device cuda] [--steps 20] [--profile]

The images are noise in CIFAR-10's shape, because speed does not depend on what they show. A part's floor is
the longer of two times: its operations at the speed of a large matrix product, and the fewest bytes that it
must move at the speed of a large copy. Both speeds are measured in the same run (`benchmarks.ceilings`). With
--profile, the operators that take the most time are listed too, and a trace for chrome://tracing is written.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measuring
from benchmarks.ceilings import copy_bandwidth, product_speed
from wmse import machine
from wmse.data import STATISTICS, ImageSet
from wmse.recipes import get_recipe
from wmse.run import Run
from wmse.views import make_views

PARTS = ("data", "views", "forward", "loss", "backward", "optimiser")


def noise_images(count: int, device: torch.device, side: int = 32) -> ImageSet:
    """An image set of noise in CIFAR-10's shape and statistics, ten classes in turn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 10
    return ImageSet("noise", images, labels, tuple("0123456789"), *STATISTICS["cifar10"]).to(device)


def split_step(run: Run, images: ImageSet, index: Tensor, mark: Callable[[str], None]) -> None:
    """`run.step` on the images of `index`, in parts; `mark` is called with each part's name at its end.

    The loss is detached from the networks, so that its own forward and backward pass are one part.
    """
    recipe = run.recipe
    batch, labels = images.images[index], images.labels[index]
    mark("data")
    generator = run.generators["views"]
    views = make_views(
        batch, recipe.positives, images.mean, images.std, recipe.views, generator, run.compiles_views
    )
    mark("views")
    outputs = run.forward(views)
    mark("forward")
    run.optimizer.zero_grad()
    trained = {name: output for name, output in outputs._asdict().items() if output is not None}
    trained = {name: output for name, output in trained.items() if output.requires_grad}
    leaves = {name: output.detach().requires_grad_() for name, output in trained.items()}
    loss = run.loss(outputs._replace(**leaves), labels)
    run.scaler.scale(loss).backward()
    mark("loss")
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None]
    torch.autograd.backward([trained[name] for name in reached], [leaves[name].grad for name in reached])
    mark("backward")
    run.update()
    mark("optimiser")


def timed_parts(run: Run, images: ImageSet, steps: int) -> dict[str, float]:
    """Median seconds of each part over `steps` steps; on CUDA by events, so that nothing waits in between."""
    device, size = images.device, run.recipe.batch_size
    index = torch.arange(size, device=device)
    taken: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(steps):
        marks: list = []

        def mark(_part: str = "", marks: list = marks) -> None:
            if device.type == "cuda":
                marks.append(torch.cuda.Event(enable_timing=True))
                marks[-1].record()
            else:
                marks.append(time.perf_counter())

        mark()
        split_step(run, images, index, mark)
        if device.type == "cuda":
            torch.cuda.synchronize()
        for part, start, end in zip(PARTS, marks, marks[1:], strict=False):
            taken[part].append(start.elapsed_time(end) / 1e3 if device.type == "cuda" else end - start)
    return {part: statistics.median(values) for part, values in taken.items()}


def whole_step(run: Run, images: ImageSet, steps: int) -> float:
    """Mean seconds of a step as `run.epoch` takes it, views included; the host waits for a GPU at the end."""

    def work() -> None:
        last = run.steps_taken + steps
        while run.steps_taken < last:
            for _ in islice(run.epoch(images), last - run.steps_taken):
                pass

    return measuring.seconds(work, images.device) / steps


def uncompiled(run: Run) -> Run:
    """The same run with networks that counters and hooks can look into."""
    plain = copy.copy(run)
    for cached in ("model", "_in_precision"):  # built as the recipe asks
        vars(plain).pop(cached, None)
    plain.recipe = replace(run.recipe, compile=False, cuda_graphs=False)
    return plain


def operations(run: Run, images: ImageSet) -> dict[str, float]:
    """Floating-point operations per step of matrix products and factorisations; no others are counted.

    The views count none, because a filter of a few pixels need not be a matrix product.
    """
    recipe = run.recipe
    d, n, k, side = recipe.positives, recipe.batch_size, recipe.embedding_dim, images.images.shape[-1]
    few = 8  # images; operations grow in proportion to their number
    views = torch.randn(d, few, 3, side, side, device=images.device)
    with FlopCounterMode(display=False) as counter:
        outputs = uncompiled(run).forward(views)
        ahead = counter.get_total_flops()
        torch.autograd.backward([out.sum() for out in outputs if out is not None and out.requires_grad])
    behind = counter.get_total_flops() - ahead
    run.optimizer.zero_grad()
    # Covariance, z, and three products of the gradient; Cholesky and the inverse of a triangle, k^3 / 3 each.
    slices = d * recipe.iterations * n // recipe.slice_size
    whitening = slices * (5 * 2 * recipe.slice_size * k**2 + 2 * k**3 / 3)
    return {
        "forward": ahead * n / few,
        "loss": whitening if recipe.method == "w-mse" else 0,
        "backward": behind * n / few,
    }


def fewest_bytes(run: Run, images: ImageSet) -> dict[str, float]:
    """The fewest bytes per step that each part moves between memory and processor, with ideal fusion.

    Of a convolution or linear layer: forward, its input is read and its output written once (BatchNorm's sums
    taken in passing, its scaling and ReLU applied where the next layer reads). Backward, BatchNorm needs two
    sums of gradient and output before it can apply them, so both are read twice; the layer's input is read,
    and its gradient written, once.
    """
    recipe = run.recipe
    d, n, k, side = recipe.positives, recipe.batch_size, recipe.embedding_dim, images.images.shape[-1]
    item = torch.empty((), dtype=run.dtype).element_size()
    sizes: list[tuple[int, int, int, int]] = []  # input and output of each layer, and again if it is trained

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        both = inputs[0].numel(), output.numel()
        sizes.append(both + (both if layer.weight.requires_grad else (0, 0)))

    layers = [m for m in run.networks.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    few = 2
    with torch.no_grad():
        uncompiled(run).forward(torch.randn(d, few, 3, side, side, device=images.device))
    for hook in hooks:
        hook.remove()
    columns = (sum(column) * n / few * item for column in zip(*sizes, strict=True))
    read, written, read_again, written_again = columns
    size = recipe.views.size or side
    batch = n * 3 * side * side
    parameters = sum(p.numel() for p in run.networks.parameters() if p.requires_grad)
    return {
        "data": 2 * batch,
        "views": batch + d * n * 3 * size * size * item,
        "forward": read + written,
        "loss": 2 * d * n * k * 4,
        "backward": 4 * written_again + 2 * read_again,
        "optimiser": 7 * 4 * parameters,  # weight, gradient and two means read, all but the gradient written
    }


def table(run: Run, images: ImageSet, steps: int, name: str) -> measuring.Table:
    """The times of the parts and of the whole step, beside their floors."""
    device = images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    whole_step(run, images, 2)  # warm: kernels chosen, memory taken
    parts = timed_parts(run, images, steps)
    whole = whole_step(run, images, steps)
    peak = machine.peak_memory_mb(device)
    speed = {dtype: product_speed(device, dtype) for dtype in {run.dtype, torch.float32}}
    bandwidth = copy_bandwidth(device)
    work, moved = operations(run, images), fewest_bytes(run, images)
    rows = []
    for part, taken in parts.items():
        dtype = torch.float32 if part in ("views", "loss") else run.dtype
        compute, memory = work.get(part, 0) / speed[dtype], moved.get(part, 0) / bandwidth
        floor = max(compute, memory)
        rows.append(
            {"part": part, "ms": 1e3 * taken, "share": 100 * taken / sum(parts.values())}
            | {"gflop": work.get(part, 0) / 1e9, "mb": moved.get(part, 0) / 1e6}
            | {"floor_ms": 1e3 * floor, "bound": "products" if compute > memory else "memory"}
            | {"times": taken / floor}
        )
    floor = sum(row["floor_ms"] for row in rows)
    views = run.recipe.batch_size * run.recipe.positives
    rows.append({"part": "all parts", "ms": 1e3 * sum(parts.values()), "share": 100.0, "floor_ms": floor})
    rows.append(
        {"part": "a step in training", "ms": 1e3 * whole, "floor_ms": floor, "times": 1e3 * whole / floor}
    )
    rows[-1]["views"] = views / whole
    ceilings = " and ".join(
        f"{value / 1e12:.3g} TFLOP/s in {str(dtype).removeprefix('torch.')}" for dtype, value in speed.items()
    )
    columns = {"part": "part", "ms": "ms", "share": "share, %", "gflop": "GFLOP", "mb": "MB"}
    columns |= {"floor_ms": "floor, ms", "bound": "bound by", "times": "times the floor", "views": "views/s"}
    return measuring.Table(
        "step-" + name.replace("/", "-"),
        f"A training step of {name}",
        columns,
        rows,
        f"{run.recipe.positives} views of {run.recipe.batch_size} images, "
        f"{str(run.dtype).removeprefix('torch.')}. Ceilings: products at {ceilings}, copies at "
        f"{bandwidth / 1e9:,.0f} GB/s. Peak memory {peak:,.0f} MiB"
        + (" of the process." if device.type == "cpu" else "."),
    )


def profiled(run: Run, images: ImageSet, steps: int, name: str, out) -> measuring.Table:
    """The operators that take the time of a step (on CUDA the kernels), and a trace in `out`."""
    from torch.profiler import ProfilerActivity, profile

    device = images.device
    on_gpu = device.type == "cuda"
    whole_step(run, images, 2)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as watch:
        taken = whole_step(run, images, steps)
    found = watch.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    if on_gpu:  # kernels, not the operators that launch them
        found = [
            event
            for event in found
            if event.device_type == torch.autograd.DeviceType.CUDA
            and not getattr(event, "is_user_annotation", False)  # spans that hold kernels counted already
        ]
    found = sorted(found, key=lambda event: -getattr(event, key))
    busy = sum(getattr(event, key) for event in found) / 1e6 / steps
    rows = [
        {
            "operator": event.key[:80],
            "calls": event.count / steps,
            "ms": getattr(event, key) / 1e3 / steps,
            "share": getattr(event, key) / 1e4 / steps / taken,
        }
        for event in found[:25]
    ]
    out.mkdir(parents=True, exist_ok=True)
    trace = out / f"trace-{name.replace('/', '-')}.json.gz"
    watch.export_chrome_trace(str(trace))
    print(f"trace: {trace}")
    return measuring.Table(
        "profile-" + name.replace("/", "-"),
        f"Where a step of {name} spends its time",
        {"operator": "operator", "calls": "calls a step", "ms": "ms a step", "share": "share of the step, %"},
        rows,
        f"{1e3 * taken:,.1f} ms a step under the profiler, of them {1e3 * busy:,.1f} ms in "
        + ("kernels of the GPU; the rest it waits." if on_gpu else "operators."),
    )


def main(arguments: list[str] | None = None) -> None:
    options = measuring.parse(
        __doc__,
        ("--recipe", {"action": "append", "help": "recipe to time, may be repeated"}),
        ("--batch-size", {"type": int, "help": "images a batch; the recipe's if left out"}),
        ("--steps", {"type": int, "help": "timed steps (20 on CUDA, 3 on a CPU, 1 there at full width)"}),
        ("--compile", {"action": "store_true", "help": "compile the networks"}),
        ("--profile", {"action": "store_true", "help": "list the operators that take the time too"}),
        arguments=arguments,
    )
    on_gpu = options.device.type == "cuda"
    usual = ["cifar10/w-mse-2" if on_gpu else "cifar10-cpu/w-mse-2", "cifar10/w-mse-4"]
    for name in options.recipe or usual:
        recipe = get_recipe(name)
        steps = options.steps or (20 if on_gpu else 3 if recipe.width < 64 else 1)
        recipe = replace(recipe, batch_size=options.batch_size or recipe.batch_size, compile=options.compile)
        images = noise_images(8 * recipe.batch_size, options.device)
        run = Run(recipe, len(images), options.device)
        measuring.finish(table(run, images, steps, name), options.device, options.out)
        if options.profile:
            measuring.finish(profiled(run, images, steps, name, options.out), options.device, options.out)
        run.checks.look()
        del run
        if on_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
