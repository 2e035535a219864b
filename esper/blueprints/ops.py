"""The closed table of operators: all that Esper knows of one, in one place.

Belongs here: for each operator its inputs, attributes with bounds, initialisations, shape rule, parameter and FLOP
polynomials, slope at zero, how far it mixes positions, and how it can make values grow. Does not belong here: the
modules that compute it (``build``), or rules about whole graphs (``graph``, ``shapes``, ``tail``).

FLOPs are of one sample's forward pass through the graph; the merge is not counted. A multiply-accumulate is 2; adding,
multiplying or averaging an element is 1; norms, activations and moves are 0, as in the usual FLOP counters: they cost
time, which the crucible measures. Attention counts all pairs of positions, causal or not.

Two operators that such lists often hold are left out. ``dropout``: a branch computes the same in training and
evaluation, so it could only ever be the identity. ``matmul_lowrank``: it is ``linear`` after ``linear``, and a second
spelling of one thing would give it a second identity. Batch norms and anything else with a state are never added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from math import prod
from typing import Literal

import msgspec

from esper.blueprints.polynomial import Polynomial

#: Position axes of each rank. The channel axis is the last of NC and NTC and the second of NCL and NCHW.
RANK_AXES: dict[str, int] = {"NC": 0, "NTC": 1, "NCL": 1, "NCHW": 2}
CHANNELS_LAST = frozenset({"NC", "NTC"})
ALL = frozenset(RANK_AXES)
SPATIAL = frozenset({"NTC", "NCL", "NCHW"})

#: A resolved attribute: a polynomial for sizes, else the plain value.
Value = Polynomial | int | float | bool


class Mixing(IntEnum):
    """How far an output position can see: a lattice, wider is larger."""

    #: Its own position only.
    NONE = 0
    #: Its own position and earlier ones.
    CAUSAL = 1
    #: Any position.
    FULL = 2


class Shape(msgspec.Struct, frozen=True):
    """A value's shape without the batch: rank, channels and position sizes."""

    rank: str
    channels: Polynomial
    positions: tuple[Polynomial, ...]

    def elements(self) -> Polynomial:
        """Return how many numbers one sample has."""
        return prod(self.positions, start=self.channels)

    def __str__(self) -> str:
        places = ",".join(str(size) for size in self.positions)
        return f"{self.rank}[{self.channels}{';' + places if places else ''}]"


class Attr(msgspec.Struct, frozen=True):
    """Type and bounds of one attribute."""

    #: size: integer or expression of sizes, at least 1. int and real: bounded numbers. flag: true or false.
    type: Literal["size", "int", "real", "flag"]
    low: float = 0
    high: float = 0
    #: None: the attribute has to be given.
    default: int | float | bool | None = None


class Call(msgspec.Struct, frozen=True):
    """One use of an operator: what the rules of the table are asked about."""

    inputs: Sequence[Shape]
    attr: Mapping[str, Value]
    site: Shape

    @property
    def first(self) -> Shape:
        """Return the first input's shape."""
        return self.inputs[0]

    def size(self, name: str) -> Polynomial:
        """Return a size attribute."""
        value = self.attr[name]
        return value if isinstance(value, Polynomial) else Polynomial.constant(int(value))

    def number(self, name: str) -> int:
        """Return an integer attribute or flag as a number."""
        value = self.attr[name]
        if isinstance(value, Polynomial):
            raise TypeError(f"{name} is a size, not a number")
        return int(value)


class ShapeMismatch(Exception):
    """An operator's inputs do not fit together; turned into BlueprintInvalid with its path by ``shapes``."""


