"""Checkpoints in their published form, made with tiny random weights, give their authors' vectors."""

import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from support.helpers import cli
from support.hub_server import Fault, HubServer, Repo
from support.published import published, store
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

import stzoo
from stzoo import ModelError, OutputError, RecipeError, UnknownNameError
from stzoo.errors import PublishError
from stzoo.hub.importers import encoder
from stzoo.hub.publish import publish
from stzoo.hub.published import Published
from stzoo.plugins import manager
from stzoo.testing import sentences, tiny_tokenizer
from stzoo.utils.files import write_json

BGE = "Represent this sentence for searching relevant passages: "
TEXTS = ["wing lift", "", *sentences(4), " ".join(sentences(40))]  # the last is cut everywhere
OURS = ("stzoo.hub.importers:encoder", "stzoo.hub.importers:behind_title")
ROWS = {name: row for name, row in manager.all("checkpoint").items() if row.importer in OURS}
# What the authors do, by their code and cards: is a vector's length 1, query prompt, most tokens of a passage
DOT, UNIT = (False, ""), (True, "")
AUTHORS = {
    "Shitao/RetroMAE": (*DOT, 512),
    "Shitao/RetroMAE_MSMARCO": (*DOT, 150),
    "Shitao/RetroMAE_MSMARCO_finetune": (*DOT, 140),
    "Shitao/RetroMAE_MSMARCO_distill": (*DOT, 140),
    "Shitao/RetroMAE_BEIR": (*DOT, 144),
    "BAAI/bge-small-en-v1.5": (True, BGE, 512),
    "BAAI/bge-base-en-v1.5": (True, BGE, 512),
    "BAAI/bge-large-en-v1.5": (True, BGE, 512),
    "Luyu/condenser": (*DOT, 512),
    "Luyu/co-condenser-wiki": (*DOT, 512),
    "Luyu/co-condenser-marco": (*DOT, 512),
    "Luyu/co-condenser-marco-retriever": (*DOT, 128),
    "intfloat/simlm-base-msmarco": (*UNIT, 144),
    "intfloat/simlm-base-wiki100w": (*UNIT, 144),
    "intfloat/simlm-base-msmarco-finetuned": (*UNIT, 144),
    "caskcsg/cotmae_base_uncased": (*DOT, 128),
    "caskcsg/cotmae_base_msmarco_retriever": (*DOT, 128),
}
TUNED = ("finetune", "distill", "BEIR", "bge", "retriever")  # kept without an MLM head


@pytest.fixture(scope="module")
def retromae(tmp_path_factory):
    return published(tmp_path_factory.mktemp("published") / "retromae")


