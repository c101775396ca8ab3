"""Talking to MLflow: one experiment a project, a parent run a sweep, a child run a trial, found by keys of ours."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as Record
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from ghm.secrets import hidden
from ghm.tracking.shared_view import TAG
from sweeps.states import State

BATCH = 100  # MLflow takes at most 100 parameters or tags, and 1000 metrics, in one call
PARAM_LENGTH = 6000
KEY = "ghm.key"  # of a run begun on disk: finds it again when the answer to its creation was lost
SAME = "ghm.same"  # tag of a training: equal for those that come to the same numbers
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on training runs, not on GenAI traces


# What MLflow says of an entry that it will never take; anything else may pass with time or a new password.
FINAL = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
)


class Away(ConnectionError):
    """The server did not answer, or not as it does when it is well; later it may."""


class Early(Away):
    """What a run needs on the server, its sweep's run, is not there yet."""


class Refused(ValueError):
    """The server will not take this, however often it is sent."""


@dataclass(frozen=True)
class Point:
    """One value of a metric; sent twice with the same `at` (milliseconds) it is stored once."""

    key: str
    value: float
    at: int
    step: int


@contextmanager
def _answering(final: Sequence[str] = FINAL) -> Iterator[None]:
    """Away or Refused, whatever a store, the network or the server raises."""
    try:
        yield
    except (Away, Refused):
        raise
    except MlflowException as error:
        reason = hidden(str(error).splitlines()[0][:300]) if str(error) else "no reason given"
        raise (Refused if error.error_code in final else Away)(reason) from error
    except Exception as error:
        raise Away(hidden(str(error))) from error


def data_of(read: DatasetInput) -> dict[str, str]:
    """What `Run.log_datasets` was given of a data set, as MLflow has it."""
    data, config = read.dataset, json.loads(read.dataset.source).get("config", "")
    about = {"name": data.name, "digest": data.digest, "profile": data.profile}
    return about | {"context": read.tags[0].value, "source": config}


