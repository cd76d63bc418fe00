"""Searches with a finished model using only sentence-transformers, as where stzoo is not installed.

    python ask_standalone.py MODEL CORPUS.jsonl[.gz] QUESTION [QUESTION …]

prints one line of JSON per question, with the three nearest passages, best first:
{"question": str, "found": [{"id": str, "score": float, "text": str}, …]}. It imports nothing of stzoo.
"""

import gzip
import json
import sys


def main(model_folder: str, corpus: str, *questions: str) -> None:
    """Encodes the corpus and answers each question on standard output."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # not which parts of an MLM head a folder has besides the encoder
    model = SentenceTransformer(model_folder)
    unpack = gzip.open if corpus.endswith(".gz") else open
    with unpack(corpus, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
    passages = model.encode_document(texts, show_progress_bar=False)
    scores = model.similarity(model.encode_query(list(questions), show_progress_bar=False), passages)
    for question, row in zip(questions, scores, strict=True):
        best = row.topk(min(3, len(rows)))
        found = [
            {"id": str(rows[i]["_id"]), "score": round(score, 4), "text": texts[i]}
            for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        print(json.dumps({"question": question, "found": found}), flush=True)


if __name__ == "__main__":
    sys.modules["stzoo"] = None  # type: ignore[assignment]  # from here on its import would fail
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
