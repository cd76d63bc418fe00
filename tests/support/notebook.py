"""The whole way by objects only, as in a notebook; `tests/test_objects.py` runs it.

Names that it expects: `base` (a masked LM), `texts`, `queries` and `qrels`, and `output`, a folder.
"""

import stzoo
from stzoo.testing import sentences


def run(base, output):
    """Returns the comparison's rows as a data frame, and what led to them."""
    texts = sentences(40, seed=5)
    corpus = {f"d{i}": {"title": "", "text": text} for i, text in enumerate(texts)}
    queries = {f"q{i}": " ".join(text.split()[:4]) for i, text in enumerate(texts)}
    rows = [{"query": queries[f"q{i}"], "positive": texts[i]} for i in range(20)]
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(20, 40)}

    pretrained = stzoo.pretrain(base=base, corpus=texts, output=output / "pre", batch_size=8, max_steps=2)
    tuned = stzoo.finetune(
        pretrained.model,
        data=rows,
        output=output / "tuned",
        batch_size=8,
        max_steps=2,
        log_steps=1,
        dev_queries=0,
    )
    models = {"pre-trained": pretrained.model, "tuned": tuned.model}
    results = stzoo.bench(models, data=(corpus, queries, qrels))
    comparison = stzoo.compare(results, data=(corpus, queries, qrels), examples=1)
    return comparison.to_pandas(), comparison, results, pretrained, tuned
