import json

import pytest

from stzoo.testing import tiny_masked_lm


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A base without dropout, which each process draws for itself."""
    folder = tiny_masked_lm("bert", tmp_path_factory.mktemp("still") / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
