import json

import pytest
from support.helpers import cli

from stzoo.errors import RecipeError
from stzoo.pretraining.dry_run import dry_run


def test_a_dry_run_counts_steps_and_tokens_measures_a_few_steps_and_writes_nothing(base, corpus, tmp_path):
    given = {"batch_size": 8, "epochs": 2, "accumulation": 2, "device": "cpu", "precision": "fp32"}
    result = dry_run(base=base, corpus=corpus, **given)
    assert result["passages"] == 48
    assert result["steps"] == 2 * 48 // (8 * 2)
    assert result["epochs"] == 2
    assert result["precision"] == {"used": "fp32", "reason": "as set"}
    assert result["tokens"] == pytest.approx(result["tokens_per_step"] * 3)
    assert 0 <= result["padding"] < 0.5
    assert 0 < result["parameters"]["untrained"] <= result["parameters"]["other"]
    assert result["seconds"] == pytest.approx(result["steps"] * result["seconds_per_step"])
    assert result["peak_memory_mib"] > 100
    assert result["utilisation"] > 0

    flags = ["--base", base, "--corpus", corpus, "--batch-size", "8", "--output", tmp_path / "out"]
    shown = json.loads(cli("pretrain", *flags, "--dry-run", "--json").stdout)
    assert (shown["steps"], shown["tokens"]) == (6, result["tokens"])
    assert not (tmp_path / "out").exists()
    refused = cli("pretrain", *flags, "--json")
    assert refused.returncode == 2
    assert "--json has no effect without --dry-run" in refused.stderr


def test_a_dry_run_refuses_what_a_run_refuses(base, corpus):
    with pytest.raises(RecipeError, match="encoder_rate"):
        dry_run(base=base, corpus=corpus, options={"encoder_rate": 2})
