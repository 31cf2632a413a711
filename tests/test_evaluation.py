"""Scores agree with scikit-learn's and with plain counts, a run's metrics with the functions behind them."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from wmse import evaluation
from wmse import metrics as wmse_metrics
from wmse.data import ImageSet, StreamedSet, load
from wmse.evaluation import (
    classify,
    clustered_error,
    evaluate,
    features,
    float32_arithmetic,
    knn_accuracy,
    linear_probe,
    project,
    stratified_subset,
    top_k_accuracy,
    train_linear,
    two_views,
)
from wmse.networks import build_encoder
from wmse.recipes import Recipe
from wmse.views import ViewSettings, make_views

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
RECIPE = Recipe(views=ViewSettings(jitter_probability=0.2, crop_scale=(0.8, 1.0)), seed=3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=400, f=10, classes=4, offset=0.0, noise=1.0):
    """Gaussian classes: train and test rows with labels."""
    generator = seeded()
    centres = torch.randn(classes, f, generator=generator)
    parts = []
    for _ in range(2):
        labels = torch.randint(0, classes, (n,), generator=generator)
        parts += [centres[labels] + noise * torch.randn(n, f, generator=generator) + offset, labels]
    return parts


def linear_rule(n):
    """Rows (n, 10) of which a noisy linear rule makes 4 classes, and their labels."""
    generator = seeded()
    rows = torch.randn(n, 10, generator=generator)
    scores = rows @ torch.randn(10, 4, generator=generator)
    return rows, (scores + 2 * torch.randn(n, 4, generator=generator)).argmax(1)


def coloured(n=60, classes=3, side=4, seed=0, noise=0.0):
    """Images whose class is their colour, but for noise in levels of 255."""
    labels = torch.arange(n) % classes
    colours = torch.randint(0, 256, (classes, 3, 1, 1), generator=seeded()).float()
    levels = colours[labels] + noise * torch.randn(n, 3, side, side, generator=seeded(seed))
    images = levels.round().clamp(0, 255).to(torch.uint8)
    return ImageSet("coloured", images, labels, tuple(map(str, range(classes))), MEAN, STD)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_knn_is_scikit_learns(metric, offset, k):
    train, train_labels, test, test_labels = problem(offset=offset)
    neighbours = KNeighborsClassifier(k, metric=metric, algorithm="brute")
    neighbours.fit(train.double().numpy(), train_labels.numpy())
    expected = 100 * neighbours.score(test.double().numpy(), test_labels.numpy())
    # float32 cosines of nearly parallel rows may swap a neighbour or two
    allowed = 0.51 if metric == "cosine" and offset else 1e-4
    assert abs(knn_accuracy(train, train_labels, test, test_labels, k, metric) - expected) <= allowed


def test_knn_ties_go_to_the_smallest_class():
    train = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0]])
    labels = torch.tensor([2, 1, 1, 2, 0])
    query = torch.tensor([[0.15]])
    assert knn_accuracy(train, labels, query, torch.tensor([1]), k=4) == 100


def test_knn_refuses_what_it_cannot_do():
    rows, labels = torch.randn(3, 2), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="5.*3"):
        knn_accuracy(rows, labels, rows, labels)
    with pytest.raises(ValueError, match="manhattan.*euclidean.*cosine"):
        knn_accuracy(rows, labels, rows, labels, k=1, metric="manhattan")


def test_linear_probe_is_near_logistic_regression_and_seeded():
    train, train_labels, test, test_labels = problem(n=600, noise=0.9)
    score = linear_probe(train, train_labels, test, test_labels, batch_size=100)
    expected = LogisticRegression(max_iter=2000).fit(train.numpy(), train_labels.numpy())
    assert abs(score - 100 * expected.score(test.numpy(), test_labels.numpy())) <= 2
    assert score == linear_probe(train, train_labels, test, test_labels, batch_size=100)


def test_top_k_accuracy_is_a_plain_count():
    logits = torch.randn(200, 12, generator=seeded())
    labels = torch.randint(0, 12, (200,), generator=seeded(1))
    scores = [top_k_accuracy(logits, labels, k) for k in (1, 2, 5, 12, 20)]
    ranks = [
        sorted(row, reverse=True).index(row[label])
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert scores == [100 * sum(rank < k for rank in ranks) / 200 for k in (1, 2, 5, 12, 20)]
    assert scores == sorted(scores) and scores[-2:] == [100, 100]


def test_linear_probe_is_the_top_1_of_classify():
    train, train_labels, test, test_labels = problem()
    logits = classify(train, train_labels, test, epochs=5, seed=2)
    assert logits.shape == (400, 4)
    assert linear_probe(train, train_labels, test, test_labels, epochs=5, seed=2) == top_k_accuracy(
        logits, test_labels
    )


@pytest.mark.parametrize("n", [150, 40])
def test_train_linear_is_a_plain_loop_with_autograd_and_torchs_adam(n):
    rows, labels = linear_rule(n)
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(10, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * 10**-0.5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=0.1)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1e-4 ** (1 / 6))
    for _ in range(6):
        order = torch.randperm(n, generator=generator)
        for index in [order[:50], order[50:100], order[100:150]] if n == 150 else [order]:
            optimizer.zero_grad()
            F.cross_entropy(layer(rows[index]), labels[index]).backward()
            optimizer.step()
        decay.step()
    found = train_linear(rows, labels, epochs=6, batch_size=50, weight_decay=0.1, seed=5)
    torch.testing.assert_close(found, (layer.weight.data, layer.bias.data), atol=1e-6, rtol=1e-5)


def test_train_linear_drops_incomplete_batches(monkeypatch):
    sizes = []
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(
        F, "cross_entropy", lambda logits, labels: sizes.append(len(logits)) or cross_entropy(logits, labels)
    )
    train_linear(*linear_rule(150), epochs=2, batch_size=60)
    assert sizes == [60, 60, 60, 60]


def test_train_linear_works_without_gradients_outside_and_leaves_torchs_generator_alone():
    images = coloured(n=90, noise=80)
    rows = features(nn.Flatten(), images)
    expected = train_linear(rows, images.labels, epochs=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = train_linear(rows, images.labels, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not any(tensor.requires_grad for tensor in found)


def test_train_linear_solves_logistic_regression():
    rows, labels = linear_rule(300)
    weight, bias = train_linear(rows, labels, 1500, 300, learning_rates=(0.1, 1e-3), weight_decay=1e-2)
    # scikit-learn adds up the losses; with the bias as a column of ones, its penalty is of the bias too.
    reference = LogisticRegression(C=1 / (1e-2 * len(rows)), fit_intercept=False, tol=1e-8, max_iter=2000)
    reference.fit(np.c_[rows.double().numpy(), np.ones(len(rows))], labels.numpy())
    found = torch.cat([weight, bias[:, None]], 1).double()
    torch.testing.assert_close(found, torch.from_numpy(reference.coef_), atol=1e-3, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_train_linear_on_a_gpu_is_that_on_the_cpu():
    rows, labels = linear_rule(1050)
    with float32_arithmetic("cuda"):
        on_gpu = train_linear(rows.cuda(), labels.cuda(), epochs=20, batch_size=100)
    on_cpu = train_linear(rows, labels, epochs=20, batch_size=100)
    torch.testing.assert_close([tensor.cpu() for tensor in on_gpu], list(on_cpu), atol=1e-4, rtol=1e-3)


def test_features_use_eval_mode_and_leave_the_encoder_as_it_was():
    images = load("digits", "test", limit=20)
    encoder = build_encoder("small").train()
    before = encoder[1].running_mean.clone()
    rows = features(encoder, images)
    assert rows.shape == (20, 256) and rows.dtype == torch.float32 and not rows.requires_grad
    assert encoder.training and torch.equal(encoder[1].running_mean, before)
    assert torch.equal(rows, features(encoder.eval(), images))


def test_evaluation_is_in_float32_whatever_is_set_outside():
    images = load("digits", "test", limit=20)
    encoder = build_encoder("small").eval()
    expected = features(encoder, images)
    before = torch.get_float32_matmul_precision()
    matmul, new = torch.backends.cuda.matmul, hasattr(torch.backends.cuda.matmul, "fp32_precision")
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(features(encoder, images), expected)
        with float32_arithmetic("cpu"):
            assert matmul.fp32_precision == "ieee" if new else not matmul.allow_tf32
        assert matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def files(folder, images):
    """The same images in files, losslessly."""
    for index, image in enumerate(images.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    paths = tuple(str(folder / f"{index}.png") for index in range(len(images)))
    size = images.images.shape[-1]
    return StreamedSet(
        "coloured", paths, images.labels, images.classes, MEAN, STD, resize=size, crop=size, workers=0
    )


def test_streamed_images_have_the_same_features_and_views_of_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 4)
    images = coloured(n=10, side=8, noise=20)
    streamed = files(tmp_path, images)
    flat = nn.Flatten()
    torch.testing.assert_close(features(flat, streamed), features(flat, images))
    recipe = Recipe(views=ViewSettings(size=8), seed=3)
    views = two_views(flat, nn.Identity(), streamed, recipe)
    assert views.shape == (2, 10, 3 * 8 * 8) and views.isfinite().all()
    assert torch.equal(views, two_views(flat, nn.Identity(), streamed, recipe))
    still = Recipe(
        views=ViewSettings(
            jitter_probability=0,
            grayscale_probability=0,
            crop_scale=(1, 1),
            crop_ratio=(1, 1),
            flip_probability=0,
            size=8,
        )
    )
    torch.testing.assert_close(two_views(flat, nn.Identity(), streamed, still)[1], features(flat, images))


def test_two_views_are_of_all_images_in_order_by_the_recipes_settings_and_seed(monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 8)
    images = coloured(n=20, noise=30)
    generator = seeded(RECIPE.seed)
    chunks = [make_views(part, 2, MEAN, STD, RECIPE.views, generator) for part in images.images.split(8)]
    projector = nn.Linear(48, 5)
    expected = projector(torch.cat(chunks, 1).flatten(2))
    torch.testing.assert_close(two_views(nn.Flatten(), projector, images, RECIPE), expected)


def test_a_runs_metrics_are_those_of_their_functions():
    train, test = coloured(n=90, noise=80, seed=1), coloured(n=60, noise=80, seed=2)
    encoder, projector = nn.Flatten(), nn.Linear(48, 6)
    metrics = evaluate(encoder, projector, train, test, RECIPE)
    rows = [features(encoder, part) for part in (train, test)]
    sets = (rows[0], train.labels, rows[1], test.labels)
    assert metrics["linear_top1"] == linear_probe(*sets, seed=RECIPE.seed)
    few = stratified_subset(train.labels, 0.1, RECIPE.seed)
    subset = (rows[0][few], train.labels[few], *sets[2:])
    assert len(few) == 9 and metrics["linear_top1_10pct"] == linear_probe(*subset, seed=RECIPE.seed)
    assert metrics["knn5_euclidean_top1"] == knn_accuracy(*sets)
    embeddings, views = project(projector, rows[1]), two_views(encoder, projector, test, RECIPE)
    white = [wmse_metrics.whitened(view) for view in views]
    assert metrics["effective_rank_embeddings"] == wmse_metrics.effective_rank(embeddings)
    assert metrics["cca_dimensions"] == wmse_metrics.cca_dimensions(*views)
    assert metrics["alignment"] == wmse_metrics.alignment(*views)
    assert metrics["uniformity"] == pytest.approx(sum(map(wmse_metrics.uniformity, views)) / 2)
    assert metrics["effective_rank_whitened"] == pytest.approx(6, rel=1e-4)
    assert metrics["alignment_whitened"] == wmse_metrics.alignment(*white)
    assert metrics["uniformity_whitened"] == pytest.approx(sum(map(wmse_metrics.uniformity, white)) / 2)
    again = evaluate(encoder, projector, train, test, RECIPE, test_features=rows[1])
    assert metrics == again, "seeded, and the same whoever computes the features"
    assert "linear_top5" not in metrics
    assert all(type(value) is float for value in metrics.values())


def test_more_labels_help_on_an_easy_set():
    train, test = coloured(n=600, noise=200, seed=1), coloured(n=300, noise=200, seed=2)
    metrics = evaluate(nn.Flatten(), nn.Linear(48, 6), train, test, RECIPE)
    assert 40 < metrics["linear_top1_1pct"] < metrics["linear_top1_10pct"] < metrics["linear_top1"]


def test_top_5_is_reported_from_100_classes_on():
    train, test = coloured(n=300, classes=100, noise=60), coloured(n=200, classes=100, noise=60, seed=1)
    metrics = evaluate(nn.Flatten(), nn.Linear(48, 6), train, test, RECIPE)
    assert metrics["linear_top1"] < metrics["linear_top5"] < 100


def test_raw_pixels_go_through_with_what_needs_more_images_than_dimensions_left_out():
    train, test = coloured(n=90, noise=80, seed=1), coloured(n=60, noise=80, seed=2)
    metrics = evaluate(nn.Flatten(), nn.Identity(), train, test, RECIPE)  # k = 48 > 60 / 2
    names = ("cca_dimensions", "effective_rank_whitened", "alignment_whitened", "uniformity_whitened")
    assert {name for name, value in metrics.items() if value is None} == set(names)
    assert metrics["effective_rank_features"] == metrics["effective_rank_embeddings"]


def test_collapsed_embeddings_have_no_measures_after_whitening():
    train, test = coloured(), coloured(seed=1)
    constant = nn.Linear(48, 4)
    nn.init.zeros_(constant.weight)
    metrics = evaluate(nn.Flatten(), constant, train, test, RECIPE)
    names = ("effective_rank_whitened", "alignment_whitened", "uniformity_whitened")
    assert {name for name, value in metrics.items() if value is None} == set(names)
    assert metrics["alignment"] == 0 and metrics["uniformity"] == pytest.approx(0, abs=1e-12)
    assert metrics["cca_dimensions"] == 0


def test_evaluation_leaves_networks_in_the_mode_they_were_in():
    images = coloured()
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48))
    projector = nn.Sequential(nn.BatchNorm1d(48), nn.Linear(48, 4)).eval()
    before = encoder[1].running_mean.clone()
    evaluate(encoder, projector, images, images, RECIPE)
    assert encoder.training and encoder[1].training and not projector.training
    assert torch.equal(encoder[1].running_mean, before)


def test_measures_of_spectra_are_at_hand_here():
    for name in ("effective_rank", "embedding_std", "cca_dimensions"):
        assert getattr(evaluation, name) is getattr(wmse_metrics, name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spoiled", ["train", "test"])
def test_one_bad_number_among_the_features_is_named_and_never_scored(bad, spoiled):
    rows = {
        name: torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) for name in ("train", "test")
    }
    labels = torch.arange(40) % 4
    rows[spoiled][7, 3] = bad
    named = {"train": "training", "test": "test"}[spoiled]
    for score in (knn_accuracy, partial(knn_accuracy, metric="cosine"), partial(linear_probe, epochs=1)):
        with pytest.raises(ValueError, match=rf"{named} features: row 7 holds NaN or infinity \(1 of 40"):
            score(rows["train"], labels, rows["test"], labels)


def test_an_encoder_that_gives_nan_for_one_image_stops_the_evaluation_by_its_number():
    probe, test = coloured(n=30, noise=80, seed=1), coloured(n=20, noise=80, seed=2)

    class Spoils(nn.Flatten):
        def forward(self, x):
            rows = super().forward(x).clone()
            if len(x) == 20:
                rows[11, 0] = torch.nan
            return rows

    with pytest.raises(ValueError, match=f"features of {test.name} test, a row per image: row 11 holds NaN"):
        evaluate(Spoils(), nn.Linear(48, 6), probe, test, RECIPE)


def test_features_too_long_for_float32_are_no_accuracies():
    rows = 1e30 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    with pytest.raises(ValueError, match="squared lengths of training features: row 0"):
        knn_accuracy(rows, labels, rows, labels)
    with pytest.raises(ValueError, match="NaN or infinity"):
        linear_probe(3e38 * rows.sign(), labels, 3e38 * rows.sign(), labels, epochs=2)
    with pytest.raises(ValueError, match="logits: row 1 "):
        top_k_accuracy(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), torch.tensor([1, 0]))


def test_the_error_over_clusters_of_one_image_is_binomial():
    right = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.8
    p = float(right.double().mean())
    expected = 100 * (p * (1 - p) / 2000) ** 0.5
    assert clustered_error(right, torch.arange(2000)) == pytest.approx(expected, rel=0.08)


def test_copies_of_an_image_tell_nothing_new():
    """Five copies of each of 400 images have the error of 400 images, whatever their order and numbers."""
    right = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.8
    alone = clustered_error(right, torch.arange(400))
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    copies, numbers = right.repeat(5)[order], 7 * torch.arange(400).repeat(5)[order]
    assert clustered_error(copies, numbers) == pytest.approx(alone)
    assert clustered_error(copies, torch.arange(2000)) < 0.6 * alone


def test_one_cluster_has_no_error():
    with pytest.raises(ValueError, match="2 clusters at least; got 1"):
        clustered_error(torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64))
