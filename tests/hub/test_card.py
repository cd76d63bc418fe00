"""Cards: true to the model's record and results, read back by the Hub's own classes, and without secrets."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from support import processes
from support.helpers import cli

import stzoo
from stzoo.data import registry
from stzoo.data.beir import RetrievalDataset
from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.evaluation.bench import result_files
from stzoo.evaluation.bench import results as filed
from stzoo.evaluation.measures import MEASURES
from stzoo.evaluation.scoring import Scores
from stzoo.hub import redact
from stzoo.hub.card import README, make
from stzoo.hub.export import export
from stzoo.models.loaded import folder_revision
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.recipes import with_effect
from stzoo.utils.files import write_json
from stzoo.utils.messages import collect_notes

CUSTOM = """
from sentence_transformers.base.modules import Module

class Scaled(Module):
    config_keys = ["factor"]

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, features, **_):
        features["sentence_embedding"] = self.factor * features["sentence_embedding"]
        return features

    def save(self, output_path, *_, **__):
        self.save_config(output_path)
"""
ALONE = """
import json, os, sys
from pathlib import Path
sys.modules["stzoo"] = None
for folder, code in json.loads(Path(sys.argv[1]).read_text()):
    os.chdir(folder)
    exec(code, {})
"""


@pytest.fixture(scope="module")
def trained(base, corpus, judged, tmp_path_factory):
    """A pre-trained model, one fine-tuned from it, and the results of the latter with BM25 beside."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
        common = dict(batch_size=8, max_steps=3, log_steps=1)
        pre = stzoo.pretrain(base=str(base), corpus=[str(corpus)], output=folder / "pre", **common)
        tuned = stzoo.finetune(
            str(pre),
            data=str(judged),
            dev_split="dev",
            eval_steps=2,
            mini_batch_size=4,
            query_prompt="ask: ",
            output=folder / "tuned",
            **common,
        )
    found = stzoo.bench([str(tuned)], data=judged, output=folder / "results")
    return pre, tuned, folder / "results", found


@pytest.fixture
def export_of(base, tmp_path):
    """Exports a model with these prompts and further modules."""

    def make_one(name="plain", *modules, prompts=None, **options):
        parts = [Transformer(str(base)), Pooling(32), *modules]
        model = SentenceTransformer(modules=parts, prompts=prompts or {}, device="cpu")
        return export(model, tmp_path / name, verify=False, **options)

    return make_one


def file_results(output, folder, datasets, *, notes=(), name="mine", revision=None):
    """Files results of a model as if these sets of two queries had been scored."""
    for dataset in datasets:
        entry = registry.find(dataset)
        judged = RetrievalDataset(
            name=dataset,
            split=entry.split if entry else "test",
            corpus_ids=["d0", "d1"],
            passages=["one", "two"],
            queries={"q0": "0", "q1": "1"},
            qrels={"q0": {"d0": 1}, "q1": {"d1": 1}},
            folder=Path(dataset),
            notes=notes,
        )
        per_query = {measure.name: {"q0": 1.0, "q1": 0.25} for measure in MEASURES}
        mean = dict.fromkeys(per_query, 0.625)
        system = (name, revision or folder_revision(folder))
        path = result_files.result_file(output, *system, judged.name)
        write_json(path.with_name("model_meta.json"), {"name": system[0], "revision": system[1]})
        filed.store(path, system, judged, {"k": 100}, Scores(mean, per_query), MEASURES, 1.0, {})
    return output


def text_of(folder, **options):
    return make(folder, **options)[README].decode()


def front_matter(folder, **options):
    return ModelCard(text_of(folder, **options)).data.to_dict()


def leaves(value):
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)
    else:
        yield value


