"""Tasks: how they are found, that they depend on their seeds alone, and the order of samples."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from esper.errors import ConfigError, DependencyUnavailable, NotFound
from esper.tolaria.hosts.sequence import SequenceHost
from esper.tolaria.task import (
    DataOrder,
    Split,
    TaskData,
    TaskDefaults,
    load_task,
    samples_digest,
)
from esper.tolaria.tasks import SHIPPED
from esper.tolaria.tasks.bytelm import Bytelm
from esper.tolaria.tasks.digits import Digits
from esper.tolaria.tasks.impaired import Impaired
from esper.tolaria.tasks.mnist1d import Mnist1d
from esper.tolaria.tasks.mnist1d_mlp import Mnist1dMlp
from esper.tolaria.tasks.sources import FILE_BYTES, read_sources

USER_TASK = """
import torch
from esper.tolaria.task import Classification, Split, TaskData, TaskDefaults

class Mine(Classification):
    name = "mine"
    defaults = TaskDefaults(steps=10, batch_size=4, learning_rate=0.1, steps_per_epoch=5)

    def data(self, seed):
        split = Split(torch.arange(8.0).reshape(8, 1), torch.arange(8) % 2)
        return TaskData(split, split, split)

    def host(self, seed):
        return torch.nn.Linear(1, 2)

class NoLoss:
    name, defaults, data, host = "n", Mine.defaults, Mine.data, Mine.host

class WrongHost(Mine):
    def host(self): ...

class WrongDefaults(Mine):
    defaults = {"steps": 10}

class Sized(Mine):
    def __init__(self, size): ...

instance = Mine()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's task in it, as a module that is forgotten afterwards."""
    (tmp_path / "users_task.py").write_text(USER_TASK)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


def split(samples: int) -> Split:
    return Split(torch.zeros(samples, 2), torch.zeros(samples, dtype=torch.int64))


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_task_loads_by_its_name(name: str) -> None:
    assert load_task(name).name == name


