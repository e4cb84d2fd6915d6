"""What we write is what transformers reads: the same logits, gradients, rewards, tokens and answers."""


import pytest
import torch

from groundup.generation.engine import Sampling, generate
from groundup.model import model_folder
from groundup.model.decoder import RewardModel
from groundup.posttraining.batches import collate, row_of
from groundup.posttraining.reward import rewards
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

def read_by_transformers(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def test_the_reward_model_is_their_sequence_classifier(toy_decoder, toy_tokenizer, tmp_path):
    reward_model = RewardModel(toy_decoder(vocab_size=toy_tokenizer.size).config)
    backbone = toy_decoder(seed=3, vocab_size=toy_tokenizer.size)
    reward_model.model.load_state_dict(backbone.model.state_dict())
    model_folder.save(tmp_path, reward_model, toy_tokenizer, chat=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert theirs.config.num_labels == 1
    rows = [row_of(toy_tokenizer, "what", text) for text in ("path", "the file returns it " * 2, "", "def")]
    batch = collate(rows, toy_tokenizer.pad, torch.device("cpu"))
    whole = torch.cat((batch["ids"], batch["targets"][:, -1:]), dim=1)
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    attention = (torch.arange(whole.shape[1]) < lengths[:, None]).long()
    expected = theirs(whole, attention_mask=attention).logits
    assert expected.shape == (4, 1)
    assert (rewards(reward_model, batch) - expected[:, 0]).abs().max() < 1e-4


@torch.no_grad()
def test_a_batch_padded_on_the_left_answers_as_ours_without_padding(saved, toy_tokenizer):
    ours, path = saved()
    theirs = read_by_transformers(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    questions = ["what does the function return", "path"]
    messages = [[{"role": "user", "content": question}] for question in questions]
    batch = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    prompts = [render(toy_tokenizer, one, add_generation_prompt=True)[0] for one in messages]
    assert [row[row != toy_tokenizer.pad].tolist() for row in batch["input_ids"]] == prompts
    ends = [toy_tokenizer.message_end, toy_tokenizer.end_of_text]
    answers = generate(ours, prompts, ends, Sampling(12, temperature=0), seed=0)
    found = theirs.generate(**batch, max_new_tokens=12, do_sample=False, temperature=None, top_p=None)
    for row, answer in zip(found[:, batch["input_ids"].shape[1] :].tolist(), answers, strict=True):
        assert row[: len(answer)] == answer and set(row[len(answer) :]) <= {toy_tokenizer.pad}


TEXTS = [
    "The os module provides a portable way of using operating system dependent functionality.",
    'def read(self, size=-1):\n    """Read at most size bytes."""\n\treturn self.fp.read(size)  # 12345 0x1F\n',
    "🙂👩‍👩‍👧‍👦🇫🇷 漢字かな交じり文 한국어 مرحبا नमस्ते",
    "е\u0435 cafe\u0301 café ﬁ Ⅳ \u200b\u00a0\u2028\ufeff\U0001f9ff",
    "  leading\r\n\r\n   and trailing   \n\n\n",
    "",
    "a" * 300 + " " * 200 + "\x00\x07\x1b[0m",
]


@pytest.mark.parametrize("stage", ["base", "sft", "reward", "dpo", "ppo"])
def test_every_model_folder_of_a_run_has_our_tokens(tiny_run, stage):
    path = tiny_run.folder / stage
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), Tokenizer.load(path)
    assert len(theirs) == ours.size
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs(text).input_ids == [ours.end_of_text, *ids]
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    special = {theirs.convert_tokens_to_ids(name): name for name in ours.special_tokens}
    assert special == {number: name for name, number in ours.special_tokens.items()}
    assert theirs.eos_token_id == (ours.end_of_text if stage == "base" else ours.message_end)
    assert theirs.pad_token_id == ours.pad and theirs.bos_token_id == ours.end_of_text
    messages = [{"role": "user", "content": TEXTS[2]}, {"role": "assistant", "content": TEXTS[1]}]
    rendered = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, spoken = render(ours, messages)
    assert rendered["input_ids"] == ids and rendered["assistant_masks"] == spoken


@pytest.mark.parametrize("stage", ["base", "sft", "dpo", "ppo"])
@torch.no_grad()
def test_every_model_of_a_run_answers_alike(tiny_run, stage):
    path = tiny_run.folder / stage
    ours, tokenizer, theirs = model_folder.load_decoder(path), Tokenizer.load(path), read_by_transformers(path)
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(TEXTS[0] + TEXTS[1])]])
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-3
    prompt, _ = render(tokenizer, [{"role": "user", "content": "What does os.path.join do?"}], True)
    [answer] = generate(ours, [prompt], theirs.generation_config.eos_token_id if stage != "base" else [
        tokenizer.end_of_text
    ], Sampling(32, temperature=0), 0)  # fmt: skip
    ids = torch.tensor([prompt])
    found = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, temperature=None, top_p=None
    )
    assert found[0, len(prompt) :].tolist() == answer