class Run:
    """One MLflow run being written."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_points(self, points: Sequence[Point]) -> None:
        """At most 1000."""
        with _answering():
            self._client.log_batch(
                self.run_id, [Metric(point.key, point.value, point.at, point.step) for point in points]
            )

    def steps(self) -> dict[str, int]:
        """The last step that the server has of each metric."""
        with _answering():
            return {one.key: one.step for one in self._client.get_run(self.run_id).data.to_proto().metrics}

    def log_params(self, params: Mapping[str, object]) -> None:
        entries = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        for start in range(0, len(entries), BATCH):
            with _answering():
                self._client.log_batch(self.run_id, params=entries[start : start + BATCH])

    def log_datasets(self, datasets: Sequence[Mapping[str, str]]) -> None:
        """Each with name, digest, context, source and profile."""
        inputs = [
            DatasetInput(
                Dataset(
                    one["name"], one["digest"], "ghm", json.dumps({"config": one["source"]}), profile=one["profile"]
                ),
                [InputTag("mlflow.data.context", one["context"])],
            )
            for one in datasets
        ]
        with _answering():
            self._client.log_inputs(self.run_id, inputs)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        with _answering():
            self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_file(self, path: Path, folder: str) -> None:
        with _answering():
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_text(self, text: str, path: str) -> None:
        with _answering():
            self._client.log_text(self.run_id, text, path)

    def finish(self, status: str, state: str, at: int | None = None) -> None:
        """`status` as MLflow knows it (FINISHED, FAILED, KILLED); `state` tells pruned from cancelled.

        `at` is when it ended, in milliseconds; None for now.
        """
        self.set_tags({"sweep.state": state})
        with _answering():
            self._client.set_terminated(self.run_id, status, end_time=at)


class Tracker:
    """A connection to one experiment of a tracking server or of a local database; nothing is asked until needed."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None) -> None:
        """`artifacts` is where a local database keeps files; a server decides for itself (None)."""
        self.uri, self.experiment, self._artifacts = uri, experiment, artifacts

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own; making it opens a database."""
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line for each run that ends
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each file that is fetched
        return MlflowClient(tracking_uri=self.uri)

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

    @property
    def local(self) -> bool:
        """Whether this is a database below a folder, and no server."""
        return self.uri.startswith("sqlite:")

    def reach(self) -> "Tracker":
        """Itself, once it has answered. ValueError when nothing does within seconds."""
        try:
            if self.local:  # MLflow would try for 100 s
                _open_database(self.uri)
            with waiting_at_most(5):
                assert self.experiment_id
        except Exception as error:  # every kind of store fails in its own way
            reason = hidden(str(error).splitlines()[0][:200])
            where = f"MLFLOW_TRACKING_URI={hidden(self.uri)}"
            if "code 401" in reason:
                raise ValueError(
                    f"{where}: the tracking server asks for an account, and does not know this one; set "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                ) from error
            if "Invalid Host" in reason:
                raise ValueError(
                    f"{where}: the tracking server does not go by that name; give one of its --allowed-hosts"
                ) from error
            raise ValueError(
                f"{where}: no tracking server answers there ({reason}); "
                "start it, correct the address, or unset it to track under runs/"
            ) from error
        return self

    @cached_property
    def experiment_id(self) -> str:
        """The experiment, made if there is none. Away when the server is."""
        with _answering(final=()):
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                try:
                    return self.client.create_experiment(self.experiment, artifact_location=self._artifacts, tags=KIND)
                except MlflowException:
                    found = self.client.get_experiment_by_name(self.experiment)
                    if found is None:
                        raise
            return found.experiment_id  # or another process created it first

    def begin(
        self, key: str, name: str, tags: Mapping[str, str], parent: str | None, at: int, create: bool = True
    ) -> str:
        """Id of the run with this key, created unless it was; marked as running. `at` is in milliseconds.

        `parent` is the key of its sweep's run. Away when the server is, does not know the parent yet, or, where
        another process is to create the run, the run itself.
        """
        with _answering(final=()):  # an experiment that was deleted can be restored
            if (found := self.find(key)) is not None:
                self.client.update_run(found.info.run_id, status="RUNNING")
                Run(self.client, found.info.run_id).set_tags({**tags, "sweep.state": State.RUNNING})
                return found.info.run_id
            if not create:
                raise Early(f"the run ({key}) is not there yet")
            labelled = {MLFLOW_RUN_NAME: name, KEY: key, "sweep.state": State.RUNNING} | dict(tags)
            if parent is not None:
                if (above := self.find(parent)) is None:
                    raise Early(f"the run of the sweep ({parent}) is not there yet")
                labelled[MLFLOW_PARENT_RUN_ID] = above.info.run_id
            return self.client.create_run(self.experiment_id, start_time=at, tags=labelled, run_name=name).info.run_id

    def find(self, key: str) -> Record | None:
        """The run with this key, wherever it was begun."""
        found = self._search(f"tags.`{KEY}` = '{key}'")
        return found[0] if found else None

    def record(self, run_id: str) -> Record:
        """The run with this id of MLflow's. ValueError where there is none."""
        try:
            with _answering(final=()):
                return self.client.get_run(run_id)
        except Away as error:
            if getattr(error.__cause__, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ValueError(f"run={run_id}: {hidden(self.uri)} holds no run of this id; correct it") from error

    def download(self, key: str, folder: str, target: Path) -> list[Path]:
        """Fetch the files that the run with this key has in a folder of its artifacts; none where there is no run."""
        found = self.find(key)
        if found is None:
            return []
        run_id = found.info.run_id
        with _answering(final=()):
            files = [entry.path for entry in self.client.list_artifacts(run_id, folder) if not entry.is_dir]
            return [Path(self.client.download_artifacts(run_id, path, str(target))) for path in files]

    def sweeps(self, name: str) -> list[Record]:
        """The parent runs of all sweeps of this name, whoever began them."""
        return self._search(f"tags.`sweep.name` = '{name}' and tags.`sweep.kind` = 'sweep'")

    def finished(self) -> list[Record]:
        """All runs of the experiment that ended as they should; none where there is no such experiment or database."""
        return self._search("attributes.status = 'FINISHED'") if self._is_there() else []

    def _is_there(self) -> bool:
        """Whether there is anything to ask; a local database is made by the first run."""
        return not self.local or Path(self.uri.removeprefix("sqlite:///")).exists()

    def same(self, key: str) -> list[Record]:
        """The runs of the experiment that come to the same numbers, or will."""
        return self._search(f"tags.`{SAME}` = '{key}'") if self._is_there() else []

    def share(self, key: str, view: str) -> None:
        """Keep a view of the experiment under a key; see `shared_view`."""
        with _answering():
            self.client.set_experiment_tag(self.experiment_id, f"{TAG}{key}", view)

    def run(self, run_id: str) -> Run:
        """A run to write to, whatever its state."""
        return Run(self.client, run_id)

    def children(self, parent: str) -> list[Record]:
        return self._search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")

    def of_sweep(self, key: str) -> list[Record]:
        """All trials of the sweep with this key, and their runs, in one question: their keys begin with its own."""
        return self._search(f"tags.`{KEY}` LIKE '{key}-%'")

    def _search(self, query: str) -> list[Record]:
        records: list[Record] = []
        token = None
        with _answering(final=()):
            while True:
                page = self.client.search_runs(
                    [self.experiment_id],
                    query,
                    max_results=1000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                records += page
                token = page.token
                if not token:
                    return records

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in order of steps."""
        with _answering(final=()):
            return sorted((entry.step, entry.value) for entry in self.client.get_metric_history(run_id, metric))


def _open_database(uri: str) -> None:
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    sqlite3.connect(path).execute("PRAGMA schema_version").connection.close()


@contextmanager
def waiting_at_most(seconds: int) -> Iterator[None]:
    """For an answer, without trying again: MLflow's default is four minutes. Others who set this are heard."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update({name: value for name, value in limits.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
