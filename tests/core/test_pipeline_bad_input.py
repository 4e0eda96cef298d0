"""Bad input of every kind: its own error, which names the place, what was found, and the cure."""

import pytest
import torch
from torch import nn

import qcore
from qcore import Override, QConfig, QuantizerConfig, Recipe

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def prepared(**options):
    return qcore.prepare(model(), X, Recipe(**{"preset": "int8_minmax"} | options))


def calibrated(**options):
    return qcore.calibrate(prepared(**options), [X])


def snapshot(qfloat):
    modes = {name: module.training for name, module in qfloat.named_modules()}
    state = {name: value.clone() for name, value in qfloat.state_dict().items()}
    return modes, state


def assert_as_before(qfloat, before):
    modes, state = snapshot(qfloat)
    assert modes == before[0]
    assert state.keys() == before[1].keys()
    for name, value in state.items():
        assert torch.equal(value, before[1][name]), name


def test_convert_before_calibrate():
    """Converting what was never calibrated names the first layer and says to calibrate."""
    with pytest.raises(
        qcore.QuantizationError, match=r"layer 'input_1_quantizer'.*run\s+qcore.calibrate"
    ):
        qcore.convert(prepared())


def test_forward_of_an_uncalibrated_model_with_observers_off():
    """The same for running it."""
    qfloat = prepared()
    qcore.disable_observer(qfloat)
    with pytest.raises(qcore.QuantizationError, match="seen no values"):
        qfloat(X)


def test_calibration_without_a_batch():
    """An empty calibration set, and a generator that is used up, are errors."""
    qfloat = prepared()
    before = snapshot(qfloat)
    for batches in ([], iter(()), (x for x in [])):
        with pytest.raises(qcore.QuantizationError, match=r"no batch.*generator"):
            qcore.calibrate(qfloat, batches)
    with pytest.raises(qcore.QuantizationError, match="no batch"):
        qcore.calibrate(qfloat, [X], limit=0)
    assert_as_before(qfloat, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "calibrated"])
def test_values_that_are_not_finite_in_calibration(value, fresh):
    """NaN and Inf name the layer; scales, statistics, switches and modes are as they were."""
    qfloat = prepared() if fresh else calibrated()
    qfloat.train()
    before = snapshot(qfloat)
    bad = X.clone()
    bad[1, 2] = value
    with pytest.raises(
        qcore.QuantizationError, match=r"'input_1_quantizer'.*1 of 8 values are NaN or Inf"
    ):
        qcore.calibrate(qfloat, [3 * X, bad])
    assert_as_before(qfloat, before)
    if not fresh:
        assert qcore.count_differences(qfloat, qcore.convert(qfloat), [X]).differing == 0


def test_weight_that_is_not_finite():
    """A NaN in a weight names the weight."""
    qfloat = prepared()
    with torch.no_grad():
        qfloat.get_parameter("2.weight")[0, 0] = float("nan")
    with pytest.raises(qcore.QuantizationError, match=r"'2.weight'.*1 of 8 values"):
        qcore.calibrate(qfloat, [X])


def test_an_error_in_the_data_leaves_the_model_as_it_was():
    """An exception of the caller's own data passes through, and nothing is half-calibrated."""
    qfloat = calibrated()
    before = snapshot(qfloat)

    def batches():
        yield 10 * X
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        qcore.calibrate(qfloat, batches())
    assert_as_before(qfloat, before)


@pytest.mark.parametrize("how", ["assigned", "in-place", "negative", "nan"])
def test_scale_of_zero_from_outside(how):
    """A scale that is not positive and finite is refused at convert, however it got there."""
    qfloat = calibrated()
    quantizer = dict(qcore.quantizers(qfloat))["0.output_quantizer"]
    if how == "assigned":
        quantizer.scale = torch.zeros(())
    elif how == "in-place":
        quantizer.qparams()
        quantizer.scale.zero_()
    else:
        quantizer.scale.fill_(-1.0 if how == "negative" else float("nan"))
    with pytest.raises(qcore.QuantizationError, match="scale"):
        qcore.convert(qfloat)


