"""Switches of the BatchNorms of a QFloat model in training."""

from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import QuantizationError
from .qfloat_model import qfloat_ops

__all__ = ["freeze_batch_norm", "set_batch_norm_fold", "unfreeze_batch_norm"]

Fold = Literal["approximate", "exact"]


def freeze_batch_norm(model: nn.Module) -> None:
    """Makes every BatchNorm use its running statistics in training, and keep them.

    What is trained from here on is what is deployed: batch statistics no longer move it. ``gamma``
    and ``beta`` go on learning. Lasts until :func:`unfreeze_batch_norm`, whatever ``train()`` is
    called with; it is not part of ``state_dict``.

    Args:
        model: from :func:`qcore.prepare`; changed in place.
    """
    _freeze(model, True)


def unfreeze_batch_norm(model: nn.Module) -> None:
    """Ends :func:`freeze_batch_norm`."""
    _freeze(model, False)


def set_batch_norm_fold(model: nn.Module, fold: Fold) -> None:
    """Chooses how BatchNorm is simulated in training, where a layer took it in.

    Args:
        model: from :func:`qcore.prepare`; changed in place.
        fold: ``"approximate"``: the weight is rounded as running statistics deploy it, and
            BatchNorm normalizes what comes out; one convolution. ``"exact"``: the weight is rounded
            as the statistics of the batch would fold it; they need a convolution of their own.

    Raises:
        QuantizationError: another word.
    """
    if fold not in get_args(Fold):
        raise QuantizationError(f"fold={fold!r}; use {' or '.join(map(repr, get_args(Fold)))}")
    for _, op in qfloat_ops(model):
        op.batch_norm_fold = fold


def _freeze(model: nn.Module, frozen: bool) -> None:
    taken_in: set[nn.Module] = set()
    for _, op in qfloat_ops(model):
        op.batch_norm_frozen = frozen
        taken_in.update(m for m in op.modules() if isinstance(m, _BatchNorm))
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module not in taken_in:
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _use_running_statistics]:
                del hooks[key]
            if frozen:
                module.register_forward_pre_hook(_use_running_statistics)


def _use_running_statistics(module: nn.Module, inputs: Any) -> None:
    """Before a forward: train() may have been called since."""
    module.training = False
