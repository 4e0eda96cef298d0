"""From QFloat back to Float, and to QFloat of another configuration; what was trained stays."""

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from .batch_norms import freeze_batch_norm
from .errors import QuantizationError
from .preparation import RecipeLike, named_tensors, prepare
from .qfloat_model import info_of, qfloat_ops, quantizers

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["reset_qconfig", "to_float"]


def to_float(model: nn.Module) -> nn.Module:
    """The float model that a QFloat model was prepared from, with its weights as they are now.

    Training changes weights and the statistics of BatchNorm; here they go back into a copy of the
    model that :func:`qcore.prepare` was given, of its own class and with its own names.

    Args:
        model: from :func:`qcore.prepare`, or a copy of it; stays as it is.

    Returns:
        A float model that shares nothing with ``model``, in the modes that the float model was in.

    Raises:
        QuantizationError: ``model`` is no QFloat model, or has a weight that the float model has
            not.

    >>> import torch
    >>> qfloat = prepare(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4))
    >>> with torch.no_grad():
    ...     _ = qfloat.get_parameter("0.weight").fill_(0.5)
    >>> to_float(qfloat)
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
    )
    >>> to_float(qfloat)[0].weight[0]
    tensor([0.5000, 0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """
    info = info_of(model)
    held = dict(named_tensors(model))
    known = {id(held[place]) for place in info.places.values() if place in held}
    known |= {id(p) for _, quantizer in quantizers(model) for p in quantizer.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            raise QuantizationError(
                f"parameter {name!r} of QFloat is none of the float model's, so it can't go back "
                "there; save the weights of the float model before prepare"
            )
    result = copy.deepcopy(info.float_model)
    for name, tensor in named_tensors(result):
        place = info.places.get(name)
        if place is not None and place in held:
            tensor.data = held[place].detach().clone()
    return result


def reset_qconfig(
    model: nn.Module,
    example_inputs: Any,
    recipe: RecipeLike,
    *,
    host: "PluginHost | None" = None,
) -> nn.Module:
    """A QFloat model with the weights of another one, by another configuration.

    A quantizer that stands where one of the same scheme stood starts from that one's scale and zero
    point, and with its switches. So a model that was calibrated by one preset can be trained by
    another: learned steps start wherever any observer found them. The others have seen nothing yet,
    and :func:`qcore.calibrate` finds their scales.

    Args:
        model: from :func:`qcore.prepare`, calibrated or not, trained or not; stays as it is.
        example_inputs: as for :func:`qcore.prepare`.
        recipe: as for :func:`qcore.prepare`.
        host: plug-ins; by default those that ``model`` was prepared with.

    Returns:
        A model as from :func:`qcore.prepare`, in the mode (train or eval) of ``model``.

    Raises:
        QuantizationError, RecipeError, PluginError: as of :func:`qcore.prepare` and
            :func:`to_float`.

    >>> import torch
    >>> from qcore import calibrate, info_of
    >>> x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    >>> qfloat = calibrate(prepare(nn.Sequential(nn.Linear(4, 2)), x, "int8"), [x])
    >>> learning = reset_qconfig(qfloat, x, "w8a8")
    >>> [type(q).__name__ for _, q in quantizers(learning)]
    ['LSQFakeQuantize', 'LSQFakeQuantize']
    >>> all(q.calibrated for _, q in quantizers(learning))
    True
    """
    result = prepare(to_float(model), example_inputs, recipe, host=host or info_of(model).host)
    result.train(model.training)
    for _, op in (*qfloat_ops(model), *qfloat_ops(result)):
        # Folding tells learned scales the factor of BatchNorm, by which they are multiplied.
        list(op.weight_quantizers())
    earlier = dict(quantizers(model))
    for name, quantizer in quantizers(result):
        old = earlier.get(name)
        if old is None or old.scheme != quantizer.scheme or not old.calibrated:
            continue
        quantizer.set_qparams(old.qparams())
        quantizer.observer_enabled = old.observer_enabled
        quantizer.fake_quant_enabled = old.fake_quant_enabled
    before = dict(qfloat_ops(model))
    for name, op in qfloat_ops(result):
        if name in before:
            op.batch_norm_fold = before[name].batch_norm_fold
    if any(op.batch_norm_frozen for op in before.values()):
        freeze_batch_norm(result)
    return result
