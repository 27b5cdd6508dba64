"""Runs that are killed, run out of disk, or meet another run: real processes, real limits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driving import finish, plan, result

from holdfast.engine.journal import Journal, journal_path
from holdfast.errors import JournalError

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from safetensors.torch import load_model
from holdfast.demo import digits_cnn
from holdfast.modalities import load
from holdfast.data import ArrayData
from driving import finish, plan
net = digits_cnn()
load_model(net, {weights!r})
x, y = load("digits:test").fetch(range(60))
{before}
print("ready", flush=True)
finish(plan(batch_size=4, workers={workers}), net.eval(), ArrayData(x, y), {out!r})
"""


@pytest.fixture(scope="module")
def weights(digits, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(digits[0].state_dict(), path)
    return path


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    finish(plan(), digits[0], digits[1], directory)
    return directory


def start(weights: Path, out: Path, before: str = "", workers: int = 1) -> subprocess.Popen:
    here = str(Path(__file__).parent)
    names = {"here": here, "weights": str(weights), "out": str(out)}
    code = SCRIPT.format(**names, before=before, workers=workers)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return process


def kill_at_random_moments(weights, out, times, seed):
    moments = random.Random(seed)
    for _ in range(times):
        process = start(weights, out)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_verdicts(digits, weights, reference, tmp_path, times):
    kill_at_random_moments(weights, tmp_path, times, seed=times)
    finish(plan(batch_size=4), digits[0], digits[1], tmp_path)
    assert result(tmp_path) == result(reference)


def test_full_disk_is_said_and_nothing_is_lost(digits, weights, reference, tmp_path):
    limit = 20_000  # bytes a file may have: the journal outgrows it in the middle of the run
    before = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    process = start(weights, tmp_path, before)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "JournalError" in errors
    assert "Traceback" in errors
    assert journal_path(tmp_path).stat().st_size <= limit
    finish(plan(batch_size=4), digits[0], digits[1], tmp_path)
    assert result(tmp_path) == result(reference)


def test_one_run_per_directory(tmp_path):
    first = Journal(tmp_path)
    with pytest.raises(JournalError, match="Another run"):
        Journal(tmp_path)
    assert first.records() == []
    first.close()
    Journal(tmp_path).close()


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(JournalError, match="Cannot write"):
        Journal(tmp_path / "file" / "run")
