"""Pages, and parts of pages, that are computed from the records while the site is built.

`build.py` calls `write`. The pages of the book include the parts by their file names; each record has a page
of its own below `book/records/`, named like its folder in `results/`.
"""

import json
import shlex
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

from wmse import figures, machine, records
from wmse.figures import markdown_table
from wmse.recipes import RECIPES, get_recipe
from wmse.records import Entry, Record
from wmse.reproduction import ablations, claims, queue, tables, tuning

# Parts of pages; on which page each stands is said where it is made.
LANDING, FILM = "landing-results.md", "landing-film.md"
LEDGER, COMPUTE = "report-ledger.md", "report-compute.md"
TUNING, PROVENANCE = "report-tuning.md", "report-provenance.md"
TIMES, COSTS = "course-times.md", "course-costs.md"
INDEX = "book/records/index"

METRIC = "linear_top1"  # of the landing page's table
FILMS = ("cifar10.json", "digits.json")  # the first that exists is played
FILM_IMAGES = 150  # on the landing page
FILM_FACTS = ("effective_rank", "knn5_embeddings")
LAST_FRAME = "UMAP layouts after training: MSE mixes the classes, W-MSE 2 has a group for each."
METHODS = ("w-mse-2", "w-mse-4", "simclr", "byol", "mse")
VERDICTS = {"holds": "✓ holds", "fails": "✗ fails", "open": "○ open"}
PROJECTS = {  # recipes that projects of the course are made of, and the least that they need
    "digits/w-mse-2": "cpu",
    "cifar10-laptop/w-mse-2": "cpu",
    "cifar10-laptop/w-mse-4": "cpu",
    "cifar10-25/w-mse-2": "cuda",
    "cifar10-200/w-mse-2": "cuda",
    "cifar10/w-mse-2": "cuda",
    "cifar10/w-mse-4": "cuda",
}
DEVICES = {"cpu": "two processor cores", "cuda": "a large GPU"}
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
MANY = 60  # pictures from which starting further processes pays
CAPTION = "Loss, and effective rank of a batch's embeddings in training mode, in dimensions, by epoch."
NONE_YET = "No run is on record yet."
NO_PAGE_YET = (
    "No run has been recorded yet; `results/QUEUE.md` of the repository lists those that are wanted."
)


def write(results: Path, stage: Path, chapters: Sequence[str]) -> list[str]:
    """Write all parts and pages below `stage`, from the records below `results`.

    Args:
        chapters: names of the notebooks; the executed ones are in `notebooks` of the stage.

    Returns the pages of records without ending, in the order of the contents; their index is the first.
    """
    entries, problems = records.read_records(results)
    executed = chapter_times(stage / "notebooks", chapters)
    parts = {
        LANDING: landing(entries),
        FILM: small_film(results / "film", stage / "book" / "_static" / "landing-film.svg"),
        LEDGER: ledger(entries),
        TUNING: tuned(entries),
        PROVENANCE: provenance(entries),
        COMPUTE: compute(entries),
        TIMES: times(executed),
        COSTS: costs(entries),
    }
    for name, text in parts.items():
        _save(stage / "book" / name, text)
    pages = [f"book/records/{entry.folder.relative_to(results).as_posix()}" for entry in entries]
    curves = [entry.record.curve for entry in entries]
    pictures = draw_curves(curves, [stage / f"{page}.svg" for page in pages])
    for entry, page, picture in zip(entries, pages, pictures, strict=True):
        _save(stage / f"{page}.md", record_page(entry, page, picture))
    _save(stage / f"{INDEX}.md", record_index(entries, pages, problems))
    return [INDEX, *pages]


def _save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


# The landing page, preface.md.


