"""What the film and the pictures of CIFAR-10 share: whole-number coordinates, and the checks of a file."""

import clouds
import numpy as np
import pytest
import torch


def test_the_grid_keeps_shapes_and_one_scale_for_all_frames():
    generator = np.random.default_rng(0)
    layouts = [generator.normal(size=(40, 2)) * (n + 1) + (7, -3) for n in range(3)]
    grid = clouds.to_grid(layouts)
    points = np.array(grid).reshape(3, 40, 2)
    assert all(isinstance(value, int) for frame in grid for value in frame)
    assert points.min() >= 0 and points.max() <= clouds.GRID
    side = np.ptp(np.stack(layouts), axis=(0, 1)).max()
    assert max(np.ptp(points, axis=(0, 1))) >= clouds.GRID - 1, "the longer side is filled"
    for layout, rounded in zip(layouts, points, strict=True):
        wanted = (layout - layout[0]) / side * clouds.GRID
        assert np.abs((rounded - rounded[0]) - wanted).max() <= 1.001, (
            "rounding moves a difference by 1 at most"
        )


def test_a_layout_with_nan_is_refused():
    layout = np.zeros((5, 2))
    layout[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        clouds.to_grid([np.ones((5, 2)), layout])


def test_what_is_drawn_is_the_first_embeddings_at_length_1():
    embeddings = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    points = clouds.drawn(embeddings, 5)
    assert points.shape == (5, 3) and points.dtype == torch.float64
    torch.testing.assert_close(points.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(points.float(), embeddings[:5] / embeddings[:5].norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("places", "complaint"),
    [
        ([0, 10, 5], "3 coordinates for 2 points"),
        ([0, 10, 5, 0.5], "whole number"),
        ([0, -1, 5, 5], "outside"),
        ([0, 5, 5, 11], "outside"),
    ],
)
def test_places_that_cannot_be_drawn_are_told(places, complaint):
    assert clouds.point_problems("here", [0, 10, 5, 3], 2, 10) == []
    (problem,) = clouds.point_problems("here", places, 2, 10)
    assert complaint in problem and problem.startswith("here: ")
    assert clouds.point_problems("here", [-5, 11], 1) == [], "without a grid any whole number will do"
