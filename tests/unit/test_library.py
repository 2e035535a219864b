"""The library: every blueprint has a card that agrees with it, and what is grafted from it learns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks.grafting import Warm
from esper.blueprints.canonical import blueprint_id
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kinds import KINDS
from esper.blueprints.library import card, load_about, load_library, load_measured
from esper.blueprints.verify import fits, verify
from esper.errors import NotFound
from esper.tolaria.determinism import Flags, using
from tests.library_trials import check_gradients_and_contribution, check_loss_falls

#: Ids that logs of earlier versions name. A shipped blueprint is never changed: a new one gets a new name.
FROZEN = {
    "affine": "dde31b16721e2f6868f45022e8fec1b596f76b924719733c7b97e3eb0e8baaa3",
    "conv_bottleneck": "d06f7cabf09c5126b373404ac98563adc0a22eb052dad402d483d106951021ce",
    "conv_bottleneck_1d": "8b09108afdabcd76a2f0420fc2637702307c97c09a8743e8a22cb3fd8ad6d5f7",
    "dw_sep": "4cfa252c3eafcc4a4be87f3fcfe27ec617dec83af5ea893fc67b147e74dd5880",
    "dw_sep_1d": "72a14fdc12305849feac30b9c86194e5ea0de6f6070333fd77dca936cf9cfdcb",
    "lora": "1faa94f754cbcc4ef5dfa0be6a0929f16c3e498caea5525dfd555dc7a172e1bd",
    "noop": "5a0337b5d095c918b9a9c58da88fc64bbb18f666caade289a8b32d6b7dba42d3",
    "pw_bottleneck": "adc9ea56d1ab2e5ab633fe6e3a36444899e8bc5607c707028aeb04a9199f8501",
    "pw_bottleneck_1d": "2d0294ff4ee94e6a4b5b7567bf90b7ec60e77fe9b1c6933b6992224c71b18944",
    "res_mlp": "742948e2ae6b659a9cef3a647bafbcaad0217b1d733622b9d16dca0ab2b10490",
    "se": "65ca0d3e6b55df9713d55035b69ebe93ded6fbd064c9ffe540f913f9cbbcb032",
    "token_conv": "3bd73d2116609ad3726847b14bda956189ae9c652edaf7e251e888a645e7381b",
}


def test_the_ids_of_blueprints_that_shipped_stay_as_they_are() -> None:
    ids = {name: blueprint_id(blueprint) for name, blueprint in load_library().items()}
    assert FROZEN.items() <= ids.items()


def test_every_blueprint_has_a_card_and_no_card_is_left_over() -> None:
    assert load_about().keys() == load_library().keys()
    assert {row["blueprint"] for row in load_measured().rows} <= load_library().keys()


def test_there_are_blueprints_for_linear_convolutional_and_token_sites_and_of_every_kind() -> None:
    library = load_library().values()
    assert {one.kind for one in library} == set(KINDS)
    for rank in ("NC", "NTC", "NCL", "NCHW"):
        assert sum(rank in one.site.rank and one.id != "noop" for one in library) >= 5


@pytest.mark.parametrize("name", sorted(load_library()))
def test_a_card_says_what_it_is_for_and_computes_its_costs(name: str) -> None:
    found = card(name)
    assert found["for"].endswith(".")
    assert found["not_for"].endswith(".")
    assert found["sites"]
    assert all(re.match(r"[A-Za-z].* \d{4}, .", source) for source in found["sources"])
    assert found["sources"] or name == "noop"
    blueprint = load_library()[name]
    assert tuple(found["ranks"]) == blueprint.site.rank == tuple(found["parameters"]) == tuple(found["flops"])
    letters = set(re.findall(r"[A-Za-z]+", " ".join([*found["parameters"].values(), *found["flops"].values()])))
    assert letters <= found["symbols"].keys()


def test_a_card_of_nothing_shipped_is_not_found() -> None:
    with pytest.raises(NotFound, match="'nothing'"):
        card("nothing")


def test_cards_are_read_without_torch() -> None:
    code = "import sys; from esper.blueprints.library import card; card('block'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_costs_on_a_card_are_those_at_a_site() -> None:
    site = SiteSignature(kind="norm", rank="NTC", channels=64, in_channels=64, positions=(32,), causal=True)
    found = verify(load_library()["block"], site)
    sizes = {letter: found.symbols[letter] for letter in card("block")["symbols"]}
    assert sizes == {"C": 64, "T": 32, "d": 16, "r": 64}
    assert eval(card("block")["parameters"]["NTC"], {}, sizes) == found.parameters
    assert eval(card("block")["flops"]["NTC"], {}, sizes) == found.flops


def test_a_blueprint_that_looks_ahead_is_offered_at_no_causal_site() -> None:
    site = SiteSignature(kind="conv1d", rank="NCL", channels=16, in_channels=16, positions=(32,), causal=True)
    offered = {name for name, one in load_library().items() if fits(one, site) is None}
    assert offered == {"affine", "noop", "pw_bottleneck_1d"}


@pytest.mark.parametrize(
    ("task", "name"),
    [("tests.library_trials:DigitsMlp", "res_mlp"), ("digits", "conv_bottleneck"), ("bytelm", "block")],
)
def test_a_grafted_blueprint_gets_gradient_everywhere_and_lowers_the_loss(task: str, name: str) -> None:
    with using(Flags()):
        warm = Warm(task, 0, 20)
        blueprint = load_library()[name]
        place = warm.places_of(blueprint)[0]
        check_gradients_and_contribution(warm, blueprint, place, steps=16)
        check_loss_falls(warm, blueprint, place, steps=24)
