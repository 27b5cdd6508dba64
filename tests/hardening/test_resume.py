"""A training that was stopped anywhere ends in the same weights, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import hardening_tools as small
import pytest
import torch

from holdfast.errors import JournalError
from holdfast.hardening import checkpoint
from holdfast.hardening import loop as loop_module
from holdfast.hardening.state import State

SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
import hardening_tools as small
from holdfast.hardening import loop as loop_module
loop_module._CHECKPOINT_SECONDS = 0.0
loop = small.loop(small.mlp(norm=True), Path(sys.argv[1]), n_updates=120, average="ema")
print("ready", flush=True)
for _ in loop.run():
    pass
torch.save(loop.trainer.network.state_dict(), Path(sys.argv[1]) / "final.pt")
"""


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(loop_module, "_CHECKPOINT_SECONDS", 0.0)


def finished(directory, stops=(), **options):
    """Final weights after sittings that end after so many events each."""
    for stop in [*stops, None]:
        loop = small.loop(small.mlp(norm=True), directory, **options)
        events = loop.run()
        for n, _ in enumerate(events):
            if n == stop:
                break
        events.close()
    assert loop.trainer.state.is_done
    return small.weights(loop.trainer.network)


@pytest.mark.parametrize("average", ["none", "ema", "swa"])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path, monkeypatch, average):
    monkeypatch.setattr(loop_module, "_EVENT_SECONDS", 0.0)
    whole = finished(tmp_path / "whole", average=average)
    parts = finished(tmp_path / "parts", stops=(3, 6, 9), average=average)
    assert small.same(whole, parts)


def test_a_forgotten_optimiser_would_be_noticed(tmp_path, monkeypatch):
    """The planted defect: without the optimiser's state the weights differ."""
    monkeypatch.setattr(loop_module, "_EVENT_SECONDS", 0.0)
    whole = finished(tmp_path / "whole")

    def forgetful(path):
        content = load(path)
        if content is not None and "optimiser" in content:
            content["optimiser"]["state"] = {}
        return content

    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", forgetful)
    assert not small.same(whole, finished(tmp_path / "parts", stops=(6,)))


def test_the_log_has_every_validation_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "_EVENT_SECONDS", 0.0)
    finished(tmp_path, stops=(4, 8), average="none")
    from holdfast.hardening.logs import read

    updates = [line["update"] for line in read(tmp_path) if line["what"] == "validated"]
    assert updates == sorted(set(updates))


def _killed(directory: Path, after: float) -> None:
    """Run the script, and kill it this long after the training began."""
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)


def _done(directory: Path) -> dict[str, torch.Tensor]:
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return torch.load(directory / "final.pt", weights_only=True)


@pytest.mark.slow
def test_killed_ten_times_at_random_is_the_same_bit_for_bit(tmp_path):
    whole = _done(tmp_path / "whole")
    rng = random.Random(5)
    for _ in range(10):
        _killed(tmp_path / "killed", rng.uniform(0.0, 0.8))
    state = checkpoint.load(tmp_path / "killed" / checkpoint.LAST)
    assert state is not None
    assert state["state"]["index"] > 0
    parts = _done(tmp_path / "killed")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"a": torch.ones(3)})

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(JournalError, match=r"full.*intact"):
        checkpoint.save(path, {"a": torch.zeros(3)})
    monkeypatch.undo()
    content = checkpoint.load(path)
    assert content is not None
    assert torch.equal(content["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_damaged_checkpoint_is_told(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(JournalError, match="cannot be read"):
        checkpoint.load(tmp_path / "last.pt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("true",))

    torch.save({"state": Evil()}, tmp_path / "last.pt")
    with pytest.raises(JournalError):
        checkpoint.load(tmp_path / "last.pt")


def test_state_survives_its_dictionary(tmp_path):
    loop = small.loop(small.mlp(), tmp_path, n_updates=12)
    list(loop.run())
    state = loop.trainer.state
    assert State.from_dict(state.to_dict()) == state
