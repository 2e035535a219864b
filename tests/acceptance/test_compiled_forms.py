"""A form by inductor: made in the workbench's child, and used by another process, which compiles no graph again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from esper.blueprints.bench.wire import FormMade, FormRequest
from esper.blueprints.bench.workbench import Limits, Workbench
from esper.blueprints.ir import SiteSignature
from esper.blueprints.kernels.build import build
from esper.blueprints.kernels.kernel import encode_kernel, kernel_seed
from esper.blueprints.library import load_library

SITE = SiteSignature(kind="linear", rank="NC", channels=8, in_channels=8, positions=(), causal=False)
BATCH = 4

#: A process that has only the bytes, and caches of its own, trains the form and the kernel beside it.
LOADER = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from esper.blueprints.kernels.forms import load_form
from esper.blueprints.kernels.kernel import decode_kernel, load_module

kernel = decode_kernel(Path(sys.argv[1]).read_bytes())
modules = [load_form(kernel, "inductor", Path(sys.argv[2]).read_bytes()), load_module(kernel)]
batch = int(sys.argv[3])
for module in modules:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(3):
        x = torch.randn((batch, 8), generator=generator, requires_grad=True)
        optimizer.zero_grad()
        (module(x) - torch.randn((batch, 8), generator=generator)).square().mean().backward()
        optimizer.step()
form, eager = ({name: value.detach() for name, value in module.state_dict().items()} for module in modules)
assert list(form) == list(eager)
apart = max(float((form[name] - eager[name]).abs().max()) for name in form)
moved = min(float((form[name] - kernel.tensors[name]).abs().max()) for name in form)
caches = {**counters["aot_autograd"], **counters["inductor"]}
print(json.dumps({"apart": apart, "moved": moved, **{k: v for k, v in caches.items() if "_cache_" in k}}))
"""


@pytest.mark.timeout(600)
def test_another_process_finds_what_inductor_compiled_and_trains_as_the_kernel_does(tmp_path: Path) -> None:
    blueprint = load_library()["res_mlp"]
    kernel = encode_kernel(blueprint, SITE, build(blueprint, SITE, seed=kernel_seed(blueprint, SITE)))
    bench = Workbench(Limits(wall_s=400.0))
    try:
        # Something else is compiled before, so that nothing depends on what a process compiles first.
        request = msgspec.msgpack.encode(FormRequest(kernel=kernel, pipeline="export", batch=BATCH))
        assert msgspec.msgpack.decode(bench.run("form", request).result, type=FormMade).refusal is None
        request = msgspec.msgpack.encode(FormRequest(kernel=kernel, pipeline="inductor", batch=BATCH))
        done = bench.run("form", request)
    finally:
        bench.close()
    made = msgspec.msgpack.decode(done.result, type=FormMade)
    assert made.refusal is None, made.message
    assert made.form is not None
    assert max(made.value_difference or 0.0, made.gradient_difference or 0.0) <= 1e-5
    print(
        f"compiled in {made.compile_s:.1f} s, {len(made.form)} bytes, peak {done.peak_memory_bytes} bytes, "
        f"step {made.eager_step_s * 1e6:.0f} us eager, {made.form_step_s * 1e6:.0f} us compiled"
    )
    files = [tmp_path / "kernel", tmp_path / "form"]
    for path, data in zip(files, (kernel, made.form), strict=True):
        path.write_bytes(data)
    # Torch takes other settings where CI is set, which are part of what its caches are found by.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", LOADER, *map(str, files), str(BATCH)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["apart"] < 1e-5 < found["moved"]
    assert (found.get("autograd_cache_hit"), found.get("fxgraph_cache_hit")) == (1, 2), found
    assert not [name for name in found if name.endswith("_miss")], found