def test_the_code_of_a_card_runs_as_it_stands_without_stzoo(trained, export_of, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "scaled_for_card.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path / "code")
    import scaled_for_card

    tasks = {"query": "ask: ", 'it\'s "qa" ```': "question: ", "facts": "claim: "}
    models = {
        "tuned": trained[1],
        "tasks": export_of("tasks", prompts=tasks),
        "own": export_of("own", scaled_for_card.Scaled(3.0), portable=False),
    }
    todo = []
    for name, folder in models.items():
        shutil.copytree(folder, tmp_path / "hub" / "org" / name)
        text = text_of(folder, repo_id=f"org/{name}")
        blocks = re.findall(r"^(`{3,})python\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
        todo.append((str(tmp_path / "hub"), "\n".join(code for _, code in blocks)))
    assert "prompt_name='it\\'s \"qa\" ```'" in todo[1][1]
    assert ["trust_remote_code=True" in code for _, code in todo] == [False, False, True]
    assert "**It comes with code of its own**" in text
    (tmp_path / "todo.json").write_text(json.dumps(todo))
    done = processes.run(
        [sys.executable, "-P", "-c", ALONE, tmp_path / "todo.json"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_TOKEN": "", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"tensor\(\[\[.*, .*\]\]\)", done.stdout)) == 4


def test_a_card_says_how_the_model_was_made_from_the_first_step_on(trained):
    pre, tuned, *_ = trained
    files = make(tuned)
    text = files[README].decode()
    first, second = text.index("## Pre-training"), text.index("## Fine-tuning")
    assert first < text.index("predict every token from the bottleneck") < second
    assert text.index("arxiv.org/abs/2205.12035") < second < text.index("arxiv.org/abs/1807.03748")
    recipes = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert [recipe.pop("command") for recipe in recipes] == ["pretrain", "finetune"]
    facts = json.loads((tuned / "run.json").read_text())
    for recipe, run in zip(recipes, [*facts["before"], facts], strict=True):
        assert recipe.keys() == with_effect(run["recipe"], run).keys() - {"schema_version", "command"}
        without = {"lora_dropout", "balancer", "mined", "save_steps", "probe_split"}
        assert recipe.keys() < run["recipe"].keys() - without
        assert recipe["batch_size"] == run["recipe"]["batch_size"] == 8
        assert f"torch {run['versions']['torch']}" in text
        assert f"{run['hardware']['cpus']} CPU cores" in text
    assert "log" not in facts["before"][0]
    assert "40 queries, 40 relevant pairs, 0 negatives" in text
    assert "48 passages" in text
    assert facts["data"]["fingerprint"][:12] in text
    assert "@inproceedings{xiao-etal-2022-retromae," in text
    assert "- ` 'query' `: ` 'ask: ' `" in text
    assert "only pre-trained" not in text
    assert "only pre-trained" in text_of(pre)
    assert "\n\nA dense retriever: it turns" in text
    assert "\n\nA pre-trained encoder, the starting point for a dense retriever: it turns" in text_of(pre)
    assert front_matter(tuned)["tags"].count("retromae") == 1


@pytest.mark.usefixtures("unverified")
def test_an_export_of_a_run_tells_how_its_model_was_made(trained, tmp_path):
    _, tuned, results, _ = trained
    out = stzoo.export(tuned, tmp_path / "tuned")
    assert make(out) == make(tuned)
    assert (out / "README.md").read_text() == text_of(tuned)
    assert "40 queries, 40 relevant pairs" in text_of(
        out, results=results
    )  # the scores are of this model, too
    assert json.loads((out / "run.json").read_text())["before"]
    assert stzoo.export(tuned, out, overwrite=True) == out  # it is no run, which would not be replaced
    with pytest.raises(OutputError, match=r"is a training run \(run\.json\)"):
        stzoo.export(out, tuned, overwrite=True)
    assert make(stzoo.export(out, tmp_path / "again"), name="tuned") == make(tuned)
    (out / "run.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"run\.json is not a record of a training run"):
        stzoo.export(out, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_export_keeps_the_metadata_of_the_readme_that_was_there_if_it_holds(export_of, tmp_path, capfd):
    model = export_of()
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: en\ndatasets: [a/b]\n---\nText.\n")
    data = ModelCard((stzoo.export(model, tmp_path / "one", verify=False) / "README.md").read_text()).data
    assert (data.license, data.language, data.datasets) == ("mit", ["en"], ["a/b"])
    assert "nothing of" not in capfd.readouterr().err
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: [en, pt-br]\n---\n")
    text = (stzoo.export(model, tmp_path / "two", verify=False) / "README.md").read_text()
    assert "No licence is stated." in text
    assert "compared by cosine similarity." in text
    assert text.endswith("Exported with [stzoo](https://github.com/stzoo/stzoo).\n")
    told = f"stzoo: the card ignores {model / 'README.md'}: the language is 'pt-br'; expected"
    assert told in capfd.readouterr().err


def test_the_pictures_of_training_come_along(trained):
    pre, tuned, *_ = trained
    files = make(tuned)
    assert files["pretraining_curve.png"] == (pre / "learning_curve.png").read_bytes()
    assert files["learning_curve.png"] == (tuned / "learning_curve.png").read_bytes()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", files[README].decode())
    assert shown == ["pretraining_curve.png", "learning_curve.png"]


def test_a_finished_run_has_its_card(trained):
    for folder in trained[:2]:
        assert (folder / "README.md").read_text() == text_of(folder)


@pytest.mark.usefixtures("unverified")
def test_a_card_that_cannot_be_made_does_not_stop_a_training(trained, judged, tmp_path, capfd):
    base = shutil.copytree(trained[0], tmp_path / "base")
    facts = json.loads((base / "run.json").read_text())
    (base / "run.json").write_text(json.dumps(facts | {"hardware": "a laptop"}))  # as another's tool may
    given = dict(data=str(judged), batch_size=8, max_steps=1)
    folder = stzoo.finetune(str(base), output=tmp_path / "tuned", **given)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert SentenceTransformer(str(folder)).encode(["x"]).shape == (1, 32)
    assert not (folder / "README.md").exists()
    (told,) = (line for line in capfd.readouterr().err.splitlines() if "card could not be made" in line)
    assert told.startswith(f"stzoo: the model in {folder} is finished, but its card could not be made: ")
    words = told.rpartition("After fixing this, run: stzoo ")[2].split()
    record = json.loads((folder / "run.json").read_text())
    record["before"][0]["hardware"] = {}
    (folder / "run.json").write_text(json.dumps(record))
    assert cli(*words).returncode == 0
    assert (folder / "README.md").read_text() == text_of(folder)


def test_scores_come_back_as_they_were_filed(trained):
    _, tuned, folder, found = trained
    assert [result.model for result in found] == ["bm25s", "tuned"]
    text = text_of(tuned, results=folder, repo_id="org/best")
    card = ModelCard(text)
    assert card.data.model_name == "best"
    own = found[1].scores.mean
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == {
        name: round(value, 5) for name, value in own.items()
    }
    first = card.data.eval_results[0]
    assert (first.metric_type, first.dataset_config, first.dataset_split) == ("ndcg_at_10", "default", "test")
    assert (first.dataset_type, first.dataset_name) == ("small", "small (default)")
    row = next(line for line in text.splitlines() if line.startswith("| small |"))
    assert f"| {own['nDCG@10']:.4f} |" in row
    assert row.rstrip().endswith(f"| {found[0].scores.mean['nDCG@10']:.4f} |")
    assert re.search(r"\| 0\.\d{4} to 0\.\d{4} \|", row)
    assert "Self-hits (a passage with the query's own id) are dropped for none of these sets." in text


def test_official_sets_have_both_forms_of_the_hub(export_of, tmp_path):
    model = export_of()
    output = file_results(tmp_path / "results", model, ["scifact", "arguana", "ours"])
    file_results(output, model, ["fiqa"], notes=("fiqa has 2 documents, the official set has 57638",))
    files = make(model, results=output)
    assert sorted(name for name in files if name != README) == [
        ".eval_results/ArguAna.yaml",
        ".eval_results/SciFact.yaml",
    ]
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/SciFact.yaml"]))
    assert [(one.dataset_id, one.task_id, one.value) for one in entries] == [
        ("mteb/scifact", "SciFact_default_test", 62.5),
        ("mteb/scifact", "SciFact", 62.5),
    ]
    data = ModelCard(files[README].decode()).data
    assert {one.dataset_type for one in data.eval_results} == {
        "mteb/scifact",
        "mteb/arguana",
        "fiqa",
        "ours",
    }
    assert {one.metric_value for one in data.eval_results} == {0.625}
    text = files[README].decode()
    assert "are dropped for arguana." in text
    assert "fiqa has 2 documents, the official set has 57638." in text
    parts = [yaml.safe_load(content) for name, content in files.items() if name.endswith("yaml")]
    assert None not in [*leaves(parts), *leaves(data.to_dict())]


def test_an_average_names_its_sets_and_is_given_over_a_whole_suite_only(export_of, tmp_path):
    model = export_of()
    sets = registry.expand(["beir-13"])
    part = text_of(model, results=file_results(tmp_path / "part", model, sets[1:]))
    assert "There are not results on all data sets of a suite" in part
    whole = text_of(model, results=file_results(tmp_path / "whole", model, sets))
    line = next(line for line in whole.splitlines() if line.startswith("- **beir-13**"))
    assert line.endswith(f"over 13 sets: {', '.join(registry.suites()['beir-13'])}.")
    assert "mean nDCG@10 0.6250 (" in line
    assert re.search(r"^\| scifact \| test \| [^|]*beir-13", whole, re.MULTILINE)


def test_the_score_of_the_base_is_shown_if_it_is_among_the_results(export_of, tmp_path):
    settings = FinetuneSettings(model="lab/base", data="ours")
    model = record(export_of(), settings, base={"id": "lab/base"})
    output = file_results(tmp_path / "results", model, ["scifact", "ours"])

    def header():
        return next(line for line in text_of(model, results=output).splitlines() if "Data set |" in line)

    assert "Base" not in header()
    for name, revision in {"base": "0" * 12, "lab/other": "a" * 40, "other": "b" * 40}.items():
        file_results(output, model, ["scifact"], name=name, revision=revision)
    assert "Base" not in header()
    file_results(output, model, ["scifact"], name="base", revision="c" * 40)
    assert header().endswith("| Base nDCG@10 |")
    text = text_of(model, results=output)
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| scifact |", "| ours |"))]
    assert {cells[1].strip(): cells[-2].strip() for cells in rows} == {"scifact": "0.6250", "ours": "-"}
    assert "- Base: lab/base, the model that this one was made from." in text.splitlines()
    file_results(output, model, ["scifact"], name="base", revision="d" * 40)
    assert "Base" not in header(), "which revision the base had is not known"


ADAPTED = {
    "base": "lab/base",
    "base_id": "lab/base",
    "teacher": None,
    "passages": 1080,
    "questions": 326,
    "generator": "stzoo ask, without a model",
    "weighted_tokens": True,
    "share": 0.75,
    "scores": {"base": 0.6703, "adapted": 0.6923},
    "gain": {"difference": 0.018, "p_value": 0.3125, "low": -0.004, "high": 0.045, "queries": 8},
}


def test_the_data_set_of_an_adapted_model_is_named_with_its_licence(export_of):
    folder = export_of()
    about = ADAPTED | {"datasets": ["mteb/scifact", "mteb/nfcorpus"]}
    write_json(folder / "adaptation.json", {"schema_version": 1, "adapted": about})
    assert front_matter(folder)["datasets"] == ["mteb/scifact", "mteb/nfcorpus"]
    licence = "The licence of its data set mteb/scifact: claims CC BY 4.0, abstracts ODC-By 1.0."
    assert licence in text_of(folder).splitlines()
    assert "nfcorpus:" not in text_of(folder)


def adapt(folder, **gain):
    """Makes a model look as if `stzoo adapt` had made it with this gain."""
    record = ADAPTED | {"gain": ADAPTED["gain"] | gain}
    write_json(folder / "adaptation.json", {"schema_version": 1, "adapted": record})
    return folder


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        ({}, "- **Verdict of `stzoo adapt`: keep the base model, as the gain is not beyond chance.**"),
        (
            {"difference": -0.02, "p_value": 0.01, "low": -0.03, "high": -0.01},
            "- **Verdict of `stzoo adapt`: keep the base model, as the adapted model is worse.**",
        ),
        (
            {"p_value": 0.001, "low": 0.01},
            "- Verdict of `stzoo adapt`: keep the adapted model, as the gain is beyond chance.",
        ),
    ],
    ids=["chance", "worse", "better"],
)
def test_the_card_of_an_adapted_model_has_the_verdict(export_of, gain, verdict):
    lines = text_of(adapt(export_of(), **gain)).splitlines()
    assert [line for line in lines if "Verdict" in line] == [verdict]


def test_the_card_of_an_adapted_model_names_the_mean_of_each_number(export_of):
    text = text_of(adapt(export_of()))
    gain = (
        "- Gain: +0.018 nDCG@10 against the base as the mean over 8 held-out documents, each counting once "
        "(95 % interval -0.004 to +0.045, p 0.3125). The mean over their questions is 0.670 before and 0.692 "
        "after."
    )
    assert gain in text.splitlines()
    assert "over 1 held-out document, each" in text_of(adapt(export_of("one"), queries=1))


@pytest.mark.parametrize(
    ("share", "weighted", "line"),
    [
        (
            0.75,
            True,
            "rare tokens weigh more, and a linear map of the query vectors follows the ranking of BM25 and "
            "the base together. 75 % of the map are used (0 % would change nothing), as chosen on",
        ),
        (
            1.0,
            False,
            "a linear map of the query vectors follows the ranking of BM25 and the base together. The ",
        ),
        (
            0.0,
            True,
            "rare tokens weigh more; a linear map of the query vectors was learnt, but is not used, as",
        ),
        (
            0.0,
            False,
            "unchanged; a linear map of the query vectors was learnt, but is not used, as chosen on",
        ),
    ],
)
def test_the_card_of_an_adapted_model_says_how_queries_change(export_of, share, weighted, line):
    folder = adapt(export_of())
    about = ADAPTED | {"share": share, "weighted_tokens": weighted}
    write_json(folder / "adaptation.json", {"schema_version": 1, "adapted": about})
    assert f"- Queries: {line}" in text_of(folder)


def test_results_of_another_model_are_refused(trained, export_of, tmp_path):
    pre, tuned, folder, _ = trained
    with pytest.raises(DataError, match=rf"no results of .*only of bm25s .*tuned \({'.' * 12}\)"):
        make(pre, results=folder)
    changed = shutil.copytree(tuned, tmp_path / "tuned")
    weights = load_file(changed / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, changed / "model.safetensors")
    with pytest.raises(DataError, match=folder_revision(changed)):
        make(changed, results=folder)
    model = export_of()
    output = file_results(tmp_path / "results", model, ["scifact"])
    file_results(output, model, ["scifact"], name="again")
    with pytest.raises(DataError, match=r"several names \(again, mine\)"):
        make(model, results=output)
    assert ModelCard(text_of(model, results=output / "again")).data.eval_results


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        ({"ndcg_at_10": 17}, DataError, "states a nDCG@10 of 17, but the scores of its queries give"),
        ({"ndcg_at_10": None}, OutputError, "is not a result of this version"),
        ({"ndcg_at_10": float("nan")}, OutputError, "is not a result of this version"),
        ({"date": None}, OutputError, "is not a result of this version"),
    ],
)
def test_results_that_do_not_hold_are_refused(export_of, tmp_path, damage, error, told):
    model = export_of()
    output = file_results(tmp_path / "results", model, ["ours"])
    (file,) = output.rglob("ours.json")
    stored = json.loads(file.read_text())
    place = stored["splits"]["test"] if "date" in damage else stored["scores"]["test"][0]
    place |= damage
    file.write_text(json.dumps(stored))
    with pytest.raises(error, match=told):
        make(model, results=output)


def test_results_may_hold_a_measure_that_is_a_sum_over_queries(export_of, judged, tmp_path):
    model = export_of()
    stzoo.bench(f"mine={model}", data=judged, output=tmp_path / "results", bm25=False, measures="NumRet")
    assert "| 95 % interval |" in text_of(model, results=tmp_path / "results")


def test_contamination_is_told_with_the_scores_without_it(trained, judged, tmp_path):
    _, tuned, folder, found = trained
    output = shutil.copytree(folder, tmp_path / "results")
    assert "was not searched for these test sets" in text_of(tuned, results=output)
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"query": query, "pos": ["nothing alike"], "neg": []}) + "\n"
            for query in json_lines(judged / "queries.jsonl", range(50, 53))
        )
    )
    report = stzoo.contamination(
        tmp_path / "train.jsonl", data=judged, output=output / "leaks", minhash=False
    )
    assert len(report.contaminated) == 3
    text = text_of(tuned, results=output)
    scores = found[1].scores.per_query["nDCG@10"]
    kept = [value for query, value in scores.items() if query not in report.contaminated]
    told = r"3 of 10 test queries and \d+ of their \d+ relevant passages are in .* \(train\.jsonl\)"
    assert re.search(told, text)
    assert f"{sum(kept) / 7:.4f} without them" in text
    path = output / "leaks" / "contamination.json"
    facts = json.loads(path.read_text())
    for key in ("dataset", "ngram"):
        path.write_text(json.dumps({name: value for name, value in facts.items() if name != key}))
        with pytest.raises(DataError, match="not a report of this version"):
            make(tuned, results=output)


