"""verl's SFT dataset for rows with tools: data.custom_cls.path=<this file>, .name=ToolsSFTDataset."""

from __future__ import annotations

from typing import Any

from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from common.data_utils.verl_rows import restore_tools, restore_turns


class ToolsSFTDataset(MultiTurnSFTDataset):  # type: ignore[misc]
    """`MultiTurnSFTDataset` that decodes the JSON text in which tool schemas and arguments are stored.

    Upstream hands the columns to the chat template as Parquet gives them: every key that any row uses,
    null where a row lacks it, so that the nulls land in the prompt (and templates that ask
    `'tool_calls' in message` see tool calls everywhere).
    """

    def _read_files_and_process(self) -> None:
        super()._read_files_and_process()
        if self.tools is not None:
            self.tools = [restore_tools(tools) if isinstance(tools, str) else None for tools in self.tools]

    def _build_messages(self, example: dict[str, Any]) -> list[dict[str, Any]]:
        turns = restore_turns(list(example[self.messages_key]))
        return list(super()._build_messages({**example, self.messages_key: turns}))
