"""How large a branch's values typically are at birth, and how far its first optimiser step moves what it adds.

Belongs here: two moments of every value, carried through the graph at a site, and the tails' first Adam step from
them. Does not belong here: the learning rate that follows (``cost``), bounds that hold for any input (``tail``).

Nothing is run. The input is taken as independent standard normal numbers, as the crucible draws it, and weights as
drawn at birth. Of every value two moments are kept: the mean square ``power``, and ``shared``, the mean product of one
feature at two positions or samples. Their ratio tells how much of a feature is the same whatever the input. Wide
layers make sums of many terms, so both follow from those of the inputs (mean field theory of random networks: Poole et
al. 2016, Schoenholz et al. 2017; for relu the arc-cosine kernel of Cho and Saul 2009). Values that come from the same
features are taken as equal, others as independent.

The first step. Adam moves a weight by the learning rate, up or down. A tail's output is a sum over F inputs, so its
change is at most ``rate * F * sqrt(power)``. How much of that arrives depends on how far the steps agree: for a random
target the signs of two of the F gradients agree in a share that the ratio gives (the orthant formula), and what a
sample adds to its own gradient agrees by the square root of the number of samples and positions. Plain gradient descent
moves a weight by its gradient, so there the change goes with the square of the inputs and of all factors behind the
tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from esper.blueprints.ir import INPUT, Node, SiteSignature
from esper.blueprints.ops import RANK_AXES, Call
from esper.blueprints.polynomial import Polynomial
from esper.blueprints.tail import is_tail
from esper.blueprints.verify import Verified

#: Samples in the batch of the first step: as many as the crucible takes.
SAMPLES = 4
#: The mean of f(x) for normal x of mean square s is that of relu times sqrt(s / (softness + s)).
_SOFTNESS = {"gelu": 1.0, "silu": 2.9}


class Gain(NamedTuple):
    """Factors between a zero-born weight's output and a value behind it."""

    forward: float
    back: float


