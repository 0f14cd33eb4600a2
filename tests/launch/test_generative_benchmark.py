"""The works of the benchmark that search with generative models, on tiny ones."""

import jax
import numpy as np
import pytest

from ddjax import data, runs
from ddjax.generative import gan, pixelcnn
from launch import pages, recipes
from launch.benchmarks import generative, measure

BATCH = 3


def density():
    model = pixelcnn.PixelCNN(channels=1, width=4, blocks=1, levels=1, mixtures=2, dropout=0.0)
    state = pixelcnn.create_state(model, pixelcnn.make_optimizer(1e-3, 1.0), (8, 8, 1), jax.random.key(0))
    # Untrained, it thinks much the same of all pixels.
    last = state.ema_params["last"]
    averages = state.ema_params | {"last": last | {"kernel": 5 * last["kernel"]}}
    return "tiny_density", state.replace(ema_params=averages)


def generator():
    make = jax.jit(lambda key: gan.create_state((8, 8, 1), key=key, learning_rate=1e-4, width=4, latent=5))
    return "tiny_generator", make(jax.random.key(1))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with both works, and its records by work and side."""
    run = runs.Run(tmp_path_factory.mktemp("benchmark") / "run", {"launcher": "benchmark"}, {})
    test = data.load("digits", "test", num_examples=10)
    labels = test.labels.astype(np.int32)
    context = measure.Context(
        run=run,
        recipe=recipes.get("digits"),
        state=None,
        train=test,
        test=test,
        images=data.to_float(test.images),
        labels=labels,
        targets=(labels + 1) % 10,
        batches=[BATCH],
        largest=None,
        repetitions=1,
        quick=True,
        seed=0,
        peers=None,
        models={"density": density(), "generator": generator()},
    )
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(generative, "_STEPS", 5)
        for work in generative.WORK.values():
            work(context)
    return context, {(record["work"], record["side"]): record for record in runs.read_results(run.workdir)}


def test_purified_with_and_without_what_was_kept(measured):
    _, records = measured
    ours, plain = records["purify", "ddjax"], records["purify", "whole network for each pixel"]
    # A tie may fall otherwise by rounding.
    assert plain["equal_pixels"] > 0.95
    assert plain["network_evaluations"] == 64
    assert ours["mean_distance"] == pytest.approx(plain["mean_distance"], rel=0.05)
    assert ours["mean_distance"] > 0.1
    for record in (ours, plain):
        assert record["network"] == "tiny_density"
        assert record["weights"] == "trained"
        assert (record["batch"], record["units"], record["unit"]) == (BATCH, BATCH, "image")


def test_reconstructed_from_the_same_starts(measured):
    _, records = measured
    sides = {side: record for (work, side), record in records.items() if work == "reconstruct"}
    assert set(sides) == {"ddjax", "starts in turn", "a call for each start"}
    for side, record in sides.items():
        assert record["mean_error"] == pytest.approx(sides["ddjax"]["mean_error"], rel=1e-3), side
        assert (record["restarts"], record["num_steps"]) == (4, 5)
        assert side == "ddjax" or record["max_error_difference"] < 1e-2


def test_a_loop_that_takes_minutes_is_left_out(measured, monkeypatch, capsys):
    context, records = measured
    monkeypatch.setattr(generative, "_MOST_PIXELS", BATCH * 64**2 - 1)
    generative.WORK["purify"](context)
    assert "purify (batch 3): the plain loop, of 64 evaluations, is left out" in capsys.readouterr().out
    assert len(runs.read_results(context.run.workdir)) == len(records)


def test_both_stand_in_the_report(measured):
    run = measured[0].run
    page = pages.write(run.workdir).read_text()
    inside = page.partition('<section id="inside-ddjax')[2]
    table = pages.table(run.workdir)
    for text in (inside, table):
        for said in ("purification by PixelDefend", "reconstruction by Defense-GAN", "whole network for each pixel"):
            assert said in text
        assert "starts in turn" in text
        assert "equal pixels" in text