def original(folder, texts, most, *, pairs=False, unit=False):
    """The authors' forward pass, in transformers alone: [CLS] of the last layer."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    given = dict(padding=True, truncation=True, max_length=most, return_tensors="pt")
    read = tokenizer(["-"] * len(texts), text_pair=texts, **given) if pairs else tokenizer(texts, **given)
    with torch.no_grad():
        vectors = model(**read).last_hidden_state[:, 0]
    return (torch.nn.functional.normalize(vectors, dim=-1) if unit else vectors).numpy()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_authors_use_of_every_checkpoint_is_known():
    assert {row.hub_id for row in ROWS.values()} == set(AUTHORS)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("unverified")
def test_a_published_checkpoint_gives_its_authors_vectors(name, tmp_path):
    row = ROWS[name]
    unit, prompt, most = AUTHORS[row.hub_id]
    segments = row.hub_id == "intfloat/simlm-base-msmarco-finetuned"
    tuned = any(word in row.hub_id for word in TUNED)
    source = published(tmp_path / "source", head=not tuned, safe="bge" in name or segments)
    model = SentenceTransformer(str(stzoo.import_checkpoint(source, output=tmp_path / "out", like=name)))
    queries = original(source, [prompt + text for text in TEXTS], 32 if segments else most, unit=unit)
    passages = original(source, TEXTS, most, pairs=segments, unit=unit)
    np.testing.assert_allclose(model.encode_query(TEXTS), queries, atol=1e-6, rtol=0)
    np.testing.assert_allclose(model.encode_document(TEXTS), passages, atol=1e-6, rtol=0)
    assert model.similarity_fn_name == ("cosine" if unit else "dot")
    assert model.prompts["query"] == prompt
    longer = original(source, TEXTS[-1:], most + 1 if most < 512 else 400, pairs=segments, unit=unit)
    assert np.abs(longer - passages[-1:]).max() > 1e-3  # the length is one that can be told
    if segments:
        with pytest.raises(ValueError, match=r"query.*document"):  # neither is guessed
            model.encode("wing lift")


@pytest.mark.usefixtures("unverified")
def test_the_mlm_head_stays_and_pre_training_goes_on_from_it(retromae, tmp_path):
    out = stzoo.import_checkpoint(retromae, output=tmp_path / "out", like="retromae-base.msmarco")
    read = AutoTokenizer.from_pretrained(retromae)(TEXTS[2:4], return_tensors="pt", padding=True)
    with torch.no_grad():
        ours, theirs = (
            AutoModelForMaskedLM.from_pretrained(f).eval()(**read).logits for f in (out, retromae)
        )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert left(out).count("pytorch_model.bin") == 0


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.usefixtures("unverified")
def test_weights_in_several_files_are_one_model(retromae, tmp_path, safe):
    source = published(tmp_path / "source", safe=safe)
    whole = "model.safetensors" if safe else "pytorch_model.bin"
    tensors = load_file(source / whole) if safe else torch.load(source / whole, weights_only=True)
    (source / whole).unlink()
    stem, end = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    names, places = sorted(tensors), {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.{end}"
        store(source, {name: tensors[name] for name in some}, safe=safe)
        (source / whole).rename(source / file)
        places |= dict.fromkeys(some, file)
    (source / f"{whole}.index.json").write_text(json.dumps({"weight_map": places}))
    out = stzoo.import_checkpoint(source, output=tmp_path / "out", like="retromae-base.wikibook")
    model = SentenceTransformer(str(out))
    np.testing.assert_allclose(model.encode(TEXTS), original(retromae, TEXTS, 512), atol=1e-6, rtol=0)
    assert {f"{whole}.index.json", *places.values()} <= set(record(out)["files"])


def record(folder):
    return json.loads((folder / "import.json").read_text())["imported"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process takes for the Hub; its cache, cache/, is empty."""
    server = HubServer()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    server.stand_in(monkeypatch, HF_HUB_CACHE=str(tmp_path / "cache"))
    yield server
    server.close()


def put(hub, hub_id, folder, commit=None, **more):
    """Puts a folder's files into a repository, as the head of main or as that commit, which is returned."""
    repo = hub.repos.setdefault(hub_id, Repo())
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | more
    if commit is None:
        return repo.commit(files)
    repo[commit] = files
    return commit


TUNED_ID = "Shitao/RetroMAE_MSMARCO_finetune"


@pytest.mark.usefixtures("unverified")
def test_a_checkpoint_comes_from_the_hub_and_then_without_it_from_the_cache(hub, tmp_path, monkeypatch):
    source = published(tmp_path / "source", head=False)
    commit = put(hub, TUNED_ID, source, **{"modeling.py": b"raise SystemExit", "README.md": b"theirs"})
    cold = stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "cold")
    assert {path.split("/")[-1] for path in hub.asked("GET") if "/resolve/" in path} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "pytorch_model.bin")
    }
    assert all(TUNED_ID in path for path in hub.asked("GET") if "agent-harnesses" not in path)
    found = record(cold)
    assert (found["checkpoint"], found["hub_id"]) == ("retromae-base.msmarco-finetune", TUNED_ID)
    assert (found["commit"], found["license"]) == (commit, "")
    sums = {
        name: hashlib.sha256((source / name).read_bytes()).hexdigest()
        for name in ("config.json", "pytorch_model.bin")
    }
    assert sums.items() <= found["files"].items()
    assert {"measure": "MRR@10", "value": 0.393}.items() <= found["expected"][0].items()
    assert str(tmp_path) not in (cold / "import.json").read_text()
    model = SentenceTransformer(str(cold))
    np.testing.assert_allclose(model.encode(TEXTS), original(source, TEXTS, 140), atol=1e-6, rtol=0)

    hub.close()
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = cli("import", TUNED_ID, "--output", tmp_path / "later", env=env | {"HF_HUB_OFFLINE": "0"})
    assert done.returncode == 0, done.stderr  # exported with its check
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "offline")
    for folder in (tmp_path / "later", offline):
        for name in ("import.json", "model.safetensors"):
            assert (folder / name).read_bytes() == (cold / name).read_bytes()