@pytest.mark.parametrize("entry", ["users_task:Mine", "users_task:instance"])
def test_a_task_in_the_working_directory_loads_as_class_or_instance(folder: Path, entry: str) -> None:
    path = list(sys.path)
    assert load_task(entry).name == "mine"
    assert sys.path == path


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ("digit", "'digit'"),
        ("users_nowhere:Task", "'users_nowhere'"),
        ("users_task:Nothing", "'Nothing'"),
        ("users_task:", "'users_task:'"),
    ],
)
def test_a_name_that_is_nowhere_is_named_with_the_shipped_tasks(folder: Path, entry: str, missing: str) -> None:
    with pytest.raises(NotFound) as caught:
        load_task(entry)
    assert missing in str(caught.value)
    assert all(name in caught.value.hint for name in SHIPPED)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("users_task:NoLoss", "'loss'"),
        ("users_task:WrongHost", "'host'"),
        ("users_task:WrongDefaults", "'defaults'"),
        ("users_task:Sized", "size"),
        ("users_task:torch", "'name'"),
    ],
)
def test_what_lacks_a_part_of_the_protocol_is_refused_by_that_part(folder: Path, entry: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_task(entry)


def test_a_task_whose_module_needs_something_not_installed_says_what(folder: Path) -> None:
    (folder / "users_needy.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(DependencyUnavailable, match="'a_package_nobody_has'"):
        load_task("users_needy:Task")


def test_a_task_whose_module_has_a_syntax_error_is_a_config_error(folder: Path) -> None:
    (folder / "users_broken.py").write_text("def task(:\n")
    with pytest.raises(ConfigError, match="users_broken"):
        load_task("users_broken:Task")


@pytest.mark.parametrize("field", ["steps", "batch_size", "learning_rate", "steps_per_epoch"])
def test_defaults_of_zero_are_refused(field: str) -> None:
    good = {"steps": 1, "batch_size": 1, "learning_rate": 0.1, "steps_per_epoch": 1}
    with pytest.raises(ConfigError, match=field):
        TaskDefaults(**(good | {field: 0}))


def test_a_split_without_samples_or_with_too_few_targets_is_refused() -> None:
    with pytest.raises(ConfigError, match="validation"):
        TaskData(split(4), split(0), split(4))
    with pytest.raises(ConfigError, match="test"):
        TaskData(split(4), split(4), Split(torch.zeros(4, 2), torch.zeros(3)))


def test_the_digest_covers_values_dtypes_shapes_and_places() -> None:
    base = TaskData(split(4), split(4), split(4)).digest
    assert TaskData(split(4), split(4), split(4)).digest == base
    changed = split(4)
    changed.inputs[3, 1] = torch.finfo(torch.float32).tiny
    reshaped = Split(torch.zeros(4, 2, 1), torch.zeros(4, dtype=torch.int64))
    # As many zero bytes as in the base, under another type.
    retyped = Split(torch.zeros(4, 2, dtype=torch.int32), torch.zeros(4, dtype=torch.int64))
    others = [TaskData(split(4), part, split(4)).digest for part in (changed, reshaped, retyped)]
    others.append(TaskData(changed, split(4), split(4)).digest)
    assert len({base, *others}) == 5
    assert all(len(digest) == 32 for digest in others)


def test_each_pass_of_the_order_takes_every_sample_once_and_differs_from_the_last() -> None:
    order = DataOrder(seed=3, samples=103, batch_size=20)
    stream = torch.cat([order.indices(step) for step in range(1, 104)])
    passes = stream.reshape(20, 103)
    assert all(sorted(row.tolist()) == list(range(103)) for row in passes)
    assert len({tuple(row.tolist()) for row in passes}) == 20


def test_the_order_of_a_step_does_not_depend_on_the_steps_before_it() -> None:
    straight = DataOrder(seed=3, samples=50, batch_size=7)
    in_order = [straight.indices(step).tolist() for step in range(1, 40)]
    backwards = [straight.indices(step).tolist() for step in range(39, 0, -1)]
    torch.manual_seed(0)
    fresh = [DataOrder(3, 50, 7).indices(step).tolist() for step in range(1, 40)]
    assert in_order == backwards[::-1] == fresh


def test_another_order_seed_gives_another_order() -> None:
    assert DataOrder(1, 50, 50).indices(1).tolist() != DataOrder(2, 50, 50).indices(1).tolist()


def test_a_batch_larger_than_the_data_goes_over_it_more_than_once() -> None:
    assert sorted(DataOrder(1, 5, 10).indices(1).tolist()) == sorted([*range(5)] * 2)


def test_the_order_refuses_sizes_and_steps_below_one() -> None:
    with pytest.raises(ConfigError, match="0 samples"):
        DataOrder(seed=1, samples=0, batch_size=4)
    with pytest.raises(ConfigError, match="batches of 0"):
        DataOrder(seed=1, samples=4, batch_size=0)
    with pytest.raises(ValueError, match="count from 1"):
        DataOrder(seed=1, samples=4, batch_size=2).indices(0)


def test_the_digest_of_samples_is_of_their_little_endian_int64_bytes() -> None:
    indices = torch.tensor([1, 2, 3])
    expected = samples_digest(indices)
    assert samples_digest(indices.to(torch.int32)) == expected
    assert expected.hex() == "e2e2033ae7e19d680599d4eb0a1359a2"


def test_digits_has_every_image_in_one_split_and_each_class_in_equal_shares() -> None:
    data = Digits().data(5)
    splits = (data.train, data.validation, data.test)
    assert [part.size for part in splits] == [989, 358, 450]
    for part, share in zip(splits, (0.55, 0.20, 0.25), strict=True):
        counts = torch.bincount(part.targets, minlength=10)
        totals = sum(torch.bincount(other.targets, minlength=10) for other in splits)
        assert ((counts - share * totals).abs() <= 1).all()


def test_digits_is_scaled_by_the_training_images_alone() -> None:
    data = Digits().data(5)
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train.inputs.std().item() == pytest.approx(1, abs=1e-5)
    assert abs(data.test.inputs.mean().item()) > 1e-5


def test_digits_depends_on_its_data_seed_alone() -> None:
    first = Digits().data(5).digest
    torch.manual_seed(123)
    assert Digits().data(5).digest == first
    assert Digits().data(6).digest != first


@pytest.mark.parametrize("task", [Digits(), Mnist1d(), Impaired(), Mnist1dMlp(), Bytelm()])
def test_a_host_depends_on_its_seed_alone_and_draws_nothing_from_the_global_generators(task: Digits) -> None:
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.rand(3), random.random()
    torch.manual_seed(7)
    random.seed(7)
    first = task.host(11)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    again, other = task.host(11), task.host(12)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    drawn = [(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=False) if a.unique().numel() > 1]
    assert drawn
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in drawn)


def test_mnist1d_has_fresh_splits_and_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    expected = torch.rand(3), random.random(), np.random.random()
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    # A seed as they are derived, too large for numpy's own.
    data = Mnist1d().data(2**52 + 1)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.random()) == expected[1:]
    assert [part.size for part in (data.train, data.validation, data.test)] == [4_000, 2_000, 10_000]
    assert data.train.inputs.shape[1:] == (1, 40)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.inputs.double().std().item() == pytest.approx(1, abs=1e-6)
    rows = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert len(torch.unique(rows, dim=0)) == 16_000
    assert Impaired().data(2**52 + 1) is data
    assert Mnist1dMlp().data(2**52 + 1) is data


