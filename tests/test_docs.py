"""What the documentation tells people to type works."""

import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.job_submission import JobStatus

from docs import reference
from ghm.provenance import write_atomically
from tests.coco import write_folder
from tests.sweeps.toy import with_failures

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = ["epochs=1", "batch_size=4"]
DRAWN = ["data.train_images=8", "data.val_images=4", "data.image_size=64"]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block of a language."""
    pattern = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [(page.name, code) for page in PAGES for code in pattern.findall(page.read_text())]


def commands(start: str) -> list[str]:
    """Every documented command that begins with `start`, comments cut off."""
    lines = [line.split("  #")[0].strip() for _, code in blocks("sh") for line in code.splitlines()]
    return sorted({line for line in lines if line.startswith(start)})


def test_every_setting_stands_in_the_reference_with_its_meaning_and_what_is_searched():
    sections = reference.files()
    assert not reference.explain(sections)
    assert reference.page(sections) == reference.PAGE.read_text()
    text = reference.page(sections)
    assert "| `gamma` | `2.0` | how far easy examples are weighed down; 0: not at all | `interval(0.5,4.0)` |" in text
    assert "| `budget.hours` | `null` | while its command runs |" in text
    assert "| `mu` | `0.02` | " in text


def test_a_setting_without_a_meaning_is_named(tmp_path):
    (tmp_path / "new.yaml").write_text("# A new loss.\n_target_: mine.New\nsharpness: 2\nweight: 1.0  # of it all\n")
    sections = reference.files() | {"`loss/new=`": [reference.read(tmp_path / "new.yaml")]}
    assert reference.explain(sections) == ["new.yaml: sharpness"]


@pytest.mark.parametrize("command", commands("make"))
def test_every_make_target_that_is_named_exists(command):
    target = shlex.split(command, comments=True)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [line for line in commands(".venv/bin/ghm train") if " -m " not in line])
@pytest.mark.usefixtures("cluster")
def test_every_documented_run_runs(command, ghm):
    assert ghm(*shrunk(command)) == 0


@pytest.mark.parametrize("command", list(commands(".venv/bin/ghm train -m")))
def test_every_documented_sweep_is_accepted(command, monkeypatch):
    """Everything up to the first trial: the space, its probes, the first settings."""
    import sweeps.launch
    from ghm.cli import main

    class Reached(Exception):
        pass

    def stop(sweep, search, *rest):
        assert search.space.dimensions
        raise Reached

    monkeypatch.setattr(sweeps.launch, "run_sweep", stop)
    with pytest.raises(SystemExit) as stopped:
        main(shrunk(command))
    assert stopped.value.code == 1
    assert isinstance(stopped.value.__context__, Reached)


@pytest.mark.parametrize("command", commands(".venv/bin/ghm retry"))
def test_every_documented_retry_queues(command, ghm, capsys):
    words = shlex.split(command)[1:]
    with_failures(words[1], 6)
    assert ghm(*words) == 0
    assert capsys.readouterr().out.startswith("Queued again: ")


class Cluster:
    """What a documented submission needs of one."""

    def submit_job(self, **order):
        return order["submission_id"] or "drawn"

    def list_jobs(self):
        return [
            SimpleNamespace(submission_id="rates", status=JobStatus.RUNNING, metadata={}, entrypoint="", start_time=1)
        ]

    def get_job_info(self, job):
        return SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0)

    def get_job_status(self, job):
        return JobStatus.SUCCEEDED

    def stop_job(self, job):
        pass

    async def tail_job_logs(self, job):
        yield "epoch 1\n"


@pytest.mark.parametrize("command", commands(".venv/bin/ghm submit"))
def test_every_documented_submission_is_accepted(command, ghm, monkeypatch):
    monkeypatch.setenv("WANDB_TEAM", "us")
    monkeypatch.setattr("ghm.verbs.submit.connect", lambda address: Cluster())
    assert ghm(*shlex.split(command)[1:]) == 0


OTHERS = [
    line
    for verb in ("evaluate", "reproduce", "data", "sync", "doctor", "plan")
    for line in commands(f".venv/bin/ghm {verb}")
]


@pytest.mark.parametrize("command", OTHERS)
def test_every_documented_evaluation_and_check_runs(command, ghm, monkeypatch):
    write_folder(Path("folder"))
    monkeypatch.setattr("ghm.fetch.coco2017", lambda root, **options: None)
    if "CHECKPOINT" in command or " RUN" in command:
        assert ghm("train", *SMALL, *DRAWN, "figures=false", "dir=run") == 0
    words = [word.replace("CHECKPOINT", "run/best.pt").replace("=PATH", "=folder") for word in shlex.split(command)[1:]]
    words = ["run" if word == "RUN" else word for word in words]
    assert ghm(*words) == 0


# Where the paper's networks, eight GPUs and all of COCO stand, smaller ones do for a test.
SMALLER = {"scaling.num_workers=8": "scaling.num_workers=2", "scaling.gpus=1": "scaling.gpus=0"}
PUBLISHED = ["data=coco_folder", "model.weights=null", "model.min_size=64", "model.max_size=96"]


def shrunk(command: str) -> list[str]:
    """The command's arguments, on data that costs nothing."""
    words = [SMALLER.get(word, word) for word in shlex.split(command)[1:]]
    words = [str(ROOT / word) if word.startswith("docs/") else word for word in words]
    if "runs/conf" in words:
        with_best(next(word for word in words if word.startswith("+best=")).removeprefix("+best=").split(","))
    if "+experiment=" in command or ("+sweep=table" in command and "+scale" not in command):
        words += PUBLISHED
    if "PATH" in command:
        write_folder(Path("folder"))
        words = [word.replace("=PATH", "=folder") for word in words]
    given = {word.split("=")[0] for word in words}
    smaller = SMALL if "PATH" in command else [*SMALL, *DRAWN]
    return [*words, *(word for word in smaller if word.split("=")[0] not in given)]


