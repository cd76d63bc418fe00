import json
import math
import struct
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import record_run

from stzoo.errors import DataError
from stzoo.pretraining.pretrain import pretrain
from stzoo.training import history as curves
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.history import FEW, MANY, PICTURE, draw, read_history, running_mean, shortened
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.trained import Log, TrainedModel

SETTINGS = FinetuneSettings(model="makers/model", data="beir/scifact")
DEV = "eval_dev_ndcg_at_10"
NAMES = ["complement", "encoder", "encoder-complement", "encoder-neighbour", "neighbour", "passage", "query"]


def log_of(points, names=(), every=10, scores=20):
    """A log of a falling loss, its parts by name, and a dev score at one in `scores` of its lines."""
    draw = np.random.default_rng(0)
    lines = []
    for place in range(1, points + 1):
        parts = {name: round(2 + draw.normal(0, 0.1) - place / points, 4) for name in names}
        lines.append({"loss": sum(parts.values()) or 3 - place / points, **parts, "step": place * every})
        if place % scores == 0:
            lines.append({DEV: 0.5 + 0.1 * math.sin(3 * place / points), "step": place * every})
    return lines


def test_the_history_of_a_model_has_a_row_for_each_step(tmp_path):
    times = {"eval_runtime": 1.0, "eval_samples_per_second": 0.0, "eval_steps_per_second": 0.0}
    log = [
        {"step": 0, DEV: 0.5, "eval_runtime": 1.0},
        {"step": 3, "epoch": 1.0, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-5, "tokens_per_s": 9.0},
        {"step": 3, "epoch": 1.0, DEV: 0.6, **times},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"episodes": [{"log": log}, {"log": log[1:]}]}))
    last = {"step": 3, "loss": 2.0, "learning_rate": 1e-5, DEV: 0.6}
    assert TrainedModel(tmp_path).history == [{"step": 0, DEV: 0.5}, last, last]


def points(lines, name):
    return next(line.points for line in lines if line.name == name)