class Moments(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a value at birth, and of its change in the first step."""

    #: Mean square.
    power: float
    #: Mean product of one feature at two samples; at most ``power``.
    shared: float
    #: Directions it can point in: features that come through few channels go up and down together.
    directions: int
    #: Factors of the input in it: products have heavy tails.
    degree: int = 1
    #: The layers that mixed channels last: values without a common one are independent.
    roots: frozenset[str] = frozenset()
    #: Zero-born weights -> how much of their step arrives here, and how much of a gradient here arrives there.
    steps: dict[str, Gain] = {}

    def reached(self, forward: float, back: float | None = None) -> dict[str, Gain]:
        """Return the steps as they arrive behind an operator with these gains; back is as forward when left out."""
        behind = forward if back is None else back
        return {name: Gain(gain.forward * forward, gain.back * behind) for name, gain in self.steps.items()}


class FirstStep(NamedTuple):
    """Root mean square of what a branch adds after one step, per unit of learning rate."""

    adam: float
    sgd: float


class _Place(msgspec.Struct, frozen=True):
    """A node with its sizes known."""

    node: Node
    call: Call
    sizes: dict[str, int]

    def size(self, value: Polynomial) -> int:
        return value.evaluate(self.sizes)

    @property
    def channels(self) -> int:
        return self.size(self.call.first.channels)

    @property
    def positions(self) -> int:
        return math.prod(self.size(size) for size in self.call.first.positions)

    @property
    def taps(self) -> int:
        if "k" not in self.call.attr:
            return 1
        return int(self.call.number("k") ** RANK_AXES[self.call.first.rank])

    @property
    def mixes(self) -> bool:
        """Whether channels are mixed, by weights that are drawn."""
        return "out" in self.call.attr


def first_step(found: Verified, signature: SiteSignature) -> FirstStep:
    """Return what a branch is expected to add after its first step towards a random target.

    Both are proportional to the rate as long as the step is small.

    Args:
        found: The blueprint, verified at the signature.
        signature: Where it stands.
    """
    flow = found.flows[signature.rank]
    entry = flow.shapes[INPUT].channels.evaluate(found.sizes)
    values = {INPUT: Moments(power=1.0, shared=0.0, directions=entry, roots=frozenset({INPUT}))}
    moved: dict[str, FirstStep] = {}
    for node in found.nodes:
        place = _Place(node, flow.calls[node.id], found.sizes)
        inputs = [values[source] for source in node.inputs]
        own = {node.id: Gain(1.0, 1.0)}
        if is_tail(node):
            if node.op != "zero":
                moved[node.id] = _tail_step(place, inputs[0])
            values[node.id] = Moments(
                power=0.0,
                shared=0.0,
                directions=1,
                degree=0,
                roots=frozenset(own),
                steps=own if node.id in moved else {},
            )
            continue
        value = _RULES.get(node.op, _kept)(place, inputs)
        if value.steps and (node.attr.get("bias") or node.op == "bias"):
            moved[node.id] = FirstStep(1.0, math.sqrt(SAMPLES * place.positions))
            value = msgspec.structs.replace(value, steps=value.steps | own)
        values[node.id] = value
    # The loss is a mean over the output, of squares of a difference of two normal numbers.
    slope = 2.0 * math.sqrt(2.0) / (SAMPLES * math.prod((*signature.positions, signature.channels)))
    out = values[found.blueprint.out]
    if found.blueprint.kind == "gate":
        out = _multiplied([out, values[INPUT]])
    reached = [(moved[name], gain) for name, gain in out.steps.items()]
    return FirstStep(
        adam=sum(step.adam * gain.forward for step, gain in reached),
        sgd=sum(step.sgd * gain.forward * gain.back * slope for step, gain in reached),
    )


def _tail_step(place: _Place, value: Moments) -> FirstStep:
    """Return the change of a tail's output, for SGD per unit of gradient."""
    terms = place.taps * (place.channels if place.mixes else 1)
    others = SAMPLES * place.positions
    bias = bool(place.node.attr.get("bias"))
    ratio = min(1.0, value.shared / value.power) if value.power else 0.0
    own = value.power - value.shared
    directions = min(terms, value.directions * place.taps)
    agreeing = value.shared * 2.0 / math.pi * math.asin(ratio)
    echo = (
        own * 2.0 / math.pi * (1.0 / others / math.sqrt(1.0 + 2.0 * ratio / max(1.0 - ratio, 1e-9)) + 1.0 / directions)
    )
    weights = math.sqrt(terms * terms * (agreeing + echo) + terms * value.power)
    overlap = (terms * value.shared) ** 2 + terms * value.power**2 + (terms * own) ** 2 / directions
    return FirstStep(
        adam=min(weights, terms * math.sqrt(value.power)) + bias,
        sgd=math.sqrt((terms * value.power) ** 2 + others * overlap) + bias * math.sqrt(others),
    )


def _kept(_: _Place, inputs: list[Moments]) -> Moments:
    """Moves, and the affine operators that are the identity at birth."""
    return inputs[0]


def _scaled(value: Moments, factor: float) -> Moments:
    return msgspec.structs.replace(
        value,
        power=value.power * factor**2,
        shared=value.shared * factor**2,
        steps=value.reached(abs(factor)),
    )


def _mixed(place: _Place, inputs: list[Moments]) -> Moments:
    """Weights drawn with variance 2 / F: a sum of F terms has twice the power of one."""
    value = inputs[0]
    roots = frozenset({place.node.id}) if place.mixes else value.roots | {place.node.id}
    out = place.size(place.call.size("out")) if place.mixes else place.channels
    # The step of a tail before it follows the gradient through these weights: it comes back aligned with them.
    gain = math.sqrt(2.0 + 4.0 / math.pi * place.channels / out)
    return Moments(
        power=2.0 * value.power,
        shared=2.0 * value.shared,
        directions=min(value.directions * place.taps, out) if place.mixes else value.directions,
        degree=value.degree,
        roots=roots,
        steps=value.reached(gain),
    )


def _normed(_: _Place, inputs: list[Moments]) -> Moments:
    value = inputs[0]
    power = value.power or 1.0
    return msgspec.structs.replace(value, power=1.0, shared=value.shared / power, degree=1)


def _rectified(value: Moments, softness: float = 0.0) -> Moments:
    """Return x/2 plus the even part of relu, or of a softer kind of it, which is smaller for small inputs."""
    if not value.power:
        return value
    power = value.power
    ratio = min(1.0, value.shared / power)
    arc = math.sqrt(1.0 - ratio * ratio) + ratio * (math.pi - math.acos(ratio))
    even = power / (softness + power)
    return msgspec.structs.replace(
        value,
        power=power / 4.0 * (1.0 + even),
        shared=value.shared / 4.0 + (power / (2.0 * math.pi) * arc - value.shared / 4.0) * even,
    )


def _relu(_: _Place, inputs: list[Moments]) -> Moments:
    return _rectified(inputs[0])


def _soft_relu(place: _Place, inputs: list[Moments]) -> Moments:
    """Return gelu or silu; behind a tail, their slope at zero."""
    value = _rectified(inputs[0], _SOFTNESS[place.node.op])
    return msgspec.structs.replace(value, steps=value.reached(0.5))


def _softplus(_: _Place, inputs: list[Moments]) -> Moments:
    """Relu on top of its value at zero, log 2."""
    value = _rectified(inputs[0])
    return msgspec.structs.replace(value, power=value.power + 0.48, shared=value.shared + 0.48)


def _tanh(_: _Place, inputs: list[Moments]) -> Moments:
    value = inputs[0]
    factor = min(1.0, 1.0 / value.power) if value.power else 1.0
    return msgspec.structs.replace(value, power=value.power * factor, shared=value.shared * factor, degree=1)


def _sigmoid(_: _Place, inputs: list[Moments]) -> Moments:
    value = inputs[0]
    factor = min(1.0 / 16.0, 0.25 / value.power) if value.power else 1.0
    return msgspec.structs.replace(
        value, power=0.25 + value.power * factor, shared=0.25 + value.shared * factor, degree=1
    )


def _softmax(place: _Place, inputs: list[Moments]) -> Moments:
    """Shares of one over the channels: at most one channel has it all."""
    channels = place.channels
    power = min(1.0 / channels, math.exp(min(inputs[0].power, 50.0)) / channels**2)
    return msgspec.structs.replace(inputs[0], power=power, shared=1.0 / channels**2, degree=1)


def _added(_: _Place, inputs: list[Moments]) -> Moments:
    first, second = inputs
    steps = dict(first.steps)
    for name, gain in second.steps.items():
        before = steps.get(name, Gain(0.0, 0.0))
        steps[name] = Gain(before.forward + gain.forward, before.back + gain.back)
    cross = first.shared * second.shared
    if first.roots & second.roots:
        cross = first.power * second.power
    return Moments(
        power=first.power + second.power + 2.0 * math.sqrt(cross),
        shared=(math.sqrt(first.shared) + math.sqrt(second.shared)) ** 2,
        directions=max(first.directions, second.directions),
        degree=max(first.degree, second.degree),
        roots=first.roots | second.roots,
        steps=steps,
    )


def _multiplied(inputs: list[Moments]) -> Moments:
    first, second = inputs
    degree = first.degree + second.degree
    heavier, power, shared = 1.0, first.power * second.power, first.shared * second.shared
    if first.roots & second.roots:
        heavier = _heavy(degree) / (_heavy(first.degree) * _heavy(second.degree))
        power, shared = power * heavier, power
    steps: dict[str, Gain] = {}
    for behind, factor in ((first, second), (second, first)):
        gain = math.sqrt(factor.power * heavier)
        # A sample with a large factor gets a large gradient for it, and then meets the factor once more.
        steps |= behind.reached(gain, gain * math.sqrt(_heavy(2 * factor.degree)) / _heavy(factor.degree))
    return Moments(
        power=power,
        shared=shared,
        directions=max(first.directions, second.directions),
        degree=degree,
        roots=first.roots | second.roots,
        steps=steps,
    )


def _heavy(degree: int) -> float:
    """Return the mean square of a normal number to a power: 1 * 3 * 5 * ..."""
    return float(math.prod(range(1, 2 * degree, 2)))


def _constant(place: _Place, inputs: list[Moments]) -> Moments:
    return _scaled(inputs[0], float(place.node.attr["value"]))


def _joined(place: _Place, inputs: list[Moments]) -> Moments:
    sizes = [place.size(shape.channels) for shape in place.call.inputs]
    total = sum(sizes)
    steps: dict[str, Gain] = {}
    for value in inputs:
        for name, gain in value.steps.items():
            steps[name] = max(steps.get(name, gain), gain)
    return Moments(
        power=sum(value.power * size for value, size in zip(inputs, sizes, strict=True)) / total,
        shared=sum(value.shared * size for value, size in zip(inputs, sizes, strict=True)) / total,
        directions=max(value.directions for value in inputs),
        degree=max(value.degree for value in inputs),
        roots=frozenset().union(*(value.roots for value in inputs)),
        steps=steps,
    )


def _averaged(place: _Place, inputs: list[Moments]) -> Moments:
    value, over = inputs[0], place.taps if "k" in place.call.attr else place.positions
    return msgspec.structs.replace(
        value,
        power=value.shared + (value.power - value.shared) / over,
        steps=value.reached(1.0, 1.0 if "k" in place.call.attr else over**-0.5),
    )


def _spread(place: _Place, inputs: list[Moments]) -> Moments:
    """The gradients of all positions come together."""
    positions = math.prod(place.size(size) for size in place.call.site.positions)
    return msgspec.structs.replace(inputs[0], steps=inputs[0].reached(1.0, positions**0.5))


def _attended(_: _Place, inputs: list[Moments]) -> Moments:
    """A mean of values: at most as large as one of them."""
    return inputs[2]


_RULES: dict[str, Callable[[_Place, list[Moments]], Moments]] = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "dwconv1d", "dwconv2d"), _mixed),
    **dict.fromkeys(("layernorm", "rmsnorm", "groupnorm"), _normed),
    **dict.fromkeys(("scale", "bias", "identity", "split", "transpose_tokens"), _kept),
    "relu": _relu,
    "gelu": _soft_relu,
    "silu": _soft_relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "softmax": _softmax,
    "add": _added,
    "sub": _added,
    "mul": lambda _, inputs: _multiplied(inputs),
    "scale_const": _constant,
    "concat": _joined,
    "gap": _averaged,
    "broadcast": _spread,
    "mean_pool": _averaged,
    "sdpa": _attended,
}
#: Operators whose moments are known: all of them, ``zero`` being a tail.
KNOWN = frozenset(_RULES) | {"zero"}