ShapeRule = Callable[[Call], Shape]
CostRule = Callable[[Call], Polynomial]


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one operator."""

    #: Least and greatest number of inputs.
    arity: tuple[int, int] = (1, 1)
    ranks: frozenset[str] = ALL
    attrs: dict[str, Attr] = {}
    #: Allowed values of ``init``, the default first; empty where there is nothing to choose.
    inits: tuple[str, ...] = ()
    shape: ShapeRule
    parameters: CostRule = lambda _: Polynomial.constant(0)
    flops: CostRule = lambda _: Polynomial.constant(0)
    #: Derivative at 0 where f(0) = 0; None where f(0) is not 0 or is undefined. Zero is a dead slope.
    slope: float | None = 1.0
    mixing: Callable[[Call], Mixing] = lambda _: Mixing.NONE
    #: Bounded output whatever the input: growth starts anew (``tail``).
    bounds: bool = False
    #: Linear and without constant term when its ``bias`` attribute, if any, is false: folds into a weight.
    linear: bool = False
    #: The attribute that says into how many equal shares the channels are dealt; their number must divide them.
    shares: str | None = None


def _same(call: Call) -> Shape:
    return call.first


def _alike(call: Call) -> Shape:
    for other in call.inputs[1:]:
        if other != call.first:
            raise ShapeMismatch(f"inputs are {call.first} and {other}")
    return call.first


def _out_channels(call: Call) -> Shape:
    return msgspec.structs.replace(call.first, channels=call.size("out"))


def _convolved(call: Call) -> Shape:
    lost = call.number("dilation") * (call.number("k") - 1)
    if call.attr.get("causal"):
        if call.number("pad"):
            raise ShapeMismatch("a causal convolution pads by itself; leave pad out")
        gained = lost
    else:
        gained = 2 * call.number("pad")
    positions = tuple(size + (gained - lost) for size in call.first.positions)
    channels = call.size("out") if "out" in call.attr else call.first.channels
    return Shape(call.first.rank, channels, positions)


def _concatenated(call: Call) -> Shape:
    for other in call.inputs[1:]:
        if (other.rank, other.positions) != (call.first.rank, call.first.positions):
            raise ShapeMismatch(f"inputs are {call.first} and {other}")
    channels = sum((shape.channels for shape in call.inputs), Polynomial.constant(0))
    return msgspec.structs.replace(call.first, channels=channels)


def _part(call: Call) -> Shape:
    parts, index = call.number("parts"), call.number("index")
    if index >= parts:
        raise ShapeMismatch(f"there is no part {index} of {parts}; the first one is 0")
    return msgspec.structs.replace(call.first, channels=_shared(call, "parts"))


def _shared(call: Call, name: str) -> Polynomial:
    """Return the channels of one share; where the number is known already, it has to be whole."""
    shares, channels = call.size(name), call.first.channels
    number, whole = shares.as_constant(), channels.as_constant()
    if number is not None and whole is not None and (number < 1 or whole % number):
        raise ShapeMismatch(f"{number} {name} do not divide {whole} channels")
    return channels // shares


def _attended(call: Call) -> Shape:
    _shared(call, "heads")
    return _alike(call)


def _attention_flops(call: Call) -> Polynomial:
    return _positions(call.first) * call.first.elements() * 4


def _averaged(call: Call) -> Shape:
    if call.number("causal") and len(call.first.positions) > 1:
        raise ShapeMismatch("only a sequence has an order to keep; leave causal out")
    return call.first


def _average_flops(call: Call) -> Polynomial:
    return call.first.elements() * _taps(call)


def _window_mixing(call: Call) -> Mixing:
    return Mixing.CAUSAL if call.number("causal") else Mixing.FULL


def _pooled(call: Call) -> Shape:
    return Shape("NC", call.first.channels, ())


def _spread(call: Call) -> Shape:
    if call.site.rank == "NC":
        raise ShapeMismatch("the site has no positions to spread over")
    return Shape(call.site.rank, call.first.channels, call.site.positions)


def _turned(call: Call) -> Shape:
    return msgspec.structs.replace(call.first, rank={"NTC": "NCL", "NCL": "NTC"}[call.first.rank])


def _positions(shape: Shape) -> Polynomial:
    return prod(shape.positions, start=Polynomial.constant(1))


def _channels(times: int) -> CostRule:
    return lambda call: call.first.channels * times


def _linear_parameters(call: Call) -> Polynomial:
    return call.first.channels * call.size("out") + call.size("out") * call.number("bias")


def _linear_flops(call: Call) -> Polynomial:
    return _positions(call.first) * call.first.channels * call.size("out") * 2


def _taps(call: Call) -> int:
    return int(call.number("k") ** RANK_AXES[call.first.rank])


def _conv_parameters(call: Call) -> Polynomial:
    return call.first.channels * call.size("out") * _taps(call) + call.size("out") * call.number("bias")


def _conv_flops(call: Call) -> Polynomial:
    return _positions(_convolved(call)) * call.first.channels * call.size("out") * (2 * _taps(call))


def _depthwise_parameters(call: Call) -> Polynomial:
    return call.first.channels * (_taps(call) + call.number("bias"))


def _depthwise_flops(call: Call) -> Polynomial:
    return _convolved(call).elements() * (2 * _taps(call))


def _each_input(call: Call) -> Polynomial:
    return call.first.elements()


def _conv_mixing(call: Call) -> Mixing:
    if call.number("k") == 1 and not call.number("pad"):
        return Mixing.NONE
    return Mixing.CAUSAL if call.attr.get("causal") else Mixing.FULL


def _full(_: Call) -> Mixing:
    return Mixing.FULL


def _group_mixing(call: Call) -> Mixing:
    return Mixing.FULL if call.first.positions else Mixing.NONE


_OUT = Attr("size")
_BIAS = Attr("flag", default=True)
_K = Attr("int", 1, 9)
_PAD = Attr("int", 0, 32, 0)
_DILATION = Attr("int", 1, 8, 1)
_CAUSAL = Attr("flag", default=False)
_WEIGHTS = ("kaiming", "zeros")


def _conv(rank: str, *, depthwise: bool) -> Op:
    attrs = {"k": _K, "pad": _PAD, "dilation": _DILATION, "bias": _BIAS}
    if rank == "NCL":
        attrs["causal"] = _CAUSAL
    if not depthwise:
        attrs["out"] = _OUT
    return Op(
        ranks=frozenset({rank}),
        attrs=attrs,
        inits=_WEIGHTS,
        shape=_convolved,
        parameters=_depthwise_parameters if depthwise else _conv_parameters,
        flops=_depthwise_flops if depthwise else _conv_flops,
        mixing=_conv_mixing,
    )


def _activation(slope: float | None, *, bounds: bool = False) -> Op:
    return Op(shape=_same, slope=slope, bounds=bounds)


OPS: dict[str, Op] = {
    # with weights
    "linear": Op(
        ranks=CHANNELS_LAST,
        attrs={"out": _OUT, "bias": _BIAS},
        inits=_WEIGHTS,
        shape=_out_channels,
        parameters=_linear_parameters,
        flops=_linear_flops,
        linear=True,
    ),
    "conv1d": _conv("NCL", depthwise=False),
    "conv2d": _conv("NCHW", depthwise=False),
    "dwconv1d": _conv("NCL", depthwise=True),
    "dwconv2d": _conv("NCHW", depthwise=True),
    "scale": Op(inits=("ones", "zeros"), shape=_same, parameters=_channels(1), flops=_each_input),
    "bias": Op(inits=("zeros",), shape=_same, parameters=_channels(1), flops=_each_input),
    "layernorm": Op(ranks=CHANNELS_LAST, shape=_same, parameters=_channels(2), slope=None, bounds=True),
    "rmsnorm": Op(ranks=CHANNELS_LAST, shape=_same, parameters=_channels(1), slope=None, bounds=True),
    "groupnorm": Op(
        ranks=frozenset({"NC", "NCL", "NCHW"}),
        attrs={"groups": Attr("size", default=1)},
        shape=_same,
        parameters=_channels(2),
        slope=None,
        mixing=_group_mixing,
        bounds=True,
        shares="groups",
    ),
    # activations
    "relu": _activation(0.0),
    "gelu": _activation(0.5),
    "silu": _activation(0.5),
    "tanh": _activation(1.0, bounds=True),
    "sigmoid": _activation(None, bounds=True),
    "softplus": _activation(None),
    "softmax": _activation(None, bounds=True),
    # arithmetic
    "add": Op(arity=(2, 2), shape=_alike, flops=_each_input, linear=True),
    "sub": Op(arity=(2, 2), shape=_alike, flops=_each_input, linear=True),
    "mul": Op(arity=(2, 2), shape=_alike, flops=_each_input),
    "scale_const": Op(attrs={"value": Attr("real", -16.0, 16.0)}, shape=_same, flops=_each_input, linear=True),
    "zero": Op(shape=_same),
    # moves
    "identity": Op(shape=_same, linear=True),
    "concat": Op(arity=(2, 4), shape=_concatenated, linear=True),
    "split": Op(
        attrs={"parts": Attr("int", 2, 16), "index": Attr("int", 0, 15)},
        shape=_part,
        linear=True,
        shares="parts",
    ),
    "gap": Op(ranks=SPATIAL, shape=_pooled, flops=_each_input, mixing=_full),
    "broadcast": Op(ranks=frozenset({"NC"}), shape=_spread),
    "mean_pool": Op(
        ranks=SPATIAL,
        attrs={"k": Attr("int", 2, 9), "causal": _CAUSAL},
        shape=_averaged,
        flops=_average_flops,
        mixing=_window_mixing,
    ),
    "sdpa": Op(
        arity=(3, 3),
        ranks=frozenset({"NTC"}),
        attrs={"heads": Attr("size"), "causal": _CAUSAL},
        shape=_attended,
        flops=_attention_flops,
        mixing=_window_mixing,
        shares="heads",
    ),
    "transpose_tokens": Op(ranks=frozenset({"NTC", "NCL"}), shape=_turned),
}

#: Operators with weights whose zero initialisation makes their output zero: the possible tails.
TAILS = frozenset(name for name, op in OPS.items() if "zeros" in op.inits and len(op.inits) > 1) | {"zero"}
