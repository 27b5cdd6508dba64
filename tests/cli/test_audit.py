"""``holdfast audit`` from the outside: what it prints, writes and returns."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.engine.journal import peek, read
from holdfast.plan import Plan
from holdfast.record import Attempt, Clean, Outcome


def verdicts(directory):
    """What the journal says of every sample, in an order of its own."""
    records = read(Path(directory))
    clean = {r.sample: r.prediction for r in records if isinstance(r, Clean)}
    broken = {
        (r.threat, r.sample, r.stage, r.restart, r.prediction)
        for r in records
        if isinstance(r, Attempt) and r.outcome is Outcome.BROKEN
    }
    return clean, broken


def n_attempts(directory):
    return sum(isinstance(record, Attempt) for record in read(Path(directory)))


def test_a_run_prints_its_phases_and_writes_its_report(audit, home):
    result = audit("--out", "run")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "24 samples under linf:0.1 -> run" in result.stdout
    assert "apgd(loss=ce, steps=8): unchanged 95.8%" in result.stdout
    assert "Written: run/report.html" in result.stdout
    assert "<html" in (home / "run/report.html").read_text().lower()
    json.loads((home / "run/report.json").read_text())
    clean, broken = verdicts("run")
    assert len(clean) == 24
    assert broken


def test_the_written_plan_repeats_the_run(audit, cli):
    assert audit("--out", "first", "--seed", "5", "--mean", "0.1").exit_code == 0
    plan = Plan.load(Path("first/plan.toml"))
    assert (plan.seed, plan.model.mean, plan.cascade) == (5, (0.1,), "short.toml")
    result = cli("audit", "first/plan.toml", "--out", "second", "--batch-size", "5")
    assert result.exit_code == 0, result.output
    assert verdicts("first") == verdicts("second")
    result = cli("audit", "first/plan.toml", "--n", "4", "--out", "third")
    assert result.exit_code == 0, result.output
    assert len(verdicts("third")[0]) == 4


def test_without_out_the_directory_has_the_models_name(audit, home):
    assert audit("--n", "3").exit_code == 0
    (run,) = home.glob("holdfast-Net-*")
    assert (run / "report.html").is_file()


def test_several_threats_and_a_goal(audit, home):
    result = audit("--threat", "l2:0.2", "--target", "least_likely", "--n", "6", "--out", "run")
    assert result.exit_code == 0, result.output
    plan = Plan.load(home / "run/plan.toml")
    assert plan.threats == ("linf:0.1", "l2:0.2")
    assert plan.target == "least_likely"
    assert "l2:0.2 pgd" in result.stdout


def test_json_is_one_event_per_line_and_nothing_else(audit):
    result = audit("--json", "--out", "run", model="cli_zoo:chatty")
    assert result.exit_code == 0, result.output
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events[0] == "started"
    assert events[-1] == "finished"
    assert set(events) <= {"started", "finding", "progress", "phase", "stopped", "finished"}
    assert "building the network" in result.stderr
    assert Path("run/report.json").is_file()


def test_tables_with_their_own_ranges(audit, home):
    pd = pytest.importorskip("pandas", reason="the extra 'data' is not installed")
    archive = np.load("data.npz")
    frame = pd.DataFrame(archive["x"].reshape(24, 12) * 50 - 20)
    frame.columns = [f"f{i}" for i in range(12)]
    frame.assign(kind=archive["y"]).to_csv("table.csv", index=False)
    options = ("--label", "kind", "--domain", "data", "--out", "run")
    result = audit(*options, data="table.csv", threat="linf:1")
    assert result.exit_code == 0, result.output
    header = read(home / "run")[0]
    assert header.model["domain"].startswith("per feature, within [-19.")


def test_a_budget_ends_the_run_and_says_how_to_go_on(audit):
    result = audit("--budget", "3passes", "--out", "run")
    assert result.exit_code == 0, result.output
    assert not [r for r in read(Path("run")) if isinstance(r, Attempt) and r.forward > 6]


# ------------------------------------------------------------ stopping and going on


def test_an_interrupted_run_goes_on_where_it_was(audit, cli):
    import cli_zoo

    assert audit("--out", "whole", threat="linf:0.03").exit_code == 0
    # the checks of trust, a curve's bisection and replays come last: stop well before them
    cli_zoo.calls, cli_zoo.stop_after = 0, 60  # as in the test below
    result = audit("--out", "parts", threat="linf:0.03")
    assert result.exit_code == 130, result.output
    assert "The journal in parts is intact" in result.stderr
    assert "holdfast audit --resume parts" in result.stderr
    assert n_attempts("parts") < n_attempts("whole")
    cli_zoo.stop_after = None
    result = cli("audit", "--resume", "parts")
    assert result.exit_code == 0, result.output
    assert "jobs already done" in result.stdout
    assert verdicts("parts") == verdicts("whole")
    assert n_attempts("parts") == n_attempts("whole")


def test_a_model_that_crashes_leaves_an_intact_journal(audit, cli):
    import cli_zoo

    cli_zoo.calls, cli_zoo.stop_after, cli_zoo.raises = 0, 60, RuntimeError
    result = audit("--out", "run")
    assert result.exit_code == 3
    assert "RuntimeError: stopped by the test" in result.stderr
    assert "--resume run" in result.stderr
    assert "Traceback" not in result.output
    cli_zoo.stop_after = None
    assert cli("report", "run").exit_code == 0
    assert cli("audit", "--resume", "run", "--json").exit_code == 0


def test_a_full_disk_is_told(audit, monkeypatch):
    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    result = audit("--out", "run")
    assert result.exit_code == 4
    assert "disk" in result.stderr
    assert "full" in result.stderr
    assert "Traceback" not in result.output


def test_resuming_takes_no_other_plan(audit, cli):
    assert audit("--n", "3", "--out", "run").exit_code == 0
    for more in (["--seed", "9"], ["--threat", "l2:1"], ["--out", "other"], ["--n", "2"]):
        result = cli("audit", "--resume", "run", *more)
        assert result.exit_code == 2, more
        assert "goes on with the plan of that run" in result.stderr
    assert (
        cli(
            "audit", "--resume", "run", "--batch-size", "2", "--workers", "2", "--threads", "1"
        ).exit_code
        == 0
    )
    result = cli("audit", "--resume", "nowhere")
    assert result.exit_code == 4
    assert "There is no run in nowhere" in result.stderr


def test_control_c_on_a_real_process(home):
    (home / "long.toml").write_text('[[stage]]\nattack = "pgd"\nsteps = 20000\nstep_size = 1e-9\n')
    words = ["cli_zoo:Net", "--data", "data.npz", "--threat", "linf:1e-6", "--cascade", "long.toml"]
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "audit", *words, "--out", "run"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and their children with them
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    while "clean" not in (line := process.stdout.readline()):
        assert line, process.stderr.read() if process.stderr else ""
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "The journal in run is intact" in errors
    assert "Traceback" not in errors
    assert len(verdicts("run")[0]) == 24


# ------------------------------------------------------------ mistakes


def change(**arrays):
    archive = np.load("data.npz")
    np.savez("bad.npz", **({"x": archive["x"], "y": archive["y"]} | arrays))


def nan():
    x = np.load("data.npz")["x"]
    x[3, 1] = np.nan
    return x


BAD_DATA = {
    "normalised": (lambda: {"x": np.load("data.npz")["x"] * 4 - 2}, r"outside the domain \[0, 1\]"),
    "0 to 255": (lambda: {"x": np.load("data.npz")["x"] * 255}, "outside the domain.*255"),
    "NaN": (lambda: {"x": nan()}, "(?i)nan|finite"),
    "labels": (lambda: {"y": np.load("data.npz")["y"] + 5}, "labels go up to 7.*3 classes"),
    "negative labels": (lambda: {"y": np.load("data.npz")["y"].astype(int) - 3}, "(?i)label"),
    "shape": (
        lambda: {"x": np.ones((24, 5), np.float32)},
        r"cannot run on inputs of shape \(16, 5\)",
    ),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_data_that_do_not_fit_are_told(audit, kind):
    arrays, message = BAD_DATA[kind]
    change(**arrays())
    result = audit("--out", "run", data="bad.npz")
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threat", "foo:1"], "Unknown threat 'foo'.*linf"),
        (["--threat", "linf:many"], "radius 'many'"),
        (["--threat", "linf:8"], "Did you mean linf:8/255"),
        (["--mean", "a,b"], "Cannot read --mean"),
        (["--domain", "1,0"], "Cannot read --domain"),
        (["--budget", "soon"], "Cannot read the budget 'soon'"),
        (["--cascade", "best"], "Unknown cascade 'best'"),
        (["--access", "root"], "access: .*'root'"),
        (["--target", "9"], "no class 9"),
        (["--device", "abacus"], "device 'abacus' cannot be used here.*Available: cpu"),
        (["--weights", "absent.pt"], r"no weights file absent\.pt"),
        (["--label", "z", "--data", "absent.csv"], r"'absent\.csv' does not exist"),
    ],
)
def test_options_that_make_no_sense_are_told(audit, words, message):
    result = audit(*words, "--out", "run")
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "digits"], 2, "Which model"),
        (["cli_zoo:Net"], 2, "Which data"),
        (["cli_zoo:Net", "--data", "digits"], 2, "What may the attacker change"),
        (["plan.toml"], 2, r"Cannot read the plan plan\.toml"),
        (["broken.toml"], 2, "broken.toml is not valid TOML"),
        (["wrong.toml"], 2, "(?s)cannot be used.*threats"),
        (["m.pth", "--data", "digits", "--threat", "linf:0.1"], 2, r"no file m\.pth"),
    ],
)
def test_incomplete_commands_are_told(cli, home, words, code, message):
    (home / "broken.toml").write_text("version = ")
    (home / "wrong.toml").write_text('threats = 3\n[data]\nsource = "digits"\n')
    result = cli("audit", *words)
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr


def test_other_outputs_of_a_program_are_the_modules(audit, home):
    """The same verdicts for the code and for its exported program."""
    import cli_zoo

    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(
        cli_zoo.Net().eval(), (torch.rand(2, 3, 2, 2),), dynamic_shapes=batch
    )
    torch.export.save(program, "net.pt2")
    assert audit("--out", "code").exit_code == 0
    result = audit("--out", "program", model="net.pt2")
    assert result.exit_code == 0, result.output
    assert verdicts("code") == verdicts("program")


def test_a_search_in_compiled_code_is_asked_for_and_kept(audit, home, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: made.append(f) or f)
    result = audit("--compiled", "--verify", "off", "--out", "run")
    assert result.exit_code == 0, result.output
    assert made
    assert peek(home / "run").tuning["is_compiled"]
    made.clear()
    assert audit("--verify", "off", "--out", "plain").exit_code == 0
    assert not made
