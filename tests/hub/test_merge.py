"""Model soups: the mean to the bit, of models and of what runs really write; what is refused, and why."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from support.helpers import cli
from tokenizers.normalizers import BertNormalizer
from transformers import AutoModelForMaskedLM

import stzoo
from stzoo.errors import ModelError, OutputError, RecipeError
from stzoo.hub.export import export
from stzoo.hub.merge import average, normalised
from stzoo.hub.merge.compatibility import tensors
from stzoo.hub.merge.sources import find
from stzoo.models import lora
from stzoo.testing import TEXTS, tiny_masked_lm, tiny_tokenizer
from stzoo.training.checkpoints import seal

WORDS = 8


def made(*sources, weights=None):
    """The merged model, without an export."""
    found = find(sources)
    return average(found, normalised(weights, found))


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """Gives a folder with a model of these word vectors, whose embedding is their mean: linear in them."""
    root, words = tmp_path_factory.mktemp("static"), tiny_tokenizer("bert").backend_tokenizer

    def write(*tables):
        for number, table in enumerate(tables):
            folder = root / str(number)
            if not folder.exists():
                module = StaticEmbedding(words, embedding_dim=WORDS)
                export(SentenceTransformer(modules=[module], device="cpu"), folder, verify=False)
            (file,) = folder.rglob("model.safetensors")
            size = load_file(file)["embedding.weight"].shape[0]
            whole = torch.from_numpy(np.resize(table, (size, WORDS)))
            save_file({"embedding.weight": whole}, file)
        return [root / str(number) for number in range(len(tables))]

    return write


table = arrays(np.float32, (5, WORDS), elements=st.floats(-1e3, 1e3, width=32))
several = st.lists(st.tuples(table, st.floats(1e-3, 1e3)), min_size=1, max_size=4)
examples = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vectors(model):
    return model[0].embedding.weight.detach()


@examples
@given(table, st.floats(1e-3, 1e3))
def test_one_model_merged_is_itself_to_the_bit(static, table, weight):
    (folder,) = static(table)
    alone = vectors(SentenceTransformer(str(folder), device="cpu"))
    assert torch.equal(vectors(made(folder, weights=[weight])[0]), alone)
    assert torch.equal(vectors(made(folder, folder, folder)[0]), alone)


@examples
@given(several)
def test_the_average_is_the_mean_in_any_order(static, several):
    folders = static(*(table for table, _ in several))
    weights = [weight for _, weight in several]
    whole = [vectors(SentenceTransformer(str(folder), device="cpu")).double() for folder in folders]
    expected = sum(one * weight for one, weight in zip(whole, weights, strict=True)) / sum(weights)
    there = vectors(made(*folders, weights=weights)[0])
    back = vectors(made(*folders[::-1], weights=weights[::-1])[0])
    for found in (there, back):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=2e-7, atol=1e-9)


@examples
@given(table, table, st.floats(1e-3, 1))
def test_the_outputs_of_a_linear_model_average(static, one, other, share):
    folders = static(one, other)
    outputs = [SentenceTransformer(str(folder), device="cpu").encode(TEXTS) for folder in folders]
    found = made(*folders, weights=[share, 1 - share + 1e-9])[0].encode(TEXTS)
    np.testing.assert_allclose(found, share * outputs[0] + (1 - share) * outputs[1], atol=1e-3)


@pytest.fixture(scope="module")
def pretrained(base, corpus, tmp_path_factory):
    """A run with two checkpoints, whose export keeps the MLM head."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    short = dict(batch_size=8, max_steps=4, save_steps=2, keep_checkpoints=2, learning_rate=1e-3)
    return stzoo.pretrain(
        base=str(base), corpus=[str(corpus)], objective="retromae", output=out, device="cpu", **short
    )


