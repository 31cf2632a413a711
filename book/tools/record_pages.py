"""A page of the site for each record in `results/`: what was run, how to run it again, and what came of it.

Called by `build.py`; the pages go below `book/records/` of the stage, named like their folders in `results/`.
"""

import json
import shlex
from pathlib import Path
from typing import Any

INDEX = "book/records/index"
SCORES = {  # key of a record's metrics -> what a reader calls it
    "linear_top1": "linear classifier, top-1 accuracy, %",
    "linear_top5": "linear classifier, top-5 accuracy, %",
    "linear_top1_10pct": "the same on 10% of the labels, %",
    "linear_top1_1pct": "the same on 1% of the labels, %",
    "knn5_euclidean_top1": "5-NN, Euclidean, top-1 accuracy, %",
    "knn5_cosine_top1": "5-NN, cosine, top-1 accuracy, %",
    "effective_rank_features": "effective rank of the features",
    "effective_rank_embeddings": "effective rank of the embeddings",
    "embedding_std": "mean standard deviation of the embeddings' directions",
    "cca_dimensions": "dimensions that two views share (CCA)",
    "alignment": "alignment of two views",
    "uniformity": "uniformity",
    "effective_rank_whitened": "effective rank after whitening",
    "alignment_whitened": "alignment after whitening",
    "uniformity_whitened": "uniformity after whitening",
}
NONE_YET = "No run has been recorded yet; `results/QUEUE.md` of the repository lists those that are wanted."


def page_of(folder: Path, results: Path) -> str:
    """The page, without ending, of the record in `folder`: "book/records/cifar10/w-mse-2/seed-0"."""
    return f"book/records/{folder.relative_to(results).as_posix()}"


def write_pages(results: Path, stage: Path) -> list[str]:
    """Write all pages and their index below `stage`; the pages' names in the order of the contents."""
    from wmse.records import read_records

    entries, problems = read_records(results)
    lines = [
        "# Records",
        "Every full-scale figure of this book comes from one of these runs. Each page says what was run, on "
        "what, what it cost, what came of it, and the command that runs it again. A row below has the runs "
        "that differ in their seeds only: the accuracy of the linear classifier in percent, or else how the "
        "run ended, leads to the run's page.",
    ]
    pages = []
    for entry in entries:
        page = page_of(entry.folder, results)
        path = stage / f"{page}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_page(entry.record, path), "utf-8")
        pages.append(page)
    lines += _index([entry.record for entry in entries], pages) or [NONE_YET]
    lines += [f"- Broken, and counted nowhere: {problem}" for problem in problems]
    index = stage / f"{INDEX}.md"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text("\n\n".join(lines) + "\n", "utf-8")
    return [INDEX, *pages]


def _setting(record: dict[str, Any]) -> str:
    """Recipe, and what was changed of it."""
    from wmse.records import in_words

    try:
        changed = in_words(record)
    except ValueError:  # a recipe of old
        changed = ""
    return ", ".join(filter(None, [record["name"], changed]))


def _title(record: dict[str, Any]) -> str:
    return f"{_setting(record)}, seed {record['seed']}"


def _index(runs: list[dict[str, Any]], pages: list[str]) -> list[str]:
    """A section a rung, and in it a table with a row a setting."""
    rungs: dict[str, dict[str, list[str]]] = {}
    for record, page in zip(runs, pages, strict=True):
        rung = record["name"].rpartition("/")[0]
        setting = _setting(record).removeprefix(f"{rung}/")
        score = record.get("metrics", {}).get("linear_top1") if record["status"] == "finished" else None
        words = record["status"] if score is None else f"{score:.2f}"
        link = f"[{words}]({page.removeprefix('book/records/')}.md)"
        rungs.setdefault(rung, {}).setdefault(setting, []).append(link)
    sections = []
    for rung, settings in rungs.items():
        rows = [[setting.replace("_", " "), ", ".join(links)] for setting, links in settings.items()]
        sections += [f"## {rung or 'Under other names'}", _table(["run", "linear, %, by seed"], rows)]
    return sections


