"""RAFT: reward-ranked fine-tuning (arXiv 2304.06767, Algorithm 1).

Every iteration: draw responses to prompts with the current policy, score them, rank them, and take one round of
supervised fine-tuning on the best. What departs from the paper: optimizer and schedule live through all iterations,
and the held-out reward is measured at a temperature of its own.

    raft align --model_name_or_path output_models/SmolLM2-135M-Instruct --dataset_path data/prompts/train.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from raft import distributed
from raft.bars import tqdm
from raft.data.templates import ConversationTemplate
from raft.engine.build import text_batching
from raft.engine.checkpoint import load_latest, save_checkpoint
from raft.engine.export import export
from raft.engine.loop import train_steps
from raft.engine.nonfinite import NonfiniteSteps
from raft.errors import UserError
from raft.functional.selection import select
from raft.journal import Journal, keeping, once
from raft.models.forward import next_token_loss
from raft.models.loading import context_of, load_tokenizer
from raft.reports.alignment import held_out_metrics, iteration_metrics, iteration_text, summarize, write_before_after
from raft.reports.drift_run import RunWatch
from raft.reports.sources import source_metrics
from raft.rewards.loading import load_rewards, refuse_absent
from raft.rollout.prompts import Prompt, draw_prompts
from raft.rollout.rollout import rollout
from raft.rollout.samples import Sample, make_samples
from raft.run_directory import RunDirectory
from raft.stages.align_config import AlignConfig
from raft.stages.align_measures import Measures
from raft.stages.align_parts import (
    Progress,
    build_engine,
    digests,
    discard,
    load_prompts,
    load_reference,
    policy_card,
    put_rewards,
    refuse_texts,
    refuse_unfit,
    settle_sampling,
    share_base,
    start_backend,
)
from raft.stages.common import start, take


def main(config: AlignConfig) -> None:
    """Run RAFT from its first (or next) iteration to its last and leave a run directory behind."""
    alignment = Alignment(config)
    take(alignment.directory, config, alignment.made_from)
    with keeping(alignment.journal):
        try:
            alignment.run()
        except UserError as error:  # a source of reward that stopped working, say
            raise UserError(f"{error} Go on with --output_dir {alignment.directory.path} --resume.") from error


SHARE_OF_DRAWING = 0.05
"""Of the time, at most, that curves are drawn while the run goes on."""


class Alignment:
    """The parts of one run and the verbs of the paper."""

    def __init__(self, config: AlignConfig) -> None:
        self.config, self.progress = config, Progress()
        self.directory: RunDirectory = start(config, "align")
        refuse_absent(config.reward)
        self.journal = Journal(self.directory.path / "journal")
        with self.progress.timed("loading"):
            self.tokenizer = load_tokenizer(config.model)
            self.template = ConversationTemplate(self.tokenizer, config.model.template)
            self.prompts, self.held_out = load_prompts(config, self.template)
            self.engine = build_engine(config)
            refuse_unfit(config, self.engine, self.tokenizer, [*self.prompts, *self.held_out])
            self.batching = text_batching(self.engine, self.tokenizer)
            self.rewards = load_rewards(
                config.reward,
                trust_remote_code=config.model.trust_remote_code,
                shared=share_base(config, self.engine),
            )
            self.reference = load_reference(config)
            self.measures = Measures(config, self.template, self.reference, context_of(self.engine.module.config))
            refuse_texts(config, self.engine, self.measures.texts)
            settle_sampling(config, self.engine, [*self.prompts, *self.held_out])
            self.backend = start_backend(config, self.tokenizer)
        self.made_from = digests(config, self.engine, self.rewards, self.prompts, self.held_out, self.measures.texts)
        self.drift_watch = RunWatch(self.directory, config.drift)
        self.draws_again_at = 0.0

    def run(self) -> None:
        """The loop."""
        progress = self.progress
        if self.directory.resumes:
            self.resume()
        if progress.at_the_start:
            self.evaluate()
        for progress.iteration in self.iterations():
            prompts = self.take_prompts()
            samples = self.sample(prompts)
            self.score(samples)
            chosen = self.rank(samples)
            measured = self.measure(samples)
            loss = self.fine_tune(chosen)
            self.record(samples, measured | {"train/loss": loss})
            if self.evaluates_now():
                self.evaluate()
            self.checkpoint()
            self.keep_best()
        if progress.evaluations[-1].iteration != progress.iteration:  # resumed with flags that end it here
            self.evaluate()
            self.keep_best()
        self.finish()

    # ---------------------------------------------------------------- the verbs

    def take_prompts(self) -> list[Prompt]:
        """The next prompts of a seeded permutation."""
        config, progress = self.config.raft, self.progress
        indices = draw_prompts(
            len(self.prompts), seed=self.config.run.seed, cursor=progress.cursor, count=config.num_prompts
        )
        progress.cursor += config.num_prompts
        return [self.prompts[i] for i in indices]

    def sample(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """Draw responses with the current policy (Algorithm 1, line 4)."""
        return self.draw(prompts, self.config.raft.samples_per_prompt, self.config.sampling.temperature, "sampling")

    def draw(self, prompts: Sequence[Prompt], num_samples: int, temperature: float, purpose: str) -> list[Sample]:
        """Draw responses at a temperature; held-out ones with the same random numbers every time."""
        sampling = self.config.sampling.at(temperature)
        phase = purpose if purpose == "sampling" else "evaluation"
        with self.progress.timed(phase), self.backend.drawing_from(self.engine.generating()):
            generated = rollout(
                self.backend,
                [prompt.tokens for prompt in prompts],
                num_samples=num_samples,
                sampling=sampling,
                rows_per_chunk=self.config.sampling.rows_per_chunk,
                seed=self.config.run.seed,
                iteration=self.progress.iteration if purpose == "sampling" else 0,
                purpose=purpose,
                attempt=str(self.progress.iteration),
            )
        return make_samples(prompts, generated, num_samples, sampling, self.tokenizer)

    def score(self, samples: Sequence[Sample], phase: str = "scoring") -> None:
        """Reward every response (line 5), apply the discard rules and the KL penalty, and write all of it down."""
        iteration = self.progress.iteration
        with self.progress.timed(phase if phase == "scoring" else "evaluation"):
            candidates = [sample.as_candidate() for sample in samples]
            scales = self.progress.scales if phase != "scoring" else None
            scored = self.rewards.score(candidates, name=f"{phase}/{iteration}", progress=phase, scales=scales)
            log_ratios = self.measures.log_ratios(self.engine, samples, iteration) if phase == "scoring" else None
        if exclusions := scored.exclusions():
            self.say(exclusions)
        if phase != "scoring":
            self.progress.scales = dict(scored.scales)  # held-out rewards are measured with one yardstick
        put_rewards(samples, scored, log_ratios, self.config.raft.kl_coefficient)
        if phase == "scoring":
            discard(samples, candidates, scored, self.config.discard)
            self.write("samples.jsonl", samples)  # rank writes it again: here it is there whatever selecting does

    def rank(self, samples: Sequence[Sample]) -> list[Sample]:
        """Keep the best 1/k (lines 6 and 7)."""
        config = self.config.raft
        selection = select(
            config.collection_strategy,
            [float("nan") if sample.reward is None else sample.reward for sample in samples],
            [sample.draw for sample in samples],
            num_selected=config.raft_batch_size,
            generator=np.random.default_rng([self.config.run.seed, self.progress.iteration]),
        )
        selected = set(selection.indices)
        for i, sample in enumerate(samples):
            sample.selected = i in selected
        chosen = [samples[i] for i in selection.indices]
        self.write("samples.jsonl", samples)
        self.write("selected.jsonl", chosen)
        return chosen

    def measure(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Entropy of the policy that drew the samples, and its distance to the initial one."""
        if not self.config.measuring.kl_num_responses:
            return {}
        with self.progress.timed("measuring"), self.engine.generating() as policy:
            return once(f"measuring/{self.progress.iteration}", lambda: self.measures.of_iteration(policy, samples))

    def fine_tune(self, chosen: Sequence[Sample]) -> float | None:
        """Supervised fine-tuning on the selected responses, ids as sampled (line 8). Gives the mean loss."""
        config = self.config.training
        if not chosen:
            self.say("no sample is left to train on: all of this iteration's were discarded")
            return None
        self.journal.complete = False
        progress, first_epoch = self.progress, (self.progress.iteration - 1) * config.num_train_epochs
        with progress.timed("training"):
            steps = train_steps(
                self.engine,
                [sample.token_row() for sample in chosen],
                next_token_loss,
                self.batching,
                epochs=range(first_epoch, first_epoch + config.num_train_epochs),
                seed=self.config.run.seed,
                save=lambda: self.checkpoint(within=True),
                nonfinite=NonfiniteSteps(self.directory, self.tokenizer),
                save_steps=self.config.raft.save_steps,
                skip_steps=progress.steps_taken,
            )
            for metrics in tqdm(steps, "training", unit="step", leave=False, disable=not distributed.is_main()):
                if self.engine.num_steps % config.logging_steps == 0:
                    self.directory.log({"step": self.engine.num_steps} | {f"train/{k}": v for k, v in metrics.items()})
                progress.count_step(metrics["loss"], metrics["weight"])
        return progress.end_training()

    def evaluate(self) -> None:
        """Held-out reward; the policy may be the best so far, and the run may end here."""
        iteration = self.progress.iteration
        samples = self.draw(self.held_out, 1, self.config.held_out.eval_temperature, "held_out")
        self.score(samples, phase="held_out_scoring")
        metrics = held_out_metrics(samples) | source_metrics(samples, "held_out_reward")
        with self.progress.timed("evaluation"), self.engine.generating() as policy:
            metrics |= self.measures.of_evaluation(policy, samples, name=str(iteration))
        judgement = self.progress.evaluated(metrics, samples, self.config.stopping)
        seconds = self.progress.new_seconds("evaluation")
        self.directory.log({"iteration": iteration, **metrics, **judgement.metrics, **seconds})
        self.directory.write_jsonl(f"held_out/{iteration:04d}.jsonl", (sample.as_json() for sample in samples))
        low, high = metrics["held_out/reward_ci95"]
        interval = f" (95% interval {low:.3f} to {high:.3f})" if np.isfinite(low) else ""  # of one reward there is none
        self.say(f"iteration {iteration}: held-out reward {metrics['held_out/reward_mean']:.3f}{interval}")
        for line in judgement.lines(iteration):
            self.say(line)

    # ---------------------------------------------------------------- parts

    def iterations(self) -> Iterator[int]:
        """Numbers of the iterations to come, under a bar with the time left; an evaluation may end them."""
        done, total = self.progress.iteration, self.config.raft.num_raft_iteration
        with tqdm(desc="RAFT", initial=done, total=total, unit="iteration", disable=not distributed.is_main()) as bar:
            for iteration in range(done + 1, total + 1):
                if (self.progress.stopped or self.engine.is_done) and not self.progress.steps_taken:
                    return  # an iteration whose training has begun comes to its end
                yield iteration
                bar.update()

    def evaluates_now(self) -> bool:
        """After the last iteration, and every n before it."""
        every, iteration = self.config.held_out.eval_every_n_iterations, self.progress.iteration
        last = iteration == self.config.raft.num_raft_iteration or self.engine.num_steps >= self.engine.total_steps
        return last or bool(every and iteration % every == 0)

    # ---------------------------------------------------------------- what is left behind

    def write(self, name: str, samples: Sequence[Sample]) -> None:
        """Write samples into the iteration's folder."""
        folder = self.directory.iteration(self.progress.iteration)
        self.directory.write_jsonl(f"{folder}/{name}", (sample.as_json() for sample in samples))

    def record(self, samples: Sequence[Sample], measured: dict[str, Any]) -> None:
        """Metrics of the iteration, its curves, and a line on the screen."""
        from raft.reports.curves import draw_align_curves

        iteration = self.progress.iteration
        with self.progress.timed("metrics"):
            metrics = iteration_metrics(samples) | source_metrics(samples, "reward") | measured
        with self.progress.timed("drift"):
            drift, alarms = self.drift_watch.metrics_and_text(iteration)
        metrics |= drift | self.progress.new_seconds()
        self.progress.training_reward = metrics["reward/all_mean"]
        self.directory.log({"iteration": iteration, **metrics})
        self.directory.write_json(f"{self.directory.iteration(iteration)}/metrics.json", metrics)
        self.say(iteration_text(iteration, metrics) + (f"\n{alarms}" if alarms else ""))
        if distributed.is_main() and (began := time.monotonic()) >= self.draws_again_at:
            with self.progress.timed("plots"):
                draw_align_curves(self.directory.path)
            now = time.monotonic()
            self.draws_again_at = now + (now - began) / SHARE_OF_DRAWING

    def checkpoint(self, within: bool = False) -> None:
        """Save what a resumed run needs: after an iteration, or in its training, with its samples in the journal."""
        config, progress, every = self.config.raft, self.progress, self.config.raft.save_every_n_iterations
        if not within and not (every and progress.iteration % every == 0):
            return
        state = progress.before_iteration(config.num_prompts) if within else vars(progress)
        with progress.timed("checkpoints"):
            number, keep = state["iteration"], config.save_total_limit
            needs = self.journal.files() if within else ()
            save_checkpoint(self.engine, self.directory, number, state, keep=keep, within=within, needs=needs)
        if not within:
            self.journal.clear()

    def resume(self) -> None:
        """Continue after the last checkpoint; what came after it is done again, or read where it is in the journal."""
        self.progress.restore(load_latest(self.engine, self.directory), self.config.stopping)
        self.journal.complete = self.progress.steps_taken > 0
        if distributed.is_main():
            self.directory.forget_after(self.progress.iteration)
        if not self.progress.steps_taken:
            self.keep_best()
        self.say(f"resumed after iteration {self.progress.iteration} and {self.progress.steps_taken} steps of the next")

    def keep_best(self) -> None:
        """Save the policy to ``best/`` if it is the best so far: behind its checkpoint, so that the two agree.

        A run that was killed between the two does it when it is resumed.
        """
        if 0 < self.progress.iteration == self.progress.best_iteration:
            self.export("best")

    def export(self, name: str) -> None:
        """Save the policy for transformers (or its adapter for peft) below the run directory."""
        with self.progress.timed("saving"):
            base = self.config.model.model_name_or_path
            card = policy_card(self.config, self.directory.path.name, self.progress.iteration)
            export(self.engine, self.tokenizer, self.directory.path / name, card=card, base_model=base)

    def finish(self) -> None:
        """Save ``final/``, draw the curves, write and print the summary, write the page."""
        from raft.reports.curves import draw_align_curves
        from raft.reports.page.page import write_page

        self.export("final")
        if distributed.is_main():
            draw_align_curves(self.directory.path)
            summary = summarize(self.directory.path, vars(self.progress))
            self.directory.write_json("summary.json", summary)
            write_before_after(self.directory.path, summary)
            print(f"the page of this run: {write_page([self.directory.path])}")
        self.journal.clear()
        self.directory.close()
        distributed.barrier()

    def say(self, text: str) -> None:
        """Print a line on rank 0, above any progress bar."""
        if distributed.is_main():
            tqdm.write(text)