def with_best(sweeps: list[str]) -> None:
    """What sweeps of these names leave of their best."""
    for name in sweeps:
        write_atomically(Path(f"runs/conf/best/{name}.yaml"), "# @package _global_\nloss: {cls: {weight: 2}}\n")


@pytest.mark.parametrize("code", [code for _, code in blocks("python") if "hydra.main" not in code])
def test_every_python_example_runs(code):
    names: dict[str, torch.Tensor] = {}
    exec(compile(code, "README", "exec"), names)
    assert 0 < float(names["value"].detach()) < 1.5


@pytest.mark.parametrize(("page", "code"), blocks("sh"), ids=lambda value: value.splitlines()[0][:40])
def test_every_shell_example_is_one_that_a_shell_reads(page, code):
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_every_file_that_the_pages_show_exists():
    tree = re.search(r"```\n(ghm/.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert tree is not None
    named = [line.split()[0] for line in tree.group(1).splitlines()]
    for page in PAGES:
        named += re.findall(r"`((?:conf|docs|sweeps|tests)/[a-z_0-9/]+\.\w+)`", page.read_text())
    additions = ("conf/sweep/mine.yaml", "conf/loss/cls/halved.yaml")  # of a reader's own
    assert not [name for name in named if name not in additions and not (ROOT / name).exists()]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda page: page.name)
def test_every_result_says_how_it_was_obtained(page):
    text = page.read_text()
    for row in ("command", "commit", "machine", "threads", "hours"):
        assert re.search(rf"^\| {row} \| \S", text, re.MULTILINE), row
    assert any(name == page.name and ".venv/bin/ghm train" in code for name, code in blocks("sh"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), target
        assert not heading or heading in headings(file), target


def headings(page: Path) -> set[str]:
    """As links to them are spelled: `## Nothing twice` is #nothing-twice."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_pictures_and_figures_stay_under_a_megabyte_in_all():
    files = [file for kind in ("png", "jpg", "svg", "pdf") for file in (ROOT / "docs").rglob(f"*.{kind}")]
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_what_the_page_of_the_paper_points_to_exists():
    """Files, what is defined in them, configs, sweeps, tests of equations, and figures."""
    page = (ROOT / "docs" / "paper.md").read_text()
    for file, name in re.findall(r"`([\w/.]+\.py)(?:::(\w+))?`", page):
        assert re.search(rf"^ *(class|def) {name}\b", (ROOT / file).read_text(), re.MULTILINE) or not name, (file, name)
    for option in re.findall(r"`loss=(\w+)`", page):
        assert (ROOT / "conf" / "loss" / f"{option}.yaml").exists(), option
    sweeps = set(re.findall(r"\+sweep=(\w+)", page)) | {"scope", "momentum", "mu", "strength", "noise"}
    assert {path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")} - {"demo"} == sweeps
    equations = {int(number) for row in re.findall(r"^\| ([\d, -]+) \|", page, re.MULTILINE) for number in _span(row)}
    tested = re.findall(
        r"def test_equations?_(\d+)(?:_to_(\d+))?_", (ROOT / "tests/losses/test_equations.py").read_text()
    )
    assert equations == {n for one, end in tested for n in range(int(one), int(end or one) + 1)} == set(range(1, 20))


def _span(text: str) -> set[int]:
    """Of "4-6" or "1, 2"."""
    parts = [list(map(int, part.split("-"))) for part in text.split(", ")]
    return {number for ends in parts for number in range(ends[0], ends[-1] + 1)}
