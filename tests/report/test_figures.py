import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from loopjax.evaluation.robustness import CurvePoint
from loopjax.evaluation.tables import Estimate
from loopjax.report.plane import principal_plane

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")

from matplotlib.figure import Figure

from loopjax.report import figures
from loopjax.report.style import log_axis

RNG = np.random.default_rng(0)
NAMES = ("residual <AE>", "PCA & co")
SCORES = {n: {"train": RNG.lognormal(size=60), "held out": RNG.lognormal(size=20)} for n in NAMES}
LATENTS = {n: RNG.normal(size=(40, 6)) for n in NAMES}
FLAGGED = {n: np.arange(40) < 4 for n in NAMES}
CUTS = dict.fromkeys(NAMES, 2.0)
POINTS = [
    CurvePoint(perturbation, "dB", level, str(level), name, Estimate(0.6, 0.5, 0.7), 0.8, 9, 1)
    for perturbation in ("noise", "pitch")
    for level in range(3)
    for name in NAMES
]
PARTS = {
    "duration_s": 2.0,
    "waveform": np.c_[-np.ones(50), np.ones(50)],
    "mel": RNG.random((8, 20)),
    "mel_hz": np.geomspace(60, 9000, 8),
    "time_s": [0.5, 1.5],
    "score": [1.0, 2.0],
    "token_time_s": [],
    "token_score": [],
    "full_score": 1.5,
    "threshold": 1.2,
    "segment_drop": RNG.normal(size=8),
    "band_drop": RNG.normal(size=8),
    "band_hz": [(100.0 * k, 100.0 * k + 100) for k in range(8)],
}

DRAW = {
    "score_boxes": lambda out: figures.score_boxes(SCORES, out, CUTS),
    "score_histograms": lambda out: figures.score_histograms(SCORES, CUTS, out),
    "latent_distributions": lambda out: figures.latent_distributions(LATENTS, out),
    "latent_pca": lambda out: figures.latent_pca(LATENTS, FLAGGED, out),
    "latent_heat_map": lambda out: figures.latent_heat_map(
        LATENTS, {n: RNG.random(40) for n in NAMES}, out
    ),
    "training_curves": lambda out: figures.training_curves(
        {n: {"train": [1.0, 0.5], "validation": [1.1, 0.7]} for n in NAMES}, out
    ),
    "robustness_curves": lambda out: figures.robustness_curves(POINTS, out),
}


@pytest.mark.parametrize("name", DRAW)
def test_figure_is_a_labeled_svg_that_takes_the_pages_color(name, tmp_path):
    path = DRAW[name](tmp_path / "deep" / f"{name}.svg")
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-label")
    assert "currentColor" in text and figures.INK not in text
    words = " ".join(root.itertext())
    assert all(n in words for n in NAMES)  # text stays text, and is escaped
    assert "prefers-color-scheme:dark" in text


def test_same_data_same_bytes(tmp_path):
    one, two = (
        figures.score_boxes(SCORES, tmp_path / folder / "f.svg", CUTS).read_bytes()
        for folder in ("a", "b")
    )
    assert one == two


@pytest.mark.parametrize("most", [1.9, 4.0, 20.0, 5000.0])
def test_logarithmic_axes_have_several_numbers(most, tmp_path):
    axes = Figure().add_subplot()
    axes.plot(np.geomspace(0.72, 0.72 * most, 50))
    log_axis(axes, "y")
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    inside = [t for t in axes.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert 3 <= sum(bool(tick.label1.get_text()) for tick in inside) <= 8


def test_scores_at_zero_are_drawn_on_a_plain_axis(tmp_path):
    scores = {"a": {"train": np.array([0.0, 1.0, 2.0])}}
    figures.score_boxes(scores, tmp_path / "boxes.svg")
    figures.score_histograms(scores, {"a": 1.5}, tmp_path / "histogram.svg")
    assert (tmp_path / "histogram.svg").stat().st_size > 1000


def test_explanation_is_drawn_with_and_without_excerpts(tmp_path):
    figures.explanation(PARTS, tmp_path / "a.svg", title="<b>.wav")
    bare = PARTS | {"time_s": [], "score": [], "segment_drop": []}
    figures.explanation(bare, tmp_path / "b.svg")
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert root.get("aria-label") == "<b>.wav"


def test_principal_plane_keeps_distances_and_sign():
    basis = np.linalg.qr(RNG.normal(size=(9, 2)))[0]
    flat = RNG.normal(size=(30, 2)) * [5, 1]
    plane, share = principal_plane(flat @ basis.T)
    wanted = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(plane[:, None] - plane[None], axis=-1), wanted)
    assert share.sum() == pytest.approx(1.0)
    assert (plane[np.abs(plane).argmax(0), [0, 1]] > 0).all()
    lone, share = principal_plane(np.ones((1, 5)))
    assert lone.tolist() == [[0.0, 0.0]] and share.tolist() == [0.0, 0.0]
