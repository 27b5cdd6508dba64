"""TensorBoard and MLflow see what the log has: read back with their own readers."""

import hardening_tools as small
import pytest

from holdfast.hardening.logs import read


@pytest.fixture
def no_tracker(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def robust(directory):
    lines = [line for line in read(directory) if line["what"] == "validated"]
    return [(line["update"], pytest.approx(line["robust_accuracy"])) for line in lines]


def trained(directory, **options):
    loop = small.loop(small.mlp(), directory, n_updates=12, updates_per_round=4, **options)
    list(loop.run())
    assert len(robust(directory)) > 2


@pytest.mark.usefixtures("no_tracker")
def test_tensorboard_shows_every_validation(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = board.Scalars("validated/robust_accuracy")
    assert [(s.step, s.value) for s in shown] == robust(tmp_path)
    assert "watch/alignment" in board.Tags()["scalars"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


@pytest.fixture
def tracker(database, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(database)
    return mlflow


def runs(mlflow):
    return {run.info.run_name: run for run in mlflow.MlflowClient().search_runs(["0"])}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_has_a_run_for_every_training(tmp_path, tracker):
    for name in ("first", "second"):
        trained(tmp_path / name, seed=3)
    assert tracker.active_run() is None
    for name in ("first", "second"):
        history = tracker.MlflowClient().get_metric_history(
            runs(tracker)[name].info.run_id, "validated/robust_accuracy"
        )
        assert sorted((m.step, m.value) for m in history) == robust(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_that_the_user_opened_stays_theirs(tmp_path, tracker):
    with tracker.start_run(run_name="mine") as mine:
        trained(tmp_path / "theirs")
        assert tracker.active_run().info.run_id == mine.info.run_id
    assert "theirs" not in runs(tracker)
    assert "validated/robust_accuracy" in runs(tracker)["mine"].data.metrics
