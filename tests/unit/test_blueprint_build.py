"""Blueprints as modules: every operator built and costed, canonical names, kernels as bytes."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.cost import flops, parameters
from esper.blueprints.foldable import width_activation
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.build import build, example_input, folded_weight, output_shape
from esper.blueprints.kernels.kernel import (
    decode_kernel,
    encode_kernel,
    kernel_id,
    kernel_seed,
    load_module,
)
from esper.blueprints.kernels.operators import DRAWERS
from esper.blueprints.kinds import KINDS
from esper.blueprints.library import load_library
from esper.blueprints.ops import OPS
from esper.blueprints.verify import fits, verify
from esper.errors import BlueprintInvalid, KernelRefused

SITES = {
    "NC": SiteSignature(kind="linear", rank="NC", channels=16, in_channels=12, positions=(), causal=False),
    "NTC": SiteSignature(kind="linear", rank="NTC", channels=16, in_channels=12, positions=(6,), causal=True),
    "NCL": SiteSignature(kind="conv1d", rank="NCL", channels=16, in_channels=4, positions=(9,), causal=False),
    "NCHW": SiteSignature(kind="conv2d", rank="NCHW", channels=16, in_channels=4, positions=(5, 7), causal=False),
}
LIBRARY = load_library()
FROZEN = Path(__file__).parents[1] / "golden" / "shipped_blueprints.json"
PAIRS = [(name, rank) for name, blueprint in LIBRARY.items() for rank in SITES if fits(blueprint, SITES[rank]) is None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(rank: str, nodes: list[dict[str, Any]], out: str, params: str, flop_claim: str) -> Blueprint:
    sizes = {"C": "site.channels", "P": "site.positions"}
    document = {
        "ir": 1,
        "id": "made",
        "kind": "residual",
        "site": {"rank": rank, "causal": False},
        "symbols": sizes,
        "nodes": nodes,
        "out": out,
        "merge": {"op": "add", "gate": "alpha"},
        "claims": {"preserves": "exact@alpha0,exact@birth", "params": params, "flops": flop_claim},
    }
    return parse(json.dumps(document))


def node(name: str, op: str, *inputs: str, **attr: Any) -> dict[str, Any]:
    return {"id": name, "op": op, "in": list(inputs), "attr": attr}


TAIL = {"id": "t", "op": "scale", "in": ["v"], "init": "zeros", "role": "tail"}
#: Operator -> rank, nodes that end in v, parameters and FLOPs of them. The tail adds C and P*C.
EACH: dict[str, tuple[str, list[dict[str, Any]], str, str]] = {
    "linear": ("NTC", [node("v", "linear", "x", out="C", bias=False)], "C*C", "2*P*C*C"),
    "conv1d": ("NCL", [node("v", "conv1d", "x", out="C", k=3, pad=2, dilation=2)], "3*C*C+C", "6*P*C*C"),
    "conv2d": ("NCHW", [node("v", "conv2d", "x", out="C", k=3, pad=1)], "9*C*C+C", "18*P*C*C"),
    "dwconv1d": ("NCL", [node("v", "dwconv1d", "x", k=4, causal=True)], "4*C+C", "8*P*C"),
    "dwconv2d": ("NCHW", [node("v", "dwconv2d", "x", k=3, pad=1, bias=False)], "9*C", "18*P*C"),
    "scale": ("NCHW", [node("v", "scale", "x")], "C", "P*C"),
    "bias": ("NCL", [node("v", "bias", "x")], "C", "P*C"),
    "layernorm": ("NTC", [node("v", "layernorm", "x")], "2*C", "0"),
    "rmsnorm": ("NTC", [node("v", "rmsnorm", "x")], "C", "0"),
    "groupnorm": ("NCHW", [node("v", "groupnorm", "x", groups="C//4")], "2*C", "0"),
    "relu": ("NC", [node("v", "relu", "x")], "0", "0"),
    "gelu": ("NC", [node("v", "gelu", "x")], "0", "0"),
    "silu": ("NC", [node("v", "silu", "x")], "0", "0"),
    "tanh": ("NC", [node("v", "tanh", "x")], "0", "0"),
    "sigmoid": ("NC", [node("v", "sigmoid", "x")], "0", "0"),
    "softplus": ("NC", [node("v", "softplus", "x")], "0", "0"),
    "softmax": ("NCHW", [node("v", "softmax", "x")], "0", "0"),
    "add": ("NC", [node("a", "relu", "x"), node("v", "add", "a", "x")], "0", "C"),
    "sub": ("NC", [node("a", "relu", "x"), node("v", "sub", "a", "x")], "0", "C"),
    "mul": ("NC", [node("a", "relu", "x"), node("v", "mul", "a", "x")], "0", "C"),
    "scale_const": ("NC", [node("v", "scale_const", "x", value=-0.5)], "0", "C"),
    "identity": ("NC", [node("v", "identity", "x")], "0", "0"),
    "concat": (
        "NCL",
        [node("a", "concat", "x", "x"), node("v", "conv1d", "a", out="C", k=1)],
        "2*C*C+C",
        "4*P*C*C",
    ),
    "split": (
        "NC",
        [
            node("a", "linear", "x", out="2*C"),
            node("l", "split", "a", parts=2, index=0),
            node("r", "split", "a", parts=2, index=1),
            node("v", "sub", "l", "r"),
        ],
        "2*C*C+2*C",
        "4*C*C+C",
    ),
    "mean_pool": ("NCHW", [node("v", "mean_pool", "x", k=2)], "0", "4*P*C"),
    "sdpa": ("NTC", [node("k", "gelu", "x"), node("v", "sdpa", "x", "k", "x", heads=2)], "0", "4*P*P*C"),
    "gap": ("NCHW", [node("a", "gap", "x"), node("v", "broadcast", "a")], "0", "P*C"),
    "broadcast": ("NTC", [node("a", "gap", "x"), node("v", "broadcast", "a")], "0", "P*C"),
    "transpose_tokens": ("NTC", [node("a", "transpose_tokens", "x"), node("v", "transpose_tokens", "a")], "0", "0"),
}


#: Operators with FLOPs that torch's counter knows; it leaves out what works element by element.
COUNTED = {"linear", "conv1d", "conv2d", "dwconv1d", "dwconv2d", "sdpa"}


def windows(x: torch.Tensor, pad: tuple[int, ...], k: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, pad)
    for axis in range(2, x.dim()):
        padded = padded.unfold(axis, k, 1)
    return padded


def normal(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, heads: int, causal: bool) -> torch.Tensor:
    """Attend head by head and position by position, with the definition's own sums."""
    size, out = q.shape[-1] // heads, torch.zeros_like(q)
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        for t in range(q.shape[1]):
            seen = t + 1 if causal else q.shape[1]
            scores = torch.exp((q[:, None, t, at] * k[:, :seen, at]).sum(-1) / size**0.5)
            out[:, t, at] = (scores[..., None] * v[:, :seen, at]).sum(1) / scores.sum(1, keepdim=True)
    return out