def landing(entries: Sequence[Entry]) -> str:
    """What is measured so far on CIFAR-10: methods by budgets with a run of an unchanged recipe.

    The last column quotes the paper. A method with neither a run nor a quoted figure is left out.
    """
    scores = tables.make_table("table-1", entries).scores
    scores = scores[(scores.dataset == "cifar10") & (scores.metric == METRIC)]
    quoted = dict(zip(scores.method, scores.paper, strict=True))
    cells = {
        (score.method, score.budget): _mean_of_seeds(score)
        for score in scores[scores["mean"].notna()].itertuples()
        if not score.changes and not score.not_compared_because
    }
    budgets = [budget for budget in claims.TESTED_BUDGETS if any((one, budget) in cells for one in METHODS)]
    paper = RECIPES["cifar10/w-mse-2"]
    header = ["CIFAR-10, linear classifier, %"]
    for recipe in (RECIPES[f"{budget}/w-mse-2"] for budget in budgets):
        slim = ", slim network" if recipe.width < paper.width else ""
        header.append(f"ours, {recipe.epochs} epochs{slim}")
    header += [] if budgets else ["ours"]
    header.append(f"paper, quoted, {paper.epochs} epochs")
    titles = figures.METHOD_TITLES | {"mse": "the same loss without whitening"}
    lines = []
    for method in METHODS:
        measured = [cells.get((method, budget), "no run yet") for budget in budgets or [""]]
        figure = quoted[method]
        if figure or set(measured) != {"no run yet"}:
            said = f"{figure.value:.2f}{tables.MARKS.get(figure.certainty, '')}" if figure else "none"
            lines.append([titles[method], *measured, said])
    text = markdown_table(header, lines, range(1, len(header))) + "\n"
    return text if budgets else f"{text}\n{NONE_YET}\n"


def small_film(films: Path, picture: Path) -> str:
    """The player of chapter 7's film for the landing page: fewer images and numbers, to be light.

    CIFAR-10's film if there is one, else that of digits; a sentence if there is none. The last frame is drawn
    to `picture`, for browsers without scripts.
    """
    path = next((films / name for name in FILMS if (films / name).exists()), None)
    if not path:
        return "No film is on record yet.\n"
    film = json.loads(path.read_text("utf-8"))
    runs = {}
    for name, run in film["runs"].items():
        keys = "epoch", "embedding_std", *FILM_FACTS
        frames = [
            {key: frame[key] for key in keys} | {"points": frame["points"][: 2 * FILM_IMAGES]}
            for frame in run["frames"]
        ]
        runs[name] = {"label": run["label"], "frames": frames}
    shown = {"classes": film["classes"], "labels": film["labels"][:FILM_IMAGES], "grid": film["grid"]}
    shown |= {"runs": runs, "facts": FILM_FACTS}
    shown |= {"colours": figures.CLASS_COLOURS, "markers": figures.MARKERS}
    draw_last_frame(shown, picture)
    text = json.dumps(shown, separators=(",", ":")).replace("</", "<\\/")
    title = figures.DATASET_TITLES[path.stem]
    epochs = film["runs"][next(iter(runs))]["frames"][-1]["epoch"]
    return f"""<div class="film small"><script type="application/json">{text}</script>
<noscript><img src="../_static/{picture.name}" alt="{LAST_FRAME}"></noscript></div>
<script src="../_static/film.js" defer></script>

{FILM_IMAGES} test images of {title} over {epochs:.0f} epochs, laid out by UMAP, which hides the size of a
cloud: [the whole film](../notebooks/07_scattering.ipynb#the-film).
"""


def _mean_of_seeds(score: Any) -> str:
    """A row of `Table.scores` in words: "90.12 ± 0.30 (3 seeds)"."""
    count = len(score.seeds)
    spread = f" ± {score.deviation:.2f}" if count > 1 else ""
    return f"{score.mean:.2f}{spread} ({count} seed{'s' * (count > 1)})"


# The reproduction report, reproduction-report.md.


def ledger(entries: Sequence[Entry]) -> str:
    """A section a claim: its rule, and the verdict of each budget with the numbers behind it."""
    summary, sections = [], []
    for claim in claims.CLAIMS:
        found = claims.findings(claim, entries)
        tested = [one for one in found if one.verdict in VERDICTS]
        best = ["not yet tested", "none"]
        if tested:
            best = [VERDICTS[tested[0].verdict], f"`{tested[0].budget}`"]
        summary.append([claim.text, *best])
        parts = [f"### {claim.text}", f"*Rule.* {claim.rule}"]
        if tested:
            rows = [[f"`{one.budget}`", VERDICTS[one.verdict], one.evidence] for one in tested]
            parts.append(markdown_table(["rung", "verdict", "evidence"], rows))
        if claim.name == "positives":
            parts.append(at_equal_views(entries))
        if untested := [f"`{one.budget}` ({one.evidence})" for one in found if one not in tested]:
            parts.append(f"Not yet tested: {'; '.join(untested)}.")
        sections += parts
    return "\n\n".join([markdown_table(["claim", "verdict", "rung"], summary), *sections]) + "\n"


