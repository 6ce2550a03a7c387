"""What an estimator returns."""

from optuna_glocal.forecasting.estimate import Estimate, Status


def test_an_estimate_without_numbers_keeps_its_reason():
    none = Estimate.none(Status.TOO_SHORT, {"points": 2})
    assert none.h is None and none.sd is None and none.source == "none"
    assert none.status is Status.TOO_SHORT and none.diagnostics == {"points": 2}


def test_every_status_is_a_sentence():
    for status in Status:
        assert status.value[0].isupper() and status.value.endswith(".")
