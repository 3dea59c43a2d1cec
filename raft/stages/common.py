"""What the training stages share around their loops: a run directory to begin with, a summary to end with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raft import distributed, inputs, resuming, signals
from raft.arguments import load_yaml, to_dict, to_yaml
from raft.config import LoraConfig, RunConfig, TrainingConfig
from raft.engine.checkpoint import refuse_losing
from raft.engine.engine import Engine, Sums
from raft.errors import UserError
from raft.models.loading import MODEL_FLAG, quiet_libraries
from raft.models.lora import ADAPTER_WEIGHTS, refuse_stacking
from raft.precision import resolve_dtype
from raft.reports.trackers import open_trackers, refuse_absent
from raft.run_directory import RunDirectory


def start(config: Any, command: str) -> RunDirectory:
    """Join the process group and agree on the run directory, which is checked but not touched: see ``take``.

    Args:
        config: the stage's configuration; an unnamed ``run.output_dir`` is named after the command and the time, and a
            dtype of auto becomes what the main process's hardware is fast at, or what a resumed run has had.

    Raises:
        UserError: if the directory can not be had, a resumed run's settings are not those it began with, or an adapter
            is to be trained upon an adapter.

    A run that is resumed on another number of processes gets the ``gradient_accumulation_steps`` that keep its steps.
    """
    quiet_libraries()
    distributed.initialize()
    settings: RunConfig = config.run
    refuse_absent(settings.report_to)
    refuse_stacking(config.model, config.lora)
    settings.output_dir = distributed.broadcast(
        settings.output_dir or f"output_models/{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    run = RunDirectory(settings.output_dir, writes=distributed.is_main())
    run.resumes = settings.resume == "true" or distributed.broadcast(settings.resume == "auto" and run.has_run)
    settings.resume = "false"  # config.yaml and model cards tell of the run, not of how it was started again
    run.check(resume=run.resumes, overwrite=settings.overwrite_output_dir)
    if settings.overwrite_output_dir and not run.resumes:
        refuse_own_input(config, run.path)
    recorded = distributed.broadcast(load_yaml(run.path / "config.yaml")) if run.resumes else {}
    resuming.take_over(config, recorded)
    config.model.dtype = distributed.broadcast(resolve_dtype(config.model.dtype))
    settle_reward_dtype(config, recorded)
    run.forgets_journal = bool(changed := resuming.refuse_changes(config, recorded))
    if changed:
        refuse_losing(run.path, changed)
    if changed and distributed.is_main():
        print(f"from the next iteration on with another {', '.join(changed)}")
    settle_step(run, config.training, recorded)
    if distributed.is_main():
        for line in without_effect(config):
            print(line)
    return run


def settle_reward_dtype(config: Any, recorded: Mapping[str, Any]) -> None:
    """Let reward models compute as the policy does, whether they share its base or not, where no flag says otherwise.

    A run of before this was settled goes on with what it has had: ``auto``, by the hardware.
    """
    reward = getattr(config, "reward", None)
    if reward and reward.reward_dtype == "auto" and "reward" not in recorded:
        reward.reward_dtype = config.model.dtype


def refuse_own_input(config: Any, directory: Path) -> None:
    """Raise UserError if a run would remove what it is to read: a model or data of the run that it replaces."""
    here = directory.resolve()
    for group in to_dict(config).values():
        for name, value in group.items():
            for text in value if isinstance(value, list) else [value]:
                for path in text.split(",") if isinstance(text, str) and name != "output_dir" else ():
                    if path and Path(path).exists() and Path(path).resolve().is_relative_to(here):
                        raise UserError(
                            f"--overwrite_output_dir: {directory} is to be removed, and --{name} {path} is in it; name "
                            "another --output_dir."
                        )


def without_effect(config: Any) -> Iterator[str]:
    """Of the flags that are not at their defaults, those that change nothing in this run: a line each."""
    lora, default = config.lora, LoraConfig()
    for name in vars(lora) if not lora.use_lora else ():
        if getattr(lora, name) != getattr(default, name):
            yield f"--{name} {_said(getattr(lora, name))} has no effect without --use_lora"
    if every := config.training.eval_steps:
        data = getattr(config, "data", None)  # raft align has none
        if data is None:
            yield f"--eval_steps {every} has no effect in raft align, which has --eval_every_n_iterations"
        elif not data.validation_split_percentage:
            yield f"--eval_steps {every} has no effect without held-out rows: --validation_split_percentage is 0"


def _said(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def settle_step(run: RunDirectory, training: TrainingConfig, recorded: dict[str, Any]) -> None:
    """Note what an optimizer step is made of at a run's first start, and keep its rows at any later one."""
    num_processes = distributed.world_size()
    run.started_with = {"processes": num_processes} | {name: getattr(training, name) for name in resuming.STEP}
    if run.resumes:
        run.started_with = distributed.broadcast(resuming.first_start(run.path, recorded, num_processes))
        told = resuming.settle_step(training, run.started_with, recorded, num_processes)
        if told and distributed.is_main():
            print(told)


def initial_weights(config: Any, engine: Engine) -> dict[str, str]:
    """Digest of what a run trains from, by its flag; of an adapter that is merged for it, its file's.

    Merged weights differ in their last bits between machines.
    """
    adapter = Path(config.model.model_name_or_path) / ADAPTER_WEIGHTS
    return {MODEL_FLAG: inputs.digest_of_file(adapter) if adapter.is_file() else engine.initial_weights}


def take(run: RunDirectory, config: Any, made_from: Mapping[str, str]) -> None:
    """Take the run directory once data and models are loaded: a start that fails leaves nothing behind.

    From here on, SIGTERM and SIGINT stop the run between two units of work: see ``raft.signals``.

    Args:
        made_from: digests of what was loaded, by the flags that name it.

    Raises:
        UserError: as ``start``; and if a resumed run was made from something else.
    """
    settings: RunConfig = config.run
    before = distributed.broadcast(inputs.recorded(run.path)) if run.resumes else {}
    inputs.refuse_others(made_from, before)
    run.inputs = {**before, **made_from}
    run.start(to_yaml(config), resume=run.resumes, overwrite=settings.overwrite_output_dir)
    if run.writes:
        run.trackers = open_trackers(run.path, settings.report_to, to_dict(config))
    signals.listen()
    distributed.barrier()


def log_step(run: RunDirectory, engine: Engine, metrics: Sums, progress: Any, every: int) -> None:
    """Write an optimizer step's metrics to metrics.jsonl and beside the progress bar."""
    if engine.num_steps % every == 0:
        run.log({"step": engine.num_steps} | {f"train/{name}": value for name, value in metrics.items()})
    progress.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
    progress.update()


def finish(run: RunDirectory, engine: Engine, summary: dict[str, Any]) -> None:
    """Write summary.json, draw the curves, write the page and say where everything is."""
    from raft.reports.curves import draw_training_curves
    from raft.reports.page.page import write_page

    if distributed.is_main():
        run.write_json("summary.json", {"num_steps": engine.num_steps, **summary})
        draw_training_curves(run.path)
        print(f"done: {run.path}/final   curves and numbers: {write_page([run.path])}")
    run.close()
    distributed.barrier()
