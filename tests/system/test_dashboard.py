"""optuna-dashboard shows what a study leaves, in a real browser and without a complaint."""

import contextlib
import getpass
import importlib.util
import shutil
import subprocess
import sys
import time
import urllib.request

import optuna
import pytest
import servers
from scripts import EXAMPLES

from optuna_glocal import GlocalSampler, Record
from optuna_glocal.visualization import upload

SECONDS = 60
COLUMNS = ("glocal:forecast", "glocal:record", "glocal:reason")
MODULES = ("optuna_dashboard", "selenium", "sklearn", "plotly")


def missing():
    programs = [p for p in ("chromium", "chromedriver") if shutil.which(p) is None]
    modules = [m for m in MODULES if importlib.util.find_spec(m) is None]
    absent = programs + modules
    return f"dashboard: no {', '.join(absent)} on this machine" if absent else None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The examples' task, observed, with one trial that was pruned."""
    servers.require(missing())
    folder = tmp_path_factory.mktemp("dashboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        digits = importlib.import_module("digits")
    study = optuna.create_study(
        study_name="digits-60-steps",
        storage=f"sqlite:///{folder}/glocal.db",
        sampler=GlocalSampler(seed=0),
    )
    study.optimize(digits.Task(60).objective, n_trials=6)
    study.pruner = optuna.pruners.ThresholdPruner(upper=-1.0, n_warmup_steps=20)
    study.optimize(digits.Task(60).objective, n_trials=1)
    upload(study)
    return study


@pytest.fixture(scope="module")
def address(study):
    """Of a dashboard on the study's storage."""
    port, url = servers.free_port(), str(study._storage._backend.engine.url)
    code = f"import optuna_dashboard as d; d.run_server({url!r}, '127.0.0.1', {port})"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: urllib.request.urlopen(f"{address}/api/studies", timeout=9).read())
        yield f"{address}/dashboard/studies/{study._study_id}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    servers.require(missing())
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--disable-gpu", "--window-size=1600,1200",
                     "--disable-dev-shm-usage", "--disable-background-networking"):  # fmt: skip
        options.add_argument(argument)
    if getpass.getuser() == "root":
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def wait_for(condition):
    """Until it holds; a page that is being drawn may not yet have what is asked for."""
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(Exception):
            if found := condition():
                return found
        assert time.monotonic() < deadline, "the page does not show it"
        time.sleep(0.1)


def elements(browser, css):
    return browser.find_elements("css selector", css)


def text(browser):
    return elements(browser, "body")[0].text


def errors(browser):
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def test_the_study_page_shows_our_figures(browser, address):
    browser.get(address)
    for title in (
        "Path of proposals of study digits-60-steps",
        "Importance by gradients, study digits-60-steps",
        "Trust in gradients, study digits-60-steps",
        "Koopman eigenvalues of trial",
        "Hypergradients of trial",
    ):
        wait_for(lambda title=title: title in text(browser))
    assert errors(browser) == []


def test_the_note_explains_them(browser, address):
    browser.get(f"{address}/note")
    wait_for(lambda: "7 trials, 1 of them pruned" in text(browser))
    assert "Path of proposals" not in text(browser) and "Figures" in text(browser)
    assert errors(browser) == []


def test_attributes_are_columns(browser, address):
    """On the page of selections: the address trialTable of 0.21 is routed, but draws nothing."""
    browser.get(f"{address}/smartSelection")
    for name in COLUMNS:
        wait_for(lambda name=name: f"UserAttribute {name}" in text(browser))
    assert "User Attribute glocal:forecast" in text(browser)  # an axis of the parallel coordinates
    assert errors(browser) == []


def test_the_forecast_is_a_target(browser, address):
    browser.get(address)
    target = wait_for(lambda: elements(browser, "[role=combobox]")[0])
    assert target.text == "Objective 0"
    target.click()
    # The menu unfolds: its entries are there before they can be read.
    wanted = "User Attribute glocal:forecast"
    wait_for(lambda: wanted in {o.text for o in elements(browser, "[role=option]")})
    next(o for o in elements(browser, "[role=option]") if o.text == wanted).click()
    wait_for(lambda: text(browser).count("User Attribute glocal:forecast") >= 2)  # and the axis
    assert errors(browser) == []


def test_a_pruned_trials_page_shows_its_record(browser, address, study):
    trial = study.trials[-1]
    assert trial.state == optuna.trial.TrialState.PRUNED
    browser.get(f"{address}/trials?numbers={trial.number}")
    wait_for(lambda: f"Trial {trial.number} (trial_id={trial._trial_id})" in text(browser))
    shown = text(browser)
    assert "Pruned" in shown and Record.read(trial).to_json() in shown
    assert str(trial.user_attrs["glocal:forecast"]) in shown
    assert errors(browser) == []