def json_lines(path, places):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [rows[place]["text"] for place in places]


def test_no_place_of_the_machine_stands_in_a_card(trained):
    _, tuned, folder, _ = trained
    for text in (text_of(tuned), text_of(tuned, results=folder)):
        assert str(tuned.parent) not in text
        assert not re.search(r"(?<![\w:/.\\<])[/~]\w", text)


def record(folder, settings, **facts):
    (folder / "run.json").write_text(
        json.dumps({"status": "finished", "recipe": settings.dump(), "seconds": 1.0, "log": []} | facts)
    )
    return folder


def test_ids_of_the_hub_are_told_and_paths_are_names(export_of):
    settings = FinetuneSettings.read(
        None,
        {
            "model": "runs/alice/pre",
            "data": "org/pairs:en:train",
            "corpus": "/home/alice/My Data/corpus.jsonl",
            "dev_data": "../beir/scifact",
            "teacher": "cross-encoder/ms-marco-MiniLM-L-6-v2",
            "pooling_options": {
                "files": ["C:\\Users\\alice\\x.json", "/home/alice s/y"],
                "url": "https://alice:pw@x.org/a/b",
            },
        },
    )
    before = {
        "status": "finished",
        "seconds": 1.0,
        "recipe": {"command": "pretrain", "base": "google-bert/bert-base-uncased", "corpus": ["org/text"]},
        "base": {"id": "google-bert/bert-base-uncased"},
        "datasets": ["org/text"],
    }
    notes = ["12 rows of /home/alice/My Data/corpus.jsonl are empty", "see ~/a.txt or /srv/b.txt."]
    facts = {
        "base": {"fingerprint": "0"},
        "datasets": ["org/pairs"],
        "before": [before],
        "data": {"queries": 1, "pairs": 1, "negatives": 0, "fingerprint": "f" * 64, "notes": notes},
    }
    model = record(export_of(), settings, **facts)
    data, text = front_matter(model), text_of(model)
    assert data["base_model"] == ["google-bert/bert-base-uncased"]
    assert data["datasets"] == ["org/text", "org/pairs"]
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe["model"] == "pre"
    assert recipe["data"] == "org/pairs:en:train"
    assert recipe["corpus"] == "corpus.jsonl"
    assert recipe["dev_data"] == "scifact"
    assert recipe["teacher"] == "cross-encoder/ms-marco-MiniLM-L-6-v2"
    assert recipe["pooling_options"] == {"files": ["x.json", "y"], "url": "https://x.org/a/b"}
    assert "12 rows of corpus.jsonl are empty" in text
    assert "see a.txt or b.txt." in text
    assert "alice" not in text


