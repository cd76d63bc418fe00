"""A trainer of sentence-transformers whose checkpoints contain all that a resume needs, and are verified.

host.py lists the host's problems that its methods work around; checkpoints.py has what concerns folders.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.trainer import BaseTrainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers.trainer_callback import TrainerState

from stzoo.errors import ModelError, OutputError
from stzoo.training.checkpoints import KEPT, LOG_SUMS, MARKER, STATE, fault, rotate, seal
from stzoo.training.settings import Training
from stzoo.training.sharding import full, gathered_state, put, shard, sharded_state, shards
from stzoo.utils.files import atomic_file, writing
from stzoo.utils.messages import notify


def tensors_of(loss: nn.Module) -> dict[str, Tensor]:
    """The tensors that a checkpoint contains, by name; shared ones are listed under their first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    persistent = set(loss.state_dict())
    for name, tensor in [*loss.named_parameters(), *loss.named_buffers()]:
        if id(tensor) not in seen and name in persistent:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


class CheckpointTrainer(BaseTrainer):
    """Saves and loads all tensors of a loss module that owns parameters.

    A subclass also inherits from the host's trainer of its kind of model, which comes second.

    Args:
        loss: A module with an attribute `model`.
        settings: Settings of the run.
        options: Further arguments of the host trainer.
    """

    def __init__(self, *, loss: nn.Module, settings: Training, **options: Any):
        super().__init__(loss=loss, **options)
        self.loss: Any  # one module, not the host's dict of several
        self.settings = settings
        # Collected before anything wraps the model, so that names are the same in every kind of run.
        self.tensors = tensors_of(self.loss)

    @property
    def is_sharded(self) -> bool:
        """True while each process has a part of every tensor only; see `sharded`."""
        return any(isinstance(tensor, DTensor) for tensor in self.tensors.values())

    @contextmanager
    def sharded(self) -> Iterator[None]:
        """Shards model and loss in the block if `settings.shard_model` asks for it, or does nothing.

        The trainer has sharded copies of them, whose weights are at the end those of the originals.
        """
        if not shards(self.settings):
            yield
            return
        whole = self.loss, self.model, self.tensors
        self.loss = shard(self.loss, self.args.device)
        self.model = self.model_wrapped = self.loss.model
        self.tensors = tensors_of(self.loss)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing changes it
            yield
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                whole[2][name].copy_(full(tensor))
        self.loss, self.model, self.tensors = whole
        self.model_wrapped = self.model

    def _prepare_for_training(self, *args: Any, **options: Any) -> Any:
        self.is_distributed_loading_by_transformers = self.is_sharded  # or the host wraps it in DDP
        try:
            return super()._prepare_for_training(*args, **options)
        finally:
            self.is_distributed_loading_by_transformers = False

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        folder, tensors = Path(output_dir or self.args.output_dir or "."), {}
        for name, tensor in self.tensors.items():
            whole = full(tensor.detach())  # all processes take part
            if self.args.should_save:
                tensors[name] = whole.cpu().contiguous()
        if self.args.should_save:
            with atomic_file(folder / STATE) as draft:
                save_file(tensors, draft)

    def _load_from_checkpoint(  # type: ignore[override]  # as sentence-transformers has it
        self, checkpoint_path: str
    ) -> None:
        stored = load_file(Path(checkpoint_path) / STATE)
        if set(stored) != set(self.tensors):
            differing = ", ".join(sorted(set(stored) ^ set(self.tensors))[:5])
            raise ModelError(
                f"{checkpoint_path} contains another model than that of this run (differing tensors: "
                f"{differing}). Resume with the settings of that run, or start again with --overwrite."
            )
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                put(tensor, stored[name])
        if dist.is_initialized():
            dist.barrier()  # or the first process may remove the checkpoint while others read it

    def _check_best(self, step: int) -> Path:
        """The folder of the best checkpoint, verified.

        Raises:
            OutputError: If it is damaged.
        """
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"  # the run may have been moved
        if reason := fault(folder):
            raise OutputError(
                f"{folder}, the best checkpoint on the dev queries so far, is damaged ({reason}). Restore it "
                "from a backup, or start again with --overwrite."
            )
        return folder

    def _load_best_model(self) -> None:
        assert self.state.best_global_step is not None
        self._load_from_checkpoint(str(self._check_best(self.state.best_global_step)))

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            if self.args.should_save:
                # an overwritten checkpoint is incomplete until the end
                (folder / MARKER).unlink(missing_ok=True)
            super()._save_checkpoint(*args, **options)
            with atomic_file(folder / self._log_sums_file()) as draft:
                save_file({k: t.detach().cpu().clone() for k, t in self._log_sums().items()}, draft)
            if dist.is_initialized():
                dist.barrier()  # each process writes the state of its generators
            if self.args.should_save:
                seal(folder)
                best = self.state.best_global_step
                keep = self.settings.keep_checkpoints or KEPT
                rotate(folder.parent, keep, f"checkpoint-{best}" if best else None)
            if dist.is_initialized():
                dist.barrier()  # or torchrun stops the others when the first process exits

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        state = gathered_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        self.optimizer.load_state_dict(sharded_state(self.optimizer, state))
        self.lr_scheduler.load_state_dict(schedule)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Adds no callback: the host's would call the Hub, and the card is written at the export."""

    def train_from(self, checkpoint: Path | None) -> None:
        """Trains from a checkpoint or from the start. If training ended at the checkpoint, only loads it.

        Args:
            checkpoint: Folder of the checkpoint to resume from; None to train from the start.

        Raises:
            OutputError: If the best checkpoint is damaged.
        """
        if checkpoint is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.args.load_best_model_at_end and state.best_global_step:
            self._check_best(state.best_global_step)  # before training continues
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

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # the host calls this after it has set the sums to 0
        stored = Path(checkpoint or "") / self._log_sums_file()
        if checkpoint is not None and stored.is_file():  # older versions wrote none
            self._set_log_sums({k: t.to(self.args.device) for k, t in load_file(stored).items()})

    def _log_sums_file(self) -> str:
        rank = f"_{dist.get_rank()}" if self.args.world_size > 1 else ""
        return f"{LOG_SUMS}{rank}.safetensors"

    def _log_sums(self) -> dict[str, Tensor]:
        """Sums over the steps since the last log line, from which the next line is computed."""
        sums = {"loss": self._tr_loss, "step": torch.tensor(self._globalstep_last_logged)}
        sums |= {f"part/{name}": total for name, total in self.accum_loss_components["train"].items()}
        for path, module in self.loss.named_modules():
            for name, (total, count) in getattr(module, "log_sums", {}).items():
                sums |= {f"total/{path}/{name}": total, f"count/{path}/{name}": count}
        return sums

    def _set_log_sums(self, stored: Mapping[str, Tensor]) -> None:
        self._tr_loss, self._globalstep_last_logged = stored["loss"], int(stored["step"])
        for key, tensor in stored.items():
            kind, _, name = key.partition("/")
            if kind == "part":
                self.accum_loss_components["train"][name] = tensor
            elif kind == "total":
                path, _, name = name.partition("/")
                self.loss.get_submodule(path).log_sums[name] = (tensor, stored[f"count/{path}/{name}"])
