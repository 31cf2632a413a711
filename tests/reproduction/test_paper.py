"""Published figures are quoted with source and certainty, and the paper's never pass for later work's."""

import csv
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from wmse.recipes import COMPARED, TABLE_1
from wmse.records import is_percentage
from wmse.reproduction.paper import FIGURES, LATER, Figure, later_figures, paper_figure

ROOT = Path(__file__).resolve().parents[2]


def test_table_1_is_second_hand_and_whole_but_for_the_cell_that_nobody_has_read():
    cells = {
        (dataset, method, metric): paper_figure(dataset, method, metric)
        for dataset in ("cifar10", "cifar100", "stl10", "tiny-imagenet")
        for method in TABLE_1
        for metric in ("linear_top1", "knn5_euclidean_top1")
    }
    unread = {key for key, figure in cells.items() if figure is None}
    assert {figure.certainty for figure in cells.values() if figure} == {"second-hand"}
    assert unread == {("stl10", "w-mse-4", metric) for metric in ("linear_top1", "knn5_euclidean_top1")}
    assert cells["cifar10", "w-mse-2", "linear_top1"].value == 91.55
    assert cells["tiny-imagenet", "w-mse-4", "knn5_euclidean_top1"].value == 35.44
    assert "5,000" in cells["tiny-imagenet", "byol", "linear_top1"].note
    assert "49.22" in cells["tiny-imagenet", "w-mse-4", "linear_top1"].note


def test_figures_that_nobody_has_read_are_left_out():
    assert not [figure for figure in FIGURES if figure.dataset == "imagenet100"]
    assert not [figure for figure in (*FIGURES, *LATER) if "memory" in figure.source]


def test_imagenet_says_for_how_many_epochs():
    four = paper_figure("imagenet", "w-mse-4", "linear_top1")
    assert (four.value, four.epochs, four.encoder, four.certainty) == (72.6, 400, "resnet50", "second-hand")
    assert paper_figure("imagenet", "simsiam", "linear_top1").value == 68.1


def test_what_the_paper_does_not_have_is_none_even_if_later_work_has():
    assert paper_figure("cifar10", "cw-rgp-4", "linear_top1") is None
    assert later_figures("cifar10", "cw-rgp-4", "linear_top1")[0].value == 92.47
    assert later_figures("stl10") == [] and later_figures() == list(LATER)
    assert {figure.origin for figure in FIGURES} == {"paper"}
    assert {figure.origin for figure in LATER} == {"later"}


def test_later_work_says_whose_protocol_it_follows():
    own = {figure.method for figure in LATER if figure.protocol == "own"}
    assert own == {"intl", "mixed-barlow-twins", "all4one", "w-mse (solo-learn)"}
    rerun = {figure.metric: figure for figure in later_figures("cifar10", "simclr")}
    assert set(rerun) == {"linear_top1", "knn10_cosine_top1"}, "its k-NN is not the paper's"
    assert rerun["linear_top1"].value == 91.8 and "replication" in rerun["linear_top1"].note
    assert {figure.method for figure in LATER} & set(COMPARED)


def test_every_figure_is_a_percentage_with_a_source_and_stands_once():
    for figures in (FIGURES, LATER):
        keys = [(f.dataset, f.method, f.metric, f.epochs) for f in figures]
        assert len(keys) == len(set(keys))
        for figure in figures:
            assert 0 < figure.value < 100 and is_percentage(figure.metric) and figure.source
            assert figure.certainty in ("sure", "second-hand")
            assert figure.protocol in ("w-mse", "own")


def test_the_table_is_read_without_torch_or_pandas():
    script = "import sys; from wmse.reproduction.paper import FIGURES; print(len(FIGURES), *sys.modules)"
    count, *modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert int(count) == len(FIGURES) and not {"torch", "pandas"} & set(modules)


def test_the_table_has_a_column_for_each_field_and_figures_of_two_decimals():
    with (ROOT / "wmse" / "reproduction" / "paper.csv").open(newline="") as table:
        header, *rows = csv.reader(table)
    assert header == [field.name for field in fields(Figure)]
    assert {len(row) for row in rows} == {len(header)} and len(rows) == len(FIGURES) + len(LATER)
    assert all(re.fullmatch(r"\d\d\.\d\d", row[header.index("value")]) for row in rows)
