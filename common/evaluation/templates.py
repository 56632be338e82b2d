"""From messages to token ids: the tokenizer's own template or a named one, exactly one BOS, the right stops."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data_utils.records import Message
from common.launcher.errors import UserError

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message.role == 'user' %}<s>[INST] "
    "{{ system if loop.first else '' }}{{ message.content }} [/INST]"
    "{% else %} {{ message.content }} </s>{% endif %}{% endfor %}"
)
# name -> (template, tokens that must be single special tokens, token that ends an answer)
NAMED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "chatml": (_CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": (_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "llama2": (_LLAMA2, ("<s>", "</s>"), "</s>"),
}
_PROBE = "answer-end-probe"


@dataclass
class Template:
    """Turns conversations into prompts.

    Attributes:
        name: what to tell the user: `default`, `chatml` ..., `none`, or a file.
        text: the Jinja template; None = raw text.
        kwargs: for the template, e.g. {"enable_thinking": False}.
        system: put before conversations without a system message.
        note: what the user should know about the choice; "" for nothing.
    """

    tokenizer: Any
    name: str
    text: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """For people: name, keyword arguments, note."""
        kwargs = "".join(f", {name}={value}" for name, value in self.kwargs.items())
        return f"{self.name}{kwargs}" + (f"; {self.note}" if self.note else "")

    def messages(self, turns: list[Message]) -> list[Message]:
        """With the system prompt, where there is none yet."""
        if self.system and not any(turn["role"] == "system" for turn in turns):
            return [{"role": "system", "content": self.system}, *turns]
        return turns

    def encode(self, turns: list[Message], tools: Any = None) -> list[int]:
        """Token ids of the prompt, BOS once where this model uses one.

        Raises:
            ValueError: the template refuses the conversation (its own message).
        """
        turns = self.messages(turns)
        if self.text is None:
            text = "\n\n".join(str(turn["content"]) for turn in turns)
            return self._one_bos(self.tokenizer(text).input_ids)
        try:
            ids = self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self.text,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self.kwargs,
            )
        except Exception as error:  # Jinja and templates' own raise_exception have many types
            raise ValueError(f"the template refuses it: {' '.join(str(error).split())}") from error
        return self._one_bos(list(ids))

    def _one_bos(self, ids: list[int]) -> list[int]:
        """A template's BOS and the tokenizer's own must not add up: two cost accuracy."""
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def stop_ids(self, generation_config: Any = None) -> list[int]:
        """Every token that ends an answer: the model's, the tokenizer's and the template's own end marker."""
        found = getattr(generation_config, "eos_token_id", None)
        stops = set(found if isinstance(found, list | tuple) else [found])
        stops |= {self.tokenizer.eos_token_id, self._end_marker()}
        return sorted(token for token in stops if token is not None)

    def _end_marker(self) -> int | None:
        """The special token that follows an assistant turn in this template."""
        if self.text is None:
            return None
        if self.name in NAMED:
            return int(self.tokenizer.convert_tokens_to_ids(NAMED[self.name][2]))
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=self.text, tokenize=False, **self.kwargs
            )
        except Exception:  # a template for other roles; its stops are then the model's
            return None
        rest = str(text).rpartition(_PROBE)[2]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        ids = self.tokenizer(rest, add_special_tokens=False).input_ids
        return next((token for token in ids if token in special), None)


def choose(tokenizer: Any, name: str, *, kwargs: dict[str, Any] | None = None, system: str = "") -> Template:
    """The template that *name* means for this tokenizer.

    Args:
        tokenizer: of the model.
        name: `default`, `none`, `chatml`, `llama`, `llama2`, `llama3` or a Jinja file.

    Raises:
        UserError: unknown, or its markers are no single special tokens of this tokenizer.
    """
    more: dict[str, Any] = {"kwargs": dict(kwargs or {}), "system": system}
    if name == "default":
        if tokenizer.chat_template:
            return Template(tokenizer, "default", tokenizer.chat_template, **more)
        note = "this tokenizer has no chat template: prompts go in as plain text (--template chatml to force one)"
        return Template(tokenizer, "none", None, **more, note=note)
    if name == "none":
        return Template(tokenizer, "none", None, **more)
    if name == "llama":
        name = "llama3" if _special(tokenizer, "<|eot_id|>") else "llama2"
    if name in NAMED:
        text, markers, _ = NAMED[name]
        missing = [marker for marker in markers if not _special(tokenizer, marker)]
        if missing:
            raise UserError(
                f"--template {name}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} no special "
                "token of this model, so it never learnt this form: use --template default"
            )
        note = "" if tokenizer.chat_template is None else _differs(tokenizer, name, text)
        return Template(tokenizer, name, text, **more, note=note)
    if Path(name).is_file():
        return Template(tokenizer, name, Path(name).read_text(encoding="utf-8"), **more)
    raise UserError(
        f"--template {name}: choose default, none, {', '.join(sorted([*NAMED, 'llama']))}, or a Jinja file"
    )


def _special(tokenizer: Any, marker: str) -> bool:
    ids = tokenizer(marker, add_special_tokens=False).input_ids
    return len(ids) == 1 and ids[0] in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def _differs(tokenizer: Any, name: str, text: str) -> str:
    """A note when a named template gives other tokens than the model's own."""
    turns = [{"role": "user", "content": "hi"}]
    own = Template(tokenizer, "default", tokenizer.chat_template)
    try:
        same = own.encode(turns) == Template(tokenizer, name, text).encode(turns)
    except ValueError:
        return ""
    if same:
        return ""
    return (
        f"--template {name} gives other tokens than the model's own template; --template default is that one"
    )