def test_scale_of_zero_given_as_qparams():
    """The same where it is given as qparams."""
    scheme = dict(qcore.quantizers(calibrated()))["0.output_quantizer"].scheme
    with pytest.raises(qcore.QuantizationError, match=r"scale.*positive"):
        qcore.QParams(
            scale=torch.zeros(()), zero_point=torch.zeros((), dtype=torch.int32), scheme=scheme
        )


def one(**changes):
    return QuantizerConfig(**({"scheme": "int8_channel"} | changes))


NAMES = {
    "preset": (
        lambda: prepared(preset="int8_minmx"),
        "preset is called 'int8_minmx'.*did you mean 'int8_minmax'",
    ),
    "scheme": (
        lambda: prepared(weight=one(scheme="int8_chanel")),
        "int8_chanel.*did you mean 'int8_channel'",
    ),
    "observer": (lambda: prepared(weight=one(observer="minmx")), "minmx.*did you mean 'minmax'"),
    "fake_quant": (
        lambda: prepared(weight=one(fake_quant="afine")),
        "afine.*did you mean 'affine'",
    ),
    "backend": (lambda: prepared(backend="referense"), "referense.*did you mean 'reference'"),
    "plug-in": (lambda: prepared(backend="acme:fast"), "acme"),
    "requirement": (lambda: prepared(require=("qcore-nowhere>=2",)), "qcore-nowhere"),
    "override": (
        lambda: prepared(overrides=(Override(name="0", weight=one(observer="mnmax")),)),
        "mnmax.*did you mean 'minmax'",
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_unknown_name(kind):
    """A name that no plug-in brings is an error with the nearest one."""
    make, message = NAMES[kind]
    with pytest.raises(qcore.PluginError, match=message):
        make()


OVERRIDES = [
    (Override(name="3"), r"name='3' fits no layer; layers are 0, 2"),
    (Override(name="encoder.*"), r"name='encoder.\*' fits no layer"),
    (Override(type="Linaer"), "type='Linaer' fits no layer; types are Linear"),
    (Override(op="conv2d"), "op='conv2d' fits no layer; operations are linear"),
    (Override(name="0", type="Conv2d"), "name='0' and type='Conv2d' fits no layer"),
    (
        Override(name="1", weight=QuantizerConfig(scheme="int4_channel")),
        r"'1' is part of layer '0': name that",
    ),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES, ids=lambda o: getattr(o, "name", None))
def test_override_that_fits_no_layer(override, message):
    """An override that changes nothing is an error that lists what there is."""
    with pytest.raises(qcore.RecipeError, match=message):
        prepared(overrides=(override,))


def test_unknown_numerics():
    """A contract that does not exist is an error that says how one is written."""
    with pytest.raises(
        qcore.QcoreError, match=r"numerics 'exact'.*half_even.multiplier.int32.after.int32"
    ):
        prepared(numerics="exact")
    with pytest.raises(qcore.QcoreError, match="rounding='up'.*half_even, half_away"):
        prepared(numerics="up.multiplier.int32.after.int32")


@pytest.mark.parametrize("options", [{"bins": 7, "color": 3}, {"nonsense": True}])
def test_options_that_a_part_does_not_take(options):
    """Options that an observer does not take are an error that names layer, observer and
    options."""
    with pytest.raises(
        qcore.QuantizationError, match=r"layer '.*observer 'minmax'.*unexpected keyword"
    ):
        prepared(weight=one(observer_options=options))


def test_half_precision_models():
    """A model in half precision names a parameter, and says how to get a float32 copy."""
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        with pytest.raises(qcore.QuantizationError, match=r"'0.weight' is torch.*\.float\(\)"):
            qcore.prepare(model().to(dtype), X.to(dtype))


def test_model_without_anything_to_quantize():
    """A model in which nothing can be quantized is an error that says why, row by row."""
    with pytest.raises(
        qcore.QuantizationError, match=r"nothing in the model.*no layer that a converter"
    ):
        qcore.prepare(nn.Sequential(), X)
    with pytest.raises(qcore.QuantizationError, match=r"nothing in the model.*0: float by policy"):
        qcore.prepare(nn.Sequential(nn.LayerNorm(4), nn.ReLU()), X)
    with pytest.raises(qcore.QuantizationError, match="the recipe says so"):
        prepared(overrides=(Override(op="linear", quantize=False),))


def test_model_that_fails_on_the_example():
    """An example that the model does not take is named as the cause."""
    with pytest.raises(qcore.QuantizationError, match="fails on the example inputs.*give inputs"):
        qcore.prepare(model(), torch.randn(2, 5))


def test_model_that_can_not_be_copied():
    """A model that holds a tensor of an earlier forward says what may be the cause."""
    made = model()
    made.cache = made(X)
    with pytest.raises(qcore.QuantizationError, match=r"Sequential can't be copied.*detach"):
        qcore.prepare(made, X)


@pytest.mark.parametrize("recipe", [{"preset": "int8"}, 8, None, ["int8"]], ids=repr)
def test_recipe_of_another_type(recipe):
    """What is no recipe, configuration or name is refused with what to give."""
    with pytest.raises(qcore.RecipeError, match="give a qcore.Recipe"):
        qcore.prepare(model(), X, recipe)


@pytest.mark.parametrize(
    "call",
    [qcore.calibrate, lambda m, b: qcore.convert(m), lambda m, b: qcore.count_differences(m, m, b),
     lambda m, b: qcore.info_of(m)],
)  # fmt: skip
def test_a_float_model_is_no_qfloat_model(call):
    """Giving the float model where QFloat is wanted says to prepare it."""
    with pytest.raises(
        qcore.QuantizationError, match="Sequential is not a QFloat model.*qcore.prepare"
    ):
        call(model(), [X])


def test_a_qfloat_model_is_no_program():
    """Giving QFloat where the program is wanted says to convert it."""
    for call in (qcore.programs, qcore.lower):
        with pytest.raises(qcore.QuantizationError, match="holds no Q program.*qcore.convert"):
            call(calibrated())


CALLS = {
    "other-width": lambda: (torch.randn(2, 5),),
    "other-rank": lambda: (torch.randn(2, 1, 4),),
    "other-dtype": lambda: (torch.randn(2, 4, dtype=torch.float64),),
    "integers": lambda: (torch.zeros(2, 4, dtype=torch.int64),),
    "none": lambda: (None,),
    "too-many": lambda: (X, X),
    "too-few": lambda: (),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("phase", ["qfloat", "q", "lowered"])
def test_inputs_other_than_captured(name, phase):
    """Inputs of another shape, dtype or number are refused by QFloat, by Q, and by Q on a
    backend."""
    made = calibrated()
    if phase != "qfloat":
        made = qcore.convert(made)
    if phase == "lowered":
        made = qcore.lower(made)
    with pytest.raises(qcore.CaptureError, match="captured model"):
        made(*CALLS[name]())


def test_calibration_on_inputs_other_than_captured():
    """The same in calibration, which leaves the model as it was."""
    qfloat = prepared()
    before = snapshot(qfloat)
    with pytest.raises(qcore.CaptureError, match="float32 .*4"):
        qcore.calibrate(qfloat, [X, torch.randn(2, 7)])
    assert_as_before(qfloat, before)


def test_comparison_of_nothing():
    """Comparing over no batch is an error, not a success."""
    qfloat = calibrated()
    with pytest.raises(qcore.QuantizationError, match="comparison got no batch"):
        qcore.count_differences(qfloat, qcore.convert(qfloat), [])


def test_qconfig_without_a_weight():
    """A configuration that quantizes neither weights nor activations leaves nothing to do."""
    with pytest.raises(qcore.QuantizationError, match="no scheme for weights"):
        qcore.prepare(model(), X, QConfig(weight=None, activation=one(scheme="int8")))
    with pytest.raises(qcore.QuantizationError, match="no scheme for weights"):
        qcore.prepare(model(), X, QConfig(weight=None, activation=None))