@pytest.mark.usefixtures("unverified")
def test_the_commit_that_the_checkpoint_names_is_imported_whatever_main_has_now(hub, tmp_path):
    row = ROWS["bge-small.en-v1-5"]
    named, later = (published(tmp_path / str(n), head=False, safe=True, seed=n) for n in range(2))
    put(hub, row.hub_id, named, row.revision, **{"pytorch_model.bin": b"what nobody needs"})
    put(hub, row.hub_id, later)
    out = stzoo.import_checkpoint(row.name, output=tmp_path / "out")
    ours = SentenceTransformer(str(out)).encode(TEXTS, prompt="")
    np.testing.assert_allclose(ours, original(named, TEXTS, 512, unit=True), atol=1e-6, rtol=0)
    assert (record(out)["commit"], record(out)["license"]) == (row.revision, "mit")
    assert all(row.revision in path for _, path in hub.log if row.hub_id in path)
    assert not any(path.endswith(".bin") for _, path in hub.log)


@pytest.mark.usefixtures("unverified")
def test_what_the_base_stands_in_with_comes_from_the_hub_with_its_commit(hub, tmp_path):
    base, source = published(tmp_path / "base"), published(tmp_path / "source", seed=1)
    for file in source.glob("tokenizer*"):
        file.unlink()
    put(hub, TUNED_ID.removesuffix("_finetune"), source)
    commit = put(hub, "google-bert/bert-base-uncased", base)
    out = stzoo.import_checkpoint("retromae-base.msmarco", output=tmp_path / "out")
    assert record(out)["base"] == {"hub_id": "google-bert/bert-base-uncased", "commit": commit}
    assert not any("bert-base-uncased" in path and "pytorch_model" in path for _, path in hub.log)


def card_of(folder):
    card = ModelCard((folder / "README.md").read_text())
    return card.data.to_dict(), card.text


@pytest.mark.usefixtures("unverified")
def test_the_card_of_an_imported_model_says_which_checkpoint_it_is(hub, tmp_path):
    row = ROWS["bge-small.en-v1-5"]
    put(hub, row.hub_id, published(tmp_path / "source", head=False, safe=True), row.revision)
    out = stzoo.import_checkpoint(row.name, output=tmp_path / "out")
    data, text = card_of(out)
    assert (data["base_model"], data["license"]) == ([row.hub_id], "mit")
    assert "model-index" not in data
    assert "eval_results" not in data
    at = f"https://huggingface.co/{row.hub_id}"
    for line in (
        f"It is the published checkpoint [{row.hub_id}]({at}).",
        "Its modules: Transformer, Pooling (cls), Normalize.",
        "A text is truncated to 512 tokens.",
        f"` 'query' `: ` {BGE!r} `",
        f"- Checkpoint: **{row.name}**, {row.summary} ([source]({row.source}))",
        f"- From: [{row.hub_id}]({at}) at commit [{row.revision[:12]}]({at}/tree/{row.revision})",
        "- Licence: mit\n",
        "published (not measured here):\n  nDCG@10 0.5168 on MTEB's 15 English retrieval sets (",
        "eprint = {2309.07597}",
        "## Licence\n\nmit.\n",
    ):
        assert line in text
    assert "Nothing in the folder says" not in text
    assert stzoo.card(out) == (out / "README.md").read_text()


@pytest.mark.usefixtures("unverified")
def test_a_model_trained_from_a_checkpoint_names_it_and_claims_neither_its_licence_nor_its_scores(
    hub, judged, tmp_path
):
    row = ROWS["bge-small.en-v1-5"]
    put(hub, row.hub_id, published(tmp_path / "source", head=False, safe=True), row.revision)
    base = stzoo.import_checkpoint(row.name, output=tmp_path / "base")
    for step in (1, 2):  # the second one knows of the checkpoint by the first one's record
        given = dict(data=str(judged), batch_size=8, max_steps=1, dev_split=None)
        base = stzoo.finetune(str(base), output=tmp_path / f"tuned {step}", **given)
        data, text = card_of(base)
        assert data["base_model"] == [row.hub_id]
        assert not {"license", "model-index", "eval_results"} & data.keys()
        for line in (
            f"It was trained from the published checkpoint [{row.hub_id}](https://huggingface.co/{row.hub_id}).",
            "- Licence: mit\n",
            "before the training below (not measured here):\n  nDCG@10 0.5168 on MTEB's 15",
            "- From: base, the checkpoint above\n",
            "No licence is stated. Those of its base model and of its data may apply.",
            "xiao-etal-2023-c-pack",
        ):
            assert line in text
        assert text.count("the checkpoint above") == 1