def test_the_plain_hosts_have_the_sizes_that_are_published() -> None:
    def size(host: nn.Module) -> int:
        return sum(parameter.numel() for parameter in host.parameters())

    assert size(Digits().host(0)) == 754
    assert size(Mnist1d().host(0)) == 1058
    assert size(Mnist1dMlp().host(0)) == 1098
    assert size(Bytelm().host(0)) == 87_680


def test_bytelm_gives_each_window_once_and_no_file_to_two_splits() -> None:
    data = Bytelm().data(5)
    splits = (data.train, data.validation, data.test)
    assert [part.size for part in splits] == [20_000, 512, 2_048]
    found: list[list[bytes]] = []
    for part in splits:
        assert part.inputs.shape[1:] == part.targets.shape[1:] == (64,)
        assert part.inputs.dtype == torch.int64
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
        windows = torch.cat((part.inputs, part.targets[:, -1:]), dim=1).to(torch.uint8)
        found.append([bytes(row) for row in windows.numpy()])
    assert len(set(found[0]) & set(found[2])) < 0.01 * len(found[2]), "only licences and the like recur"
    homes = []
    for rows in found:
        places = [[n for n, file in enumerate(read_sources().files) if row in file] for row in rows[:: len(rows) // 80]]
        homes.append({place[0] for place in places if len(place) == 1})
    assert all(len(files) > 20 for files in homes)
    assert sum(map(len, homes)) == len(set.union(*homes)), "a file is in two splits"


def test_bytelm_depends_on_its_data_seed_and_on_the_sources() -> None:
    first = Bytelm().data(5)
    torch.manual_seed(123)
    assert Bytelm().data(5) is first
    assert Bytelm().data(6).digest != first.digest
    sources = read_sources()
    assert TaskData(first.train, first.validation, first.test, source=sources.digest).digest == first.digest
    assert TaskData(first.train, first.validation, first.test).digest != first.digest


def test_sources_are_those_of_the_standard_library_without_tests_and_site_packages(tmp_path: Path) -> None:
    sources = read_sources()
    json_package = Path(json.__file__).read_bytes()[:FILE_BYTES]
    assert json_package in sources.files
    assert Path(pytest.__file__).read_bytes()[:FILE_BYTES] not in sources.files
    assert max(map(len, sources.files)) == FILE_BYTES


def test_a_python_without_sources_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    for junk in ("test/test_a.py", "site-packages/b.py", "_sysconfigdata_x.py", "notes.txt"):
        path = tmp_path / junk
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 1\n")
    read_sources.cache_clear()
    try:
        with pytest.raises(DependencyUnavailable, match="sources"):
            read_sources()
        (tmp_path / "own.py").write_text("y = 2\n")
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "__init__.py").write_text("z = 3\n")
        assert read_sources().files == [b"y = 2\n", b"z = 3\n"]
        first = read_sources().digest
        (tmp_path / "own.py").rename(tmp_path / "other.py")
        read_sources.cache_clear()
        assert read_sources().digest != first, "the names of files are part of the digest"
    finally:
        read_sources.cache_clear()


def test_the_transformer_sees_no_later_byte() -> None:
    host = Bytelm().host(3).eval()
    bytes_NT = Bytelm().data(5).validation.inputs[:4]
    changed = bytes_NT.clone()
    changed[:, 40:] = 255 - changed[:, 40:]
    with torch.no_grad():
        assert torch.equal(host(bytes_NT)[:, :40], host(changed)[:, :40])


def test_the_loss_of_bytes_is_the_mean_over_a_window_in_nats_per_byte() -> None:
    task = Bytelm()
    logits = torch.zeros(2, 4, 256)
    targets = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
    assert task.loss(logits, targets).tolist() == pytest.approx([math.log(256)] * 2)
    assert task.correct(logits, targets).tolist() == [[False] * 4, [True] * 4]


def test_the_narrow_layer_of_an_impaired_host_is_where_the_task_says() -> None:
    task = Impaired()
    places = set()
    for seed in range(40):
        host, answer = task.host(seed), task.answer(seed)
        widths = {path: host.get_submodule(path).out_channels for path in SequenceHost.CONVOLUTIONS}
        assert [path for path, width in widths.items() if width == 2] == [answer]
        assert host(torch.zeros(2, 1, 40)).shape == (2, 10)
        places.add(answer)
    assert places == set(SequenceHost.CONVOLUTIONS)


def test_loss_and_answers_are_per_sample() -> None:
    outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    targets = torch.tensor([0, 1])
    task = Digits()
    assert task.loss(outputs, targets).tolist() == pytest.approx([0.126928, 2.126928], abs=1e-5)
    assert task.correct(outputs, targets).tolist() == [True, False]
