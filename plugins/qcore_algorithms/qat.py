"""Quantization-aware training: the stage ``qat``.

Trains the calibrated QFloat model, whose forward rounds and whose gradients go straight through, by
SGD or AdamW under a cosine learning rate. With ``distillation`` the loss is

    (1 - d) * cross_entropy(y, labels) + d * T^2 * KL(softmax(t / T) || softmax(y / T))

with ``d = distillation``, ``T = temperature`` and ``t`` of the float model that the training starts
from.

Everything random follows from seed, epoch and step, so a training that was killed and taken up
again from its checkpoint ends in the same weights, bit for bit.

Where :mod:`torch.distributed` has a process group, as under ``torchrun``, every process calls the
stage with the same model and data, works on its part of each batch, and ends with the same model.

References:
    Jacob et al., 2018, section 3 <https://arxiv.org/abs/1712.05877>
    Hinton et al., 2015, Distilling the knowledge in a neural network
    <https://arxiv.org/abs/1503.02531>
    Loshchilov and Hutter, 2017, SGDR (cosine) <https://arxiv.org/abs/1608.03983>
"""

import copy
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcore import (
    Dataset,
    OptimizerName,
    RecipeError,
    accuracy,
    cache_folder,
    disable_fake_quant,
    disable_observer,
    num_threads,
    progress,
    quantizers,
    random_flip,
    random_shift,
    set_batch_norm_fold,
    synchronize_batch_norm,
)

from .checkpoint import Checkpoint, training_key
from .optimizers import optimizers_of
from .parallel import Ranks
from .passes import require_calibrated
from .schedule import Action, actions_of
from .settings import Augment, Fold, Settings, checked

__all__ = ["learning_rate", "qat"]