def png(path):
    """Width, height, and the kinds of the chunks."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    kinds, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kinds.append(data[at + 4 : at + 8].decode())
        at += length + 12
    return (*struct.unpack(">II", data[16:24]), set(kinds))


def test_a_real_run_is_read_as_it_was_logged_and_drawn(base, corpus, judged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
    folder = pretrain(output=tmp_path / "run", base=str(base), corpus=[str(corpus)], batch_size=8,
                      max_steps=6, log_steps=1, threads=1, probe=str(judged), probe_steps=2)  # fmt: skip
    facts = json.loads((folder / "run.json").read_text())
    history = read_history(folder)
    shown = [(history.scores, "probe_ndcg_at_10", "probe nDCG@10")]
    shown += [(history.losses, key, key) for key in ("loss", "encoder", "decoder")]
    for lines, key, name in shown:
        logged = [(line["step"], line[key]) for line in facts["log"] if key in line]
        assert points(lines, name) == logged
        assert len(logged) >= 3
    assert len(history.losses) == 3
    assert (history.command, history.method, history.status, history.steps) == (
        *("pretrain", "retromae", "finished", 6),
    )
    (folder / PICTURE).unlink()
    capsys.readouterr()
    assert draw(folder) == folder / PICTURE
    assert png(folder / PICTURE)[:2] == (1200, 700)
    assert capsys.readouterr() == ("", "")


def test_only_losses_and_scores_are_shown(tmp_path):
    line = {"loss": 3.0, "kl": 1.0, "contrastive": 2.0, "step": 5, "epoch": 0.5, "learning_rate": 1e-5,
            "grad_norm": 2.0, "tokens_per_s": 9.0, "data_wait": 0.1, "utilisation": 0.4,
            "kl_accuracy": 0.5}  # fmt: skip
    dev = {DEV: 0.5, "eval_runtime": 3.0, "eval_samples_per_second": 0.0, "step": 5, "epoch": 0.5}
    history = read_history(record_run(tmp_path / "run", SETTINGS, [line, dev], steps=8))
    assert [line.name for line in history.losses] == ["loss", "contrastive", "kl"]
    assert [line.name for line in history.scores] == ["dev nDCG@10"]
    assert history.steps == 8
    alone = record_run(tmp_path / "alone", SETTINGS, [{"loss": 0.5, "kl": 1.0, "step": 5}])
    assert [line.name for line in read_history(alone).losses] == ["kl"]  # the total says no more


def test_the_best_is_the_first_of_the_highest_scores(tmp_path):
    log = [{DEV: score, "step": step} for step, score in ((5, 0.3), (10, 0.7), (15, 0.7), (20, 0.6))]
    history = read_history(record_run(tmp_path / "run", SETTINGS, log, steps=22))
    assert history.best == (0.7, 10, "dev nDCG@10")
    assert history.outcome == "22 steps, 12.5 s, best dev nDCG@10 0.7000 at step 10"
    unscored = read_history(record_run(tmp_path / "unscored", SETTINGS, [], status="running"))
    assert unscored.best is None
    assert unscored.outcome == "0 steps, 12.5 s, unfinished"


@given(st.lists(st.one_of(st.floats(), st.none(), st.integers(-5, 5), st.text(max_size=2)), max_size=30))
@settings(max_examples=50)
def test_what_is_no_number_is_left_out(tmp_path_factory, values):
    log = [{"loss": value, "step": step} for step, value in enumerate(values, 1)]
    history = read_history(record_run(tmp_path_factory.mktemp("runs") / "run", SETTINGS, log))
    kept = [
        (step, value)
        for step, value in enumerate(values, 1)
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    assert [point for line in history.losses for point in line.points] == kept


def test_episodes_stand_one_behind_the_other(tmp_path):
    logs = [
        [{"loss": 2.0, "mse": 1.0, "step": 10}, {DEV: 0.5, "step": 10}],
        [{"loss": 1.0, "step": 10}, {"kl": 0.5, "step": 20}],
    ]
    episodes = [{"episode": 1, "log": logs[0], "steps": 15}, {"episode": 2, "log": logs[1], "steps": 25}]
    folder = record_run(tmp_path / "run", SETTINGS, [], episodes=episodes, steps=40)
    history = read_history(folder)
    assert history.begins == [0, 15]
    assert history.steps == 40
    assert history.losses[0].parts == [([10], [2.0]), ([25], [1.0])]
    assert {line.name: line.parts for line in history.losses[1:]} == {
        "kl": [([35], [0.5])],
        "mse": [([10], [1.0])],
    }
    assert "40 steps, 2 episodes" in history.outcome
    assert draw(folder)


def test_settings_are_those_that_differ_from_the_defaults(tmp_path):
    changed = FinetuneSettings(model="m", data="d", batch_size=8, losses={"contrastive": 1.0}, seed=7)
    history = read_history(record_run(tmp_path / "run", changed, []))
    assert history.settings == {"model": "m", "data": "d", "batch_size": 8, "seed": 7}
    assert (history.method, history.base, history.data) == ("contrastive", "m", "d")
    several = PretrainSettings(base="b", corpus=["one", "two"], objective="mlm")
    history = read_history(record_run(tmp_path / "pretrain", several, []))
    assert (history.method, history.base, history.data) == ("mlm", "b", "one, two")


@given(st.integers(0, 3 * MANY), st.integers(0, 9))
def test_a_running_mean_is_that_of_the_values_around(count, seed):
    values = np.random.default_rng(seed).normal(size=count).tolist()
    half = count // 50
    means = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    assert running_mean(values) == (pytest.approx(means, abs=1e-9) if len(values) >= MANY else [])


def cases():
    """Runs that are hard to draw: few points, many points, many losses, other scales, many episodes."""
    episode = {"log": log_of(20, ["kl"], scores=20), "steps": 200}
    scales = [line | {"margin-mse": 500.0} if "loss" in line else line for line in log_of(FEW, ["kl"])]
    return {
        "one": dict(log=log_of(1)),
        "three": dict(log=log_of(3, scores=2)),
        "long": dict(log=log_of(3000, ["encoder", "decoder"], every=100), seconds=98765.0),
        "losses": dict(log=log_of(300, NAMES)),
        "scales": dict(log=scales),
        "episodes": dict(log=[], episodes=[episode] * 4),
        "many episodes": dict(log=[], episodes=[episode] * 60),
        "unfinished": dict(log=log_of(50), status="running"),
        "scores alone": dict(log=[{DEV: 0.5, "step": 10}]),
    }


@pytest.mark.parametrize("case", cases())
def test_no_words_of_the_picture_meet_or_are_cut_off(case, tmp_path, monkeypatch):
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
    from matplotlib.text import Text

    names = FinetuneSettings(model="makers/" + "long-" * 30, data="/data/" + "wide-" * 30)
    facts = cases()[case]
    history = read_history(record_run(tmp_path / "run", names, facts.pop("log"), **facts))
    drawn, draw_text = set(), RendererAgg.draw_text

    def record_text(*given, mtext=None, **named):
        drawn.add(mtext)
        draw_text(*given, mtext=mtext, **named)

    monkeypatch.setattr(RendererAgg, "draw_text", record_text)
    with style.context(["default", curves.LOOK]):
        figure = curves._figure(history)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    drawn |= {text for text in figure.findobj(Text) if "\n" in text.get_text()}  # drawn line by line
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in drawn - {None}]
    assert len(boxes) > 8
    for box in boxes:
        assert (box.min >= 0).all()
        assert (box.max <= (1200, 700)).all()
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)


def test_losses_of_other_scales_are_shown_by_a_logarithmic_axis(tmp_path):
    for name, losses, spread in (
        ("far", (0.01, 5.0), True),
        ("near", (0.2, 5.0), False),
        ("nought", (0.0, 5.0), False),
    ):
        log = [{"loss": loss, "step": step} for step, loss in enumerate(losses, 1)]
        history = read_history(record_run(tmp_path / name, SETTINGS, log))
        assert history.spread == spread
        assert curves._figure(history).axes[0].get_yscale() == ("log" if spread else "linear")


def test_the_same_run_gives_the_same_bytes_whatever_the_user_has_set(tmp_path):
    import matplotlib

    folder = record_run(tmp_path / "run", SETTINGS, log_of(300, ["kl", "contrastive"]))
    first = draw(folder).read_bytes()
    with matplotlib.rc_context(
        {"figure.facecolor": "black", "font.size": 30, "savefig.dpi": 50, "text.usetex": True}
    ):
        before = dict(matplotlib.rcParams)
        assert draw(folder).read_bytes() == first
        assert dict(matplotlib.rcParams) == before
    assert png(folder / PICTURE) == (1200, 700, {"IHDR", "pHYs", "IDAT", "IEND"})  # no date, no version


def test_names_of_any_signs_are_drawn_in_silence(tmp_path, recwarn, capsys):
    odd = FinetuneSettings(model=r"a$\frac{$_b^", data="\u6570\u636e")
    assert draw(record_run(tmp_path / "run", odd, log_of(3, ["$x_$"])))
    assert [str(warning.message) for warning in recwarn] == []
    assert capsys.readouterr().err == ""


def test_drawing_leaves_pyplot_alone(tmp_path):
    folder = record_run(tmp_path / "run", SETTINGS, log_of(3))
    code = (
        "import sys\nfrom stzoo.training.history import draw\n"
        "print('matplotlib' in sys.modules, bool(draw(sys.argv[1])), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_without_matplotlib_there_is_no_picture_and_nothing_is_said(tmp_path, monkeypatch, capsys):
    folder = record_run(tmp_path / "run", SETTINGS, log_of(3))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(folder) is None
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_run_that_logged_nothing_has_no_picture(tmp_path):
    folder = record_run(tmp_path / "run", SETTINGS, [{"loss": None, "step": 1}])
    assert draw(folder) is None
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "{}", '{"recipe": {"command": "prepare"}}', '{"recipe": 3}', "\x80",
     json.dumps({"recipe": SETTINGS.dump(), "status": "finished", "seconds": 1, "log": [{"loss": 1.0}]}),
     json.dumps({"recipe": SETTINGS.dump(), "status": "finished", "seconds": 1, "log": [3]})],
)  # fmt: skip
def test_a_folder_that_holds_no_training_run_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "run.json").write_text(text, encoding="latin-1")
    for use in (draw, read_history):
        with pytest.raises(DataError, match=r"contains no training run; expected .*run\.json"):
            use(tmp_path)


def test_a_name_is_shortened_to_its_last_part():
    assert shortened("makers/model") == "model"
    assert shortened("/data/one.jsonl, two/three/, .") == "one.jsonl, three, ."
    assert shortened("abcdefghijklmnop", 9) == "abc\N{HORIZONTAL ELLIPSIS}lmnop"


def test_small_numbers_of_a_log_are_shown_with_their_digits():
    shown = str(Log([{"step": 1, "loss": 2.5, "learning_rate": 2e-5}, {"step": 2, "learning_rate": 0.0}]))
    assert [line.split() for line in shown.splitlines()[2:]] == [["1", "2.5000", "2e-05"], ["2", "0.0000"]]
