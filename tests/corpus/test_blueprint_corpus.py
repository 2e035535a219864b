"""The corpus: whole plausible blueprints, each broken in one way and refused for that reason; and sound ones.

``broken.json`` says of each file in ``broken`` which rule it breaks, where, and what is wrong with that. A file that is
sound by itself and wrong at a certain site has that site there, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import convert
from msgspec.structs import replace

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.document import MAX_BYTES
from esper.blueprints.ir import Blueprint, SiteSignature, parse
from esper.blueprints.kernels.build import build, example_input, output_shape
from esper.blueprints.kernels.kernel import decode_kernel, encode_kernel, load_module
from esper.blueprints.kernels.structure import check_structure
from esper.blueprints.kinds import KINDS
from esper.blueprints.ops import OPS
from esper.blueprints.rules import RULES
from esper.blueprints.templates import TEMPLATES
from esper.blueprints.verify import verify
from esper.errors import BlueprintInvalid

HERE = Path(__file__).parent
INDEX: dict[str, dict[str, Any]] = json.loads((HERE / "broken.json").read_text())
SOUND = sorted(path.stem for path in (HERE / "sound").glob("*.json"))
SITES = {
    "NC": SiteSignature(kind="linear", rank="NC", channels=32, in_channels=24, positions=(), causal=False),
    "NTC": SiteSignature(kind="linear", rank="NTC", channels=32, in_channels=24, positions=(7,), causal=False),
    "NCHW": SiteSignature(kind="conv2d", rank="NCHW", channels=32, in_channels=3, positions=(5, 6), causal=False),
}


def broken(name: str) -> bytes:
    return (HERE / "broken" / f"{name}.json").read_bytes()


def sound(name: str) -> Blueprint:
    return verify(parse((HERE / "sound" / f"{name}.json").read_bytes())).blueprint


def sites(blueprint: Blueprint) -> list[SiteSignature]:
    """Return a site for each layout of a sound blueprint."""
    found = []
    for rank in blueprint.site.rank:
        site = replace(SITES[rank], causal=blueprint.site.causal, channels=blueprint.site.channels or 32)
        found.append(replace(site, kind="pair") if blueprint.kind == "width" else site)
    return found


def test_every_file_is_in_the_index_and_there_are_at_least_forty_five() -> None:
    assert {path.stem for path in (HERE / "broken").iterdir()} == set(INDEX)
    assert len(INDEX) >= 45


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_broken_blueprint_is_refused_for_its_own_rule_at_its_own_place(name: str) -> None:
    told = INDEX[name]
    site = convert(told["site"], SiteSignature) if "site" in told else None
    if site is not None:
        verify(parse(broken(name)))
    with pytest.raises(BlueprintInvalid) as caught:
        verify(parse(broken(name)), site)
    assert (caught.value.rule, caught.value.path) == (told["rule"], told["path"]), caught.value
    assert caught.value.hint == RULES[told["rule"]]


def test_every_rule_refuses_something_so_that_none_is_there_for_show() -> None:
    with pytest.raises(BlueprintInvalid) as caught:  # no file of the corpus is that large
        parse(broken("no_claims") + b" " * MAX_BYTES)
    assert {told["rule"] for told in INDEX.values()} | {caught.value.rule} == set(RULES)


def test_the_defects_that_growth_libraries_shipped_are_in_the_corpus() -> None:
    defects = {
        "norm_after_a_zero_tail": "after_tail",
        "relu_after_a_zero_tail": "after_tail",
        "relu_of_a_norm_of_a_zero_tail": "after_tail",
        "two_zeros_in_series": "zeros_in_series",
        "squeeze_and_excite_that_shrinks": "missing_tail",
        "residual_without_a_tail": "missing_tail",
    }
    assert {name: INDEX[name]["rule"] for name in defects} == defects


def test_the_sound_ones_have_every_kind_template_and_new_operator() -> None:
    blueprints = [sound(name) for name in SOUND]
    assert {blueprint.kind for blueprint in blueprints} == set(KINDS)
    assert {f"template_{name}" for name in TEMPLATES} <= set(SOUND)
    used = {node.op for blueprint in blueprints for node in blueprint.nodes}
    assert {"split", "mean_pool", "sdpa"} <= used <= set(OPS)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_blueprint_is_accepted_and_keeps_its_promises_at_every_layout(name: str) -> None:
    blueprint = sound(name)
    assert blueprint_id(parse(canonical_json(blueprint))) == blueprint_id(blueprint)
    for site in sites(blueprint):
        for dtype in ("float32", "bfloat16"):
            there = replace(site, dtype=dtype)
            module = build(blueprint, there, seed=1)
            found = check_structure(module, blueprint, there, seed=2)
            assert all(found.checks.values()), found
            data = encode_kernel(blueprint, there, module)
            assert encode_kernel(blueprint, there, load_module(decode_kernel(data))) == data


@pytest.mark.parametrize("name", SOUND)
def test_a_gradient_reaches_every_weight_of_a_sound_blueprint_within_three_steps(name: str) -> None:
    blueprint = sound(name)
    for site in sites(blueprint):
        generator = torch.Generator().manual_seed(5)
        module = build(blueprint, site, seed=1)
        x = example_input(site, blueprint.kind, generator, samples=4)
        target = torch.randn(output_shape(site, 4), generator=generator)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        reached = dict.fromkeys((name for name, _ in module.named_parameters()), 0.0)
        for _ in range(3):
            optimizer.zero_grad()
            (module(x) - target).square().mean().backward()
            for part, weight in module.named_parameters():
                reached[part] += float(weight.grad.abs().sum()) if weight.grad is not None else 0.0
            optimizer.step()
        assert [part for part, total in reached.items() if total < 1e-6] == []