def _page(record: dict[str, Any], path: Path) -> str:
    """The page of one record; its curve is drawn beside it."""
    from wmse.records import rung

    parts = [f"# {_title(record)}"]
    if record["status"] != "finished":
        parts.append(f":::{{warning}}\nThis run is {record['status']}. {record.get('error', '')}\n:::")
    try:
        parts.append(f"A run on the rung {rung(record)}.")
    except ValueError as error:  # a recipe of old
        parts.append(f"No recipe of today has its name: {error}.")
    parts += ["To run it again:", f"```bash\n{_command(record)}\n```"]
    if metrics := record.get("metrics"):
        rows = [[SCORES.get(key, key), _number(value)] for key, value in metrics.items()]
        parts += [
            f"## Scores on {record['images']['test']:,} test images",
            _table(["score", "value"], rows, numbers=(1,)),
        ]
    if record.get("curve"):
        picture = path.with_suffix(".svg")
        draw_curve(record["curve"], picture)
        last = record["curve"][-1]
        alt = (
            f"Loss and effective rank over {len(record['curve'])} epochs; at the end {last['loss']:.3f} and "
            f"{last['effective_rank']:.1f}."
        )
        caption = (
            "Loss, and effective rank of a batch's embeddings in training mode, in dimensions, by epoch."
        )
        parts += ["## Training", caption, f"![{alt}]({picture.name})"]
    parts += ["## Cost", _table(["what", "value"], _cost(record))]
    parts += ["## Code", _table(["what", "value"], _code(record))]
    recipe = "\n".join(f"{key}: {json.dumps(value)}" for key, value in record["recipe"].items())
    parts.append(f":::{{dropdown}} The recipe, field by field\n```yaml\n{recipe}\n```\n:::")
    folder = path.with_suffix("").as_posix().split("/book/records/")[1]
    parts.append(f"The record itself is `results/{folder}/record.json`.")
    return "\n\n".join(parts) + "\n"


def _command(record: dict[str, Any]) -> str:
    """The recipe and seed with what was changed; not what was typed, which holds paths of another machine."""
    from wmse.records import departures, flags

    words = ["-m", "wmse", "train", record["name"], "--seed", str(record["seed"])]
    try:
        changes = departures(record)
    except ValueError:  # a recipe of old: as it was typed
        return record.get("command") or shlex.join(["python", *words])
    processes = changes.pop("processes", 1)
    launcher = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    return shlex.join([*launcher, *words, *flags(changes)])


def _cost(record: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["machine", _hardware(record)],
        ["training", _duration(record.get("train_seconds"))],
        ["training and evaluation", _duration(record.get("wall_seconds"))],
        ["views a second in training", _number(record.get("views_per_second"), 0)],
        ["peak memory", f"{record['peak_memory_mb']:,.0f} MiB" if record.get("peak_memory_mb") else ""],
        ["number format of the networks", record.get("precision", "")],
        ["started, finished", f"{record['started']}, {record.get('finished', '')}"],
    ]
    return [row for row in rows if row[1]]


def _code(record: dict[str, Any]) -> list[list[str]]:
    git = record["git"]
    commit = "not from a checkout"
    if git:
        commit = f"`{git['commit'][:12]}`" + (", with changes" if git["dirty"] else "")
    rows = [["commit", commit], ["SHA-256 of the package", f"`{record['package_sha256'][:12]}` …"]]
    return rows + [[package, version] for package, version in record["versions"].items()]


def _hardware(record: dict[str, Any]) -> str:
    from wmse.machine import in_words

    return in_words(record["hardware"])


def _duration(seconds: float | None) -> str:
    from wmse.machine import duration

    return duration(seconds) if seconds else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "not computed" if value is None else f"{value:,.{digits}f}"


def _table(header: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """Markdown; the columns of these `numbers` stand to the right."""
    rule = ["--:" if column in numbers else ":--" for column in range(len(header))]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """Loss and effective rank by epoch, as an SVG that is the same file for the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from wmse.figures import OKABE_ITO, WIDTH, use_style

    use_style()
    epochs = [row["epoch"] for row in curve]
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 4.6), sharex=True)
    names = {"loss": "loss", "effective_rank": "effective rank"}
    for ax, (key, label), colour, marker in zip(axes, names.items(), OKABE_ITO, "os", strict=False):
        ax.plot(
            epochs,
            [row[key] for row in curve],
            color=colour,
            marker=marker,
            markevery=max(1, len(epochs) // 10),
        )
        ax.set_ylabel(label)
    axes[1].set_xlabel("epoch")
    axes[1].set_ylim(bottom=0)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
