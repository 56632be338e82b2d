"""What passes between the steps of a conversion: the plan for a file, a neutral record, a rejected row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]

TASKS = ("sft", "rl", "preference")
POLICIES = ("error", "quarantine")


@dataclass(frozen=True)
class Options:
    """What the user may say about a conversion; every field is a command line flag of the same name.

    Attributes:
        format: a name from `formats.FORMATS`, or "auto".
        columns: canonical field -> column of the source, e.g. {"question": "q"}.
        system_prompt: put before rows that bring no system message of their own.
        prompt_template: wraps the last user message of RL prompts; contains {question} or {prompt}.
        data_source: value of that RL column for rows without one; "" derives it.
        ability: same for the `ability` column.
        agent_name: RL column `agent_name` (verl's agent loop); "" leaves the column out.
        answer_style: "extract" takes the ground truth from `#### x` or `\\boxed{x}`, "plain" takes the
            answer whole, "auto" looks at the first rows.
        ground_truth: "optional" lets RL rows without one through (for reward models and judges).
        encoding: of text sources; "" detects it.
        split: which split of a folder or hub dataset.
    """

    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: str = ""
    prompt_template: str = ""
    data_source: str = ""
    ability: str = ""
    agent_name: str = ""
    answer_style: str = "auto"
    ground_truth: str = "required"
    encoding: str = ""
    split: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for cache keys and JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first row of one file is converted; sent to worker processes."""

    task: str
    format: str
    columns: dict[str, str]
    reason: str
    options: Options
    data_source: str
    ability: str
    extract: bool
    split: str = "train"
    notes: tuple[str, ...] = ()

    @cached_property
    def used(self) -> frozenset[str]:
        """Source columns that the format reads; the others are extras."""
        return frozenset(self.columns.values())

    @cached_property
    def same_names(self) -> bool:
        """Whether every column has its canonical name already."""
        return all(field == name for field, name in self.columns.items())


@dataclass(slots=True)
class Record:
    """One example, free of its source format.

    `prompt` + `response` is the whole conversation; `rejected` stands beside `response` in preference
    data; `ground_truth` is what a reward compares with (None: not known).
    """

    prompt: list[Message]
    response: list[Message]
    rejected: list[Message] | None = None
    ground_truth: Any = None
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Rejected:
    """A row that was not converted. `row` follows the counting rule of its file type (docs/data.md)."""

    file: str
    row: int
    field: str
    reason: str
    data: Any = None

    def line(self) -> str:
        """One line for people."""
        return f"{self.file}: row {self.row}: {self.field}: {self.reason}"