@pytest.fixture(scope="module")
def adapted(base, judged, tmp_path_factory):
    """A run that trained adapters, with two checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "adapted"
    short = dict(batch_size=8, max_steps=4, save_steps=2, keep_checkpoints=2, learning_rate=1e-2)
    return stzoo.finetune(
        str(base),
        data=str(judged),
        dev_queries=0,
        lora_rank=4,
        lora_alpha=6.0,
        output=out,
        device="cpu",
        **short,
    )


def test_a_run_alone_is_the_mean_of_its_checkpoints_head_included(pretrained, tmp_path):
    done = cli("merge", pretrained, "--output", tmp_path / "soup", "--weights", "1,3")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "soup/merge.json").read_text())
    names = [str(pretrained / f"checkpoints/checkpoint-{step}") for step in (2, 4)]
    assert [(one["source"], one["weight"]) for one in facts["merged"]] == [(names[0], 0.25), (names[1], 0.75)]
    assert all(len(one["revision"]) == 12 for one in facts["merged"])
    assert facts["versions"].keys() > {"stzoo", "torch"}
    assert "0.75" in done.stdout
    stored = [load_file(f"{name}/state.safetensors") for name in names]
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "soup", output_loading_info=True)
    assert not report["missing_keys"]
    for name, weight in loaded.named_parameters():
        key = "backbone." + (f"model.0.model.{name[5:]}" if name.startswith("bert.") else f"masked_lm.{name}")
        expected = stored[0][key].double() * 0.25 + stored[1][key].double() * 0.75
        assert torch.equal(weight.detach(), expected.float()), name
    assert not (tmp_path / "soup/pretraining").exists()


@pytest.mark.parametrize("run", ["pretrained", "adapted"])
def test_the_last_checkpoint_is_the_model_that_its_run_made(run, request):
    """To the bit: so names are mapped right, and adapters are folded as the export folded them."""
    folder = request.getfixturevalue(run)
    checkpoint, model = made(folder / "checkpoints/checkpoint-4"), made(folder, folder)
    one, other = tensors(*checkpoint), tensors(*model)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = tensors(*made(folder / "checkpoints/checkpoint-2"))
    assert any(not torch.equal(one[name], before[name]) for name in one)
    (file,) = folder.glob("model.safetensors")
    stored = load_file(file)
    name = next(name for name in stored if name.endswith("layer.1.output.dense.weight"))
    assert torch.equal(one["0.model.encoder.layer.1.output.dense.weight"], stored[name])


def test_among_several_a_run_is_its_model(pretrained):
    assert [source.checkpoint for source in find([pretrained, pretrained])] == [None, None]
    assert [source.checkpoint.name for source in find([pretrained])] == ["checkpoint-2", "checkpoint-4"]


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """Gives the folder of a tiny model with something changed."""
    root, wide = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("wide")
    tiny_masked_lm("bert", wide, width=16)

    def write(name, change=None, *, source=base, modules=None, **more):
        torch.manual_seed(3)
        first = Transformer(str(wide if source == "wide" else source))
        behind = [Pooling(first.get_embedding_dimension()), *(modules or [])]
        model = SentenceTransformer(modules=[first, *behind], device="cpu", **more)
        if change is not None:
            change(model)
        if not (root / name).exists():
            export(model, root / name, verify=False)
        return root / name

    return write


def set_length(model):
    model.max_seq_length = 20


def keep_case(model):
    model.tokenizer.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)


def set_pooling(model):
    model[1] = Pooling(32, "cls")


def store_half(model):
    model.half()


OTHERS = {
    "another width": (dict(source="wide"), "hidden_size of the architecture is 32 in the first, 16"),
    "another module": (dict(modules=[Normalize()]), "modules is"),
    "another pooling": (dict(change=set_pooling), r"pooling_mode of module 1 \(Pooling\) is 'mean'"),
    "other prompts": (dict(prompts={"query": "q: "}), "prompts is"),
    "another similarity": (dict(similarity_fn_name="dot"), "similarity is 'cosine' in the first, 'dot'"),
    "another length": (dict(change=set_length), "max_seq_length is 64 in the first, 20"),
    "another tokenizer": (dict(change=keep_case), "tokenizer"),
    "another precision": (dict(change=store_half), "dtype of 0.model.* is 'float32' in the first, 'float16'"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_models_of_two_kinds_are_refused_with_what_differs(case, folder):
    change, words = OTHERS[case]
    one, other = folder("plain"), folder(case, **change)
    with pytest.raises(ModelError, match=words) as error:
        made(one, other)
    assert str(one) in str(error.value)
    assert str(other) in str(error.value)


def test_a_head_that_the_other_model_lacks_is_named(pretrained, folder):
    with pytest.raises(ModelError, match=r"cannot be merged.*masked_lm.* missing "):
        made(pretrained, pretrained, folder("headless", set_pooling))


def test_what_follows_the_encoder_is_averaged(folder, tmp_path):
    one = folder("dense", modules=[Dense(32, 8)])
    shutil.copytree(one, tmp_path / "other")
    (file,) = (tmp_path / "other").glob("2_Dense/*.safetensors")
    dense = load_file(file)
    save_file({name: weight + 1 for name, weight in dense.items()}, file)
    merged = made(one, tmp_path / "other")[0][2].linear
    torch.testing.assert_close(merged.weight.detach(), dense["linear.weight"] + 0.5, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(merged.bias.detach(), dense["linear.bias"] + 0.5, rtol=1e-6, atol=1e-7)


def broken(copy, kind):
    """Breaks a copied run in one way, and returns what to merge."""
    last = copy / "checkpoints/checkpoint-4"
    if kind == "no whole.json":
        (last / "whole.json").unlink()
    elif kind == "a cut file":
        (last / "state.safetensors").write_bytes((last / "state.safetensors").read_bytes()[:-64])
    elif kind == "unfinished":
        (copy / "modules.json").unlink()
    elif kind == "unfinished, alone":
        (copy / "modules.json").unlink()
        return [copy]
    elif kind == "no record":
        (copy / "run.json").write_text("{")
    elif kind == "other weights":
        stored = load_file(last / "state.safetensors")
        stored["model.0.model.new.weight"] = torch.zeros(1)
        save_file(stored, last / "state.safetensors")
        sizes = json.loads((last / "whole.json").read_text())
        sizes["state.safetensors"] = (last / "state.safetensors").stat().st_size
        (last / "whole.json").write_text(json.dumps(sizes))
    elif kind == "NaN":
        stored = load_file(last / "state.safetensors")
        stored["backbone.model.0.model.embeddings.LayerNorm.bias"][3] = torch.nan
        save_file(stored, last / "state.safetensors")
        seal(last)
    elif kind == "pickled":
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        return [copy, copy]
    elif kind == "a tensor gone":
        stored = load_file(copy / "model.safetensors")
        del stored["bert.encoder.layer.0.output.dense.bias"]
        save_file(stored, copy / "model.safetensors", metadata={"format": "pt"})
        return [copy, copy]
    elif kind == "bad modules.json":
        (copy / "modules.json").write_text("[1]")
        return [copy, copy]
    return [last]


BROKEN = {
    "no whole.json": "is incomplete",
    "a cut file": "is incomplete",
    "unfinished": "no model yet",
    "unfinished, alone": "no model yet",
    "no record": "run.json",
    "other weights": r"only one has 0.model.new.weight",
    "NaN": "embeddings.LayerNorm.bias has NaN",
    "pickled": "pickled.*stzoo export",
    "a tensor gone": "missing bert.encoder.layer.0.output.dense.bias. These weights would be random",
    "bad modules.json": "modules.json cannot be read",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_refused(kind, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "copy")
    sources = broken(tmp_path / "copy", kind)
    with pytest.raises(ModelError, match=BROKEN[kind]):
        stzoo.merge(sources, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_half_written_checkpoint_is_left_out_of_a_run(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "copy")
    broken(tmp_path / "copy", "no whole.json")
    assert [source.checkpoint.name for source in find([tmp_path / "copy"])] == ["checkpoint-2"]
    assert (tmp_path / "copy/checkpoints/checkpoint-4").is_dir()  # and stays for its run to remove


def test_models_that_are_no_single_encoder_are_refused(base, folder, tmp_path):
    static = StaticEmbedding(tiny_tokenizer("bert").backend_tokenizer, embedding_dim=8)
    router = Router({"query": [static], "document": [static]}, default_route="query")
    export(SentenceTransformer(modules=[router], device="cpu"), tmp_path / "router", verify=False)
    with pytest.raises(ModelError, match="Router"):
        made(tmp_path / "router")
    model = SentenceTransformer(str(folder("plain")), device="cpu")
    lora.add(model, rank=2)
    model.save_pretrained(str(tmp_path / "adapters"))
    shutil.copy(base / "config.json", tmp_path / "adapters")
    shutil.copy(base / "model.safetensors", tmp_path / "adapters")
    with pytest.raises(ModelError, match="adapters; fold them"):
        made(tmp_path / "adapters")


BAD = {  # MODEL and HERE stand for folders
    "no source": (dict(sources=[]), RecipeError, "sources is .*at least 1 item"),
    "no folder": (dict(sources=["HERE/none"]), ModelError, "none cannot be merged; expected a model"),
    "an empty folder": (dict(sources=["HERE"]), ModelError, "cannot be merged; expected a model"),
    "too few weights": (dict(weights=[1.0]), RecipeError, "weights is 1; expected 2"),
    "a weight of zero": (
        dict(weights=[1.0, 0.0]),
        RecipeError,
        "expected numbers above 0; leave a model out",
    ),
    "a negative weight": (dict(weights=[2.0, -1.0]), RecipeError, "expected numbers above 0"),
    "no number": (dict(weights=[1.0, float("nan")]), RecipeError, "number must be finite"),
    "output is a source": (dict(output="MODEL", overwrite=True), OutputError, "read by this command"),
    "output in a source": (dict(output="MODEL/soup"), OutputError, "is inside"),
    "output around": (dict(output="MODEL/..", overwrite=True), OutputError, "contains"),
    "output is there": (dict(output="HERE"), OutputError, "is not a model folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_leaves_nothing(case, folder, tmp_path):
    change, kind, words = BAD[case]
    one = folder("plain")
    (tmp_path / "kept").write_text("")
    asked = json.dumps(dict(sources=["MODEL", "MODEL"], output="HERE/out") | change)
    asked = json.loads(asked.replace("MODEL", str(one)).replace("HERE", str(tmp_path)))
    before = sorted(one.rglob("*"))
    with pytest.raises(kind, match=words):
        stzoo.merge(**asked)
    assert sorted(one.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_command_line_says_what_weights_look_like(folder, tmp_path):
    done = cli("merge", folder("plain"), folder("plain"), "--output", tmp_path / "out", "--weights", "a,b")
    assert done.returncode == 2
    assert "weights is 'a,b': expected numbers" in done.stderr
