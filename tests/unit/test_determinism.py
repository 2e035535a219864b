"""Flags, seeds and generator states are read, set and given back exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from esper.errors import EnvironmentMismatch
from esper.tolaria import determinism
from esper.tolaria.determinism import (
    Flags,
    applied,
    current_flags,
    derived_seed,
    differences,
    environment,
    environment_digest,
    rng_kept,
    rng_state,
    seed_all,
    seeded,
    seeds_of,
    set_flags,
    set_rng_state,
    using,
)

OTHER = Flags(
    threads=2,
    deterministic=False,
    fill_uninitialized=False,
    matmul_precision="high",
    default_dtype="float64",
    mkldnn_deterministic=False,
    cudnn_deterministic=False,
    cudnn_benchmark=True,
)


@pytest.fixture(autouse=True)
def flags_and_generators_kept() -> Iterator[None]:
    """Leave the process as it was."""
    before = current_flags()
    with rng_kept():
        yield
    set_flags(before)


def drawn() -> tuple[list[float], list[float], list[float]]:
    """Draw from each global generator, from the normal distributions that keep a spare value too."""
    return (
        [*torch.rand(3).tolist(), *torch.randn(3).tolist()],
        [*np.random.random(3).tolist(), np.random.standard_normal()],
        [random.random(), random.gauss(0, 1)],
    )


def test_flags_set_are_the_flags_read() -> None:
    set_flags(OTHER)
    assert current_flags() == OTHER
    determinism.apply(1)
    assert current_flags() == Flags()


def test_using_puts_the_old_flags_back_after_an_error() -> None:
    set_flags(OTHER)
    with pytest.raises(KeyError), using(Flags()):
        raise KeyError
    assert current_flags() == OTHER


def test_applied_sets_the_flags_of_a_recorded_environment_and_puts_the_old_ones_back() -> None:
    set_flags(OTHER)
    recorded = msgspec.json.decode(msgspec.json.encode(environment()))
    determinism.apply(1)
    with applied(recorded):
        assert current_flags() == OTHER
    assert current_flags() == Flags()


def test_applied_refuses_a_record_without_thread_count_or_with_a_wrong_value() -> None:
    recorded = environment()
    with pytest.raises(EnvironmentMismatch, match="threads"), applied({**recorded, "threads": "two"}):
        pass
    del recorded["threads"]
    with pytest.raises(EnvironmentMismatch, match="threads"), applied(recorded):
        pass


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"matmul_precision": "lowest"}, {"default_dtype": "int32"}, {"default_dtype": "x"}]
)
def test_applied_refuses_values_that_torch_does_not_have(wrong: dict[str, object]) -> None:
    with pytest.raises(EnvironmentMismatch, match=next(iter(wrong))), applied(environment() | wrong):
        pass


def test_seeds_differ_by_use_and_by_run_and_fit_a_json_number() -> None:
    first, second = seeds_of(0), seeds_of(1)
    assert list(first) == ["run", "host", "data", "order", "growth"]
    assert first["run"] == 0
    values = [value for seeds in (first, second) for use, value in seeds.items() if use != "run"]
    assert len(set(values)) == 8
    assert all(0 <= value < 2**53 for value in values)
    assert seeds_of(0) == first


def test_a_derived_seed_keeps_its_value_for_ever() -> None:
    # Recorded runs are replayed with it.
    assert derived_seed(0, "host") == 7875475475457813


def test_seed_all_makes_every_generator_repeat() -> None:
    seed_all(2**52 + 3)
    first = drawn()
    drawn()
    seed_all(2**52 + 3)
    assert drawn() == first
    seed_all(4)
    other = drawn()
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_seeded_gives_the_generators_back_as_they_were() -> None:
    seed_all(5)
    expected = drawn()
    seed_all(5)
    with seeded(6):
        inside = drawn()
    assert inside != expected
    assert drawn() == expected


def test_a_generator_state_survives_json_and_safetensors_and_goes_on_exactly() -> None:
    seed_all(9)
    # An odd number of normal draws leaves a spare value in numpy's and Python's generators.
    np.random.standard_normal()
    random.gauss(0, 1)
    plain, tensors = rng_state()
    stored = json.dumps(plain), save(tensors)
    expected = drawn()
    drawn()
    set_rng_state((json.loads(stored[0]), load(stored[1])))
    assert drawn() == expected


def test_a_generator_state_of_other_devices_is_refused() -> None:
    plain, tensors = rng_state()
    count = torch.cuda.device_count()
    with pytest.raises(EnvironmentMismatch, match=f"here are {count}"):
        set_rng_state((plain, tensors | {f"cuda.{count}": tensors["torch"]}))


def test_the_environment_is_plain_data_with_a_digest_that_outlives_json() -> None:
    here = environment()
    assert here["torch"] == torch.__version__
    assert here["threads"] == torch.get_num_threads()
    assert len(environment_digest(here)) == 32
    assert environment_digest(json.loads(json.dumps(here))) == environment_digest(here)
    assert environment_digest(dict(reversed(here.items()))) == environment_digest(here)
    assert environment_digest(here | {"threads": 64}) != environment_digest(here)


def test_equal_environments_have_no_differences() -> None:
    assert differences(environment(), json.loads(json.dumps(environment()))) == []


def test_differences_name_the_key_and_both_values() -> None:
    here = environment()
    there = here | {"threads": 7, "variables": {"MKL_CBWR": "AVX2"}, "devices": ["a GPU"]}
    assert differences(there, here | {"new": True}) == [
        "devices: recorded ['a GPU'], here []",
        "new: recorded nothing, here True",
        f"threads: recorded 7, here {here['threads']}",
        "variables.MKL_CBWR: recorded AVX2, here nothing",
    ]


def test_a_math_variable_is_part_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert environment()["variables"]["MKL_CBWR"] == "COMPATIBLE"