@pytest.mark.usefixtures("unverified")
def test_a_checkpoint_without_a_known_licence_is_published_only_with_one(hub, tmp_path):
    put(hub, TUNED_ID, published(tmp_path / "source", head=False))
    out = stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "out")
    data, text = card_of(out)
    assert "license" not in data
    assert "- Licence: unknown; ask its authors\n" in text
    assert "No licence is stated. Ask the checkpoint's authors." in text
    assert "its authors truncate them to 32 tokens; here they have the limit of passages" in text
    with pytest.raises(PublishError, match=r"has no licence.*--license"):
        publish(out, "lab/tiny", dry_run=True)
    said = []
    publish(out, "lab/tiny", license="mit", dry_run=True, say=said.append)
    assert "Licence: mit" in said[0]


@pytest.mark.usefixtures("unverified")
def test_of_a_folder_neither_licence_nor_scores_are_claimed(retromae, tmp_path):
    out = stzoo.import_checkpoint(retromae, output=tmp_path / "out", like="bge-small.en-v1-5")
    data, text = card_of(out)
    assert not {"license", "base_model"} & data.keys()
    assert "whose weights may differ from the published ones" in text
    assert "0.5168" not in text
    like = "simlm-base.msmarco-finetune"
    _, routed = card_of(stzoo.import_checkpoint(retromae, output=tmp_path / "routed", like=like))
    assert "A query is truncated to 32 tokens.\nA document is truncated to 144 tokens." in routed
    assert "Its modules: Router (query: Transformer, Pooling (cls), Normalize; document: Tra" in routed
    assert "vectors of 32 numbers" in routed
    assert "its authors cut them" not in routed
    for damage in ({"source": "x) [y](z"}, {"expected": [{}]}, {"license": None, "options": 3}):
        write_json(out / "import.json", {"imported": record(out) | damage})
        with pytest.raises(ModelError, match=r"import\.json is not a valid record of an import"):
            stzoo.card(out)


def gated(status):
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Visit https://hub.example to ask for access."}
    return Fault("/resolve/", status=status, headers=headers, times=9)


HIDDEN = {"X-Error-Code": "RepoNotFound"}
REFUSALS = {
    "gone": (
        None,
        r"Not found, or your token cannot read it \(HTTP 404 while .*: Repository not found",
    ),
    "hidden": (
        Fault("GET /api/models", status=401, headers=HIDDEN),
        r"Not found, or .* \(HTTP 401 while ",
    ),
    "gated": (
        gated(403),
        r"no permission for this \(HTTP 403 while .*: Visit https://hub\.example to ask for access",
    ),
    "gated for strangers": (gated(401), r"There is no token, or it is invalid; run `hf auth login`"),
    "another token": (Fault("GET /api/models", status=401), r"There is no token, or it is invalid"),
    "too often": (
        Fault("GET /api/models", status=429, headers={"Retry-After": "7"}),
        "Too many requests; try again in 7 seconds",
    ),
    "out of order": (
        Fault("GET /api/models", status=500),
        r"internal error; try again later \(HTTP 500 while ",
    ),
    "cut": (
        Fault("GET /api/models", cut="asked", times=3),
        "http://127.0.0.1:.* connection broke, while .* did not answer 3 times in a row: Server disconn",
    ),
    "broken off": (None, "http://127.0.0.1:.* connection broke, while .*: peer closed connection"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_the_hub_does_not_give_is_told_and_nothing_is_left(why, hub, retromae, tmp_path):
    fault, told = REFUSALS[why]
    if why != "gone":
        put(hub, TUNED_ID, retromae)
    hub.faults += [fault] if fault else []
    hub.stops |= {"pytorch_model.bin": None} if why == "broken off" else {}
    with pytest.raises(ModelError, match=rf"{told}"):
        stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "out")
    assert left(tmp_path) in ([], ["cache"])


def test_a_commit_that_is_gone_is_told(hub, retromae, tmp_path):
    row = ROWS["bge-small.en-v1-5"]
    put(hub, row.hub_id, retromae)
    with pytest.raises(
        ModelError, match=f"HTTP 404 while .* files of {row.hub_id} at {row.revision}: Invalid rev id"
    ):
        stzoo.import_checkpoint(row.name, output=tmp_path / "out")
    assert left(tmp_path) in ([], ["cache"])


def test_half_a_cache_without_a_network_is_no_model(hub, retromae, tmp_path, monkeypatch):
    put(hub, TUNED_ID, retromae)
    hub.faults.append(Fault("pytorch_model.bin", status=403))
    with pytest.raises(ModelError, match="no permission"):
        stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=f"HF_HUB_OFFLINE is set.*files of {TUNED_ID} at"):
        stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
    assert stzoo.import_checkpoint(TUNED_ID, output=tmp_path / "out") == tmp_path / "out"


