"""What the figures of all pages share, and grids of images."""

import numpy as np
from matplotlib import colors

from launch.pages import _figures

NAMES = ["$0", "one", "two"]


def test_heat_map_leaves_out_what_was_not_measured():
    figure = _figures.heat_map(np.array([[1.0, np.nan], [0.254, 0.5]]), ["a", "b"], ["x", "y"], "accuracy (%)")
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["100", "25", "50"]
    assert _figures.heat_map(np.array([[np.nan]]), ["a"], ["x"], "accuracy (%)") is None


def test_lines_leave_out_what_has_no_point():
    look = _figures.LOOKS[0]
    series = [_figures.Series("some", [1, 2], [None, 3.0], look), _figures.Series("none", [1, 2], [None, None], look)]
    # A dollar sign starts no formula.
    figure = _figures.lines({r"$\first$": series, "second": series[1:]}, "x", "y")
    assert figure is not None
    assert _figures.to_png(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [r"$\first$"]
    assert figure.axes[0].get_legend_handles_labels()[1] == ["some"]
    assert _figures.lines({"second": series[1:]}, "x", "y") is None


def test_images_stand_in_row_and_column():
    images = [[np.full((4, 5, 1), value) for value in values] for values in ((0.0, 0.25), (0.5, 2.0))]
    figure = _figures.image_grid([("first", images[0]), ("$2", images[1])], ["a", "b"], {(1, 0): True, (0, 1): False})
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "$2"]
    shown = {tuple(image.get_extent()[::3]): np.asarray(image.get_array()) for image in axes.images}
    assert {place: float(image[0, 0, 0]) for place, image in shown.items()} == {
        (0, 0): 0.0, (1, 0): 0.25, (0, 1): 0.5, (1, 1): 1.0
    }  # fmt: skip
    assert all(image.shape == (4, 5, 3) for image in shown.values())
    frames = [colors.to_hex(patch.get_edgecolor()).upper() for patch in axes.patches]
    assert frames == [_figures.GREEN, _figures.RED]
    assert _figures.to_png(figure).startswith(b"\x89PNG")
    assert _figures.image_grid([]) is None


def test_attempts_stand_by_source_and_target():
    images = np.zeros((4, 4, 4, 1), np.uint8)
    # The first image is misclassified, and the last one is the second of its class.
    clean = {"images": images, "labels": np.array([0, 0, 2, 2]), "predictions": np.array([1, 0, 2, 2])}
    attempts = {"images": images[[0, 1, 1, 2, 3]] / 255, "rows": np.array([0, 1, 1, 2, 3])}
    attempts |= {"success": np.array([1, 1, 0, 1, 1], bool), "predictions": np.array([2, 1, 0, 0, 1])}
    targeted = attempts | {"targets": np.array([1, 1, 2, 0, 0])}
    figure = _figures.attempts_grid(clean, targeted, NAMES, "$")
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "$"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$0", "two"]
    assert sorted(tuple(image.get_extent()[::3]) for image in axes.images) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    frames = [(patch.get_x(), patch.get_y(), patch.get_linestyle()) for patch in axes.patches]
    np.testing.assert_allclose([frame[:2] for frame in frames], [(0.97, -0.03), (1.97, -0.03), (-0.03, 0.97)])
    # An untargeted failure has no place.
    figure = _figures.attempts_grid(clean, attempts, None, "")
    assert figure is not None
    assert len(figure.axes[0].patches) == 2
    assert _figures.attempts_grid(clean, {}, NAMES, "") is None
