"""The map of the package: each module imports from the floors below it only."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the ground up; `data` and `reproduction` are folders. `recipes` is at the ground because it holds the
# settings of the views as well, so that names and settings of runs need no torch.
FLOORS = (
    {"__init__", "minimal", "numerics", "recipes", "machine", "distributed", "figures"},
    {"whitening", "views", "records"},
    {"losses", "metrics", "networks", "data"},
    {"objectives", "evaluation", "reproduction"},
    {"run"},
    {"checkpoints"},
    {"training"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported(code: str) -> set[str]:
    """What the code imports from the package, wherever in it: {"records", "data", "data.sets"}."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("wmse.") for name in names if name.startswith("wmse.")}


def modules() -> dict[str, set[str]]:
    """The modules of the package, "data.sets", and those that each imports."""
    paths = {path.relative_to(ROOT / "wmse").with_suffix(""): path for path in (ROOT / "wmse").rglob("*.py")}
    named = {".".join(short.parts).removesuffix(".__init__"): path for short, path in paths.items()}
    found = {name: imported(path.read_text("utf-8")) for name, path in named.items()}
    return {name: {one for one in used if one in named} for name, used in found.items()}


def test_every_module_stands_on_a_floor():
    assert {name.split(".")[0] for name in modules()} == set(FLOOR)


def test_imports_point_down_and_never_round():
    graph = modules()
    for name, used in graph.items():
        room = name.split(".")[0]
        for other in (one.split(".")[0] for one in used):
            assert other == room or FLOOR[other] < FLOOR[room], f"{name} imports {other}"
    list(TopologicalSorter(graph).static_order())  # CycleError within a folder


def test_reproduction_imports_records_recipes_machine_and_figures_only():
    used = set().union(*(used for name, used in modules().items() if name.split(".")[0] == "reproduction"))
    outside = {name for name in used if name.split(".")[0] != "reproduction"}
    assert outside == {"records", "recipes", "machine", "figures"}


def test_within_the_package_only_the_command_line_imports_reproduction():
    users = {name for name, used in modules().items() if any(one.startswith("reproduction") for one in used)}
    assert {name for name in users if not name.startswith("reproduction")} == {"__main__"}
    measured = [imported(path.read_text("utf-8")) for path in (ROOT / "benchmarks").rglob("*.py")]
    assert not any(name.startswith("reproduction") for used in measured for name in used)


def test_the_map_in_the_package_names_every_room():
    text = ast.get_docstring(ast.parse((ROOT / "wmse/__init__.py").read_text("utf-8")))
    named = {line.split()[0].strip("/") for line in text.splitlines() if line.startswith("    ")}
    assert named == set(FLOOR) - {"__init__"}


def test_the_map_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text("utf-8")
    for folder in ("wmse", "wmse/data"):
        (row,) = re.findall(rf"^\| `{folder}/` \| (.*) \|$", readme, re.M)
        there = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "__main__"}
        assert set(re.findall(r"`(\w+)`", row)) == there


def test_only_the_command_line_needs_tyro():
    """Some GPU images have little more than torch: there `wmse.training.train` must still work."""
    paths = {path.relative_to(ROOT / "wmse").as_posix(): path for path in (ROOT / "wmse").rglob("*.py")}
    users = {name for name, path in paths.items() if "import tyro" in path.read_text("utf-8")}
    assert users == {"__main__.py"}
