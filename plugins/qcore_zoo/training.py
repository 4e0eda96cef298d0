"""Float training: the stage ``train``.

Cross entropy is minimised by SGD with Nesterov momentum or by AdamW, under a learning rate that
changes at every step. The same seed, options and number of threads give the same weights.

References:
    Smith and Topin, 2019, Super-Convergence (one-cycle) <https://arxiv.org/abs/1708.07120>
    Loshchilov and Hutter, 2017, SGDR (cosine) <https://arxiv.org/abs/1608.03983>
    Loshchilov and Hutter, 2019, Decoupled Weight Decay (AdamW) <https://arxiv.org/abs/1711.05101>
    Szegedy et al., 2016, Rethinking the Inception Architecture (label smoothing)
    <https://arxiv.org/abs/1512.00567>
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from qcore import (
    Dataset,
    OptimizerName,
    RecipeError,
    decay_groups,
    make_optimizer,
    num_threads,
    progress,
    random_flip,
    random_shift,
)

__all__ = ["learning_rate", "train"]

Augment = Literal["flip", "shift"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["onecycle", "cosine"]

_WARMUP = {"onecycle": 0.3, "cosine": 0.0}
_START = 1 / 25


def learning_rate(done: float, *, peak: float, schedule: Schedule) -> float:
    """Learning rate after a part of the training.

    ``"cosine"`` falls from ``peak`` to 0 by half a cosine. ``"onecycle"`` first rises from
    ``peak / 25`` by half a cosine over 30 % of the steps, then falls to 0 the same way.

    Args:
        done: steps done over all steps, 0 to 1.
        peak: largest learning rate.
        schedule: ``"onecycle"`` or ``"cosine"``.

    >>> [round(learning_rate(p, peak=1.0, schedule="cosine"), 3) for p in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    >>> [round(learning_rate(p, peak=1.0, schedule="onecycle"), 3) for p in (0, 0.15, 0.3, 0.65, 1)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    warmup = _WARMUP[schedule]
    if done < warmup:
        return peak * (_START + (1 - _START) * (1 - math.cos(math.pi * done / warmup)) / 2)
    return peak * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


def train(
    model: nn.Module,
    *,
    dataset: Dataset,
    epochs: int,
    seed: int = 0,
    batch_size: int = 128,
    optimizer: OptimizerName = "sgd",
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "onecycle",
    label_smoothing: float = 0.0,
    augment: Sequence[Augment] = (),
    shift_pixels: int = 2,
    precision: Precision = "float32",
    channels_last: bool = True,
    threads: int | None = None,
    label: str = "train",
) -> nn.Module:
    """Train a copy of a classifier on the training split.

    An epoch goes once through a new permutation and leaves out the rest that fills no batch.

    Args:
        model: maps ``[B, ...]`` to logits ``[B, num_classes]``; is not changed.
        dataset: what to train on; its test split is not looked at.
        epochs: times through the training split.
        seed: of the permutations, the augmentation and dropout. torch's global random state is
            restored afterwards.
        batch_size: examples in a step; fewer where the training split has fewer.
        optimizer: ``"sgd"`` (with Nesterov momentum) or ``"adamw"``.
        lr: largest learning rate.
        momentum: of SGD; AdamW has betas (0.9, 0.999).
        weight_decay: of parameters with two dimensions or more; biases, normalisation and scales
            decay never.
        schedule: see :func:`learning_rate`.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        augment: any of ``"flip"`` (left to right) and ``"shift"``; for images ``[B, C, H, W]``.
        shift_pixels: largest shift of ``"shift"``; what moves in has the smallest value of the
            training split, which is the background of a dark image.
        precision: of the forward pass: ``"bfloat16"`` runs convolutions and products in it, while
            weights, their gradients and the loss stay float32.
        channels_last: keep 4-d tensors in the memory format that convolutions on CPU are fastest
            in. The returned model has the default format again.
        threads: number of CPU threads; by default torch's.
        label: what the progress is called.

    Returns:
        The trained copy, in eval mode.

    Raises:
        RecipeError: an unknown choice, a number out of its range, or a loss that became infinite or
            NaN.
    """
    _check_choice("optimizer", optimizer, OptimizerName)
    _check_choice("schedule", schedule, Schedule)
    _check_choice("precision", precision, Precision)
    if isinstance(augment, str):
        raise RecipeError(f"train: augment={augment!r}; use a list of names")
    for name in augment:
        _check_choice("augment", name, Augment)
    _check_range("epochs", epochs, 1)
    _check_range("batch_size", batch_size, 1)
    _check_range("lr", lr, 1e-12)
    _check_range("momentum", momentum, 0, 1)
    _check_range("weight_decay", weight_decay, 0)
    _check_range("label_smoothing", label_smoothing, 0, 1)
    _check_range("shift_pixels", shift_pixels, 0)
    if threads is not None:
        _check_range("threads", threads, 1)

    model = copy.deepcopy(model).train()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learning = (p for p in model.parameters() if p.requires_grad)
    groups = decay_groups(learning, weight_decay=weight_decay)
    descent = make_optimizer(optimizer, groups, momentum=momentum)
    augmentation = _augmentation(dataset, augment, shift_pixels, seed)
    batch_size = min(batch_size, len(dataset.train_labels))
    total = len(dataset.train_labels) // batch_size * epochs
    done, loss = 0, math.inf
    batches = progress(
        _batches(dataset, epochs=epochs, batch_size=batch_size, seed=seed),
        label=label,
        total=total,
        status=lambda: f"epoch {(done - 1) * epochs // total + 1}/{epochs}, loss {loss:.3f}",
    )
    forked = [device] if device.type == "cuda" else []
    with num_threads(threads), torch.random.fork_rng(forked), closing(batches):
        torch.manual_seed(seed)
        for images, labels in batches:
            for group in descent.param_groups:
                group["lr"] = learning_rate(done / total, peak=lr, schedule=schedule)
            images = augmentation(images).to(device)
            if channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(images)
            # The loss in float32, whatever the logits are.
            error = F.cross_entropy(
                logits.float(), labels.to(device), label_smoothing=label_smoothing
            )
            descent.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            descent.step()
            done, loss = done + 1, error.item()
            if not math.isfinite(loss):
                raise RecipeError(
                    f"train: the loss is {loss} at step {done} of {total}; use a smaller lr than "
                    f"{lr}, or look for NaN and Inf in the data"
                )
    return model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


def _check_range(option: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
        raise RecipeError(f"train: {option}={value}; use {allowed}")


def _check_choice(option: str, value: str, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise RecipeError(f"train: {option}={value!r}; use {' or '.join(map(repr, allowed))}")


def _batches(
    dataset: Dataset, *, epochs: int, batch_size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for epoch in range(epochs):
        # A seed for each epoch that no other seed's epoch shares: they lie far apart.
        yield from dataset.batches(
            "train", batch_size, shuffle=True, seed=(seed << 20) + epoch, drop_last=True
        )


def _augmentation(
    dataset: Dataset, names: Sequence[Augment], pixels: int, seed: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fill = float(dataset.train_inputs.min())

    def apply(images: torch.Tensor) -> torch.Tensor:
        if "flip" in names:
            images = random_flip(images, generator=generator)
        if "shift" in names:
            images = random_shift(images, pixels=pixels, fill=fill, generator=generator)
        return images

    return apply