def at_equal_views(entries: Sequence[Entry]) -> str:
    """What more positives do where every setting sees as many views, from the ablation on digits."""
    ablation = ablations.ABLATIONS["positives"]
    found = ablations.compare(ablation, entries)
    sides = ablations.corrected_sides([ablation], entries)  # none for an unstable setting
    after = {label: f"; after correction for all of these {side}" for (_, label), side in sides.items()}
    words = [
        f"{one.setting.label} positives less {found[0].setting.label}: {one.lead.difference:+.2f} points, "
        f"95% interval {one.lead.low:+.2f} to {one.lead.high:+.2f}, {one.verdict}"
        f"{after.get(one.setting.label, '')}"
        for one in found
        if one.lead and one.verdict
    ]
    return f"At equal views, in batches of 64 images of `digits`: {'; '.join(words) or 'not yet tested'}."


def provenance(entries: Sequence[Entry]) -> str:
    """A row a rule: its commit and time, and how many runs on record had begun and had finished by then."""
    rows = []
    for rule in claims.RULES:
        began = sum(_is_before(entry.record.started, rule.time) for entry in entries)
        ended = sum(_is_before(entry.record.finished, rule.time) for entry in entries)
        time = rule.time.replace("T", " ").replace("+00:00", " UTC")
        rows.append([rule.text, f"`{rule.commit}`", time, str(began), str(ended)])
    header = ["rule", "commit", "time", "runs begun before", "finished before"]
    return markdown_table(header, rows, (3, 4)) + "\n"


def _is_before(time: str, other: str) -> bool:
    """Whether a time in ISO 8601, or an empty one, which is never, comes before another."""
    return bool(time) and datetime.fromisoformat(time) < datetime.fromisoformat(other)


def tuned(entries: Sequence[Entry]) -> str:
    """Scores of the tuning grid: a row a method and value, a column a learning rate, the choice in bold."""
    rates = sorted(tuning.LEARNING_RATES)
    rows = []
    for method, (_, field, values) in tuning.TUNED.items():
        found, choice = tuning.scores(method, entries), tuning.chosen(method, entries)
        for value in values:
            cells = []
            for trial in (tuning.Trial(method, rate, value) for rate in rates):
                score = f"{found[trial]:.2f}" if trial in found else "no run yet"
                cells.append(f"**{score}**" if trial == choice else score)
            rows.append([figures.METHOD_TITLES[method], f"{field.replace('_', ' ')} {value:g}", *cells])
    header = ["method", "setting", *(f"learning rate {rate:g}" for rate in rates)]
    return markdown_table(header, rows, range(2, len(header))) + "\n"


def compute(entries: Sequence[Entry]) -> str:
    """Hours by machine, over all records whether finished or not; a sentence if there are none."""
    hours: dict[str, list[float]] = {}
    for record in (entry.record for entry in entries):
        seconds = record.wall_seconds or record.train_seconds or 0.0
        hours.setdefault(machine.hardware_label(record.hardware), []).append(seconds / 3600)
    if not hours:
        return f"{NONE_YET}\n"
    rows = [[name, str(len(spent)), f"{sum(spent):,.1f}"] for name, spent in sorted(hours.items())]
    return markdown_table(["machine", "runs", "hours, training and evaluation"], rows, (1, 2)) + "\n"


# The course, course.md.


def chapter_times(notebooks: Path, chapters: Sequence[str]) -> dict[str, tuple[str, float | None]]:
    """Title of each executed chapter, and the seconds that its last execution took, if they are known."""
    found = {}
    for name in chapters:
        path = notebooks / f"{name}.ipynb"
        if path.exists():
            executed = nbformat.read(path, as_version=4)
            title = executed.cells[0].source.splitlines()[0].removeprefix("# ")
            found[name] = title, executed.metadata.get("build", {}).get("seconds")
    return found


def times(executed: dict[str, tuple[str, float | None]]) -> str:
    """A row a chapter: how long its execution took in the last build."""
    rows = [
        [f"[{int(name[:2])} {title}](../notebooks/{name}.ipynb)", str(seconds or "not known")]
        for name, (title, seconds) in executed.items()
    ]
    return markdown_table(["chapter", "seconds"], rows, (1,)) + "\n"


