"""The host trainer's arguments, translated from the settings of a run."""

from pathlib import Path
from typing import Any, Protocol

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from stzoo.errors import RecipeError
from stzoo.training.reports import check_loggers
from stzoo.training.settings import Training
from stzoo.utils.distributed import world_size


class Hardware(Protocol):
    """The settings that the precision depends on."""

    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str | None: ...  # noqa: D102


def choose_precision(settings: Hardware) -> dict[str, str]:
    """Returns the precision to compute in ("used") and the reason ("reason"), for the record of the run.

    In bf16, which has the range of fp32, a step takes about 0.6 of the time of fp32 on a CPU with avx512_bf16
    (benchmarks/pretrain_speed.py). benchmarks/precision.py compares losses and retrieval of the two.
    """
    if settings.precision != "auto":
        return {"used": settings.precision, "reason": "as set"}
    if settings.device != "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    elif settings.device in (None, "cpu") and not torch.accelerator.is_available():
        flags = torch.cpu.get_capabilities()
        name = "this CPU"
        able = any(flags.get(flag) for flag in ("avx512_bf16", "amx_bf16"))
    else:
        name, able = str(settings.device or torch.accelerator.current_accelerator()), False
    if able:
        return {"used": "bf16", "reason": f"{name} computes with it"}
    return {"used": "fp32", "reason": f"{name} does not compute with bf16"}


def arguments(
    settings: Training, output: Path, *, kind: Any = SentenceTransformerTrainingArguments, **more: Any
) -> Any:
    """Translates settings to the host trainer's arguments.

    Args:
        settings: Settings of the run.
        output: Path to the output folder; checkpoints go to its subfolder "checkpoints".
        kind: Class of the arguments.
        more: Further arguments of the host trainer.

    Raises:
        MissingPackageError: If the package of a logger is not installed.
        RecipeError: If `report_to` names an integration that is unknown or not installed, or the device does
            not support the precision.
    """
    check_loggers(settings.report_to)
    try:
        for callback in get_reporting_integration_callbacks(settings.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError(f"report_to is {settings.report_to}, which cannot be used: {error}") from None
    if settings.precision == "fp16" and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise RecipeError("precision is fp16, which needs a GPU; use fp32, or bf16 with --device cpu.")
    try:
        args = kind(**_host_arguments(settings, output) | more)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training is not possible with these settings: {error}") from None
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are used by torchrun; DataParallel is not supported
    return args


def _host_arguments(settings: Training, output: Path) -> dict[str, Any]:
    return dict(
        output_dir=str((output / "checkpoints").resolve()),
        per_device_train_batch_size=settings.batch_size or 1,  # 1 if batches are made by tokens
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=settings.device == "cpu"
        or not torch.accelerator.is_available(),  # or bf16 is refused on the CPU
        seed=settings.seed,
        data_seed=settings.seed,
        save_steps=settings.save_steps,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        report_to=settings.report_to or "none",
        run_name=output.name,
        dataloader_drop_last=world_size() > 1,  # the host sets it then, with a warning
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        # or a batch is copied to a GPU only after the step before it
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        remove_unused_columns=False,
        disable_tqdm=None,
        restore_callback_states_from_checkpoint=True,  # or early stopping starts counting again
    )
