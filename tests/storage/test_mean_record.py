"""The mean over the folds of one trial."""

import dataclasses

import numpy as np
import pytest

from optuna_glocal.storage.mean_record import mean_record
from optuna_glocal.storage.record import Record


def fold(value=1.0, gradient=None, sd=0.0, **fields):
    gradient = {"lr": 2.0} if gradient is None else gradient
    about = {"source": "tangent" if gradient else "none", "status": "An estimate is given."}
    return Record(
        3, 100, 100, value=value, value_sd=sd, gradient=gradient,
        gradient_sd=dict.fromkeys(gradient, sd), **{**about, **fields},
    )  # fmt: skip


def test_one_callback_is_its_own_mean():
    assert mean_record([fold()]) == fold()


def test_the_mean_and_its_standard_error():
    values, slopes = [1.0, 2.0, 6.0], [-1.0, 0.5, 3.0]
    made = mean_record([fold(v, {"lr": g}) for v, g in zip(values, slopes, strict=True)])
    assert made.value == np.mean(values) and made.gradient["lr"] == pytest.approx(np.mean(slopes))
    for sd, parts in ((made.value_sd, values), (made.gradient_sd["lr"], slopes)):
        assert sd == pytest.approx(np.std(parts, ddof=1) / np.sqrt(3), rel=1e-3)
    assert made.callbacks == 3


def test_equal_folds_have_the_standard_deviation_of_one():
    made = mean_record([fold(sd=0.25)] * 4)
    assert made.value_sd == made.gradient_sd["lr"] == 0.25
    assert dataclasses.replace(made, callbacks=1) == fold(sd=0.25)


def test_the_order_of_the_folds_does_not_matter():
    folds = [fold(v, {"lr": v, "momentum": -v}) for v in (1.0, 2.0, 4.0)]
    assert mean_record(folds) == mean_record(folds[::-1])


def test_a_gradient_that_one_fold_lacks_is_not_given():
    some = mean_record(
        [fold(gradient={"lr": 1.0, "a": 1.0}), fold(gradient={"lr": 1.0, "b": 1.0})]
    )
    assert some.gradient == {"lr": 1.0}
    none = mean_record([fold(), fold(gradient={}, status="Too rough.")])
    assert none.gradient == {} and none.source == "none" and none.value == 1.0
    assert none.status == "One of 2 callbacks of the trial has no gradient: Too rough."


def test_a_fold_without_a_loss_leaves_no_mean_loss():
    assert mean_record([fold(), fold(None)]).value is None


def test_the_shortest_fold_says_how_far_the_trial_came():
    made = mean_record([fold(), dataclasses.replace(fold(), steps=7)])
    assert (made.steps, made.horizon) == (7, 100)


def test_one_cheap_fold_makes_the_mean_cheap():
    made = mean_record([fold(), fold(source="cheap", products_per_step=0.5)])
    assert made.source == "cheap" and made.products_per_step == 0.75


def test_a_mean_reads_back():
    made = mean_record([fold(loss=3.0), fold(loss=5.0)])
    assert made.loss == 4.0 and Record.from_json(made.to_json()) == made


def test_tuned_parts_keep_the_source_of_their_gradient():
    parts = [
        Record(0, 9, 9, "implicit", value=v, gradient={"wd": v}, tuned=("lr",)) for v in (1.0, 3.0)
    ]
    mean = mean_record(parts)
    assert (mean.source, mean.gradient, mean.tuned) == ("implicit", {"wd": 2.0}, ("lr",))
    without = mean_record([parts[0], Record(0, 9, 9, "greedy", value=1.0, tuned=("lr",))])
    assert (without.source, without.gradient) == ("greedy", {})