def costs(entries: Sequence[Entry]) -> str:
    """A row a recipe: time of one run, and whether that was measured or is assumed."""
    rows = []
    for name, device in PROJECTS.items():
        recipe = get_recipe(name)
        per_second, basis = queue.speed(recipe, device, entries)
        seconds = queue.views_to_train(recipe) / per_second
        basis = basis.rsplit(", ", 1)[0]  # the page needs no path
        time = machine.duration(seconds)
        if recipe.encoder == "small" and basis == "assumed":  # the assumed speeds are of ResNet-18
            time, basis = "not known", "no run on record"
        rows.append([f"`{name}`", DEVICES[device], time, basis])
    return markdown_table(["one run of", "on", "training", "basis"], rows, (2,)) + "\n"


# The pages of records.


def record_index(entries: Sequence[Entry], pages: Sequence[str], problems: Sequence[str]) -> str:
    """A section a budget, in it a table with a row a setting; then the records that cannot be read."""
    budgets: dict[str, dict[str, list[str]]] = {}
    for record, page in zip((entry.record for entry in entries), pages, strict=True):
        setting = _setting(record).removeprefix(f"{record.budget}/")
        score = record.metrics.get(METRIC) if record.status == "finished" else None
        words = record.status if score is None else f"{score:.2f}"
        link = f"[{words}]({page.removeprefix('book/records/')}.md)"
        budgets.setdefault(record.budget, {}).setdefault(setting, []).append(link)
    parts = [
        "# Records",
        "Every full-scale figure of this book comes from one of these runs. Each page says what was run, on "
        "what, what it cost, what came of it, and the command that runs it again. A row below has the runs "
        "that differ in their seeds only: the accuracy of the linear classifier in percent, or else how the "
        "run ended, leads to the run's page.",
    ]
    for budget, settings in budgets.items():
        rows = [[setting.replace("_", " "), ", ".join(links)] for setting, links in settings.items()]
        parts += [f"## {budget or 'Under other names'}", markdown_table(["run", "linear, %, by seed"], rows)]
    parts += [] if budgets else [NO_PAGE_YET]
    parts += [f"- Broken, and counted nowhere: {problem}" for problem in problems]
    return "\n\n".join(parts) + "\n"


def record_page(entry: Entry, page: str, picture: Path | None) -> str:
    """What was run, how to run it again, and what came of it; `picture` is of its curve."""
    record = entry.record
    parts = [f"# {_setting(record)}, seed {record.seed}"]
    if record.status != "finished":
        parts.append(f":::{{warning}}\nThis run is {record.status}. {record.error}\n:::")
    try:
        parts.append(f"A run on the rung {record.budget_label}.")
    except ValueError as error:  # a recipe of old
        parts.append(f"No recipe of today has its name: {error}.")
    parts += [note] if (note := (record.model_extra or {}).get("note")) else []
    parts += ["To run it again:", f"```bash\n{command(record)}\n```"]
    if metrics := record.metrics:
        rows = [[SCORES.get(key, key), _number(value)] for key, value in metrics.items()]
        parts.append(f"## Scores on {record.images['test']:,} {record.scored_on} images")
        parts.append(markdown_table(["score", "value"], rows, (1,)))
    if picture:
        curve = record.curve
        ends = f"at the end {curve[-1]['loss']:.3f} and {curve[-1]['effective_rank']:.1f}"
        alt = f"Loss and effective rank over {len(curve)} epochs; {ends}."
        parts += ["## Training", CAPTION, f"![{alt}]({picture.name})"]
    parts += ["## Cost", markdown_table(["what", "value"], _cost(record))]
    parts += ["## Code", markdown_table(["what", "value"], _code(record))]
    # As the record has it, without fields that came later.
    written = json.loads((entry.folder / "record.json").read_text("utf-8"))["recipe"]
    recipe = "\n".join(f"{key}: {json.dumps(value)}" for key, value in written.items())
    parts.append(f":::{{dropdown}} The recipe, field by field\n```yaml\n{recipe}\n```\n:::")
    parts.append(f"The record itself is `results/{page.removeprefix('book/records/')}/record.json`.")
    return "\n\n".join(parts) + "\n"