def test_a_hub_that_is_not_there_is_one_sentence_and_exit_code_2(hub, tmp_path):
    hub.close()
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    done = cli("import", TUNED_ID, "--output", tmp_path / "out", env=env)
    assert (done.returncode, done.stdout) == (2, "")
    *retries, line = done.stderr.splitlines()
    assert all("Retrying" in one for one in retries)
    assert line.startswith(
        f"stzoo: {hub.url} cannot be reached, or the connection broke, while downloading the files of "
    )
    assert left(tmp_path) in ([], ["cache"])


def test_a_tokenizer_that_is_not_there_is_the_bases(tmp_path):
    base, source = published(tmp_path / "base"), published(tmp_path / "source", seed=1)
    for file in source.glob("tokenizer*"):
        file.unlink()
    row = replace(ROWS["retromae-base.wikibook"], base=str(base))
    model = encoder(Published(source, row)).model
    AutoTokenizer.from_pretrained(base).save_pretrained(source)
    np.testing.assert_allclose(model.encode(TEXTS), original(source, TEXTS, 512), atol=1e-6, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["apoptosiswing"])
    tokenizer.save_pretrained(source)
    with pytest.raises(ModelError, match="use the model's own tokenizer"):
        encoder(Published(source, row))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no configuration or no fast tokenizer"):
        encoder(Published(tmp_path / "empty", replace(row, base="")))


@pytest.mark.usefixtures("unverified")
def test_poolers_may_be_there_or_not_as_no_vector_is_made_of_them(tmp_path):
    for name, given in {
        "head and pooler": {"bert.pooler.dense.weight": torch.ones(32, 32)},
        "neither": {"head": False, "pooler.dense.weight": None, "pooler.dense.bias": None},
    }.items():
        source = published(tmp_path / name, **given)
        out = stzoo.import_checkpoint(
            source, output=tmp_path / f"{name}, imported", like="retromae-base.msmarco"
        )
        assert not any("pooler" in tensor for tensor in load_file(out / "model.safetensors"))
        ours = SentenceTransformer(str(out)).encode(TEXTS)
        np.testing.assert_allclose(ours, original(source, TEXTS, 150), atol=1e-6, rtol=0)