def test_several_tasks_episodes_and_a_teacher_are_told(export_of):
    tasks = [{"name": "qa", "data": "/data/nq"}, {"name": "facts", "data": "mined.parquet"}]
    chosen = {"model": "a", "tasks": tasks, "balancer": "taco", "episodes": 3, "first_negatives": "bm25s"}
    chosen |= {"teacher": "org/teacher", "losses": {"kl": 1.0}, "pooling": "nobody-has-it"}
    counts = {"queries": 1200, "pairs": 2, "negatives": 3, "fingerprint": "f" * 64, "notes": ["a note"]}
    mined = {"mined": {"model": {"name": "bm25s"}, "teacher": {"name": "/models/judge"}}}
    model = record(
        export_of(prompts={"qa": "q: ", "facts": "f: "}),
        FinetuneSettings.read(None, chosen),
        base={"id": "org/base"},
        data={"qa": counts, "facts": counts | mined},
        dev={"qa": {"queries": 7, "fingerprint": "0", "sharing_answers": 2}, "facts": None},
        lossy=["The words are left out."],
    )
    text = text_of(model)
    for line in (
        "- Balancer: **taco**, each parameter follows the tasks that it matters to ([source](",
        "- Pooling: **nobody-has-it**\n",
        "- Data: qa: nq: 1,200 queries, 2 relevant pairs, 3 negatives, fingerprint ",
        "; stopped by 7 held-out queries",
        "fingerprint ffffffffffff; negatives mined by bm25s and judge\n",
        "- Data: negatives mined by the model itself (first by bm25s) in 3 episodes, as in ANCE",
        "- Data: scores of the teacher org/teacher\n",
        "- Note: a note\n",
        "- Note: 2 of the 7 held-out queries share an answer with a training query, so their scores are "
        "too optimistic.",
        "- The words are left out. The model as trained, with code of its own, is in `exact/` of ",
        "@article{zhang-etal-2023-improving,",
    ):
        assert line in text
    assert {"taco", "kl"} & set(front_matter(model)["tags"]) == {"taco"}


