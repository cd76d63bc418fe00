"""The one subclass of sentence-transformers' trainer, with what it gets wrong for us mended.

A loss that owns parameters (decoders, a new MLM head) is second-class there. Measured on
sentence-transformers 6.2 and transformers 5.23; tests/test_trainer.py shows the first seven unmended, too:

- checkpoints hold the encoder only: `_save`, `_load_from_checkpoint`
- a killed save leaves a checkpoint that looks whole: `_save_checkpoint`, `last_checkpoint`
- gradients of the loss's own parameters are not clipped, nor averaged over processes: `_clip_grad_norm`
- they start different on each process: `_inner_training_loop`
- `optimizer_cls_and_kwargs` forgets them: `create_optimizer`
- a loss that is a mean counts once per accumulated batch: `loss_is_scaled_for_ga`
- autocast covers the encoder only: `compute_loss`
- a resume forgets how long early stopping has waited, and trains on after it: `go_on`
- a run that was moved loses its best checkpoint: `_load_best_model`, `FindBest`
- a resume inside an epoch on several processes begins another order: `get_batch_sampler`, `SetEpoch`

These are private methods of the host library. `check_host` looks for each at the start.
"""

import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from torch import distributed as dist
from transformers import Trainer
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from .callbacks import FindBest, Progress, SetEpoch
from .errors import ModelError, RecipeError, StzooError
from .files import whole_file, write_json, writing
from .memory import keep_blocks
from .recipe import Training

TESTED = {"sentence-transformers": (6, 2), "transformers": (5, 23)}
HOOKS = (
    "_save",
    "_load_from_checkpoint",
    "_load_best_model",
    "_save_checkpoint",
    "_clip_grad_norm",
    "_inner_training_loop",
    "create_optimizer",
    "create_scheduler",
    "add_model_card_callback",
    "compute_loss",
    "collect_features",
    "track_loss_components",
)
STATE = "state.safetensors"
WHOLE = "whole.json"


def check_host() -> None:
    """Warns of a host library newer than the tested ones.

    Raises:
        StzooError: if a method that we override is gone.
    """
    gone = [name for name in HOOKS if not hasattr(SentenceTransformerTrainer, name)]
    gone += ["loss_is_scaled_for_ga"] if not hasattr(Trainer, "loss_is_scaled_for_ga") else []
    if gone:
        raise StzooError(
            f"the installed sentence-transformers {version('sentence-transformers')} and transformers "
            f"{version('transformers')} lack {', '.join(gone)}, which stzoo builds on. Install "
            "sentence-transformers 6.2 and transformers 5.23."
        )
    for package, (major, minor) in TESTED.items():
        have = tuple(int(part) for part in version(package).split(".")[:2])
        if have > (major, minor):
            warnings.warn(
                f"stzoo is tested with {package} up to {major}.{minor}; this is {version(package)}.",
                stacklevel=3,
            )


def arguments(settings: Training, output: Path, **more: Any) -> SentenceTransformerTrainingArguments:
    """The trainer's arguments for these settings; checkpoints go to `output`/checkpoints.

    Raises:
        RecipeError: if `report_to` names something unknown or not installed, or the device cannot do the
            precision.
    """
    try:
        for callback in get_reporting_integration_callbacks(settings.report_to):
            callback()
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"report_to is {settings.report_to}: {error}") from None
    if settings.precision == "fp16" and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise RecipeError("precision fp16 needs a GPU; use fp32, or bf16 with --device cpu.")
    try:
        made = SentenceTransformerTrainingArguments(**_given(settings, output), **more)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"these settings cannot be trained with here: {error}") from None
    made._n_gpu = min(made.n_gpu, 1)  # more than one by torchrun; nothing here is made for DataParallel
    return made


def _given(settings: Training, output: Path) -> dict[str, Any]:
    return dict(
        output_dir=str((output / "checkpoints").resolve()),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=settings.device == "cpu" or not torch.accelerator.is_available(),  # or bf16 is refused there
        seed=settings.seed,
        data_seed=settings.seed,
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        report_to=settings.report_to or "none",
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=None,
        restore_callback_states_from_checkpoint=True,  # or early stopping begins to count anew
    )


