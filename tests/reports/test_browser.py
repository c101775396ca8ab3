"""A finished sweep in MLflow's own pages, as a researcher opens it from the link: looked at in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from ghm.reports import page, sweep
from ghm.tracking import Sender, Spool, Tracker, link, shared_view
from sweeps.ledger import Ledger
from sweeps.storage import open_storage
from sweeps.studies import create
from tests.chaos.proxy import tracking_server, until_it_answers

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

SWEEP = {
    "sweep.name": "rates",
    "sweep.kind": "sweep",
    "sweep.objective": "val/AP",
    "mlflow.source.name": "ghm train -m",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, sweep.SweepResult, str]]:
    """Address, sweep and experiment of a server that holds one sweep of two losses with three seeds each."""
    folder = tmp_path_factory.mktemp("served")
    with tracking_server(folder / "server") as port:
        tracker = Tracker.open(f"http://127.0.0.1:{port}", "ghm", str(folder))
        record(tracker, folder)
        result = sweep.load(tracker, "rates", "rates")
        page.write(result, tracker, folder / "report")
        yield tracker.uri, result, tracker.experiment_id


@pytest.fixture(scope="module")
def written(served, tmp_path_factory) -> Path:
    """The page of that sweep."""
    address, result, _ = served
    return page.write(result, Tracker(address, "ghm"), tmp_path_factory.mktemp("page"))


def record(tracker: Tracker, folder: Path) -> None:
    top = Spool(folder / "s")
    top.start("rates", SWEEP, key="rates")
    top.share("rates", shared_view("rates", "rates", ["val/AP"], ["loss", "seed"], "loss", False))
    spools = [top]
    for number, (loss, seed) in enumerate((loss, seed) for loss in ("ghm", "focal") for seed in range(3)):
        spool, params = Spool(folder / "s" / str(number)), {"loss": loss, "seed": seed}
        tags = {"sweep.trial": number, "sweep.params": json.dumps(params)}
        spool.start(f"loss={loss} seed={seed} #{number}", tags, "rates", f"rates-{number:04d}")
        spool.log_params(params | {"val/chance_AP50": 0.01})
        for epoch in range(1, 6):
            value = (0.04 if loss == "ghm" else 0.05) * epoch + 0.01 * seed
            spool.log_metrics({"val/AP": value, "val/AP50": 1.4 * value, "val/AP75": 0.6 * value}, epoch)
            spool.log_metrics({"train/loss": 2 / epoch, "train/ce": 1 / epoch, "time/images_per_s": 90.0}, epoch)
        spool.finish("done")
        spools.append(spool)
    top.finish("done")
    Sender(tracker, lambda: [spool.folder for spool in spools]).once()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def tab(browser) -> Iterator[Any]:
    """A page of 1600 x 1000; what it shows at the end is kept in GHM_SCREENSHOTS, if that names a folder."""
    opened = browser.new_page(viewport={"width": 1600, "height": 1000})
    yield opened
    if folder := os.environ.get("GHM_SCREENSHOTS"):
        if (assistant := opened.get_by_role("button", name="Close")).count():
            assistant.first.click()  # it has no part in this
            opened.wait_for_timeout(1500)
        test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
        opened.screenshot(path=Path(folder) / f"{test}.png")
    opened.close()


def test_the_link_opens_on_curves_of_the_objective_with_a_band_for_each_loss(served, tab):
    address, result, experiment = served
    tab.goto(link(address, experiment, result.key))
    charts = tab.locator("[data-testid='experiment-view-compare-runs-card']")
    charts.nth(4).wait_for(timeout=60_000)
    for text in ("Group: focal", "Group: ghm", "6 matching runs", "Group by: loss"):
        tab.get_by_text(text, exact=False).first.wait_for(timeout=30_000)
    first = charts.first
    first.locator(".js-plotly-plot path.js-fill").nth(1).wait_for(state="attached", timeout=30_000)
    assert "val/AP" in first.inner_text()
    assert first.locator(".js-plotly-plot path.js-line").count() >= 2


def test_the_table_has_the_objective_and_what_was_swept_and_whole_names(served, tab):
    address, result, experiment = served
    tab.goto(link(address, experiment, result.key).replace("CHART", "TABLE"))
    tab.get_by_text("loss=focal seed=2 #5").wait_for(timeout=60_000)
    header = " ".join(tab.locator(".ag-header-cell").all_inner_texts())
    assert header.index("val/AP") < header.index("val/AP50")
    tab.locator(".ag-body-horizontal-scroll-viewport").evaluate("element => element.scrollLeft = 10000")
    tab.locator(".ag-header-cell", has_text="seed").first.wait_for(timeout=30_000)
    assert "loss.cls" not in header


def test_the_sweeps_page_says_who_won_and_shows_the_curves(served, tab):
    address, result, experiment = served
    tab.goto(f"{address}/#/experiments/{experiment}/runs/{result.run_id}")
    tab.get_by_text("Best: loss=focal with val/AP 0.260 ± 0.025, mean of 3 seeds.").first.wait_for(timeout=60_000)
    tab.get_by_text("Show more").click()
    curves = tab.locator("img[src*='learning_curves.png']")
    curves.wait_for(timeout=30_000)
    curves.scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelector(\"img[src*='learning_curves.png']\").naturalWidth > 500")
    tab.get_by_role("link", name="loss=focal seed=2 #5").last.click()
    tab.wait_for_url(f"**/runs/{result.trials['run_id'][0]}**")


@pytest.mark.parametrize(
    ("scheme", "width", "ink"), [("light", 1366, "rgb(29, 36, 48)"), ("dark", 1920, "rgb(232, 234, 238)")]
)
def test_the_page_of_its_own_draws_every_chart_by_day_and_by_night(written, browser, scheme, width, ink):
    errors: list[str] = []
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    opened.goto(written.as_uri())
    for title in ("Over seeds", "Who is ahead of whom", "Learning curves", "Seeds", "Slices", "Parallel coordinates"):
        section = opened.locator("section", has=opened.get_by_role("heading", name=title, exact=True))
        if section.count():
            section.locator(".main-svg").first.wait_for(timeout=30_000)
        else:
            assert opened.get_by_role("heading", name=title, exact=True).count() == 1
    label = opened.locator(".xtick text").first
    assert label.evaluate("element => getComputedStyle(element).fill") == ink
    assert opened.locator("table.wins td").filter(has_text="3 of 3").count() == 1
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not errors
    if folder := os.environ.get("GHM_SCREENSHOTS"):
        opened.screenshot(path=Path(folder) / f"page_{scheme}.png", full_page=True)
    opened.close()


def test_two_runs_are_compared(served, tab):
    address, result, experiment = served
    runs = json.dumps(list(result.trials["run_id"][[0, 5]]))
    tab.goto(f'{address}/#/compare-runs?runs={runs}&experiments=["{experiment}"]')
    tab.get_by_text("Comparing 2 Runs", exact=False).first.wait_for(timeout=60_000)
    said = tab.locator("body").inner_text()
    for text in ("loss=focal seed=2 #5", "loss=ghm seed=0 #0", "val/AP"):
        assert text in said


@pytest.fixture
def dashboard(served, tmp_path) -> Iterator[str]:
    """Address of Optuna's dashboard, over a study whose note links to the sweep."""
    address, result, experiment = served
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = create(open_storage(url, tmp_path), "rates", ["maximize"], tmp_path)
    with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
        study.set_metric_names(["val/AP"])
    rates = optuna.distributions.FloatDistribution(0.001, 0.1, log=True)
    for number in range(4):
        study.enqueue_trial({"lr": 0.002 * 3**number})
    ledger = Ledger(study)
    there = link(address, experiment, result.key)
    ledger.point_to(there, f"**[Runs of this sweep]({there})**")
    for number in range(4):
        trial = study.ask({"lr": rates})
        for epoch in range(1, 4):
            trial.report(0.1 * epoch + 0.02 * number, epoch)
        study.tell(trial, 0.3 + 0.02 * number)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "optuna-dashboard", "--port", str(port), url]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_it_answers(f"http://127.0.0.1:{port}/api/studies")
        yield f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait()


def test_the_dashboard_of_studies_has_a_note_that_leads_to_mlflow(dashboard, served, tab):
    address, result, experiment = served
    tab.goto(f"{dashboard}/dashboard/studies/1/note")
    there = tab.get_by_role("link", name="Runs of this sweep")
    there.wait_for(timeout=60_000)
    assert there.get_attribute("href") == link(address, experiment, result.key)
    tab.goto(f"{dashboard}/dashboard/studies/1")
    tab.get_by_text("rates").first.wait_for(timeout=60_000)
    tab.locator(".js-plotly-plot").first.wait_for(timeout=30_000)
    tab.get_by_text("val/AP", exact=False).first.wait_for(timeout=30_000)
