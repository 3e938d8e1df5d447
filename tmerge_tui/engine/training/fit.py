"""One model trained on one set of blocks: which tensors train, in full or by low-rank updates, and what it leaves."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmerge_tui.engine.training.examples import Block
from tmerge_tui.engine.training.loss import Term
from tmerge_tui.engine.training.patience import Patience, train_patiently
from tmerge_tui.engine.training.residual import attach
from tmerge_tui.engine.training.trainer import Step, processes, train
from tmerge_tui.engine.weights.update import Update
from tmerge_tui.errors import ModelError, UsageError
from tmerge_tui.events import Emit, Warned
from tmerge_tui.extras import imported
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.forward import release, trunk
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.run_folder import RunDir

STAGE = "adapt"


def fit(
    load: Callable[[], Any],  # the model in float32, in main memory
    facts: ModelFacts,
    checkpoint: Checkpoint,
    start: Update | None,  # frozen residual that training starts from
    blocks: Sequence[Block],
    validation: Sequence[Block],
    options: Adaptation,
    seed: int,
    terms: Callable[[Any], Sequence[Term]],  # of the loaded model
    piece: Path,
    device: torch.device,
    run: RunDir,
    emit: Emit,
    report: Callable[[Step], None],
    frozen: Callable[[Any], Collection[str]] = lambda model: (),  # parameters that stay as they are, by runtime name
    patience: Patience | None = None,  # how it is judged, with epochs: auto
) -> None:
    """Trains and writes the piece: trained tensors in fp32 under their names in the file, how it went in the header."""
    torch.manual_seed(seed)  # of the low-rank updates; the Trainer seeds itself
    model = load()
    try:
        names = _trainable(model, facts, checkpoint, options.method, frozen, emit)
        if start is not None:
            attach(model, start)
        learner = _with_lora(model, options, names) if options.method == "lora" else model
        folder = run.state / f"training-{piece.stem}"

        def warn(message: str) -> None:
            emit(Warned(STAGE, message))

        if patience is None:
            figures = train(learner, blocks, validation, options, seed, terms(model), folder, device, report, warn)
        else:
            figures = train_patiently(
                learner, model, blocks, options, seed, terms(model), folder, device, patience, report, warn
            )
        if _first_process():
            run.save(piece, _tensors(model, names), asdict(figures))
            shutil.rmtree(folder, ignore_errors=True)
        if processes() > 1:
            torch.distributed.barrier()  # the others go on to read the piece
    finally:
        del model
        release()


def require_one_process(option: str) -> None:
    """For trainings that come before those a launcher spreads: the others would wait for them for ever.

    Raises UsageError under a launcher with several processes.
    """
    if processes() > 1:
        raise UsageError(
            f"{option} trains in one process, before the trainings that a launcher spreads",
            "its finished piece in the run folder",
            "run the recipe with tmerge --batch, stop it when the stage adapt begins, and launch again",
        )


def _first_process() -> bool:
    return processes() == 1 or torch.distributed.get_rank() == 0


def _trainable(
    model: Any,
    facts: ModelFacts,
    checkpoint: Checkpoint,
    method: str,
    frozen: Callable[[Any], Collection[str]],
    emit: Emit,
) -> dict[str, list[str]]:
    """Runtime parameter -> its names in the target's file.

    Every parameter for method full, projections' weights for lora. Those that are put together from several tensors of
    the file (packed experts) stay frozen, and so do those that text does not reach (a vision tower).
    """
    in_file, _ = file_names(model, checkpoint.names)
    reached = {id(p) for module in (trunk(model), model.get_output_embeddings()) for p in module.parameters()}
    kept = set(frozen(model))
    names: dict[str, list[str]] = {}
    same: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in reached or name in kept:
            continue
        first = same.setdefault(id(parameter), name)  # tied tensors train once and are written under all their names
        if name in in_file:
            names.setdefault(first, []).append(in_file[name])
    left = [name for name in same.values() if name not in names]
    if left:
        text = f"{len(left)} parameters are no tensor of the target's file by themselves and stay as they are"
        emit(Warned(STAGE, f"{text}, first {left[0]}"))
    if method == "lora":
        weights = {f"{p.module}.weight" for p in facts.layout.projections}
        names = {name: stored for name, stored in names.items() if name in weights}
    if not names:
        raise ModelError(f"{facts.name} has no parameter that can be trained", "a model with weights")
    full = method == "full"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full and name in names)
    return names


def _with_lora(model: Any, options: Adaptation, names: dict[str, list[str]]) -> Any:
    with imported("adaptation.method: lora", "lora"):
        from peft import LoraConfig, get_peft_model
    modules = [name.removesuffix(".weight") for name in names]
    config = LoraConfig(
        r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=modules, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # peft asks for names that transformers is about to drop
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


@torch.no_grad()
def _tensors(model: nn.Module, names: dict[str, list[str]]) -> dict[str, Tensor]:
    """What was trained, under the file's names: W_base + residual + low-rank update, fp32."""
    tensors = {}
    for name, stored in names.items():
        path, _, attribute = name.rpartition(".")
        module: Any = model.get_submodule(path)
        value = getattr(module, attribute)  # the sum, where a residual is attached
        if hasattr(module, "get_delta_weight") and attribute == "weight":
            value = value + module.get_delta_weight("default")
        for one in stored:
            tensors[one] = value.detach().float().clone()
    return tensors