def dilated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, (2, 2))
    return sum(torch.einsum("ncl,oc->nol", padded[..., 2 * k : 2 * k + x.shape[-1]], w[..., k]) for k in range(3))


#: What the nodes of EACH compute, written down a second time with plain tensor arithmetic: of x, weight and bias.
EXPECTED: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "linear": lambda x, w, b: torch.einsum("ntc,oc->nto", x, w),
    "conv1d": lambda x, w, b: dilated(x, w) + b[:, None],
    "conv2d": lambda x, w, b: torch.einsum("nchwij,ocij->nohw", windows(x, (1, 1, 1, 1), 3), w) + b[:, None, None],
    "dwconv1d": lambda x, w, b: torch.einsum("nclk,ck->ncl", windows(x, (3, 0), 4), w[:, 0]) + b[:, None],
    "dwconv2d": lambda x, w, b: torch.einsum("nchwij,cij->nchw", windows(x, (1, 1, 1, 1), 3), w[:, 0]),
    "scale": lambda x, w, b: x * w[:, None, None],
    "bias": lambda x, w, b: x + w[:, None],
    "layernorm": lambda x, w, b: normal(x),
    "rmsnorm": lambda x, w, b: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
    "groupnorm": lambda x, w, b: normal(x.reshape(len(x), x.shape[1] // 4, -1)).reshape(x.shape),
    "relu": lambda x, w, b: x.clamp(min=0),
    "gelu": lambda x, w, b: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x, w, b: x / (1 + torch.exp(-x)),
    "tanh": lambda x, w, b: 1 - 2 / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x, w, b: 1 / (1 + torch.exp(-x)),
    "softplus": lambda x, w, b: torch.log1p(torch.exp(x)),
    "softmax": lambda x, w, b: torch.exp(x) / torch.exp(x).sum(1, keepdim=True),
    "add": lambda x, w, b: x.clamp(min=0) + x,
    "sub": lambda x, w, b: x.clamp(min=0) - x,
    "mul": lambda x, w, b: x.clamp(min=0) * x,
    "scale_const": lambda x, w, b: x / -2,
    "identity": lambda x, w, b: x,
    "transpose_tokens": lambda x, w, b: x,
    "concat": lambda x, w, b: torch.einsum("ncl,oc->nol", torch.cat([x, x], 1), w[..., 0]) + b[:, None],
    "split": lambda x, w, b: x @ (w[:16] - w[16:]).T + b[:16] - b[16:],
    "mean_pool": lambda x, w, b: windows(x, (0, 1, 0, 1), 2).mean((-1, -2)),
    "sdpa": lambda x, w, b: attention(x, torch.nn.functional.gelu(x), x, heads=2, causal=False),
    "gap": lambda x, w, b: x.mean((2, 3), keepdim=True).expand_as(x),
    "broadcast": lambda x, w, b: x.mean(1, keepdim=True).expand_as(x),
}


def test_every_operator_of_the_table_is_built_and_tried_here() -> None:
    assert set(DRAWERS) == set(OPS)
    assert set(EACH) | {"zero"} == set(OPS)


@pytest.mark.parametrize("op", sorted(EACH))
def test_an_operator_computes_what_it_says_at_the_cost_it_says(op: str) -> None:
    rank, nodes, params, flop_claim = EACH[op]
    blueprint = made(rank, [*nodes, TAIL], "t", f"{params}+C", f"{flop_claim}+P*C")
    site = msgspec.structs.replace(SITES[rank], causal=False)
    module = build(blueprint, site, seed=3)
    assert sum(weight.numel() for weight in module.parameters()) == parameters(blueprint, site)
    x = example_input(site, "residual", generator(), samples=3)
    assert torch.equal(module(x), torch.zeros_like(x))
    tail = f"n{len(nodes)}"
    body = {name: weight for name, weight in module.named_parameters() if not name.startswith(tail)}
    with torch.no_grad():
        if "norm" not in op:
            for name, weight in body.items():
                weight.uniform_(-1, 1, generator=generator(len(name)))
        module.get_parameter(f"{tail}.weight").fill_(1.0)
        weights = [*(w for n, w in body.items() if "weight" in n), torch.empty(0)]
        biases = [*(w for n, w in body.items() if "bias" in n), torch.empty(0)]
        torch.testing.assert_close(module(x), EXPECTED[op](x, weights[0], biases[0]), rtol=1e-4, atol=1e-5)


def test_the_placebo_gives_zeros_for_any_input_even_where_the_host_overflowed() -> None:
    module = build(LIBRARY["noop"], SITES["NC"], seed=0)
    x = torch.full((2, 16), float("inf"))
    assert torch.equal(module(x), torch.zeros(2, 16))
    assert not list(module.parameters())


@pytest.mark.parametrize(("name", "rank"), PAIRS)
def test_the_library_has_the_parameters_and_flops_that_torch_counts(name: str, rank: str) -> None:
    blueprint, site = LIBRARY[name], SITES[rank]
    module = build(blueprint, site, seed=1)
    assert parameters(blueprint, site) == sum(weight.numel() for weight in module.parameters())
    # Attention written out, as the counter does not know the fused one of the processor.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        out = module(example_input(site, blueprint.kind, generator(), samples=1))
    assert out.shape == output_shape(site, 1)
    found = verify(blueprint, site)
    uncounted = sum(
        OPS[item.op].flops(found.flows[rank].calls[item.id]).evaluate(found.sizes)
        for item in found.nodes
        if item.op not in COUNTED
    )
    assert flops(blueprint, site) == counter.get_total_flops() + uncounted


def test_the_library_serves_every_rank_of_site_and_names_its_files_after_its_blueprints() -> None:
    assert {"noop", "affine", "lora", "res_mlp", "pw_bottleneck", "conv_bottleneck"} <= set(LIBRARY)
    assert {rank for _, rank in PAIRS} == set(SITES)
    for rank in SITES:
        assert len([name for name, at in PAIRS if at == rank]) >= 4


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_names_and_order_of_nodes_do_not_change_the_hash_and_all_else_does(name: str) -> None:
    blueprint = LIBRARY[name]
    document = json.loads(canonical_json(blueprint))
    renamed = {node["id"]: f"k{7 * at % 31}_{at}" for at, node in enumerate(document["nodes"])} | {"x": "x"}
    turned = copy.deepcopy(document)
    turned["nodes"] = [
        item | {"id": renamed[item["id"]], "in": [renamed[source] for source in item["in"]]}
        for item in reversed(document["nodes"])
    ]
    turned["out"] = renamed[document["out"]]
    assert blueprint_id(parse(json.dumps(turned, indent=3))) == blueprint_id(blueprint)
    for change in ({"id": "other"}, {"site": document["site"] | {"causal": not document["site"]["causal"]}}):
        assert blueprint_id(parse(json.dumps(document | change))) != blueprint_id(blueprint)


def _difference(first: str, second: str) -> Blueprint:
    nodes = [node("a", "relu", "x"), node("b", "tanh", "x"), node("v", "sub", first, second), TAIL]
    return made("NC", nodes, "t", "C", "2*C")


def test_a_minus_b_is_another_blueprint_than_b_minus_a() -> None:
    assert blueprint_id(_difference("a", "b")) != blueprint_id(_difference("b", "a"))


def test_two_equal_nodes_are_told_apart_by_their_use_whatever_they_are_called() -> None:
    def graph(one: str, two: str, *, turned: bool) -> Blueprint:
        twins = [node(one, "linear", "x", out="C"), node(two, "linear", "x", out="C")]
        nodes = [node("m", "mul", one, two), node("v", "sub", one, "m")]
        return made("NC", [*(twins[::-1] if turned else twins), *nodes, TAIL], "t", "2*C*C+2*C+C", "4*C*C+3*C")

    first = blueprint_id(graph("p", "q", turned=False))
    assert first == blueprint_id(graph("p", "q", turned=True)) == blueprint_id(graph("q", "p", turned=False))
    shared = [node("p", "linear", "x", out="C"), node("m", "mul", "p", "p"), node("v", "sub", "p", "m"), TAIL]
    assert blueprint_id(made("NC", shared, "t", "C*C+2*C", "2*C*C+3*C")) != first


def test_building_draws_from_its_seed_alone_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    blueprint = LIBRARY["conv_bottleneck"]
    first, again, other = (build(blueprint, SITES["NCHW"], seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([w.flatten() for w in module.parameters()]) for module in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_module_unpickles_and_runs_where_esper_is_not_installed(tmp_path: Any) -> None:
    for name in ("token_conv", "res_mlp", "affine", "se", "noop"):
        site = SITES["NCHW"] if name == "se" else SITES["NTC"]
        x = example_input(site, "residual", generator(), samples=2)
        module = build(LIBRARY[name], site, seed=2)
        for weight in module.parameters():
            weight.data.uniform_(-1, 1, generator=generator(3))
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps((module, x, module(x).detach())))
    script = (
        "import sys, pickle, pathlib, torch\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'esper': raise ImportError('esper is not installed')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "files = sorted(pathlib.Path(sys.argv[1]).glob('*.pickle'))\n"
        "for file in files:\n"
        "    module, x, out = pickle.loads(file.read_bytes())\n"
        "    assert torch.equal(module(x), out), file.name\n"
        "print(len(files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr


def test_the_parts_without_torch_do_not_import_it() -> None:
    script = (
        "import sys, esper.blueprints.cost, esper.blueprints.canonical\n"
        "from esper.blueprints.library import load_library\n"
        "load_library()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_lowrank_branch_folds_into_the_weight_exactly_in_double_precision() -> None:
    for rank in ("NC", "NTC"):
        site = msgspec.structs.replace(SITES[rank], dtype="float64")
        module = build(LIBRARY["lora"], site, seed=1)
        for weight in module.parameters():
            weight.data.uniform_(-1, 1, generator=generator(4))
        x = example_input(site, "lowrank_weight", generator(), samples=3)
        torch.testing.assert_close(module(x), x @ folded_weight(module, site).T, rtol=1e-12, atol=1e-12)
    with pytest.raises(KernelRefused):
        folded_weight(module, msgspec.structs.replace(site, in_channels=None))


@pytest.mark.parametrize(("name", "rank"), PAIRS)
def test_a_kernel_s_bytes_are_the_same_each_time_and_give_the_same_module(name: str, rank: str) -> None:
    blueprint, site = LIBRARY[name], SITES[rank]
    seed = kernel_seed(blueprint, site)
    module = build(blueprint, site, seed=seed)
    data = encode_kernel(blueprint, site, module)
    assert data == encode_kernel(blueprint, site, build(blueprint, site, seed=seed))
    kernel = decode_kernel(data)
    assert kernel.kernel_id == kernel_id(data)
    assert kernel.signature == site
    assert kernel.manifest.blueprint_id == blueprint_id(blueprint)
    assert kernel.manifest.parameters == parameters(blueprint, site)
    loaded = load_module(kernel)
    assert list(loaded.state_dict()) == list(module.state_dict())
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    for weight in loaded.parameters():
        weight.data.add_(1.0)
    assert kernel_id(data) == kernel_id(encode_kernel(blueprint, site, load_module(kernel)))


def test_kernels_of_other_sites_and_dtypes_have_other_seeds() -> None:
    site = SITES["NCHW"]
    sites = [site, msgspec.structs.replace(site, channels=32), msgspec.structs.replace(site, dtype="float64")]
    seeds = {kernel_seed(LIBRARY[name], at) for name in ("pw_bottleneck", "conv_bottleneck") for at in sites}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def _kernel() -> dict[str, Any]:
    blueprint, site = LIBRARY["pw_bottleneck"], SITES["NCHW"]
    plain: dict[str, Any] = msgspec.msgpack.decode(encode_kernel(blueprint, site, build(blueprint, site, seed=0)))
    return plain


TAMPERED: dict[str, Any] = {
    "format": lambda k: k["manifest"].update(format=2),
    "blueprint id": lambda k: k["manifest"].update(blueprint_id="0" * 64),
    "parameters": lambda k: k["manifest"].update(parameters=1),
    "extra key": lambda k: k.update(code="print()"),
    "extra signature key": lambda k: k["signature"].update(device="cuda"),
    "negative size": lambda k: k["signature"].update(channels=-16),
    "huge size": lambda k: k["signature"].update(channels=10**15),
    "other site": lambda k: k["signature"].update(channels=24),
    "symbols": lambda k: k["symbols"].update(r=4),
    "blanks in the document": lambda k: k.update(ir=k["ir"].replace(",", ", ")),
    "another operator": lambda k: k.update(ir=k["ir"].replace("gelu", "silu")),
    "a broken document": lambda k: k.update(ir="{"),
    "cut tensors": lambda k: k.update(tensors=k["tensors"][:-1]),
    "no tensors": lambda k: k.update(tensors=b""),
    "tensors without a name": lambda k: k.update(tensors=k["tensors"].replace(b"n0.bias", b"n9.bias")),
    "another dtype": lambda k: k.update(tensors=k["tensors"].replace(b'"F32"', b'"I32"')),
    "not a number": lambda k: k.update(tensors=k["tensors"][:-4] + b"\x00\x00\xc0\x7f"),
}


@pytest.mark.parametrize("what", sorted(TAMPERED))
def test_a_kernel_whose_parts_disagree_is_refused(what: str) -> None:
    plain = _kernel()
    decode_kernel(msgspec.msgpack.encode(plain))
    TAMPERED[what](plain)
    with pytest.raises((KernelRefused, BlueprintInvalid)):
        decode_kernel(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", pickle.dumps({})])
def test_bytes_that_are_no_kernel_are_refused(data: bytes) -> None:
    with pytest.raises(KernelRefused):
        decode_kernel(data)


def test_a_module_of_another_blueprint_is_not_written_as_a_kernel() -> None:
    module = build(LIBRARY["conv_bottleneck"], SITES["NCHW"], seed=0)
    with pytest.raises(KernelRefused):
        encode_kernel(LIBRARY["pw_bottleneck"], SITES["NCHW"], module)


def _branch(kind: str, nodes: list[dict[str, Any]], **claims: str) -> Blueprint:
    document = {
        "ir": 1,
        "id": "branch",
        "kind": kind,
        "site": {"rank": "NTC", "causal": True},
        "symbols": {"C": "site.channels", "P": "site.positions"},
        "nodes": nodes,
        "out": nodes[-1]["id"],
        "merge": KINDS[kind].merge,
        "claims": {"preserves": "exact@alpha0,exact@birth", **claims},
    }
    if KINDS[kind].reads == "input":
        document["symbols"] |= {"D": "site.in_channels"}
    return parse(json.dumps(document))


def _awake(blueprint: Blueprint, site: SiteSignature) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """Return a module with every weight drawn, the weights, and an input."""
    module = build(blueprint, site, seed=1)
    for place, (_, weight) in enumerate(sorted(module.named_parameters())):
        weight.data.uniform_(-0.5, 0.5, generator=generator(place))
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return module, weights, example_input(site, blueprint.kind, generator(), samples=3)


def _tail(name: str, source: str, **attr: Any) -> dict[str, Any]:
    return node(name, "linear", source, out="C", **attr) | {"init": "zeros", "role": "tail"}


def test_a_gate_gives_x_times_what_its_graph_computes() -> None:
    gate = _branch("gate", [_tail("t", "x"), node("g", "tanh", "t")], params="C*C+C", flops="2*P*C*C")
    module, w, x = _awake(gate, SITES["NTC"])
    torch.testing.assert_close(module(x), x * torch.tanh(x @ w["n0.weight"].T + w["n0.bias"]))


def test_a_layer_gives_the_sum_of_its_branches_without_x_and_each_branch_reads_the_stream_before_it() -> None:
    nodes = [_tail("t1", "x"), node("h1", "add", "t1", "x"), node("a", "gelu", "h1"), _tail("t2", "a")]
    layer = _branch("layer", [*nodes, node("y", "add", "h1", "t2")], params="2*C*C+2*C", flops="4*P*C*C+2*P*C")
    module, w, x = _awake(layer, SITES["NTC"])
    names = [name for name, _ in module.named_parameters() if "weight" in name]
    first = x @ w[names[0]].T + w[names[0].replace("weight", "bias")]
    second = torch.nn.functional.gelu(x + first) @ w[names[1]].T + w[names[1].replace("weight", "bias")]
    torch.testing.assert_close(module(x), first + second)


def test_a_layer_is_exactly_zero_at_birth_beside_values_that_would_swallow_it() -> None:
    nodes = [_tail("t1", "x"), node("h1", "add", "x", "t1"), _tail("t2", "h1"), node("y", "add", "h1", "t2")]
    layer = _branch("layer", nodes, params="2*C*C+2*C", flops="4*P*C*C+2*P*C")
    module = build(layer, SITES["NTC"], seed=1)
    x = example_input(SITES["NTC"], "layer", generator(), samples=3)
    assert torch.equal(module(x * 1e30), torch.zeros_like(x))
    with torch.no_grad():
        module.get_parameter("n0.bias").fill_(1.0)
    # 1 is lost beside 1e30: what is asked for is the sum of branches, not a difference of two streams.
    assert torch.equal(module(x * 1e30), torch.ones_like(x))


def test_the_units_of_a_width_blueprint_can_be_set_beside_the_host_s_own() -> None:
    nodes = [node("w", "linear", "x", out=8), node("a", "relu", "w"), _tail("t", "a", bias=False)]
    width = _branch("width", nodes, params="8*D+8+8*C", flops="16*P*D+16*P*C")
    site = msgspec.structs.replace(SITES["NTC"], kind="pair")
    assert fits(width, SITES["NTC"]) is not None
    module, w, x = _awake(width, site)
    assert width_activation(width) == "relu"
    first = torch.nn.Linear(12, 20)
    second = torch.nn.Linear(20, 16)
    wide = torch.relu(x @ torch.cat([first.weight, w["n0.weight"]]).T + torch.cat([first.bias, w["n0.bias"]]))
    joined = wide @ torch.cat([second.weight, w["n2.weight"]], 1).T + second.bias
    torch.testing.assert_close(second(torch.relu(first(x))) + module(x), joined)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_what_its_definition_says_and_the_same_each_time(causal: bool) -> None:
    nodes = [node("g", "gelu", "x"), node("s", "sdpa", "g", "x", "g", heads="C//8", causal=causal), _tail("t", "s")]
    blueprint = _branch("residual", nodes, params="C*C+C", flops="4*P*P*C+2*P*C*C")
    blueprint = msgspec.structs.replace(blueprint, site=msgspec.structs.replace(blueprint.site, causal=causal))
    site = msgspec.structs.replace(SITES["NTC"], causal=causal)
    module, w, x = _awake(blueprint, site)
    g = torch.nn.functional.gelu(x)
    torch.testing.assert_close(
        module(x), attention(g, x, g, heads=2, causal=causal) @ w["n2.weight"].T + w["n2.bias"], rtol=1e-4, atol=1e-5
    )
    assert torch.equal(module(x), module(x))
    assert torch.equal(module(x)[[2, 0, 1]], module(x[[2, 0, 1]]))
    again = [torch.autograd.grad(module(x.requires_grad_()).square().sum(), x)[0] for _ in range(2)]
    assert torch.equal(*again)
    small = copy.deepcopy(module).bfloat16()(x.bfloat16())
    torch.testing.assert_close(small.float(), module(x), rtol=0.05, atol=0.05)


def test_a_mean_over_a_causal_window_sees_the_past_only_and_counts_what_is_not_there_as_zero() -> None:
    nodes = [node("v", "mean_pool", "x", k=3, causal=True), _tail("t", "v", bias=False)]
    blueprint = _branch("residual", nodes, params="C*C", flops="3*P*C+2*P*C*C")
    module, w, x = _awake(blueprint, SITES["NTC"])
    padded = torch.cat([torch.zeros(3, 2, 16), x], 1)
    mean = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    torch.testing.assert_close(module(x), mean @ w["n1.weight"].T)


def test_ids_and_kernels_of_what_shipped_before_are_still_the_same_bytes() -> None:
    """Recorded runs name these; what is added to the IR must not change them."""
    frozen = json.loads(FROZEN.read_text())
    assert {name: blueprint_id(LIBRARY[name]) for name in frozen["blueprints"]} == frozen["blueprints"]
    kernels = {}
    for pair in frozen["kernels"]:
        name, rank = pair.split("@")
        blueprint, site = LIBRARY[name], SITES[rank]
        module = build(blueprint, site, seed=kernel_seed(blueprint, site))
        kernels[pair] = kernel_id(encode_kernel(blueprint, site, module))
    assert kernels == frozen["kernels"]
