"""generation_config.json: what it states is how the model is sampled; what it cannot mean is refused by name."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.generation.engine import Sampling
from groundup.model import generation, model_folder
from groundup.model.generation import Generation

NEUTRAL = {"bos_token_id": None, "pad_token_id": None, "repetition_penalty": 1.0, "num_beams": 1}


def read(tmp_path, **entries):
    (tmp_path / generation.FILE).write_text(json.dumps(entries))
    return generation.read(tmp_path, 300, 7)


def test_what_is_stated_holds(tmp_path):
    found = read(tmp_path, do_sample=True, temperature=0.6, top_p=0.95, top_k=20, eos_token_id=[5, 6], **NEUTRAL)
    assert (found.temperature, found.top_p, found.top_k, found.ends, found.unknown) == (0.6, 0.95, 20, (5, 6), ())
    assert Sampling.from_config(found, 9) == Sampling(9, 0.6, 0.95, 20)
    assert Sampling.from_config(found, 9, 0.0) == Sampling(9, 0, 0.95, 20)
    assert read(tmp_path, temperature=1, top_p=None, top_k=-1).sampling() == {
        "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
    }  # fmt: skip
    assert read(tmp_path, do_sample=True).temperature == 1 and read(tmp_path, do_sample=False, temperature=0.7).temperature == 0
    assert read(tmp_path, do_sample=False).sampling() == {"do_sample": False}


def test_where_nothing_is_stated_our_values_hold(tmp_path):
    assert generation.read(tmp_path, 300, [7, 8]) == Generation(ends=(7, 8))
    for entries in ({}, NEUTRAL):
        assert read(tmp_path, **entries) == Generation(ends=(7,), stated=entries)
    assert read(tmp_path, eos_token_id=3).ends == (3,)


def test_what_is_not_done_is_named(tmp_path):
    found = read(tmp_path, repetition_penalty=1.05, min_p=0.1, typical_p=1.0, suppress_tokens=[3], transformers_version="5")
    assert set(found.unknown) == {"repetition_penalty", "min_p", "suppress_tokens"}


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(), st.integers(10**300, 10**310), st.booleans(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip
RIGHT = {
    "temperature": lambda value: 0 <= value <= 1000,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: isinstance(value, int) and -1 <= value < 2**31,
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*RIGHT, "do_sample", "bos_token_id", "pad_token_id", "eos_token_id"]), numbers)
def test_any_value_is_read_or_refused_by_name(tmp_path, name, value):
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if name in RIGHT:
        right = number and RIGHT[name](value)
    elif name == "do_sample":
        right = isinstance(value, bool)
    else:
        ids = value if name == "eos_token_id" and isinstance(value, list) else [value]
        right = all(type(one) is int and 0 <= one < 300 for one in ids) or (name == "pad_token_id" and value == -1)
        right &= value is not True and value is not False
    try:
        found = read(tmp_path, **{name: value})
    except UserError as error:
        line = str(error).replace(str(tmp_path), "")
        assert not right and f"{name} is " in line and len(line) < 250 and "\n" not in line
    else:
        assert right
        sampling = Sampling.from_config(found, 4)
        assert math.isfinite(sampling.temperature) and 0 < sampling.top_p <= 1 and sampling.top_k >= 0


@pytest.mark.parametrize("chat", [False, True])
def test_the_file_is_written_from_what_chat_goes_by(toy_decoder, toy_tokenizer, tmp_path, chat):
    model_folder.save(tmp_path, toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, chat=chat)
    written = json.loads((tmp_path / generation.FILE).read_text())
    ends = [toy_tokenizer.message_end, toy_tokenizer.end_of_text] if chat else toy_tokenizer.end_of_text
    assert written == {
        "bos_token_id": toy_tokenizer.end_of_text, "pad_token_id": toy_tokenizer.pad, "eos_token_id": ends, "do_sample": True,
        "temperature": 0.7, "top_p": 0.9, "top_k": 0,
    }  # fmt: skip
    model = model_folder.load_decoder(tmp_path)
    assert Sampling.from_config(model.generation, 8) == Sampling(8, 0.7, 0.9, 0)
    assert toy_tokenizer.end_of_text in model.generation.ends and (toy_tokenizer.message_end in model.generation.ends) == chat
    # Whoever changes it finds it so in chat, and in what is trained from here.
    (tmp_path / generation.FILE).write_text(json.dumps({**written, "temperature": 0.3, "top_k": 5}))
    model = model_folder.load_decoder(tmp_path)
    assert Sampling.from_config(model.generation, 8) == Sampling(8, 0.3, 0.9, 5)
    model_folder.save(tmp_path / "next", model, toy_tokenizer, chat=True)
    again = json.loads((tmp_path / "next" / generation.FILE).read_text())
    assert (again["temperature"], again["top_k"]) == (0.3, 5) and again["eos_token_id"][0] == toy_tokenizer.message_end


def test_a_folder_with_wrong_values_is_refused(toy_decoder, toy_tokenizer, tmp_path):
    model_folder.save(tmp_path, toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, chat=True)
    for content in ('{"temperature": NaN}', '{"top_p": 1.5}', "[]", "{", '{"eos_token_id": [1, 300000]}'):
        (tmp_path / generation.FILE).write_text(content)
        with pytest.raises(UserError, match="generation_config"):
            model_folder.load_decoder(tmp_path)
