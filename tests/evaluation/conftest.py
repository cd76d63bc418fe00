import pytest

from stzoo.testing import tiny_masked_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    SentenceTransformer(str(tiny_masked_lm("bert", folder / "mlm", seed=3)), device="cpu").save(
        str(folder / "tiny")
    )
    return str(folder / "tiny")
