"""The only door to MLflow: one experiment a project, a parent run a sweep, a child run a trial."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as Record
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from ghm.secrets import hidden

BATCH = 100  # MLflow takes at most 100 parameters or tags, and 1000 metrics, in one call
PARAM_LENGTH = 6000
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on training runs, not on GenAI traces


class Run:
    """One MLflow run being written."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """All values of a step in one call."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, [Metric(key, float(value), now, step) for key, value in metrics.items()])

    def log_params(self, params: Mapping[str, object]) -> None:
        entries = [Param(key, hidden(str(value))[:PARAM_LENGTH]) for key, value in params.items()]
        for start in range(0, len(entries), BATCH):
            self._client.log_batch(self.run_id, params=entries[start : start + BATCH])

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(key, hidden(str(value))) for key, value in tags.items()])

    def log_file(self, path: Path, folder: str) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)

    def log_text(self, text: str, path: str) -> None:
        self._client.log_text(self.run_id, hidden(text), path)

    def finish(self, status: str, state: str) -> None:
        """`status` as MLflow knows it (FINISHED, FAILED, KILLED); `state` tells pruned from cancelled."""
        self.set_tags({"sweep.state": state})
        self._client.set_terminated(self.run_id, status)


class Tracker:
    """A connection to one experiment of a tracking server or of a local database."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None) -> None:
        """`artifacts` is where a local database keeps files; a server decides for itself (None).

        ValueError when nothing answers at `uri`.
        """
        self.uri = uri
        try:
            with _impatient():
                self.client = MlflowClient(tracking_uri=uri)
                found = self.client.get_experiment_by_name(experiment)
                self.experiment_id = found.experiment_id if found else self._create(experiment, artifacts)
        except Exception as error:  # every kind of store fails in its own way
            reason = hidden(str(error).splitlines()[0][:200])
            raise ValueError(
                f"MLFLOW_TRACKING_URI={hidden(uri)}: no tracking server answers there ({reason}); "
                "start it, correct the address, or unset it to track under runs/"
            ) from error

    @classmethod
    def open(cls, uri: str | None, experiment: str, folder: str) -> "Tracker":
        """The server or database at `uri`; without one, a database below `folder`.

        A database keeps its artifacts below `folder`, a server where it likes.
        """
        if uri and not uri.startswith("sqlite:"):
            return cls(uri, experiment)
        home = Path(folder).resolve()
        home.mkdir(parents=True, exist_ok=True)
        return cls(uri or f"sqlite:///{home}/mlflow.db", experiment, (home / "artifacts").as_uri())

    def _create(self, experiment: str, artifacts: str | None) -> str:
        try:
            return self.client.create_experiment(experiment, artifact_location=artifacts, tags=KIND)
        except MlflowException:
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return found.experiment_id  # another process created it first

    def start(self, name: str, tags: Mapping[str, object], parent: str | None = None) -> Run:
        tags = {MLFLOW_RUN_NAME: name, "sweep.state": "running"} | dict(tags)
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        record = self.client.create_run(
            self.experiment_id, tags={key: hidden(str(value)) for key, value in tags.items()}, run_name=name
        )
        return Run(self.client, record.info.run_id)

    def resume(self, run_id: str) -> Run | None:
        """A run begun before, marked as running again; None if this server does not know it."""
        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        self.client.set_tag(run_id, "sweep.state", "running")
        return Run(self.client, run_id)

    def run(self, run_id: str) -> Run:
        """A run to write to, whatever its state."""
        return Run(self.client, run_id)

    def sweep(self, name: str) -> Record | None:
        """The parent run of the sweep of this name, the latest if there are several."""
        found = self._search(f"tags.`sweep.name` = '{name}' and tags.`sweep.kind` = 'sweep'")
        return found[-1] if found else None

    def children(self, parent: str) -> list[Record]:
        return self._search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")

    def _search(self, query: str) -> list[Record]:
        records: list[Record] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            records += page
            token = page.token
            if not token:
                return records

    def close_children(self, parent: str) -> int:
        """End every child still marked as running; call it when none can be. How many there were."""
        open_runs = [run for run in self.children(parent) if run.info.status == "RUNNING"]
        for run in open_runs:
            Run(self.client, run.info.run_id).finish("KILLED", "interrupted")
        return len(open_runs)

    def fail_child(self, parent: str, name: str, tags: Mapping[str, object], error: str) -> None:
        """Record a trial whose process died, in its run if it had begun one."""
        begun = [run for run in self.children(parent) if run.data.tags.get("sweep.trial") == str(tags["sweep.trial"])]
        run = Run(self.client, begun[-1].info.run_id) if begun else self.start(name, tags, parent)
        run.set_tags({"error": error[-4000:]})
        run.finish("FAILED", "failed")

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in order of steps."""
        return sorted((entry.step, entry.value) for entry in self.client.get_metric_history(run_id, metric))


@contextmanager
def _impatient() -> Iterator[None]:
    """Ask a server that may be away for seconds, not for MLflow's default of four minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update({name: value for name, value in limits.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
