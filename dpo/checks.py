"""What DPO checks before torchrun starts, and what it derives from its knobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common.launcher import checks
from common.launcher.errors import UserError
from common.launcher.token_data import of_sample
from dpo import pair_store
from dpo.losses import Settings, problems
from dpo.preference_data import Limits, PreferenceDataError, check_limits, load_pairs


def settings_of(knobs: dict[str, str]) -> Settings:
    """The loss settings of the knobs."""
    return Settings(
        loss_type=knobs["LOSS_TYPE"],
        beta=float(knobs["BETA"]),
        label_smoothing=float(knobs["LABEL_SMOOTHING"]),
        gamma=float(knobs["SIMPO_GAMMA"]),
        rpo_alpha=float(knobs["RPO_ALPHA"]),
    )


def limits_of(knobs: dict[str, str]) -> Limits:
    """The limits of the knobs."""
    return Limits(
        checks.number(knobs, "MAX_LENGTH"),
        checks.number(knobs, "MAX_PROMPT_LENGTH"),
        knobs["TRUNCATION"],
        knobs["BAD_ROWS"],
    )


def prepare(knobs: dict[str, str], run_dir: Path) -> dict[str, str]:
    """REF_MODEL_DIR ("" = the start of the model that trains) and LORA_ADAPTER_DIR ("" = a new one) for the shell.

    Raises:
        UserError: every mistake in DPO's own knobs, a line each.
    """
    del run_dir
    found = problems(settings_of(knobs)) + check_limits(limits_of(knobs))
    lora, adapter = knobs["USE_LORA"] == "true", knobs["LORA_ADAPTER_PATH"]
    if adapter and not lora:
        found.append(f"LORA_ADAPTER_PATH={adapter} needs USE_LORA=true")
    if adapter and not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        found.append(f"LORA_ADAPTER_PATH={adapter} holds no adapter_config.json: give a PEFT adapter folder")
    if knobs["LORA_REFERENCE"] == "adapter":
        if not adapter:
            found.append(
                "LORA_REFERENCE=adapter needs LORA_ADAPTER_PATH, the adapter that training starts from"
            )
        if knobs["REF_MODEL_PATH"]:
            found.append("LORA_REFERENCE=adapter and REF_MODEL_PATH name two references: choose one")
    derived = {"REF_MODEL_DIR": "", "LORA_ADAPTER_DIR": ""}
    if knobs["REF_MODEL_PATH"]:
        try:
            derived["REF_MODEL_DIR"] = _model(knobs["REF_MODEL_PATH"])
        except UserError as error:
            found.append(str(error).replace("MODEL_PATH=", "REF_MODEL_PATH="))
    if adapter:
        derived["LORA_ADAPTER_DIR"] = str(Path(adapter).expanduser().resolve())
    if found:
        raise UserError("\n".join(found))
    return derived


def _model(name: str) -> str:
    from common.cpu.model import resolve_model_path

    return checks.check_model(resolve_model_path(name))


def usable_rows(knobs: dict[str, str], data: Any, model: str, sampled: bool) -> int:
    """Training pairs that are left once they are tokenized; notes go to stderr.

    Args:
        sampled: of a large file that was not tokenized yet a sample will do, as nothing is started.

    Raises:
        UserError: pairs that the policies do not allow to leave out, or a reference of another vocabulary.
    """
    from common.data_utils.errors import DataError
    from common.data_utils.lengths import load_tokenizer, stride

    limits = limits_of(knobs)
    if check_limits(limits):
        return int(data.train_rows)  # said by `prepare`
    counts = []
    try:
        tokenizer = load_tokenizer(model)
        for name, path, rows in (
            ("TRAIN_DATA", data.train, data.train_rows),
            ("VAL_DATA", data.val, data.val_rows),
        ):
            if not path:
                continue
            every = stride(rows) if sampled and not pair_store.known(path, tokenizer, limits) else 1
            if every == 1:
                loaded, looked = pair_store.load(path, tokenizer, limits), rows
            else:
                loaded, looked = load_pairs(path, tokenizer, limits, every), -(-rows // every)
                print(f"note: data: {of_sample(name, looked, rows)}", file=sys.stderr)
            counts.append(rows * len(loaded.pairs) // looked)
            for note in loaded.notes:
                print(f"note: data: {name}: {note}", file=sys.stderr)
        if knobs["REF_MODEL_PATH"]:
            _check_vocabulary(knobs["REF_MODEL_PATH"], tokenizer)
    except (DataError, PreferenceDataError) as error:
        raise UserError("\n".join(f"data: {line}" for line in str(error).splitlines())) from None
    return counts[0]


def _check_vocabulary(reference: str, tokenizer: Any) -> None:
    """A reference reads the tokens of the model that trains, so both must mean the same by them."""
    from common.data_utils.lengths import load_tokenizer

    if load_tokenizer(_model(reference)).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"REF_MODEL_PATH={reference} has another vocabulary than MODEL_PATH: choose a reference of the same family"
        )
