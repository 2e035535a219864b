"""Blueprints as modules: every operator built and costed, canonical names, kernels as bytes."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from esper.blueprints.build import build, example_input, folded_weight, output_shape
from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.cost import flops, parameters
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernel import (
    decode_kernel,
    encode_kernel,
    kernel_id,
    kernel_seed,
    load_module,
)
from esper.blueprints.library import load_library
from esper.blueprints.operators import DRAWERS
from esper.blueprints.ops import OPS
from esper.blueprints.verify import fits
from esper.errors import BlueprintInvalid, KernelRefused

SITES = {
    "NC": SiteSignature(kind="linear", rank="NC", channels=16, in_channels=12, positions=(), causal=False),
    "NTC": SiteSignature(kind="linear", rank="NTC", channels=16, in_channels=12, positions=(6,), causal=True),
    "NCL": SiteSignature(kind="conv1d", rank="NCL", channels=16, in_channels=4, positions=(9,), causal=False),
    "NCHW": SiteSignature(kind="conv2d", rank="NCHW", channels=16, in_channels=4, positions=(5, 7), causal=False),
}
LIBRARY = load_library()
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
    "gap": ("NCHW", [node("a", "gap", "x"), node("v", "broadcast", "a")], "0", "P*C"),
    "broadcast": ("NTC", [node("a", "gap", "x"), node("v", "broadcast", "a")], "0", "P*C"),
    "transpose_tokens": ("NTC", [node("a", "transpose_tokens", "x"), node("v", "transpose_tokens", "a")], "0", "0"),
}


def windows(x: torch.Tensor, pad: tuple[int, ...], k: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, pad)
    for axis in range(2, x.dim()):
        padded = padded.unfold(axis, k, 1)
    return padded


def normal(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


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
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module(example_input(site, blueprint.kind, generator(), samples=1))
    assert out.shape == output_shape(site, 1)
    elementwise = {
        "affine": 2 * out.numel(),
        "se": 2 * out.numel(),
    }
    assert flops(blueprint, site) == counter.get_total_flops() + elementwise.get(name, 0)


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
