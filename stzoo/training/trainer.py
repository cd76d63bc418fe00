"""The one subclass of sentence-transformers' trainer, with what it gets wrong for us mended.

A loss that owns parameters (decoders, a new MLM head) is second-class there. Measured on
sentence-transformers 6.2 and transformers 5.23; tests/test_trainer.py shows the first seven unmended, too:

- checkpoints hold the encoder only: `_save`, `_load_from_checkpoint`
- a killed save leaves a checkpoint that looks whole, and a damaged one is loaded: `_save_checkpoint`,
  checkpoints.py
- old checkpoints are removed before the new one is complete, with the user's files in them: `rotate`
- Ctrl-C and SIGTERM lose the steps since the last checkpoint: `StopSignals`, `_end_step`
- a loss that is not finite is trained on, and its checkpoints replace the good ones: `_check_finite`
- all processes draw the same masks: `_inner_training_loop`
- gradients of the loss's own parameters are not clipped, nor averaged over processes: `_clip_grad_norm`
- they start different on each process: `_inner_training_loop`
- `optimizer_cls_and_kwargs` forgets them: `create_optimizer`
- a loss that is a mean counts once per accumulated batch: `loss_is_scaled_for_ga`
- autocast covers the encoder only: `compute_loss`
- a resume forgets how long early stopping has waited, and trains on after it: `train_or_resume`
- a run that was moved loses its best checkpoint: `_load_best_model`, `FindBest`
- a resume between two lines of the log forgets the steps before it in the next line: `_log_sums`
- a resume inside an epoch on several processes begins another order: `get_batch_sampler`, `SetEpoch`

These are private methods of the host library. `check_host` looks for each at the start.
"""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from torch import distributed as dist
from transformers import Trainer, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from stzoo.errors import ModelError, OutputError, RecipeError, StzooError, TrainingError
from stzoo.training.callbacks import EachStep, FindBest, Progress, SetEpoch
from stzoo.training.checkpoints import LOG_SUMS, MARKER, STATE, complete, fault, rotate, seal
from stzoo.training.settings import Training
from stzoo.utils.distributed import largest
from stzoo.utils.files import atomic_file, writing
from stzoo.utils.malloc import disable_malloc_trim
from stzoo.utils.messages import notify
from stzoo.utils.signals import StopSignals

TESTED = {"sentence-transformers": (6, 2), "transformers": (5, 23)}
HOOKS = (
    "_save",
    "_load_from_checkpoint",
    "_load_best_model",
    "_save_checkpoint",
    "_load_rng_state",
    "_clip_grad_norm",
    "_inner_training_loop",
    "create_optimizer",
    "create_scheduler",
    "add_model_card_callback",
    "compute_loss",
    "track_loss_components",
)
GRADIENT = "gradient norm"


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


