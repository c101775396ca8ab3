"""What each Ray Train worker does in a run: build, train, score and record, epoch after epoch."""

import logging
import time
from contextlib import nullcontext
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train.torch import get_device
from ray.util import get_current_placement_group
from torch import nn

from ghm import scoring
from ghm.data import Data, train_loader, val_loader
from ghm.failure import Lost
from ghm.gradients import Watch, scalars
from ghm.job import Job, Settings
from ghm.remote import moved
from ghm.scoring import Detection, Judgement
from ghm.settings.parts import build, build_model, build_optimizer, recipe
from ghm.tracking import Spool
from ghm.training import checkpoint, engine
from ghm.training.checkpoint import RunState
from sweeps.states import Answer

log = logging.getLogger(__name__)


def train_worker(job: Job) -> dict[str, Any]:
    """What every worker does; rank 0 scores and records. Returns the last metrics and the answer to the last epoch.

    A run whose folder holds a checkpoint continues after that checkpoint's epoch.
    """
    settings, place = job.settings, job.place
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device() if settings.device == "auto" else torch.device(settings.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        torch.manual_seed(settings.seed)
        cfg = settings.config()
        data: Data = build(cfg, "data")
        batches = train_loader(
            data.train, settings.batch_size, place.loader_processes, settings.seed, rank, world, settings.accumulate
        )
        scored = val_loader(data.val, settings.batch_size, place.loader_processes, rank, world)
        state = _begin(job, data, len(batches) // settings.accumulate, device)
        with moved.kept(job) if rank == 0 and not place.shared else nullcontext():
            content = _from_first(checkpoint.newest(place.folder) if rank == 0 else None, device)
            if content is not None:
                state.take(content)
            recorder = _Recorder(job, state, data) if rank == 0 else None
            return _train(job, state, data, batches, scored, device, recorder)
    finally:
        torch.set_num_threads(threads)


def _train(
    job: Job, state: RunState, data: Data, batches: Any, scored: Any, device: torch.device, recorder: "_Recorder | None"
) -> dict[str, Any]:
    settings = job.settings
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    # Densities are equal on all workers, or meant to differ (counts=local): rank 0's must not overwrite them.
    wrapped = nn.parallel.DistributedDataParallel(state.model, broadcast_buffers=False) if world > 1 else state.model
    seed, judgement = hash((settings.seed, rank)), None
    answer = _from_first(recorder.answer if recorder else Answer.GO_ON, device)
    epochs = settings.epochs if answer == Answer.GO_ON else state.epoch
    watch = Watch(state.model, len(batches))
    size = {"model/parameters": float(sum(one.numel() for one in state.model.parameters()))}
    for result in engine.fit(
        state,
        batches,
        device,
        seed,
        epochs,
        clip_grad=settings.clip_grad,
        accumulate=settings.accumulate,
        amp=settings.amp,  # type: ignore[arg-type]  # checked at the door
        model=wrapped,
    ):
        regions = watch.look()
        detections = _detect(state, scored, data, device)
        metrics = _over_workers(result.metrics) | scalars(regions) | size
        if recorder is not None:
            judgement = scoring.judge(data.val.coco, detections)
            recorder.epoch(result.epoch, metrics, judgement, regions)
        # Rank 0 decides; the others must not wait for it in another epoch.
        said = (recorder.answer, state.history[-1]["metrics"]) if recorder is not None else (answer, metrics)
        answer, metrics = _from_first(said, device)
        ray.train.report(metrics)
        if answer != Answer.GO_ON:
            break
    unseen = judgement is None and job.place.figures and state.epoch >= settings.epochs
    if _from_first(unseen, device):  # it was ended between its last epoch and its figures
        detections = _detect(state, scored, data, device)
        judgement = scoring.judge(data.val.coco, detections) if recorder is not None else None
    if recorder is None:
        return {"metrics": {}, "answer": answer}
    recorder.end(judgement)
    return {"metrics": state.history[-1]["metrics"], "answer": answer}


def _begin(job: Job, data: Data, steps_per_epoch: int, device: torch.device) -> RunState:
    """The state of a run that has not done a step."""
    settings, cfg = job.settings, job.settings.config()
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = _normalized(build_model(cfg, data.train.num_classes), device).to(device)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    data.train.masks = getattr(model, "needs_masks", False)
    if settings.compile:
        model.backbone.compile()
    optimizer = build_optimizer(cfg, model)
    return RunState(
        model,
        optimizer,
        build(cfg, "schedule", optimizer, settings.epochs, steps_per_epoch),
        torch.amp.GradScaler(device.type) if settings.amp == "fp16" else None,
        None if settings.ema is None else engine.moving_average(model, settings.ema),
        recipe=recipe(cfg, data.train.class_names),
    )


def _normalized(model: nn.Module, device: torch.device) -> nn.Module:
    """With BatchNorm that trains, if it has any, over the images of all workers. ValueError where that cannot be."""
    several = ray.train.get_context().get_world_size() > 1
    if not several or not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        return model
    if device.type != "cuda":
        raise ValueError("model.norm=trained: several workers on the CPU cannot share it; use one, or norm=frozen")
    synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synchronized


def _detect(state: RunState, batches: Any, data: Data, device: torch.device) -> list[Detection]:
    """What is found on the images of all workers, each image once."""
    model = state.model if state.average is None else state.average.module
    model.eval()
    found = _gather(scoring.detect(model, batches, data.val.category_ids, device))
    return [detection for part in found for detection in part]


def epoch_line(settings: Settings, epoch: int, metrics: dict[str, float]) -> str:
    """What is shown of an epoch."""
    shown = dict.fromkeys(("train/loss", "val/AP", "val/AP50", *settings.objectives))
    values = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name in metrics)
    return f"epoch {epoch} of {settings.epochs}  {values}"


class _Recorder:
    """Keeps a run's epochs. The checkpoint is written first; all else follows from it, and is caught up with on start.

    A run that is stopped at any line of this, and started again, ends as if it had not been.
    """

    def __init__(self, job: Job, state: RunState, data: Data) -> None:
        self.job, self.state, self.data = job, state, data
        self.spool = Spool(job.place.folder, job.key.start)
        self.answer = Answer.GO_ON  # to the last epoch
        self.drawn, self.drawing = time.monotonic(), 5.0  # when, and the seconds that it takes
        self.hub = None if job.place.hub is None else ray.get_actor(job.place.hub)
        if self.hub is not None and job.place.workers > 0:
            self.hub.group.remote(job.key.run, job.key.attempt, get_current_placement_group().id.hex())
        checkpoint.derive(state, job.place.folder, job.place.keep)
        self.recorded = self.spool.last_step()
        if self.recorded < 0 and not state.history:
            guess = scoring.score(data.val.coco, scoring.chance(data.val.coco))
            self.spool.log_params({"val/chance_AP50": guess["AP50"]})
        for epoch in state.history:
            self._tell(epoch)

    def epoch(self, number: int, metrics: dict[str, float], judgement: Judgement, regions: dict[str, Any]) -> None:
        """Keep an epoch: checkpoint, metrics, a line of log. Lost where another start of this run has overtaken it."""
        settings, place = self.job.settings, self.job.place
        metrics = metrics | {f"val/{name}": value for name, value in judgement.numbers.items()}
        for objective in settings.objectives:
            if objective not in metrics:
                raise ValueError(
                    f"objective={objective}: the validation images hold no object it counts; choose another"
                )
        self._refuse_overtaken()
        self.state.finish_epoch(number, metrics, metrics[settings.objectives[0]], regions)
        checkpoint.commit(self.state, place.folder, place.keep)
        log.info(epoch_line(settings, number, metrics))
        self._tell(self.state.history[-1])
        if time.monotonic() - self.drawn > 100 * self.drawing:
            self._draw()

    def end(self, judgement: Judgement | None) -> None:
        """Record the checkpoints, and figures of what the last epoch finds and misses."""
        folder = self.job.place.folder
        self._keep()
        self._draw()
        if self.job.place.figures and judgement is not None:
            from ghm.reports import detections  # plotting takes a second to import

            val = self.data.val
            for path in detections.write(judgement, val.pixels, val.class_names, folder / "figures"):
                self.spool.log_file(path, "figures")
                if path.name == "precision_recall.png":  # MLflow sets those side by side that stand at the top
                    self.spool.log_file(path, "")

    def _draw(self) -> None:
        """What the losses did to the gradient, epoch by epoch; drawn again once that costs a hundredth of the time."""
        if not self.job.place.figures or not any(epoch.get("regions") for epoch in self.state.history):
            return
        begun = time.monotonic()
        from ghm.reports import harmonizing  # plotting takes a second to import

        path = harmonizing.write_epochs(self.state.history, self.job.place.folder / "figures")
        self.spool.log_file(path, "figures")
        self.drawn = time.monotonic()
        self.drawing = self.drawn - begun

    def _refuse_overtaken(self) -> None:
        if self.spool.attempts() > self.job.key.start:
            raise Lost(f"{self.job.place.folder}: another process goes on with this run")

    def _tell(self, epoch: checkpoint.Epoch) -> None:
        """Say what an epoch came to wherever it is not known yet, and hear whether to go on.

        Heard first: what is lost records nothing more. Where this run may go on on a node that does not see
        this folder, the checkpoint is sent before the metrics, so that MLflow has no epoch that is done again.
        """
        if self.hub is not None:
            self.answer = self._ask(self.hub, epoch)
        if epoch["epoch"] > self.recorded:
            if not self.job.place.shared:
                self._keep()
            self.spool.log_metrics(epoch["metrics"], epoch["epoch"], epoch["at"])
            self.recorded = epoch["epoch"]

    def _keep(self) -> None:
        for name in (checkpoint.BEST, checkpoint.LAST):
            self.spool.log_file(self.job.place.folder / name, "checkpoints")

    def _ask(self, hub: Any, epoch: checkpoint.Epoch) -> Answer:
        """The sweep's answer to an epoch. Lost where it has given up this attempt, or is gone."""
        key, settings = self.job.key, self.job.settings
        metrics = epoch["metrics"]
        value = metrics[settings.objectives[0]]
        said = hub.report.remote(key.run, key.attempt, epoch["epoch"], settings.epochs, value, metrics)
        try:
            answer = Answer(ray.get(said))
        except RayActorError as error:
            raise Lost(f"trial {key.trial}: its sweep is gone ({error})") from error
        if answer == Answer.LOST:
            raise Lost(f"trial {key.trial}: its sweep has given up attempt {key.attempt}, or is gone")
        return answer


def _from_first(value: Any, device: torch.device) -> Any:
    """Rank 0's value, on all ranks."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device if dist.get_backend() == "nccl" else None)
    return box[0]


def _gather(value: Any) -> list[Any]:
    """The value of every worker, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _over_workers(metrics: dict[str, float]) -> dict[str, float]:
    """Means over the workers; their images a second add up."""
    parts = _gather(metrics)
    means = {name: sum(part[name] for part in parts) / len(parts) for name in metrics}
    return means | {"time/images_per_s": means["time/images_per_s"] * len(parts), "time/workers": float(len(parts))}
