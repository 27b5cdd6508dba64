"""Several processes train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import hardening_tools as small

loop = small.loop(small.mlp(), None, n_updates=12, batch_size=33, average="none")
fabric = loop.setup.fabric
losses = []
step = loop.trainer.updates
def recorded(rows, progress):
    for loss in step(rows, progress):
        losses.append(float(loss))
        yield loss
loop.trainer.updates = recorded
for _ in loop.run():
    pass
if fabric.is_global_zero:
    weights = [p.tolist() for p in loop.trainer.network.parameters()]
    print(json.dumps({{"world": fabric.world_size, "losses": losses, "weights": weights}}))
"""


def run(n: int, path: Path) -> dict:
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    done = subprocess.run(
        [sys.executable, *(launcher if n > 1 else []), str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_lose_the_same_as_one(tmp_path):
    """The same global batch of 33: 17 rows on one process, 16 on the other."""
    one, two = (run(n, tmp_path / "train.py") for n in (1, 2))
    assert (one["world"], two["world"]) == (1, 2)
    assert len(one["losses"]) == 12
    torch.testing.assert_close(
        torch.tensor(two["losses"]), torch.tensor(one["losses"]), atol=1e-5, rtol=0
    )
    for a, b in zip(one["weights"], two["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(b), torch.tensor(a), atol=1e-4, rtol=0)