def split_views(batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups a batch by view: `batch["passage_input_ids"]` becomes `views["passage"]["input_ids"]`."""
    views = [name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")]
    return {
        view: {
            name.removeprefix(f"{view}_"): value
            for name, value in batch.items()
            if name.startswith(f"{view}_")
        }
        for view in views
    }


class ObjectiveTrainer(SentenceTransformerTrainer):
    """Trains a loss module that owns parameters.

    Args:
        loss: a module with an attribute `model`; it may have `weights` (of its losses by name), `frozen`
            (True while the encoder must not learn).
        settings: the run's.
        new: names of parameters of `loss` that start untrained, and learn at `settings.new_learning_rate`.
        collate: rows -> batch; the host's own if None.
        record: is given the log so far at each checkpoint.
        extra_logs: gives more numbers for the log; `loss.accuracies`, where there is one, if None.
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
        extra_logs: Callable[[], dict[str, float]] | None = None,
        **given: Any,
    ):
        check_host()
        if collate is not None:
            given["data_collator"] = Collator(preprocess_fn=given["model"].preprocess, make=collate)
        # before the user's, which would score a model that is no longer finite
        given["callbacks"] = [EachStep(self._end_step), *(given.get("callbacks") or ())]
        super().__init__(loss=loss, **given)
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        self.epochs = SetEpoch(collate)
        self.add_callback(self.epochs)
        self.add_callback(FindBest())
        self.record = record or (lambda _: None)
        self.progress = Progress(self._saved)
        self.add_callback(self.progress)
        self.loss: Any  # one module, not the host's dict of several
        self.extra_logs: Any = extra_logs or getattr(loss, "accuracies", dict)
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
        self.signals = StopSignals()
        self.stopping = False  # True once all processes have agreed to
        self.saved_at = time.monotonic()
        self.group: Any = None  # by which processes agree without waiting for a device
        self.seen: list[tuple[str, Tensor]] = []  # losses and gradient norms of the step so far
        self.unchecked: deque[tuple[int, list[str], Tensor, Any]] = deque()  # those that a GPU still computes
        if self.args.device.type == "cpu":
            disable_malloc_trim()

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
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            parts = getattr(getattr(self.loss, "loss", self.loss), "last", {})
            total = found[0] if isinstance(found, tuple) else found
            self._watch({**parts, "loss": total})
            return found
        if model == self.model_wrapped and self.loss.model != model:
            self.loss = self.override_model_in_loss(self.loss, model)
        with self.accelerator.autocast():  # the host does so for the encoder only
            losses = self.loss(split_views(inputs))
        self.track_loss_components(losses)
        self._watch(losses)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return (total, {}) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the accuracies and the tokens (padding counted) a second."""
        if "loss" in logs:
            now = time.monotonic()
            logs["tokens_per_s"] = round(self.tokens / max(now - self.since, 1e-9), 1)
            self.tokens, self.since = 0, now
            logs |= {name: round(value, 4) for name, value in self.extra_logs().items()}
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
        norm = self.accelerator.clip_grad_norm_(every, self.args.max_grad_norm)
        self._watch({GRADIENT: norm})
        self._check_finite()
        return norm

    # -- what stops a run

    def _watch(self, values: Mapping[str, Tensor]) -> None:
        """Notes scalars that must be finite, until `_check_finite`."""
        self.seen += [(name, value.detach()) for name, value in values.items()]

    def _check_finite(self, now: bool = False) -> None:
        """Stops training, in all processes, when a noted value is not finite.

        A GPU is not waited for: its values are copied to the CPU while it computes, and checked one step
        later, or before a checkpoint is saved or the model is scored.

        Args:
            now: True to wait for the values of this step.

        Raises:
            TrainingError: if one is nan or inf.
        """
        if self.seen:
            names = [name for name, _ in self.seen]
            values = [value.float().reshape(()).to(self.args.device) for _, value in self.seen]
            self.seen = []
            cuda = self.args.device.type == "cuda"
            copied, ready = torch.stack(values).to("cpu", non_blocking=cuda), None
            if cuda:
                ready = torch.cuda.Event()
                ready.record()
            self.unchecked.append((self.state.global_step + 1, names, copied, ready))
        while self.unchecked and (now or self.args.device.type != "cuda" or len(self.unchecked) > 1):
            step, names, copied, ready = self.unchecked.popleft()
            if ready is not None:
                ready.synchronize()
            self._judge(step, dict(zip(names, copied.tolist(), strict=True)))

    def _judge(self, step: int, values: dict[str, float]) -> None:
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        scaler = getattr(self.accelerator, "scaler", None)
        if wrong.keys() == {GRADIENT} and scaler is not None and scaler.get_scale() >= 1:
            wrong = {}  # fp16: the step is skipped, and the next is scaled by less
        if not largest([bool(wrong)], self.group)[0]:
            return
        # a sum and its gradient say less than the part that they come from
        parts = {n: v for n, v in wrong.items() if not n.endswith("loss") and not n.startswith("gradient")}
        text = ", ".join(f"{name} is {value}" for name, value in (parts or wrong).items())
        found: list[Any] = [text]
        if self.group is not None:
            found *= dist.get_world_size()
            dist.all_gather_object(found, text, group=self.group)
        raise self._failure(step, next(filter(None, found)))

    def _failure(self, step: int, what: str) -> TrainingError:
        saved = complete(Path(str(self.args.output_dir)))
        kept = f"The last good checkpoint is {saved[-1]}." if saved else "No checkpoint was saved yet."
        fp16 = ", --precision bf16 or fp32 instead of fp16" if self.settings.precision == "fp16" else ""
        return TrainingError(
            f"training stopped at step {step} of {self.state.max_steps}: {what}. {kept} Try a lower "
            f"--learning-rate, a larger --warmup-ratio, a smaller --max-grad-norm{fp16}, or look for a fault "
            "in the data or the base model; then start again with --overwrite or another --output."
        )

    def _end_step(self, control: Any) -> None:
        """Asks for a checkpoint when one is due by time, or a signal asks to stop; all processes alike."""
        if control.should_save or control.should_evaluate:
            self._check_finite(now=True)
        late = time.monotonic() - self.saved_at >= 60 * self.settings.save_minutes
        number, due = largest([self.signals.received, late and self.is_world_process_zero()], self.group)
        if number:
            self.signals.received, self.stopping = int(number), True
        if number or due:
            control.should_save = True

    def _saved(self, log: list[dict[str, float]]) -> None:
        self.record(log)
        if self.stopping:
            notify(f"saved a checkpoint after step {self.state.global_step} of {self.state.max_steps}.")
            self.signals.leave()

    # -- checkpoints

    def train_or_resume(self, checkpoint: Path | None) -> None:
        """Trains from a checkpoint, or the start; of one that training ended at, only loads the weights.

        Ctrl-C and SIGTERM end it after a step, when a checkpoint is saved; see `StopSignals`.

        Raises:
            TrainingError: if a loss, the gradient or the weights are not finite.
            OutputError: if the best checkpoint is damaged.
        """
        try:
            with self.signals:
                self._train_from(checkpoint)
                if self.signals.received:  # after the last step
                    self.signals.leave()
        except TrainingError:
            self.record(self.state.log_history)
            raise
        finally:
            self.progress.close()
            if self.group is not None:
                dist.destroy_process_group(self.group)
                self.group = None

    def _train_from(self, checkpoint: Path | None) -> None:
        if checkpoint is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.args.load_best_model_at_end and state.best_global_step:
            self._check_best(state.best_global_step)  # before more is trained
        stop = state.stateful_callbacks.get("EarlyStoppingCallback", {})
        waited = stop.get("attributes", {}).get("early_stopping_patience_counter", 0)
        patience = stop.get("args", {}).get("early_stopping_patience", waited + 1)
        if state.global_step < state.max_steps and waited < patience:
            notify(f"resuming from step {state.global_step} of {state.max_steps}.")
            self.train(resume_from_checkpoint=str(checkpoint))
            return
        self.state = state
        if self.args.load_best_model_at_end and state.best_global_step:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))

    def _inner_training_loop(self, *given: Any, **named: Any) -> Any:
        if dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in self.own.values():
                dist.broadcast(tensor.data, 0)
            # Each process draws masks and dropout of its own from here on; a checkpoint keeps them apart.
            set_seed((self.settings.seed + dist.get_rank()) % 2**32)
            self.group = dist.new_group(backend="gloo")
        self.saved_at = time.monotonic()
        return super()._inner_training_loop(*given, **named)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        folder = Path(output_dir or self.args.output_dir or ".")
        with atomic_file(folder / STATE) as draft:
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

    def _check_best(self, step: int) -> Path:
        """The folder of the best checkpoint, as it was written.

        Raises:
            OutputError: if it is damaged.
        """
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"  # the run may have been moved
        if reason := fault(folder):
            raise OutputError(
                f"{folder} scored best on the dev queries so far and is damaged ({reason}). Restore it from "
                "a backup, or start again with --overwrite."
            )
        return folder

    def _load_best_model(self) -> None:
        assert self.state.best_global_step is not None
        self._load_from_checkpoint(str(self._check_best(self.state.best_global_step)))

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        self._check_finite(now=True)
        self._check_weights()
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            if self.args.should_save:
                (folder / MARKER).unlink(missing_ok=True)  # what is written over is incomplete until the end
            super()._save_checkpoint(*given, **named)
            with atomic_file(folder / self._log_sums_file()) as draft:
                save_file({k: t.detach().cpu().clone() for k, t in self._log_sums().items()}, draft)
            if dist.is_initialized():
                dist.barrier()  # each process writes the state of its own generators
            if self.args.should_save:
                seal(folder)
                best = self.state.best_global_step
                rotate(folder.parent, self.settings.keep_checkpoints, f"checkpoint-{best}" if best else None)
            if dist.is_initialized():
                dist.barrier()  # whoever leaves first has torchrun stop the others
        self.saved_at = time.monotonic()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # which the host calls once it has set the sums to 0
        stored = Path(checkpoint or "") / self._log_sums_file()
        if checkpoint is not None and stored.is_file():  # older versions wrote none
            self._set_log_sums({k: t.to(self.args.device) for k, t in load_file(stored).items()})

    def _log_sums_file(self) -> str:
        rank = f"_{dist.get_rank()}" if self.args.world_size > 1 else ""
        return f"{LOG_SUMS}{rank}.safetensors"

    def _log_sums(self) -> dict[str, Tensor]:
        """Sums over the steps since the last line of the log, from which the next line is computed."""
        found = {"loss": self._tr_loss, "step": torch.tensor(self._globalstep_last_logged)}
        found |= {f"part/{name}": total for name, total in self.accum_loss_components["train"].items()}
        for path, module in self.loss.named_modules():
            for name, (total, count) in getattr(module, "log_sums", {}).items():
                found |= {f"total/{path}/{name}": total, f"count/{path}/{name}": count}
        return found

    def _set_log_sums(self, stored: Mapping[str, Tensor]) -> None:
        self._tr_loss, self._globalstep_last_logged = stored["loss"], int(stored["step"])
        for key, tensor in stored.items():
            kind, _, name = key.partition("/")
            if kind == "part":
                self.accum_loss_components["train"][name] = tensor
            elif kind == "total":
                path, _, name = name.partition("/")
                self.loss.get_submodule(path).log_sums[name] = (tensor, stored[f"count/{path}/{name}"])

    def _check_weights(self) -> None:
        """Raises TrainingError if a weight is not finite, so that no such checkpoint replaces a good one."""
        weights = {name: t for name, t in self.tensors.items() if isinstance(t, nn.Parameter)}
        finite = torch.stack([torch.isfinite(weight).all() for weight in weights.values()]).tolist()
        wrong = [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]
        if wrong:
            more = f" and {len(wrong) - 3} more tensors" if len(wrong) > 3 else ""
            what = f"after the update, weights are not finite ({', '.join(wrong[:3])}{more})"
            raise self._failure(self.state.global_step, what)
