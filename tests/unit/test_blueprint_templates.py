"""The seed's short documents: what they stand for, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import torch

from esper.blueprints.canonical import blueprint_id, canonical_json
from esper.blueprints.cost import parameters
from esper.blueprints.ir import SiteSignature, parse
from esper.blueprints.kernels.build import build, example_input
from esper.blueprints.verify import fits, verify
from esper.errors import BlueprintInvalid

SITE = SiteSignature(kind="linear", rank="NTC", channels=512, in_channels=512, positions=(6,), causal=False)


@pytest.mark.parametrize(
    ("template", "kind", "count"),
    [
        ({"type": "linear"}, "residual", 512 * 512 + 512),
        ({"type": "linear", "input_size": 256}, "lowrank_weight", 256 * 512),
        ({"type": "mlp"}, "residual", 2 * 512 * 1024 + 1024 + 512),
        ({"type": "attention"}, "residual", 4 * 512 * 512 + 3 * 512),
        ({"type": "attention", "heads": 8, "input_size": 64}, "residual", 4 * 64 * 64 + 3 * 64),
    ],
)
def test_a_template_of_the_seed_becomes_a_branch_that_is_zero_at_birth(
    template: dict[str, Any], kind: str, count: int
) -> None:
    blueprint = parse(json.dumps(template))
    assert blueprint.kind == kind
    given = template.get("input_size", 512)
    site = msgspec.structs.replace(SITE, channels=blueprint.site.channels, in_channels=given)
    module = build(blueprint, site, seed=1)
    assert sum(weight.numel() for weight in module.parameters()) == count == parameters(blueprint, site)
    x = example_input(site, kind, torch.Generator().manual_seed(0), samples=2)
    assert torch.equal(module(x), torch.zeros(2, 6, site.channels))
    wider = fits(blueprint, msgspec.structs.replace(site, channels=site.channels + 64))
    assert wider is not None
    assert f"is for {site.channels} channels" in wider


def test_equal_templates_are_the_same_blueprint_and_others_are_not() -> None:
    def identity(**keys: Any) -> str:
        return blueprint_id(parse(json.dumps(keys)))

    default = identity(type="mlp")
    assert default == identity(hidden_size=1024, output_size=512, type="mlp", input_size=512, heads=4)
    assert parse('{"type": "mlp"}').id == "template_mlp_512_1024"
    others = [
        identity(type="linear"),
        identity(type="attention"),
        identity(type="attention", heads=4),
        identity(type="mlp", hidden_size=512),
        identity(type="mlp", input_size=256, output_size=256),
    ]
    assert len({default, *others}) == 6
    assert blueprint_id(parse(canonical_json(parse('{"type": "mlp"}')))) == default


REFUSED = [
    # rule, path, template
    ("template", "type", {"type": "conv2d"}),
    ("template", "type", {"type": None}),
    ("template", "type", {"type": ["linear"]}),
    ("unknown_key", "input_size", {"input_size": 64, "output_size": 64}),
    ("missing_key", "ir", {}),
    ("unknown_key", "type", {"type": "linear", "ir": 1}),
    ("unknown_key", "Heads", {"type": "attention", "Heads": 8}),
    ("unknown_key", "\\x1b[2J", {"type": "linear", "\x1b[2J": 1}),
    ("type", "input_size", {"type": "linear", "input_size": "512"}),
    ("type", "input_size", {"type": "linear", "input_size": 512.0}),
    ("type", "heads", {"type": "linear", "heads": True}),
    ("template", "hidden_size", {"type": "mlp", "hidden_size": 0}),
    ("template", "hidden_size", {"type": "mlp", "hidden_size": 10**17}),
    ("template", "output_size", {"type": "mlp", "input_size": 256}),
    ("template", "output_size", {"type": "attention", "output_size": 256}),
    ("template", "heads", {"type": "attention", "heads": 7}),
    ("budget", "", {"type": "mlp", "hidden_size": 65_536}),
]


@pytest.mark.parametrize(("rule", "path", "template"), REFUSED, ids=[json.dumps(t) for _, _, t in REFUSED])
def test_a_template_that_cannot_be_a_branch_is_refused_never_guessed(
    rule: str, path: str, template: dict[str, Any]
) -> None:
    with pytest.raises(BlueprintInvalid) as caught:
        verify(parse(json.dumps(template)))
    assert (caught.value.rule, caught.value.path) == (rule, path)


def test_a_refused_size_says_where_the_other_one_came_from() -> None:
    with pytest.raises(BlueprintInvalid, match="needs the same output_size, which is 512 where it is left out"):
        parse('{"type": "mlp", "input_size": 256}')


def test_a_template_as_long_as_can_be_keeps_within_the_length_of_a_name() -> None:
    longest = {"type": "attention", "input_size": 65_536, "heads": 65_536}
    assert len(parse(json.dumps(longest)).id) <= 32
