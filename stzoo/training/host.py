"""The host trainer: its problems, and the check that the methods that work around them still exist.

The host trainer neglects the parameters of a loss (decoders, a new MLM head). Problems measured with
sentence-transformers 6.2 and transformers 5.23, each with the method that works around it; those that lose or
skew weights are reproduced in tests/training/test_trainer.py.

checkpoint_trainer.py:

- checkpoints contain the encoder only, and each process writes them: `_save`, `_load_from_checkpoint`
- its FSDP shards the encoder only, without the MLM head that shares its embeddings: `sharded`,
  `_prepare_for_training`, `_save_optimizer_and_scheduler`, `_load_optimizer_and_scheduler`
- a killed save leaves a checkpoint that looks complete, and damaged checkpoints are loaded:
  `_save_checkpoint`, checkpoints.py
- old checkpoints are removed before the new one is complete, along with the user's files in them: `rotate`
- a run that was moved loses its best checkpoint: `_load_best_model`, `FindBest`
- a resumed run forgets how long early stopping has waited, and trains past its end: `train_from`
- the first log line after a resume leaves out the steps before it: `_log_sums`

guarded_trainer.py:

- Ctrl-C and SIGTERM lose the steps since the last checkpoint: `StopSignals`, `_end_step`
- training continues with a loss that is not finite, and its checkpoints replace the good ones:
  `_check_finite`

trainer.py:

- all processes draw the same masks: `_inner_training_loop`
- gradients of the loss's own parameters are neither clipped nor averaged over processes: `_clip_grad_norm`
- the loss's own parameters start different on each process: `_inner_training_loop`
- `optimizer_cls_and_kwargs` leaves them out: `create_optimizer`
- a loss that is a mean counts once per accumulated batch: `loss_is_scaled_for_ga`
- autocast covers the encoder only: `compute_loss`
- the first process scores dev queries alone while the others wait: `evaluation_loop`
- a resume within an epoch on several processes changes the order of the batches: `get_batch_sampler`,
  `SetEpoch`

Most of these are private methods of the host library; `check_host` checks at the start that each exists.
"""

import re
from importlib.metadata import version

from sentence_transformers import SentenceTransformerTrainer

from stzoo.errors import OutputError, StzooError
from stzoo.utils.cache import cache_folder
from stzoo.utils.distributed import is_main_process
from stzoo.utils.messages import notify

TESTED = {"sentence-transformers": (6, 2), "transformers": (5, 23)}
HOOKS = (
    "_save",
    "_load_from_checkpoint",
    "_load_best_model",
    "_save_checkpoint",
    "_load_rng_state",
    "_clip_grad_norm",
    "_inner_training_loop",
    "_prepare_for_training",
    "_save_optimizer_and_scheduler",
    "_load_optimizer_and_scheduler",
    "evaluation_loop",
    "create_optimizer",
    "create_scheduler",
    "add_model_card_callback",
    "compute_loss",
    "track_loss_components",
    "loss_is_scaled_for_ga",
)


def check_host() -> None:
    """Shows a note, once for each version, if a host library is newer than the tested versions.

    Raises:
        StzooError: If a method that is overridden here no longer exists.
    """
    missing = [name for name in HOOKS if not hasattr(SentenceTransformerTrainer, name)]
    if missing:
        raise StzooError(
            f"the installed sentence-transformers {version('sentence-transformers')} and transformers "
            f"{version('transformers')} lack {', '.join(missing)}, which stzoo relies on. Install "
            "sentence-transformers 6.2 and transformers 5.23."
        )
    for package, (major, minor) in TESTED.items():
        installed = version(package)
        if tuple(map(int, re.findall(r"\d+", installed)[:2])) > (major, minor) and is_main_process():
            _notify_once(
                f"{package}-{installed}",
                f"{package} {installed} is installed; stzoo is tested with versions up to {major}.{minor}.",
            )


def _notify_once(name: str, text: str) -> None:
    """Shows a note, and leaves an empty file of this name in the cache folder; shows nothing if it exists."""
    try:
        shown = cache_folder() / "notes-shown" / name
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.touch(exist_ok=False)
    except FileExistsError:
        return
    except (OSError, OutputError):
        pass  # the cache cannot be written, so the note is shown each time
    notify(text)