QKV = "bert.encoder.layer.0.attention.self.query.weight"
FAULTS = {
    "a weight is missing": (dict.fromkeys([QKV]), f"Missing: {QKV}\\.$"),
    "a weight too many": (
        {"c_head.0.dense.weight": torch.ones(2)},
        r"Unexpected: c_head\.0\.dense\.weight\.$",
    ),
    "another shape": (
        {QKV: torch.ones(3, 32)},
        r"Of another shape: .*query\.weight \[3, 32\], not \[32, 32\]",
    ),
    "untied": (
        {"cls.predictions.decoder.weight": torch.zeros(len(tiny_tokenizer("bert")), 32)},
        "different values for tensors that the model ties",
    ),
    "not a number": ({QKV: torch.full((32, 32), torch.nan)}, "or NaN"),
    "no tensor": ({"epoch": 3}, "expected tensors by name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_refused_and_named(fault, tmp_path):
    changes, told = FAULTS[fault]
    source = published(tmp_path / "source", **changes)
    with pytest.raises(ModelError, match=told):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like="retromae-base.msmarco")
    assert left(tmp_path) == ["source"]


class Touch:
    """What a pickle runs when it is opened in full."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path):
    source = published(tmp_path / "source")
    torch.save({"weight": torch.ones(2), "more": Touch(tmp_path / "touched")}, source / "pytorch_model.bin")
    done = cli("import", source, "--like", "retromae-base.msmarco", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("stzoo:"))
    assert "pytorch_model.bin is refused" in line
    assert "system" in line
    assert left(tmp_path) == ["source"]


def test_a_damaged_file_is_refused(tmp_path):
    source = published(tmp_path / "source", safe=True)
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like="retromae-base.msmarco")
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights; expected model\.safetensors or pytorch"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like="retromae-base.msmarco")
    (source / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        stzoo.import_checkpoint(source, output=tmp_path / "out", like="retromae-base.msmarco")
    assert left(tmp_path) == ["source"]


def test_weights_with_too_few_positions_are_refused(base, tmp_path):
    with pytest.raises(ModelError, match="reads 150 tokens, but these weights have only 64 positions"):
        stzoo.import_checkpoint(base, output=tmp_path / "out", like="retromae-base.msmarco")


@pytest.mark.parametrize(
    ("given", "like", "kind", "told"),
    [
        ("retromae-base.msmarc", None, UnknownNameError, "did you mean 'retromae-base.msmarco'"),
        (
            "Shitao/RetroMAE_MSMARC",
            None,
            UnknownNameError,
            "did you mean 'Shitao/RetroMAE_MSMARCO'.*FOLDER --like NAME",
        ),
        ("FOLDER", None, RecipeError, "do not tell how it was trained.*--like NAME"),
        ("FOLDER", "retromae", UnknownNameError, "no checkpoint 'retromae'"),
        ("Shitao/RetroMAE", "retromae-base.msmarco", RecipeError, "--like is for folders"),
        ("FOLDER/config.json", None, ModelError, "is a file"),
        ("master-base.msmarco-finetune", None, ModelError, "FOLDER --like master-base.msmarco-finetune"),
        ("caskcsg/cotmae_base_uncased", None, ModelError, "HF_HUB_OFFLINE is set.*_uncased at main"),
    ],
)
def test_what_is_no_checkpoint_is_told(given, like, kind, told, retromae, tmp_path):
    with pytest.raises(kind, match=told):
        stzoo.import_checkpoint(given.replace("FOLDER", str(retromae)), output=tmp_path / "out", like=like)
    assert left(tmp_path) == []


def test_an_option_that_the_importer_lacks_is_told(retromae, tmp_path):
    with pytest.raises(RecipeError, match=r"checkpoint 'retromae-base\.msmarco' has no option 'rescale_t5'"):
        stzoo.import_checkpoint(
            retromae, output=tmp_path / "out", like="retromae-base.msmarco", options={"rescale_t5": True}
        )


@pytest.mark.usefixtures("unverified")
def test_what_is_there_is_replaced_only_if_asked(retromae, tmp_path):
    given = dict(output=tmp_path / "out", like="retromae-base.msmarco")
    first = stzoo.import_checkpoint(retromae, **given)
    with pytest.raises(OutputError, match="exists already"):
        stzoo.import_checkpoint(retromae, **given)
    (first / "modules.json").write_text("{")
    stzoo.import_checkpoint(retromae, overwrite=True, **given)
    assert json.loads((first / "modules.json").read_text())
    (first / "notes.md").touch()
    with pytest.raises(OutputError, match=r"does not replace: notes\.md"):
        stzoo.import_checkpoint(retromae, overwrite=True, **given)


def test_the_list_of_checkpoints_tells_how_each_was_trained():
    rows = {row["name"]: row for row in json.loads(cli("list", "checkpoints", "--json").stdout)}
    assert set(rows) == set(manager.all("checkpoint"))
    row = rows["bge-base.en-v1-5"]
    assert (row["hub_id"], row["license"], row["pooling"]) == ("BAAI/bge-base-en-v1.5", "mit", "cls")
    assert row["prompts"]["query"] == BGE
    assert row["expected"][0][1:3] == ["nDCG@10", 0.5325]
