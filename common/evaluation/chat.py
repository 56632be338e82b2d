"""--single: a chat in the terminal, streamed, with history."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.data_utils.atomic import write_text
from common.data_utils.records import Message
from common.evaluation import templates
from common.evaluation.backends import Backend, Sampling, load
from common.evaluation.setup import choose_sampling, load_model, load_template
from common.launcher.errors import UserError

HELP = """/system TEXT    set the system prompt (empty: none)
/temp NUMBER    temperature; 0 = greedy
/max NUMBER     most new tokens
/template NAME  default, chatml, llama, llama2, llama3, none or a Jinja file
/reset          forget the conversation
/save FILE      write the conversation as JSON
/exit           leave (Ctrl-D too)
Several lines: start with \"\"\" and end with \"\"\"; or end a line with \\"""
FENCE = '"""'


class Chat:
    """A conversation with a loaded model."""

    def __init__(self, backend: Backend, template: templates.Template, sampling: Sampling) -> None:
        self.backend, self.template, self.sampling = backend, template, sampling
        self.turns: list[Message] = []

    def command(self, line: str) -> bool:
        """Carry out a /command; False ends the chat.

        Raises:
            UserError: an unknown command or value.
        """
        name, _, value = line[1:].strip().partition(" ")
        value = value.strip()
        if name in ("exit", "quit"):
            return False
        if name == "system":
            self.template.system = value
            self.turns = [turn for turn in self.turns if turn["role"] != "system"]
            print(f"system prompt: {value or '(none)'}")
        elif name in ("temp", "temperature"):
            self.sampling = replace(self.sampling, temperature=_number(name, value, 0.0))
            print(f"temperature {self.sampling.temperature:g}")
        elif name == "max":
            self.sampling = replace(self.sampling, max_new_tokens=int(_number(name, value, 1)))
            print(f"max_new_tokens {self.sampling.max_new_tokens}")
        elif name == "template":
            new = templates.choose(
                self.backend.tokenizer,
                value or "default",
                kwargs=self.template.kwargs,
                system=self.template.system,
            )
            self.template = new
            print(f"template {new.title}")
        elif name == "reset":
            self.turns = []
            print("conversation forgotten")
        elif name == "save":
            self.save(value)
        elif name == "help":
            print(HELP)
        else:
            raise UserError(f"unknown command /{name}; /help lists them")
        return True

    def save(self, name: str) -> None:
        """Write the conversation as {"messages": [...]}: the form of the training data."""
        if not name:
            raise UserError("/save needs a file name")
        path = Path(name).expanduser()
        text = json.dumps({"messages": self.template.messages(self.turns)}, ensure_ascii=False, indent=1)
        try:
            write_text(path, text + "\n")
        except (OSError, UnicodeEncodeError) as error:
            raise UserError(f"{path} cannot be written: {error}") from None
        print(f"saved {len(self.turns)} messages to {path}")

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes; Ctrl-C ends the answer and keeps what there is."""
        self.turns.append({"role": "user", "content": text})
        stops = self.template.stop_ids(self.backend.generation_config)
        pieces: list[str] = []
        try:
            ids = self.template.encode(self.turns)
            if len(ids) >= self.backend.context:
                raise ValueError(f"{len(ids)} tokens fill the context of {self.backend.context}: /reset")
            begin = time.monotonic()
            for piece in self.backend.stream(ids, self.sampling, stops):
                pieces.append(piece)
                print(piece, end="", flush=True)
        except ValueError as error:
            self.turns.pop()
            raise UserError(str(error)) from None
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        seconds = time.monotonic() - begin
        answer = "".join(pieces)
        self.turns.append({"role": "assistant", "content": answer})
        words = len(self.backend.tokenizer(answer, add_special_tokens=False).input_ids)
        print()
        if sys.stdout.isatty():
            print(f"[{words} tokens, {words / max(seconds, 1e-9):.1f} tokens/s]", file=sys.stderr)


def _number(name: str, text: str, low: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value < 10**9:
        raise UserError(f"/{name} needs a number of {low:g} or more")
    return value


def read_message() -> str | None:
    """What the user types: a line, several ending in a backslash, or a block between triple quotes; None = end."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        line = input(prompt)
        if line.startswith(FENCE):
            lines = [line.removeprefix(FENCE)]
            while not lines[-1].rstrip().endswith(FENCE):
                lines.append(input("… " if prompt else ""))
            return "\n".join(lines).rstrip().removesuffix(FENCE).strip("\n")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("… " if prompt else "")
    except EOFError:
        return None
    return line


def run(options: Namespace) -> int:
    """Chat until /exit.

    Raises:
        UserError: the model cannot be used.
    """
    import torch

    model = load_model(options)
    template, config = load_template(model, options)
    sampling = choose_sampling(options, model.checkpoint.record())
    torch.manual_seed(options.seed)
    backend: Any = load(model, options, 0)
    backend.generation_config = config
    values = ", ".join(f"{name} {value:g}" for name, value in sampling.as_dict().items())
    dtype = model.dtype if options.dtype == "auto" else options.dtype
    print(f"model    {model.checkpoint.title}, {dtype}, {backend.name}", file=sys.stderr)
    print(f"template {template.title}", file=sys.stderr)
    print(f"sampling {values}", file=sys.stderr)
    print("/help lists the commands, /exit leaves", file=sys.stderr)
    if sys.stdin.isatty():
        import readline  # noqa: F401 (editing and history in input())
    chat = Chat(backend, template, sampling)
    try:
        while (line := _next()) is not None:
            if not line.strip():
                continue
            try:
                if line.startswith("/") and not chat.command(line):
                    break
                if not line.startswith("/"):
                    chat.say(line)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
    finally:
        backend.close()
    return 0


def _next() -> str | None:
    """The next message; Ctrl-C at the prompt clears the line, twice in a row leaves."""
    for _ in range(2):
        try:
            return read_message()
        except KeyboardInterrupt:
            print("\n(Ctrl-C again, or /exit, to leave)", file=sys.stderr)
    return None
