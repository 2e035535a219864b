from __future__ import annotations

import copy
import hashlib
import traceback

import pytest
import torch
from growing import Facts, Failing, grads, loss_of, make
from torch import nn

from esper.events.decision import Schedule
from esper.events.seed import SeedFaulted, SeedTransitioned
from esper.kasmina import Growth, attach

FULL = Schedule(ramp_steps=0)


def grown(how: str, facts: Facts | None = None) -> tuple[nn.Module, nn.Module, torch.Tensor, Growth, Failing]:
    """Return a host without and the same host with a seed that fails in the given way from now on."""
    plain, x = make("mlp")
    host = copy.deepcopy(plain)
    growth = attach(host, (x,), emit=facts)
    module = Failing(8)
    growth.germinate("2", module, seed_id="s", step=0, schedule=FULL)
    module.how = how
    return plain, host, x, growth, module


@pytest.mark.parametrize("how", ["raises", "wrong_shape", "nan", "inf"])
def test_a_failing_seed_leaves_output_and_host_gradients_bit_equal(how: str) -> None:
    plain, host, x, growth, _ = grown(how)
    loss_of(plain, x).backward()
    loss = loss_of(host, x)
    loss.backward()
    assert torch.equal(loss, loss_of(plain, x))
    expected, got = grads(plain), grads(host)
    assert got.keys() == expected.keys()
    for key in expected:
        assert torch.equal(got[key], expected[key]), key
    for parameter in growth.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_a_nan_made_in_the_backward_pass_reaches_neither_host_nor_seed() -> None:
    _, host, x, growth, _ = grown("nan_gradient")
    loss_of(host, x).backward()
    assert all(g.isfinite().all() for g in grads(host).values())
    assert all(p.grad.isfinite().all() for p in growth.parameters())
    assert growth.collect_faults(1) == ["s"]


@pytest.mark.parametrize(
    ("how", "kind"), [("raises", "exception"), ("wrong_shape", "wrong_shape"), ("nan", "not_finite")]
)
def test_a_fault_is_told_and_the_seed_culled_detached_and_embargoed(how: str, kind: str) -> None:
    facts = Facts()
    _, host, x, growth, _ = grown(how, facts)
    host(x)
    assert growth.collect_faults(5) == ["s"]
    assert growth.collect_faults(6) == []
    (fault,) = facts.of(SeedFaulted)
    assert (fault["seed_id"], fault["site"], fault["step"], fault["kind"]) == ("s", "2", 5, kind)
    moves = [(f["source"], f["target"], f["trigger"]) for f in facts.of(SeedTransitioned)][-2:]
    assert moves == [("grafting", "culled", "automatic"), ("culled", "embargoed", "gated")]
    assert not host[2]._forward_hooks
    assert list(growth.parameters()) == []
    assert growth.free_sites(5)["2"].reason == "embargoed"


def test_traceback_digest_is_the_sha256_of_the_traceback() -> None:
    _, host, x, growth, module = grown("raises")
    host(x)
    fault = growth.seeds["s"].guard.fault
    try:
        module(x)
    except RuntimeError as error:
        last = traceback.format_exception(error)[-1]
    assert fault.message == last.strip()
    assert len(fault.traceback_digest) == hashlib.sha256().digest_size
    _, host2, x2, growth2, _ = grown("raises")
    host2(x2)
    assert growth2.seeds["s"].guard.fault.traceback_digest == fault.traceback_digest


def test_a_seed_stays_out_after_one_bad_pass_until_it_is_collected() -> None:
    plain, host, x, growth, module = grown("nan")
    with torch.no_grad():
        host(x)
        module.how = "works"
        assert torch.equal(host(x), plain(x))
        assert growth.collect_faults(1) == ["s"]


def test_a_host_that_diverges_by_itself_is_not_blamed_on_the_seed() -> None:
    _, host, x, growth, _ = grown("works")
    out = host(x)
    (out * float("nan")).sum().backward()
    assert growth.collect_faults(1) == []
    assert not growth.seeds["s"].quarantined


def test_host_exceptions_and_interrupts_pass_untouched() -> None:
    _, host, x, growth, module = grown("works")
    with pytest.raises(RuntimeError, match="shapes"):
        host(torch.randn(4, 99))
    assert growth.collect_faults(1) == []
    module.how = "interrupts"
    with pytest.raises(KeyboardInterrupt):
        host(x)
    assert not growth.seeds["s"].quarantined


def test_a_fossilised_seed_that_fails_stays_fossilised_and_quarantined() -> None:
    facts = Facts()
    plain, host, x, growth, _ = grown("nan", facts)
    from esper.events.lifecycle import SeedState

    growth.seeds["s"].state = SeedState.FOSSILIZED
    host(x)
    assert growth.collect_faults(1) == ["s"]
    assert growth.seeds["s"].state is SeedState.FOSSILIZED
    assert torch.equal(host(x), plain(x))
    assert growth.collect_faults(2) == []
    assert len(facts.of(SeedFaulted)) == 1


def test_a_healthy_seed_is_not_touched_by_anothers_fault() -> None:
    plain, host, x, growth, _ = grown("raises")
    good = nn.Linear(8, 8)
    growth.germinate("0", good, seed_id="good", step=0, schedule=FULL)
    with torch.no_grad():
        h = plain[0](x)
        expected = plain[1:](h + good(h))
        assert torch.equal(host(x), expected)
    assert growth.collect_faults(1) == ["s"]
    assert growth.seeds["good"].attached