@dataclass
class Collator(SentenceTransformerDataCollator):
    """Makes batches by a function of ours; a plain function is refused by the host."""

    make: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of these rows."""
        assert self.make is not None
        return self.make(features)


class ObjectiveTrainer(SentenceTransformerTrainer):
    """Trains a loss module that owns parameters.

    Args:
        loss: a module with an attribute `model`; it may have `weights` (of its losses by name), `frozen`
            (True while the encoder must not learn).
        settings: the run's.
        new: names of parameters of `loss` that start untrained, and learn at `settings.new_learning_rate`.
        collate: rows -> batch; the host's own if None.
        record: is given the log so far at each checkpoint.
        figures: gives more numbers for the log; `loss.accuracies`, where there is one, if None.
        Further arguments are the host trainer's.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        loss: nn.Module,
        settings: Training,
        new: frozenset[str] = frozenset(),
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        record: Callable[[list[dict[str, float]]], None] | None = None,
        figures: Callable[[], dict[str, float]] | None = None,
        **given: Any,
    ):
        check_host()
        if collate is not None:
            given["data_collator"] = Collator(preprocess_fn=given["model"].preprocess, make=collate)
        super().__init__(loss=loss, **given)
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        self.epochs = SetEpoch(collate)
        self.add_callback(self.epochs)
        self.add_callback(FindBest())
        self.add_callback(Progress(record or (lambda _: None)))
        self.loss: Any  # one module, not the host's dict of several
        self.figures: Any = figures or getattr(loss, "accuracies", dict)
        self.settings = settings
        self.new = new
        # Taken before anything wraps the model, so that names are the same in every kind of run. Shared
        # tensors (the MLM head and the word embeddings) go under their first name.
        self.tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        persistent = set(self.loss.state_dict())
        for name, tensor in [*self.loss.named_parameters(), *self.loss.named_buffers()]:
            if id(tensor) not in seen and name in persistent:
                seen.add(id(tensor))
                self.tensors[name] = tensor
        encoder = {id(tensor) for tensor in [*self.model.parameters(), *self.model.buffers()]}
        self.own = {name: tensor for name, tensor in self.tensors.items() if id(tensor) not in encoder}
        self.tokens, self.since = 0, time.monotonic()
        if self.args.device.type == "cpu":
            keep_blocks()

    # -- batches, losses, log

    def get_batch_sampler(self, *given: Any, **named: Any) -> Any:
        """The host's, remembered so that it can be told the epoch."""
        self.epochs.sampler = super().get_batch_sampler(*given, **named)
        return self.epochs.sampler

    def training_step(self, *given: Any, **named: Any) -> Tensor:
        """The host's, with the encoder frozen during the head warm-up."""
        if hasattr(self.loss, "frozen"):
            self.loss.frozen = self.warming
        return super().training_step(*given, **named)

    @property
    def head_steps(self) -> int:
        """Steps of the head warm-up; 0 if there is nothing new to warm up."""
        return getattr(self.settings, "head_warmup_steps", 0) if self.new else 0

    @property
    def warming(self) -> bool:
        """True during the head warm-up."""
        return self.state.global_step < self.head_steps

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the losses; each is logged as it is, without its weight."""
        # of several texts to choose from, [B, K, T], one is read
        self.tokens += sum(len(v) * v.shape[-1] for k, v in inputs.items() if k.endswith("_input_ids"))
        weights = getattr(self.loss, "weights", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        features, labels = self.collect_features(inputs)
        if model == self.model_wrapped and self.loss.model != model:
            self.loss = self.override_model_in_loss(self.loss, model)
        with self.accelerator.autocast():  # the host does so for the encoder only
            losses = self.loss(features, labels)
        self.track_loss_components(losses)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return (total, {}) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the accuracies and the tokens (padding counted) a second."""
        if "loss" in logs:
            now = time.monotonic()
            logs["tokens_per_s"] = round(self.tokens / max(now - self.since, 1e-9), 1)
            self.tokens, self.since = 0, now
            logs |= {name: round(value, 4) for name, value in self.figures().items()}
        super().log(logs, start_time)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the host's card code calls the Hub; ours is made at the export."""

    # -- optimiser

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ARG002 - the host may pass it
        """AdamW, or what `optimizer_cls_and_kwargs` says, over all parameters of the loss."""
        if self.optimizer is None:
            if self.optimizer_cls_and_kwargs is not None:
                kind, options = self.optimizer_cls_and_kwargs
            else:
                kind, options = Trainer.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(self._groups(), **options)
        return self.optimizer

    def _groups(self) -> list[dict[str, Any]]:
        decaying = set(self.get_decay_parameter_names(self.loss))
        new_rate = getattr(self.settings, "new_learning_rate", None) or self.settings.learning_rate
        groups: list[dict[str, Any]] = []
        for is_new, rate in ((False, self.settings.learning_rate), (True, new_rate)):
            for decays in (True, False):
                chosen = [
                    parameter
                    for name, parameter in self.tensors.items()
                    if isinstance(parameter, nn.Parameter)
                    and parameter.requires_grad
                    and (name in self.new) == is_new
                    and (name in decaying) == decays
                ]
                decay = self.settings.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        return groups

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002
        """Linear warm-up and decay; that of the encoder begins after the head warm-up."""
        if self.lr_scheduler is None:
            head = min(self.head_steps, num_training_steps)

            def slope(start: int) -> Callable[[int], float]:
                length = max(num_training_steps - start, 1)
                rise = round(self.settings.warmup_ratio * length)

                def factor(step: int) -> float:
                    at = step - start
                    if at < 0:
                        return 0.0
                    return (at + 1) / (rise + 1) if at < rise else (length - at) / max(length - rise, 1)

                return factor

            slopes = [slope(head), slope(head), slope(0), slope(0)]
            assert self.optimizer is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, slopes)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: Any) -> Any:  # noqa: ARG002 - the host passes it
        if dist.is_initialized():
            for tensor in self.own.values():
                if tensor.grad is not None:
                    dist.all_reduce(tensor.grad)
                    tensor.grad.div_(dist.get_world_size())
        if self.warming:
            for name, tensor in self.tensors.items():
                if name not in self.new:
                    tensor.grad = None
        every = [p for p in self.tensors.values() if isinstance(p, nn.Parameter)]
        return self.accelerator.clip_grad_norm_(every, self.args.max_grad_norm)

    # -- checkpoints

    def go_on(self, checkpoint: Path | None) -> None:
        """Trains from a checkpoint, or the start; of one that training ended at, only loads the weights."""
        if checkpoint is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        stop = state.stateful_callbacks.get("EarlyStoppingCallback", {})
        waited = stop.get("attributes", {}).get("early_stopping_patience_counter", 0)
        patience = stop.get("args", {}).get("early_stopping_patience", waited + 1)
        if state.global_step < state.max_steps and waited < patience:
            self.train(resume_from_checkpoint=str(checkpoint))
            return
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))

    def _inner_training_loop(self, *given: Any, **named: Any) -> Any:
        if dist.is_initialized():
            for tensor in self.own.values():
                dist.broadcast(tensor.data, 0)
        return super()._inner_training_loop(*given, **named)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        folder = Path(output_dir or self.args.output_dir or ".")
        with whole_file(folder / STATE) as draft:
            save_file({name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}, draft)

    def _load_from_checkpoint(  # type: ignore[override]  # as sentence-transformers has it
        self, checkpoint_path: str
    ) -> None:
        stored = load_file(Path(checkpoint_path) / STATE)
        if set(stored) != set(self.tensors):
            odd = ", ".join(sorted(set(stored) ^ set(self.tensors))[:5])
            raise ModelError(f"{checkpoint_path} holds another model than this run's (differing: {odd}).")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(stored[name])

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        name = Path(self.state.best_model_checkpoint).name  # the run may have been moved since
        self._load_from_checkpoint(str(Path(str(self.args.output_dir)) / name))

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            super()._save_checkpoint(*given, **named)
        if dist.is_initialized():
            dist.barrier()  # each process writes the state of its own generators
        if self.args.should_save:
            sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != WHOLE}
            write_json(folder / WHOLE, sizes)  # written last: its presence says that the rest is


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None; those that a kill cut short are removed."""
    folders = [f for f in (output / "checkpoints").glob("checkpoint-*") if f.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda f: int(f.name.split("-")[1]), reverse=True):
        if is_whole(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # another process may be at it too
    return None


def is_whole(folder: Path) -> bool:
    """True if a checkpoint was written to its end."""
    try:
        sizes = json.loads((folder / WHOLE).read_text())
        load_file(folder / STATE)
    except (OSError, ValueError, SafetensorError):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()
    )
