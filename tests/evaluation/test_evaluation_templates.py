"""Prompts as token ids: equal to the tokenizer's own, one BOS, stops that end an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import CHATML, tiny_tokenizer

from common.evaluation.templates import choose
from common.launcher.errors import UserError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello 你好 👍"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "2 + 2?"},
]
WITH_BOS = "{{ bos_token }}" + CHATML


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", [CHATML, WITH_BOS])
def test_default_ids_are_the_tokenizer_s(adds_bos: bool, template: str) -> None:
    words = tiny_tokenizer(adds_bos=adds_bos, template=template)
    ids = choose(words, "default").encode(TURNS)
    own = words.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == own
    assert ids.count(words.bos_token_id) == (1 if template is WITH_BOS else 0)


def test_default_ids_of_the_bundled_model_are_what_verl_trains_on() -> None:
    from transformers import AutoTokenizer
    from verl.utils.tokenizer import normalize_token_ids

    from common.cpu.model import bundled_model_dir

    if not (bundled_model_dir() / "config.json").is_file():
        pytest.skip("the bundled model is not converted yet")
    words = AutoTokenizer.from_pretrained(bundled_model_dir())
    turns = TURNS[1:2]
    verl = normalize_token_ids(words.apply_chat_template(turns, add_generation_prompt=True, tokenize=True))
    assert choose(words, "default").encode(turns) == verl


def test_raw_text_has_exactly_one_bos() -> None:
    words = tiny_tokenizer(adds_bos=True, template=None)
    template = choose(words, "default")
    assert template.name == "none" and "no chat template" in template.note
    for text in ("hello", "<s>hello"):
        ids = template.encode([{"role": "user", "content": text}])
        assert ids[0] == words.bos_token_id and ids.count(words.bos_token_id) == 1


def test_system_prompt_and_template_kwargs_reach_the_template() -> None:
    words = tiny_tokenizer(
        template="{{ mode }}:{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    template = choose(words, "default", kwargs={"mode": "fast"}, system="S")
    assert words.decode(template.encode(TURNS[1:2])) == "fast:[system:S][user:Hello 你好 👍]"
    assert words.decode(template.encode(TURNS)).startswith("fast:[system:Be brief.]")


def test_end_marker_of_the_template_stops_although_the_model_names_another() -> None:
    words = tiny_tokenizer()
    words.eos_token = "</s>"  # a base model's: chat data ends turns with <|im_end|>
    ids = {token: words.convert_tokens_to_ids(token) for token in ("</s>", "<|im_end|>")}
    assert choose(words, "default").stop_ids() == sorted(ids.values())
    assert choose(words, "none").stop_ids() == [ids["</s>"]]


def test_named_templates_are_refused_where_the_model_never_saw_their_marks() -> None:
    words = tiny_tokenizer()
    assert choose(words, "chatml").encode(TURNS) == choose(words, "default").encode(TURNS)
    assert choose(words, "chatml").note == ""
    with pytest.raises(UserError, match=r"llama3: <\|start_header_id\|> and .* are no special token"):
        choose(words, "llama3")
    with pytest.raises(UserError, match=r"--template lama: choose default, none, chatml, llama"):
        choose(words, "lama")
    llama = choose(words, "llama")
    assert (llama.name, "other tokens than the model's own" in llama.note) == ("llama2", True)
    text = words.decode(llama.encode(TURNS))
    assert text == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello 你好 👍 [/INST] Hi. </s><s>[INST] 2 + 2? [/INST]"
    )


def test_llama_means_llama_3_where_its_marks_are_tokens() -> None:
    words = tiny_tokenizer(adds_bos=True)
    words.add_special_tokens(
        {"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
    )
    template = choose(words, "llama")
    ids = template.encode(TURNS[3:])
    assert template.name == "llama3" and ids.count(words.bos_token_id) == 1
    assert words.convert_tokens_to_ids("<|eot_id|>") in template.stop_ids()


def test_file_and_refusing_template(tmp_path: Path) -> None:
    words = tiny_tokenizer()
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}Q{{ messages[0].content }}"
    )
    template = choose(words, str(path))
    assert words.decode(template.encode(TURNS[3:])) == "Q2 + 2?"
    with pytest.raises(ValueError, match="the template refuses it: one turn only"):
        template.encode(TURNS)