def test_a_mean_of_models_names_them(export_of):
    model = export_of()
    assert "The folder has no record of how the model was trained." in text_of(model)
    merged = [{"source": "/runs/a", "weight": 0.25}, {"source": "b", "weight": 0.75}]
    write_json(model / "merge.json", {"merged": merged})
    assert "the weighted mean of 2 models:\na (0.25), b (0.75)." in text_of(model)
    write_json(model / "merge.json", {"merged": [{"source": "~~~", "weight": 1.0}]})
    assert "\n~~~" not in text_of(model), "a block of code would begin there"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("~/x/y", "y"),
        ("at:/data/y and //server/y, file:/data/y", "at:y and y, file:y"),
        ("./y", "y"),
        ("file:///home/x/y", "y"),
        ("file://host/x", "x"),
        ("\\\\server\\share\\x", "x"),
        ("C:/x/y", "y"),
        ("read (/data/x) and '/data/y'", "read (x) and 'y'"),
        ("and/or, 1/2, https://x.org/a/b, org/name", "and/or, 1/2, https://x.org/a/b, org/name"),
        ("hf_abcdefghijkl", "hf_…"),
        ("by AKIA" + "Z" * 16, "by …"),
        ("~5/10, / and ~al/x", "~5/10, / and x"),
        ("/a/b has 3 rows and/or /c/d has 4", "b has 3 rows and/or d has 4"),
    ],
)
def test_paths_and_secrets_are_taken_out_of_texts(text, seen):
    assert redact.shown({"key": [text]}, {}) == {"key": [seen]}


