"""Rows of several turns as transformers' chat template and TRL's collators make them: the same ids, the same masks."""

import os

import pytest
import torch

from groundup.data.preferences import preference_of
from groundup.posttraining import tokenize_rows
from groundup.posttraining.batches import collate, prompt_of, question_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
trl = pytest.importorskip("trl", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()

CPU = torch.device("cpu")


def said(role, content):
    return {"role": role, "content": content}


SYSTEM = said("system", "the file")
FIRST = [said("user", " what does it return\n"), said("assistant", "the path ")]
SECOND = [said("user", "漢字 <|im_end|>?"), said("assistant", "def path(file):\n    return file")]
THIRD = [said("user", "path"), said("assistant", "it")]
CONVERSATIONS = [FIRST, [SYSTEM, *FIRST], [*FIRST, *SECOND], [SYSTEM, *FIRST, *THIRD, *FIRST]]


@pytest.fixture(scope="module")
def theirs(toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer.save(path, chat=True)
    return transformers.AutoTokenizer.from_pretrained(path, split_special_tokens=False)


def plain(conversation):
    """Of text that spells special tokens theirs makes such tokens, ours text."""
    return [{**message, "content": message["content"].replace("<|im_end|>", "")} for message in conversation]


def share_gpt(conversation):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[message["role"]], "value": message["content"]} for message in conversation]}


def alpaca(conversation):
    texts = [message["content"] for message in conversation if message["role"] != "system"]
    pairs = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    system = {"system": conversation[0]["content"]} if conversation[0]["role"] == "system" else {}
    return {**system, "history": pairs[:-1], "instruction": pairs[-1][0], "output": pairs[-1][1]}


@pytest.mark.parametrize("form", [lambda some: {"messages": some}, share_gpt, alpaca], ids=["messages", "ShareGPT", "Alpaca"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_every_answer_is_learned_as_the_template_marks_it(theirs, toy_tokenizer, conversation, form):
    conversation = plain(conversation)
    found = theirs.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    ids, spoken = tokenize_rows.conversation(toy_tokenizer, form(conversation))
    assert ids == found["input_ids"] and spoken == found["assistant_masks"]
    prompt = theirs.apply_chat_template(conversation[:-1], add_generation_prompt=True, return_dict=False)
    assert prompt_of(toy_tokenizer, question_of({"messages": conversation})) == prompt
    learned = tokenize_rows.conversation(toy_tokenizer, {"prompt": conversation[:-1], "completion": conversation[-1:]})
    assert learned == (ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt)))


def test_trl_masks_the_same_tokens_of_conversations(theirs, toy_tokenizer):
    some = [plain(conversation) for conversation in CONVERSATIONS]
    rendered = [theirs.apply_chat_template(one, return_dict=True, return_assistant_tokens_mask=True) for one in some]
    collator = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(toy_tokenizer.pad)
    fields = ({"input_ids": one["input_ids"], "assistant_masks": one["assistant_masks"]} for one in rendered)
    expected = collator([{**one, "labels": labels(one)} for one in fields])
    ours = collate([tokenize_rows.conversation(toy_tokenizer, {"messages": one}) for one in some], toy_tokenizer.pad, CPU)
    assert torch.equal(ours["ids"], expected["input_ids"][:, :-1])
    assert torch.equal(ours["targets"].where(ours["mask"] == 1, -100), expected["labels"][:, 1:])


def labels(one):
    return [token if says else -100 for token, says in zip(one["input_ids"], one["assistant_masks"], strict=True)]


def test_trl_masks_the_same_tokens_of_preferences(theirs, toy_tokenizer):
    implicit = [{"chosen": one, "rejected": [*one[:-1], said("assistant", "no path")]} for one in map(plain, CONVERSATIONS)]
    explicit = [trl.data_utils.extract_prompt(row) for row in implicit]
    ours = [tokenize_rows.pair(toy_tokenizer, row) for row in implicit]
    assert ours == [tokenize_rows.pair(toy_tokenizer, row) for row in explicit]
    assert [preference_of(row).row["prompt"] for row in implicit] == [row["prompt"] for row in explicit]
    examples = []
    for row in explicit:
        prompt = theirs.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        sides = {side: theirs.apply_chat_template(messages, return_dict=False) for side, messages in whole.items()}
        examples.append({"prompt_ids": prompt, **{f"{side}_ids": ids[len(prompt) :] for side, ids in sides.items()}})
    expected = trl.trainer.dpo_trainer.DataCollatorForPreference(toy_tokenizer.pad)(examples)
    batch = collate([pair[side] for side in (0, 1) for pair in ours], toy_tokenizer.pad, CPU)
    assert torch.equal(batch["ids"], expected["input_ids"][:, :-1])
    assert torch.equal(batch["mask"].long(), expected["completion_mask"][:, 1:])
