"""Offline preference optimisation on verl's engine: `torchrun -m dpo.dpo_trainer`, started by dpo/train.sh.

Config, engine, checkpoints, resume and loggers are those of verl's SFT trainer (`verl.trainer.sft_trainer`); the
pairs, the reference log-probs, the loss and the loop are ours.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.distributed as dist
from omegaconf import OmegaConf, open_dict
from torch import Tensor
from tqdm import tqdm
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.device import auto_set_device, get_device_name, get_torch_device
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group
from verl.utils.memory_utils import aggressive_empty_cache
from verl.utils.tracking import Tracking
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

from common.launcher.errors import UserError
from dpo import batches, losses, pair_store, reference, shared_prompt
from dpo.engine import MODEL_TYPE, answer_sums, means, metric_sums, preference_loss
from dpo.preference_data import Limits, Pair, PreferenceDataError, check_limits


class DPOTrainer(SFTTrainer):
    """Trains on preference pairs. Config: sft_trainer_engine and the `dpo` part of dpo/config.yaml."""

    def _build_config(self) -> None:
        own = self.config.dpo
        self.settings = losses.settings_of(own)
        self.limits = Limits(
            int(self.config.data.max_length),
            int(self.config.data.max_prompt_length),
            str(self.config.data.truncation),
            str(self.config.data.bad_rows),
        )
        wrong = losses.problems(self.settings) + check_limits(self.limits)
        if not self.config.model.use_remove_padding:
            wrong.append("model.use_remove_padding must be True: pairs are always packed")
        if wrong:
            raise UserError("\n".join(wrong))
        with open_dict(self.config):
            # The head of dpo/answer_head.py takes the place of verl's fused one.
            self.config.model.use_fused_kernels = False
            self.config.data.pad_mode = "no_padding"
        super()._build_config()
        self.shared = self._choose_layout()
        self.reference_free = self.settings.loss_type in losses.REFERENCE_FREE

    def _choose_layout(self) -> bool:
        """Whether the answers of a pair share their prompt; sets the attention that this takes."""
        wanted, hf_config = str(self.config.dpo.share_prompt).lower(), self.model_config.hf_config
        obstacle = shared_prompt.why_not(hf_config, self.limits.max_length)
        if self.config.engine.ulysses_sequence_parallel_size > 1:
            obstacle = "sequence parallelism splits rows between GPUs"
        if wanted == "true" and obstacle:
            raise UserError(f"SHARE_PROMPT=true is not possible here: {obstacle}; use SHARE_PROMPT=auto")
        if wanted == "false" or obstacle:
            return False
        hf_config._attn_implementation = shared_prompt.NAME
        return True

    def _build_dataset(self) -> None:
        self.train_pairs = self._load(self.config.data.train_files)
        self.val_pairs = self._load(self.config.data.val_files) if self.config.data.val_files else []
        batch = self.config.data.train_batch_size
        if len(self.train_pairs) < batch:
            raise UserError(
                f"{len(self.train_pairs)} training pairs are fewer than TRAIN_BATCH_SIZE={batch}: no step could run"
            )

    def _load(self, path: str) -> list[Pair]:
        try:
            loaded = pair_store.load(path, self.model_config.tokenizer, self.limits)
        except PreferenceDataError as problem:
            raise UserError(str(problem)) from None
        if self.rank == 0:
            for note in loaded.notes:
                print(f"note: data: {path}: {note}", file=sys.stderr)
        if self.config.data.use_dynamic_bsz:
            self._check_budget(loaded.pairs)
        return loaded.pairs

    def _check_budget(self, pairs: list[Pair]) -> None:
        budget = self.config.data.max_token_len_per_gpu * self.config.engine.ulysses_sequence_parallel_size
        largest = max(pairs, key=lambda pair: batches.computed_tokens(pair, self.shared))
        tokens = batches.computed_tokens(largest, self.shared)
        if tokens > budget:
            raise UserError(
                f"pair {largest.row} takes {tokens} tokens, more than the {budget} of a micro-batch, and a pair stays "
                f"together: use MAX_TOKENS_PER_GPU={tokens} or more, or a shorter MAX_LENGTH"
            )

    def _worker(self, model_config: Any, engine_config: Any) -> TrainingWorker:
        return TrainingWorker(
            TrainingWorkerConfig(
                model_type=MODEL_TYPE,
                model_config=model_config,
                engine_config=engine_config,
                optimizer_config=self.optimizer_config,
                checkpoint_config=self.checkpoint_config,
                profiler_config=self.profiler_config,
            )
        )

    def _build_engine(self) -> None:
        self.training_client = self._worker(self.model_config, self.engine_config)
        self.training_client.set_loss_fn(partial(preference_loss, self.settings))
        self.engine = self.training_client.engine

    def _build_dataloader(self) -> None:
        self.dp_rank, self.dp_size = (
            self.engine.get_data_parallel_rank(),
            self.engine.get_data_parallel_size(),
        )
        self.global_batch_size = self.config.data.train_batch_size
        self.train_dataloader = batches.PairBatches(
            len(self.train_pairs),
            self.global_batch_size,
            self.dp_rank,
            self.dp_size,
            int(self.config.data.seed),
        )

    def _init_engine(self) -> None:
        """Build the model; the reference pass runs before any checkpoint is loaded (SFTTrainer.__init__)."""
        self.reference_seconds = 0.0
        groups = {"train": self.train_pairs, "val": self.val_pairs}
        self.reference = {name: torch.zeros(len(pairs), 2) for name, pairs in groups.items()}
        files = {name: self._reference_file(pairs) for name, pairs in groups.items() if pairs}
        missing = (
            []
            if self.reference_free
            else [name for name, file in files.items() if not self._found(name, file)]
        )
        other = self.config.dpo.reference_path
        if missing and other:
            self._compute_with_other_model(other, missing, groups, files)
            missing = []
        super()._init_engine()
        for name in missing:
            self._compute_reference(self.training_client, name, groups[name], files[name])

    def _reference_file(self, pairs: list[Pair]) -> Any:
        if self.rank != 0 or self.reference_free:
            return None
        own, adapter = self.config.dpo, None
        if own.lora_reference == "adapter":
            adapter = self.config.model.lora_adapter_path
        folder = own.reference_path or self.model_config.local_path
        return reference.cache_file(pairs, folder, adapter, str(self.engine_config.mixed_precision))

    def _found(self, name: str, file: Any) -> bool:
        """Read an earlier run's log-probs on rank 0 and give them to all."""
        values = [reference.load(file, len(self.reference[name])) if self.rank == 0 else None]
        dist.broadcast_object_list(values, src=0)
        if values[0] is None:
            return False
        self.reference[name] = values[0]
        if self.rank == 0:
            print(
                f"reference log-probs of {len(values[0])} {name} pairs: found from an earlier run",
                file=sys.stderr,
            )
        return True

    def _compute_with_other_model(self, path: str, names: list[str], groups: dict, files: dict) -> None:
        """Another model as the reference: loaded, asked and let go before the model that trains is built."""
        config = copy.deepcopy(self.config.model)
        with open_dict(config):
            config.path, config.tokenizer_path, config.hf_config_path = path, self.config.model.path, None
            config.lora_rank, config.lora_adapter_path = 0, None
        from verl.utils.config import omega_conf_to_dataclass

        model_config = omega_conf_to_dataclass(config)
        if self.shared:
            model_config.hf_config._attn_implementation = shared_prompt.NAME
        engine_config = omega_conf_to_dataclass({**self.config.engine, "forward_only": True})
        worker = self._worker(model_config, engine_config)
        worker.set_loss_fn(partial(preference_loss, self.settings))
        worker.reset()
        for name in names:
            self._compute_reference(worker, name, groups[name], files[name])
        del worker
        gc.collect()
        aggressive_empty_cache(force_sync=True)

    def _compute_reference(self, worker: TrainingWorker, name: str, pairs: list[Pair], file: Any) -> None:
        """One forward pass over the pairs, longest first; every process takes its share."""
        # With an adapter as the reference it stays on; otherwise the base model alone is asked.
        without = self.config.model.lora_rank > 0 and self.config.dpo.lora_reference == "base"
        without = without and worker is self.training_client
        order = sorted(
            range(len(pairs)), key=lambda number: -batches.computed_tokens(pairs[number], self.shared)
        )
        found = torch.zeros(len(pairs), 2)
        log = os.environ.get("VERL_FILE_LOGGER_PATH")
        metrics = Path(log) if log and self.rank == 0 else None
        started = time.perf_counter()
        bar = self._bar(f"reference log-probs ({name})", len(pairs), "pair")
        for indices, weights in self._shares(order):
            data = self._batch(pairs, self.reference[name], indices, weights)
            tu.assign_non_tensor(data, compute_loss=False, no_lora_adapter=without)
            side = data["side"]
            output = worker.infer_batch(data)
            if output is not None:
                sums, _ = answer_sums(output["log_probs"].cpu(), side.cpu(), self.shared)
                real = torch.tensor(weights) > 0
                found[torch.tensor(indices)[real]] = sums[real]
            bar.update(min(self.global_batch_size, len(pairs) - bar.n))
            if metrics:  # the run watcher's sign of life: this pass may take longer than any start
                metrics.touch()
        bar.close()
        found = found.to(get_device_name())
        if dist.get_world_size() > 1:
            dist.all_reduce(found, group=self.engine.get_data_parallel_group())
            # Ranks of one sequence-parallel group besides the first have no outputs.
            dist.broadcast(found, src=0)
        self.reference[name] = found.cpu()
        self.reference_seconds += time.perf_counter() - started
        if self.rank == 0:
            reference.save(file, self.reference[name])

    def _shares(self, order: list[int]) -> Any:
        static = 1 if self.config.data.use_dynamic_bsz else self.config.data.micro_batch_size_per_gpu
        return batches.shares(order, self.global_batch_size, self.dp_rank, self.dp_size, static)

    def _batch(self, pairs: list[Pair], logps: Tensor, indices: list[int], weights: list[float]) -> Any:
        """verl's TensorDict of some pairs, with everything that the engine asks for."""
        items = [
            (pairs[number], logps[number], weight) for number, weight in zip(indices, weights, strict=True)
        ]
        data, group = self.config.data, 1 if self.shared else 2
        return tu.get_tensordict(
            tensor_dict=dict(batches.collate(items, self.shared)),
            non_tensor_dict={
                "use_remove_padding": True,
                "use_dynamic_bsz": data.use_dynamic_bsz,
                "max_token_len_per_gpu": data.max_token_len_per_gpu,
                "micro_batch_size_per_gpu": data.micro_batch_size_per_gpu,
                "force_group_size": group,
                "temperature": 1.0,
                "global_batch_size": self.global_batch_size,
                "global_pairs": self.global_batch_size,
                "pad_mode": data.pad_mode,
                "pad_token_id": self.model_config.tokenizer.pad_token_id,
                "shared": self.shared,
            },
        )

    def _bar(self, what: str, total: int, unit: str, first: int = 0) -> tqdm:
        return tqdm(
            total=total, initial=first, desc=what, unit=unit, disable=self.rank != 0, dynamic_ncols=True
        )

    def _train_step(self, indices: list[int], step: int) -> dict[str, float] | None:
        """One optimizer step; metrics on ranks that have outputs."""
        data = self._batch(self.train_pairs, self.reference["train"], indices, [1.0] * len(indices))
        tu.assign_non_tensor(data, update_lr_scheduler=True)
        if step == self.start_profile_step:
            self.training_client.start_profile()
        started = time.perf_counter()
        output = self.training_client.train_batch(data)
        self.training_client.step_profile()
        if step == self.end_profile_step:
            self.training_client.stop_profile()
        if output is None:
            return None
        metrics = tu.get(output, "metrics")
        seconds = time.perf_counter() - started
        tokens = self._everywhere(sum(self.train_pairs[number].tokens for number in indices))
        values = means(metric_sums(metrics))
        found = {f"train/{name}": metrics.pop(name) for name in ("loss", "grad_norm", "lr")}
        found |= {f"train/{name}": value for name, value in values.items()}
        metrics.pop("mfu", None)  # counted by sequences of one copy each, which shared prompts are not
        found |= {name: float(value) for name, value in metrics.items() if not isinstance(value, list)}
        found["train/global_tokens"] = tokens
        found["perf/time_per_step"] = seconds
        found["perf/throughput"] = tokens / seconds / dist.get_world_size()
        found["train/epoch"] = step / len(self.train_dataloader)
        return found

    def _everywhere(self, number: float) -> float:
        """The sum over data-parallel processes."""
        total = torch.tensor(float(number), dtype=torch.float64, device=get_device_name())
        dist.all_reduce(total, group=self.engine.get_data_parallel_group())
        return total.item()

    def _validate(self) -> dict[str, float]:
        """Loss and metrics over all validation pairs; empty on ranks without outputs."""
        totals: dict[str, float] = {}
        loss = 0.0
        for indices, weights in self._shares(list(range(len(self.val_pairs)))):
            data = self._batch(self.val_pairs, self.reference["val"], indices, weights)
            output = self.training_client.infer_batch(data)
            if output is None:
                continue
            metrics = tu.get(output, "metrics")
            loss += metrics["loss"] * self.global_batch_size
            for name, value in metric_sums(metrics).items():
                totals[name] = totals.get(name, 0.0) + value
        if not totals:
            return {}
        return {"val/loss": loss / totals["pairs"], **{f"val/{k}": v for k, v in means(totals).items()}}

    def fit(self) -> None:
        """Train from the resumed step to the last, with validation before, between and after."""
        logs = self.rank == 0
        tracking = None
        if logs:
            trainer = self.config.trainer
            tracking = Tracking(
                project_name=trainer.project_name,
                experiment_name=trainer.experiment_name,
                default_backend=trainer.logger,
                config=OmegaConf.to_container(self.config, resolve=True),
            )

        def log(found: dict[str, float] | None, step: int) -> None:
            if tracking is not None and found:
                tracking.log(data=found, step=step)

        step, last = self.resume_global_step, self.total_training_steps
        log(
            {"timing_s/reference": self.reference_seconds, **(self._validate() if self.val_pairs else {})},
            step,
        )
        bar = self._bar("training", last, "step", step)
        while step < last:
            epoch, within = divmod(step, len(self.train_dataloader))
            for indices in self.train_dataloader.epoch(epoch, within):
                step += 1
                found = self._train_step(indices, step)
                if found:
                    bar.set_postfix_str(
                        f"loss {found['train/loss']:.4f}, acc {found['train/rewards/accuracies']:.2f}"
                    )
                bar.update()
                log(found, step)
                if self.val_pairs and (step == last or (self.test_freq > 0 and step % self.test_freq == 0)):
                    log(self._validate(), step)
                if step == last or (self.save_freq > 0 and step % self.save_freq == 0):
                    get_torch_device().empty_cache()
                    self.ckpt_handler.save_checkpoint(step=step)
                if step == last:
                    break
        bar.close()


def run(config: Any) -> None:
    """Train in this process, one of torchrun's."""
    initialize_global_process_group()
    try:
        DPOTrainer(config).fit()
    finally:
        destroy_global_process_group()


@hydra.main(config_path=None, config_name="config", version_base=None)
def main(config: Any) -> None:
    """Entry point of `torchrun -m dpo.dpo_trainer --config-path <repository>/dpo --config-name config`."""
    auto_set_device(config)
    try:
        run(config)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