def test_what_stands_under_a_secrets_name_is_not_shown():
    options = {"api_key": "of few letters", "secret_share": 0.5, "query": "x"}
    assert redact.shown({"options": options}, {})["options"] == options | {"api_key": "…"}


def test_what_the_readme_that_is_there_says_counts_and_flags_win(export_of):
    model = export_of()
    (model / "README.md").write_text(
        "---\nlicense: other\nlicense_name: ours\nlanguage: en\ntags: [mine, stzoo]\nbase_model: a/b\n"
        "datasets: c/d\nthumbnail: x.png\nmetrics: [old]\npipeline_tag: other\ninference: null\n"
        "model-index: [{name: x, results: []}]\n---\nText that is made anew.\n"
    )
    data = front_matter(model)
    assert (data["license"], data["license_name"], data["language"]) == ("other", "ours", ["en"])
    assert data["tags"][-1] == "mine"
    assert data["tags"].count("stzoo") == 1
    assert (data["base_model"], data["datasets"], data["thumbnail"]) == (["a/b"], ["c/d"], "x.png")
    assert data["pipeline_tag"] == "sentence-similarity"
    assert not {"metrics", "model-index", "inference"} & data.keys()
    with collect_notes() as notes:
        text_of(model, license="mti")
    assert notes == ["the Hub lists no licence 'mti'; did you mean 'mit'?"]
    text = text_of(model, license="mit", language=["de", "fr"])
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["language"]) == ("mit", ["de", "fr"])
    assert "license_name" not in data
    assert "made anew" not in text


