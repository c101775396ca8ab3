"""What other sweep systems take for a trial that does nothing. Each runs in a process, and where it must in an
environment, of its own: python rivals.py SYSTEM FOLDER TRIALS. Prints JSON: milliseconds from one trial's start to the
next (median), and how they divide, where the system lets one see it. Imports nothing of ours.
"""

import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

STARTS = "starts"  # a file in the folder: the time of each trial's start
CONFIG = "x: 0.5\nfolder: .\n"

spent = defaultdict(list)  # seconds of each call, by part of the work


def started(folder):
    with open(Path(folder) / STARTS, "a") as file:
        file.write(f"{time.time()}\n")


def gaps(folder):
    """Milliseconds between the starts of trials."""
    starts = sorted(map(float, (Path(folder) / STARTS).read_text().split()))
    return [1000 * (after - before) for before, after in pairwise(starts)]


def timed(owner, name, part):
    """Have the time of each call of a method added to a part of the work."""
    call = getattr(owner, name)

    @functools.wraps(call)
    def wrapped(*args, **kwargs):
        begun = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[part].append(time.perf_counter() - begun)

    setattr(owner, name, wrapped)


def result(folder, trials):
    """As printed: the median of a trial, and the mean of each part of it."""
    parts = {part: 1000 * sum(times) / trials for part, times in spent.items()}
    return json.dumps({"trial": statistics.median(gaps(folder)), "parts": parts})


def official(folder, trials):
    """hydra-optuna-sweeper, with Hydra's own launcher."""
    import hydra
    import optuna
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    timed(ConfigLoaderImpl, "load_sweep_config", "compose")
    timed(optuna.study.Study, "ask", "ask")
    timed(optuna.study.Study, "tell", "tell")
    timed(BasicLauncher, "launch", "launch")
    (folder / "config.yaml").write_text(CONFIG)

    def task(cfg):
        started(folder)
        return (cfg.x - 1) ** 2

    sys.argv = ["rival", "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "x=interval(0.0,2.0)"]
    sys.argv += [f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=1"]
    sys.argv += [f"hydra.sweeper.storage='sqlite:///{folder}/study.db'"]
    sys.argv += ["hydra.sweeper.study_name=s", f"hydra.sweep.dir={folder}/multirun"]
    hydra.main(config_path=str(folder), config_name="config", version_base=None)(task)()
    # The launcher composes too.
    spent["launch"].append(-sum(spent["compose"]))


def plain(folder, trials):
    """Optuna alone: nothing is composed and nothing launched."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    timed(optuna.study.Study, "ask", "ask")
    timed(optuna.study.Study, "tell", "tell")
    study = optuna.create_study(storage=f"sqlite:///{folder}/study.db", sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 2)
        started(folder)
        study.tell(trial, (x - 1) ** 2)


def tune(folder, trials):
    """Ray Tune with Optuna's search, one trial at a time."""
    import optuna
    import ray
    from ray.tune import RunConfig, TuneConfig, Tuner, uniform
    from ray.tune.search.optuna import OptunaSearch

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def task(config):
        started(folder)
        return {"value": (config["x"] - 1) ** 2}

    search = OptunaSearch(sampler=optuna.samplers.RandomSampler(seed=0), metric="value", mode="min")
    limits = TuneConfig(num_samples=trials, search_alg=search, max_concurrent_trials=1)
    kept = RunConfig(storage_path=str(folder / "tune"), verbose=0)
    Tuner(task, param_space={"x": uniform(0, 2)}, tune_config=limits, run_config=kept).fit()


if __name__ == "__main__":
    place, count = Path(sys.argv[2]).resolve(), int(sys.argv[3])
    {"official": official, "plain": plain, "tune": tune}[sys.argv[1]](place, count)
    print(result(place, count))