def command(record: Record) -> str:
    """The recipe and seed with what was changed; not what was typed, which holds paths of another machine."""
    words = ["-m", "wmse", "train", record.name, "--seed", str(record.seed)]
    try:
        changes = dict(record.changes)
    except ValueError:  # a recipe of old: as it was typed
        return record.command or shlex.join(["python", *words])
    processes = changes.pop("processes", 1)
    launcher = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    return shlex.join([*launcher, *words, *queue.flags(changes)])


def _setting(record: Record) -> str:
    """Recipe, and what was changed of it."""
    try:
        changed = record.changes_label
    except ValueError:  # a recipe of old
        changed = ""
    return ", ".join(filter(None, [record.name, changed]))


def _cost(record: Record) -> list[list[str]]:
    spent = {key: getattr(record, f"{key}_seconds") for key in ("train", "wall")}
    said = {key: machine.duration(seconds) if seconds else "" for key, seconds in spent.items()}
    rows = [
        ["machine", machine.hardware_label(record.hardware)],
        ["training", said["train"]],
        ["training and evaluation", said["wall"]],
        ["views a second in training", _number(record.views_per_second, 0)],
        ["peak memory", f"{record.peak_memory_mb:,.0f} MiB" if record.peak_memory_mb else ""],
        ["number format of the networks", record.precision],
        ["started, finished", f"{record.started}, {record.finished}"],
    ]
    return [row for row in rows if row[1]]


def _code(record: Record) -> list[list[str]]:
    git = record.git
    commit = "not from a checkout"
    if git:
        commit = f"`{git['commit'][:12]}`" + (", with changes" if git["dirty"] else "")
    rows = [["commit", commit], ["SHA-256 of the package", f"`{record.package_sha256[:12]}` …"]]
    return rows + [[package, version] for package, version in record.versions.items()]


def _number(value: float | None, digits: int = 2) -> str:
    return "not computed" if value is None else f"{value:,.{digits}f}"


def draw_curves(curves: Sequence[list[dict[str, float]]], paths: Sequence[Path]) -> list[Path | None]:
    """`draw_curve` for each pair. A picture takes a tenth of a second, so many are drawn on all cores."""
    if len(curves) < MANY:
        return list(map(draw_curve, curves, paths))
    with ProcessPoolExecutor(machine.usable_cores(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(draw_curve, curves, paths, chunksize=8))


def draw_curve(curve: Sequence[dict[str, float]] | None, path: Path) -> Path | None:
    """Loss and effective rank by epoch, as an SVG that is the same file for the same numbers.

    Returns `path`, or None where there is no curve to draw.
    """
    if not curve:
        return None
    plt = _pyplot()
    epochs = [row["epoch"] for row in curve]
    figure, axes = plt.subplots(2, 1, figsize=(figures.WIDTH, 4.6), sharex=True)
    drawn = {"loss": "o", "effective_rank": "s"}
    for ax, (key, marker), colour in zip(axes, drawn.items(), figures.OKABE_ITO, strict=False):
        values = [row[key] for row in curve]
        style = {"color": colour, "marker": marker, "markevery": max(1, len(epochs) // 10)}
        ax.plot(epochs, values, clip_on=False, zorder=3, **style)  # markers at an edge are drawn whole
        ax.set_ylabel(key.replace("_", " "))
    axes[1].set_xlabel("epoch")
    axes[1].set_ylim(0, 1.1 * max(row["effective_rank"] for row in curve))
    _save_figure(figure, path)
    return path


def draw_last_frame(film: dict[str, Any], path: Path) -> None:
    """The last frame of each run of a film, side by side, as an SVG."""
    figure, axes = _pyplot().subplots(1, len(film["runs"]), figsize=(figures.WIDTH, 3.2))
    for ax, run in zip(axes, film["runs"].values(), strict=True):
        points = np.array(run["frames"][-1]["points"]).reshape(-1, 2)
        figures.scatter(points, np.array(film["labels"]), film["classes"], ax)
        limits = -30, film["grid"] + 30
        ax.set(title=run["label"], aspect="equal", xlim=limits, ylim=limits)
    figures.class_legend(figure, axes[0])
    _save_figure(figure, path)


def _pyplot() -> Any:
    """matplotlib.pyplot in the book's style, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures.use_style()
    return plt


def _save_figure(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