def learning_rate(done: float, *, peak: float, end: float = 0.0, warmup: float = 0.0) -> float:
    """Learning rate after a part of the training: a line up to ``peak``, then half a cosine down.

    Args:
        done: steps done over all steps, 0 to 1.
        peak: largest learning rate.
        end: share of it that is left at the end, 0 to 1.
        warmup: share of the training that goes up.

    >>> [round(learning_rate(p, peak=1.0, end=0.1, warmup=0.2), 3) for p in (0, 0.1, 0.2, 0.6, 1)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if done < warmup:
        return peak * done / warmup
    falling = (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
    return peak * (end + (1 - end) * falling)


def qat(
    model: nn.Module,
    *,
    dataset: Dataset,
    epochs: int = 1,
    seed: int = 0,
    batch_size: int = 128,
    optimizer: OptimizerName = "sgd",
    lr: float = 0.01,
    lr_end: float = 0.0,
    warmup: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    scale_optimizer: OptimizerName = "adamw",
    scale_lr: float = 1e-3,
    scale_weight_decay: float = 0.0,
    batch_norm_fold: Fold = "approximate",
    schedule: Sequence[Mapping[str, Any]] = (),
    distillation: float = 0.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    augment: Sequence[Augment] = (),
    shift_pixels: int = 2,
    validation: int = 0,
    checkpoint: str | None = None,
    checkpoint_every: int = 500,
    compiled: bool = False,
    channels_last: bool = True,
    threads: int | None = None,
) -> nn.Module:
    """Trains a calibrated QFloat classifier on the training split, in place.

    An epoch goes once through a new permutation and leaves out the rest that fills no batch.

    Args:
        model: QFloat, calibrated; maps ``[B, ...]`` to logits ``[B, num_classes]``.
        dataset: what to train on; its test split is not looked at.
        epochs: times through the training split.
        seed: of the permutations, the augmentation, dropout and the validation examples. torch's
            global random state is restored afterwards.
        batch_size: examples in a step, of all processes together; fewer where the training split
            has fewer.
        optimizer: ``"sgd"`` (with Nesterov momentum) or ``"adamw"``.
        lr, lr_end, warmup: see :func:`learning_rate`.
        momentum: of SGD; AdamW has betas (0.9, 0.999).
        weight_decay: of parameters with two dimensions or more; biases and normalisation decay
            never.
        scale_optimizer: of learned scales and zero points, whose gradients differ by orders of
            magnitude from layer to layer; AdamW is indifferent to that.
        scale_lr: their largest learning rate. It follows the same curve.
        scale_weight_decay: theirs; that of PACT's clip belongs to its method.
        batch_norm_fold: see :func:`qcore.set_batch_norm_fold`.
        schedule: actions at an epoch or a step: tables with ``do`` and ``epoch`` or ``step``.
        distillation: share of the loss that compares with the float model, 0 to 1.
        temperature: of that comparison.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        augment: any of ``"flip"`` (left to right) and ``"shift"``; for images ``[B, C, H, W]``.
        shift_pixels: largest shift of ``"shift"``; what moves in has the smallest value of the
            training split.
        validation: examples held out of the training split. With any, QFloat is measured on them
            after each epoch, in eval mode, and the best epoch's model is the result; without, the
            last.
        checkpoint: file to continue from and to save to, which stays. By default one in the cache
            that is named by model, data and options, and removed at the end. Of several processes
            the first one writes it and all read it.
        checkpoint_every: steps between two checkpoints, 0 for none.
        compiled: run the training forward under ``torch.compile``.
        channels_last: keep 4-d tensors in the memory format that convolutions on CPU are fastest
            in. The returned model has the default format again.
        threads: number of CPU threads; by default torch's.

    Returns:
        ``model``, trained, in eval mode.

    Raises:
        QuantizationError: the model is not QFloat, or not calibrated.
        RecipeError: an unknown choice, a number out of its range, a checkpoint of another training,
            a loss that became infinite or NaN, or processes that do not agree.
    """
    options = {k: v for k, v in locals().items() if k not in ("model", "dataset")}
    settings = checked(options)
    require_calibrated(model, stage="qat", lacks="scale to train with")
    with num_threads(threads):
        return _Training(model, dataset, settings).run()


class _Training:
    """One training, from its start or from a checkpoint to its end."""

    def __init__(self, model: nn.Module, dataset: Dataset, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.data, self.held_out = _split(dataset, settings.validation, settings.seed)
        self.fill = float(self.data.train_inputs.min())
        self.batch_size = min(settings.batch_size, len(self.data.train_labels))
        self.ranks = Ranks.current()
        if self.batch_size % self.ranks.size:
            raise RecipeError(
                f"qat: batch_size={self.batch_size} can't be shared out evenly among "
                f"{self.ranks.size} processes; use a multiple of that"
            )
        self.steps_per_epoch = len(self.data.train_labels) // self.batch_size
        self.total = self.steps_per_epoch * settings.epochs
        self.actions = actions_of(settings.schedule, steps_per_epoch=self.steps_per_epoch)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.checkpoint = self._checkpoint(dataset)
        for _, quantizer in quantizers(model):
            # The model is the same in all processes, so what they observe belongs together.
            quantizer.observer.synchronized = self.ranks.size > 1 and not quantizer.of_weight
        set_batch_norm_fold(model, settings.batch_norm_fold)
        self.teacher = _teacher(model) if settings.distillation else None
        if settings.channels_last:
            for module in filter(None, (model, self.teacher)):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = optimizers_of(model, settings)
        self.best: dict[str, Tensor] = {}
        self.best_accuracy = -math.inf
        self.done = 0
        self.loss = math.inf

    def _checkpoint(self, dataset: Dataset) -> Checkpoint | None:
        settings = self.settings
        unsaved = not settings.checkpoint_every and settings.checkpoint is None
        if unsaved and self.ranks.size == 1:
            return None
        # Where and how often to save, and on how many threads, does not make another training.
        apart = ("checkpoint", "checkpoint_every", "threads")
        options = {k: v for k, v in attrs.asdict(settings).items() if k not in apart}
        if self.ranks.size > 1:
            # Each process normalizes by its own part of a batch.
            options["processes"] = self.ranks.size
        key = training_key(self.model, dataset, options)
        self.ranks.require_equal(
            key,
            what="the model, the data or an option",
            cure="build the model with one seed, and calibrate it in the process group",
        )
        if unsaved:
            return None
        path = settings.checkpoint or cache_folder() / "qat" / f"{key}.safetensors"
        return Checkpoint(path=Path(path), key=key)

    def run(self) -> nn.Module:
        if self.checkpoint is not None and self.checkpoint.path.exists():
            self.done, self.best, self.best_accuracy = self.checkpoint.load(
                self.model, self.optimizers
            )
        start = self.done
        self.ranks.require_equal(
            str(start),
            what="the step of the checkpoint",
            cure="give a checkpoint on a disk that all of them see",
        )
        forward: Callable[..., Any] = (
            torch.compile(self.model) if self.settings.compiled else self.model
        )
        pending = list(self.actions)
        batches: Generator[tuple[Tensor, Tensor], None, None] = self._batches(start)
        if self.ranks.first:
            batches = progress(
                batches,
                label="qat" if not start else f"qat from step {start}",
                total=self.total - start,
                status=self._status,
            )
        forked = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(forked), closing(batches):
            self.model.train()
            for images, labels in batches:
                pending = self._act(pending)
                self._step(forward, images, labels)
                self.done += 1
                self._after_step()
        self._act(pending)
        if self.best:
            self.model.load_state_dict(self.best)
        if self.checkpoint is not None and self.settings.checkpoint is None and self.ranks.first:
            self.checkpoint.remove()
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return self.model.eval()

    def _status(self) -> str:
        epoch = max(self.done - 1, 0) // self.steps_per_epoch + 1
        words = f"epoch {epoch}/{self.settings.epochs}, loss {self.loss:.3f}"
        if self.best:
            words += f", best {self.best_accuracy:.2f} %"
        return words

    def _act(self, pending: list[Action]) -> list[Action]:
        """Does what is due; after a resume all that was due before too."""
        while pending and pending[0].step <= self.done:
            pending.pop(0).apply(self.model)
        return pending

    def _batches(self, start: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """What is left to train on."""
        first, skipped = divmod(start, self.steps_per_epoch)
        for epoch in range(first, self.settings.epochs):
            # A seed for each epoch that no other seed's epoch shares: they lie far apart.
            batches = self.data.batches(
                "train",
                self.batch_size,
                shuffle=True,
                seed=(self.settings.seed << 20) + epoch,
                drop_last=True,
            )
            yield from itertools.islice(batches, skipped if epoch == first else 0, None)

    def _step(self, forward: Callable[..., Any], images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        # Of this step alone: a training that is taken up here draws the same numbers.
        step_seed = ((settings.seed << 32) + self.done) % (1 << 63)
        # Each process has its own dropout.
        torch.manual_seed(step_seed + (self.ranks.rank << 31))
        rate = learning_rate(
            self.done / self.total, peak=1.0, end=settings.lr_end, warmup=settings.warmup
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        images = self.ranks.share(self._augmented(images, step_seed)).to(self.device)
        labels = self.ranks.share(labels).to(self.device)
        if settings.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        error = self._error(forward(images).float(), images, labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(self.model.parameters())
        for optimizer in self.optimizers:
            optimizer.step()
        synchronize_batch_norm(self.model)
        self.loss = self.ranks.mean(error)
        if not math.isfinite(self.loss):
            raise RecipeError(
                f"qat: the loss is {self.loss} at step {self.done + 1} of {self.total}; use a "
                f"smaller lr than {settings.lr} or scale_lr than {settings.scale_lr}"
            )

    def _augmented(self, images: Tensor, seed: int) -> Tensor:
        names = self.settings.augment
        generator = torch.Generator().manual_seed(seed)
        if "flip" in names:
            images = random_flip(images, generator=generator)
        if "shift" in names:
            images = random_shift(
                images, pixels=self.settings.shift_pixels, fill=self.fill, generator=generator
            )
        return images

    def _error(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        settings = self.settings
        error = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if self.teacher is None:
            return error
        with torch.no_grad():
            wanted = self.teacher(images).float()
        t = settings.temperature
        distance = F.kl_div(
            F.log_softmax(logits / t, -1),
            F.log_softmax(wanted / t, -1),
            log_target=True,
            reduction="batchmean",
        )
        share = settings.distillation
        return (1 - share) * error + share * t * t * distance

    def _after_step(self) -> None:
        epoch_ends = self.done % self.steps_per_epoch == 0
        held_out = self.held_out
        if epoch_ends and held_out is not None:
            with _unobserved(self.model):
                # In every process: a forward in eval mode brings what follows BatchNorm up to date.
                score = self.ranks.of_first(accuracy(self.model, held_out), self.device)
            if score > self.best_accuracy:
                self.best_accuracy = score
                state = self.model.state_dict().items()
                self.best = {name: value.detach().clone() for name, value in state}
        every = self.settings.checkpoint_every
        due = bool(every) and self.done % every == 0
        at_end = self.done == self.total and self.settings.checkpoint is not None
        if self.checkpoint is not None and self.ranks.first and (due or at_end):
            self.checkpoint.save(
                step=self.done,
                model=self.model,
                optimizers=self.optimizers,
                best=self.best,
                best_accuracy=self.best_accuracy,
            )


def _split(dataset: Dataset, validation: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """The examples to train on, and those held out of them as a test split."""
    if not validation:
        return dataset, None
    count = len(dataset.train_labels)
    if validation >= count:
        raise RecipeError(
            f"qat: validation={validation} of {count} training examples leaves none; use fewer"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held, kept = order[:validation], order[validation:]
    data = attrs.evolve(
        dataset,
        train_inputs=dataset.train_inputs[kept],
        train_labels=dataset.train_labels[kept],
    )
    held_out = attrs.evolve(
        dataset,
        test_inputs=dataset.train_inputs[held],
        test_labels=dataset.train_labels[held],
    )
    return data, held_out


def _teacher(model: nn.Module) -> nn.Module:
    """The float model that a QFloat model starts from: a copy that never rounds."""
    teacher = copy.deepcopy(model).eval()
    disable_fake_quant(teacher)
    disable_observer(teacher)
    return teacher.requires_grad_(False)


@contextmanager
def _unobserved(model: nn.Module) -> Iterator[None]:
    """Held-out examples leave no trace in the statistics that scales follow."""
    observing = [q for _, q in quantizers(model) if q.observer_enabled]
    for quantizer in observing:
        quantizer.observer_enabled = False
    try:
        yield
    finally:
        for quantizer in observing:
            quantizer.observer_enabled = True