# what YAML 1.1, or 1.2, takes for something else than a text when it is not quoted
WORDS = "no on y NO true 1e3 1.5e3 1_000 0o17 0x1f 1:30 2024-01-02 2024-13-45 .inf".split()  # noqa: SIM905


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_yaml_takes_for_something_else_stays_a_word(export_of, word):
    model = export_of()
    (model / "README.md").write_text(
        f"---\nlanguage: no\ntags: [{word}]\nlicense_name: {word}\nextra: 1.5\n---\n"
    )
    text = text_of(model)
    data = ModelCard(text).data
    assert data.language == ["no"]
    assert data.tags[-1] == word
    assert (data.license_name, data.extra) == (word, 1.5)
    front = text.split("---\n")[1]
    assert f"- '{word}'\n" in front
    assert f"license_name: '{word}'\n" in front
    (model / "README.md").write_text(text)
    assert text_of(model) == text


def test_norwegian_beside_other_languages_is_kept(export_of):
    model = export_of()
    (model / "README.md").write_text("---\nlanguage: [en, no]\nlicense: null\n---\n")
    assert ModelCard(text_of(model)).data.language == ["en", "no"]
    assert ModelCard(stzoo.card(model, language="no")).data.language == ["no"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"license": "Apache 2.0"}, "the license is 'Apache 2.0'; expected"),
        ({"language": "English"}, "the language is 'English'; expected"),
        ({"repo_id": "a/b/c"}, "repo_id is 'a/b/c': expected ORG/NAME (Repo id must"),
        ({"repo_id": 'x"); import os #'}, "expected ORG/NAME (Repo id must"),
        ({"repo_id": "tiny"}, "it has no owner"),
    ],
)
def test_a_field_that_the_hub_refuses_is_refused(export_of, given, told):
    with pytest.raises(RecipeError, match=re.escape(told)):
        stzoo.card(export_of(), **given)


