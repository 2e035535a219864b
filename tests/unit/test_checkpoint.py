"""Checkpoint bytes are a function of the state, and damage in them is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.errors import CheckpointDamaged
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import State


def state() -> State:
    return State(
        {"step": 7, "nested": {"values": [1.5, None, "a"]}, "nan": float("nan")},
        {
            "b": torch.tensor([1.0, -0.0, 5e-324], dtype=torch.float64),
            "a": torch.arange(3),
            "scalar": torch.tensor(2.5),
        },
    )


def test_state_survives_bytes_exactly() -> None:
    meta, tensors = checkpoint.decode(checkpoint.encode(state()))
    assert meta["step"] == 7
    assert meta["nested"] == {"values": [1.5, None, "a"]}
    assert meta["nan"] != meta["nan"]
    for name, tensor in state().tensors.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_equal_states_give_equal_bytes_whatever_the_order_of_tensors() -> None:
    meta, tensors = state()
    backwards = State(meta, dict(reversed(list(tensors.items()))))
    assert checkpoint.encode(state()) == checkpoint.encode(backwards)


def test_tensors_that_share_memory_are_stored_apart() -> None:
    whole = torch.arange(4.0)
    _, tensors = checkpoint.decode(checkpoint.encode(State({}, {"x": whole, "y": whole[:2]})))
    assert tensors["y"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("damage", [b"", b"\x00", b"not a checkpoint at all"])
def test_bytes_that_are_no_checkpoint_are_refused(damage: bytes) -> None:
    with pytest.raises(CheckpointDamaged):
        checkpoint.decode(damage)


def test_a_truncated_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointDamaged):
        checkpoint.decode(checkpoint.encode(state())[:-5])


def test_restoring_into_another_model_names_the_parameter() -> None:
    tensors = checkpoint.capture_module(nn.Linear(2, 3), "host.")
    with pytest.raises(CheckpointDamaged, match=r"host\.weight should have shape \(3, 4\)"):
        checkpoint.restore_module(nn.Linear(4, 3), tensors, "host.")


def test_digest_tells_negative_zero_and_names_apart() -> None:
    plus, minus = torch.tensor([0.0]), torch.tensor([-0.0])
    digests = {
        checkpoint.tensor_digest({"a": plus}),
        checkpoint.tensor_digest({"a": minus}),
        checkpoint.tensor_digest({"b": plus}),
        checkpoint.tensor_digest({"a": plus.double()}),
    }
    assert len(digests) == 4
