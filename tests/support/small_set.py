"""A small judged data set."""

from stzoo.testing import sentences

CORPUS = [
    {"_id": f"d{i}", "title": f"page {i // 4}", "text": text} for i, text in enumerate(sentences(60, seed=5))
]
QUERIES = {f"q{i}": " ".join(row["text"].split()[:6]) for i, row in enumerate(CORPUS[:20])}
QRELS = {
    "test": {f"q{i}": {f"d{i}": 2, f"d{i + 1}": 1} for i in range(12)},
    "dev": {f"q{i}": {f"d{i}": 1} for i in range(12, 20)},
}