@pytest.mark.parametrize("matter", ["a: [", "- a\n- b", "license: 3", "tags: {a: b}", "base_model: [{a: 1}]"])
def test_a_front_matter_that_does_not_hold_is_refused(export_of, matter):
    model = export_of()
    (model / "README.md").write_text(f"---\n{matter}\n---\n")
    with pytest.raises((DataError, RecipeError)):
        make(model)


def test_a_folder_that_is_no_export_is_refused_and_nothing_is_written(base, export_of, tmp_path):
    for folder in (base, tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match=r"is not a model|there is no folder"):
            make(folder)
    model = export_of()
    for file, text in (("modules.json", "[]"), ("modules.json", "{"), ("run.json", "[1]"), ("run.json", "{")):
        broken = shutil.copytree(model, tmp_path / "broken", dirs_exist_ok=True)
        (broken / file).write_text(text)
        with pytest.raises(ModelError):
            make(broken)
    done = cli("card", base, "--output", tmp_path / "card.md")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "is not a model" in done.stderr
    assert not (tmp_path / "card.md").exists()


def test_a_card_is_printed_or_written_whole_and_replaces_nothing_unasked(export_of, tmp_path):
    model = export_of()
    text = stzoo.card(model, output=tmp_path / "card.md", license="mit")
    assert (tmp_path / "card.md").read_text() == text
    with pytest.raises(OutputError, match="--overwrite"):
        stzoo.card(model, output=tmp_path / "card.md")
    assert stzoo.card(model, output=tmp_path / "card.md", overwrite=True) != text
    done = cli("card", model, "--license", "mit", "--json")
    assert json.loads(done.stdout) == ModelCard(text).data.to_dict()
    assert (model / "README.md").read_text() == text_of(model)


# settings refuse a NUL
TEXTS = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=30) | st.sampled_from(
    [
        "a\n---\nb",
        "```",
        "`|`",
        "x\n\n# y",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "null",
        "~",
        "\u2028|",
        "\x85",
        "\ud800",
    ]
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXTS, texts=st.lists(TEXTS, min_size=3, max_size=3), dataset=TEXTS)
def test_odd_texts_break_neither_front_matter_nor_tables(trained, name, texts, dataset):
    _, tuned, *_ = trained
    facts = {"queries": 1, "pairs": 1, "negatives": 0, "fingerprint": "f", "notes": texts}
    chosen = FinetuneSettings.read(None, {"model": texts[0], "data": texts[1], "loss_options": {name: texts}})
    odd = tuned.parent / "odd"
    shutil.rmtree(odd, ignore_errors=True)
    odd.mkdir()
    for file in ("modules.json", "1_Pooling/config.json"):
        (odd / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(tuned / file, odd / file)
    prompts = {"prompts": {name: texts[2]}, "similarity_fn_name": "dot"}
    (odd / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    record(odd, chosen, data=facts, base={"id": name}, datasets=texts)
    results = file_results(odd / "results", odd, ["small"])
    (file,) = (path for path in results.rglob("small.json"))
    stored = json.loads(file.read_text())
    stored["task_name"] = dataset
    stored["splits"]["test"]["notes"] = texts
    file.write_text(json.dumps(stored))
    text = text_of(odd, results=results, name=name)
    data = ModelCard(text).data  # make() has compared all of it with what was meant
    assert {one.metric_value for one in data.eval_results} == {0.625}
    lines = text.split("\n")
    head = lines.index(
        "| Data set | Split | Suites | Queries | nDCG@10 | 95 % interval | MRR@10 | Recall@100 |"
    )
    for line in lines[head + 1 : head + 3]:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 9
    assert lines[head + 3] == ""
    assert [line for line in lines if line.startswith("## ")][-3:] == [
        "## Limits",
        "## Citation",
        "## Licence",
    ]
    fence = re.findall(r"^(`{3,})yaml\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    shown, given = yaml.safe_load(fence[0][1]).keys(), chosen.dump()
    assert shown == with_effect(given, {}).keys() - {"schema_version"}
