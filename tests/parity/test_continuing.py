"""A published model that is continued by us stays the model that its users know: template, special tokens, sampling, format."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from groundup.core.device import Device, choose
from groundup.core.errors import UserError
from groundup.corpus.config import PagesConfig, SourceConfig
from groundup.generation.engine import Sampling, generate
from groundup.model import model_folder
from groundup.model.decoder import RewardModel
from groundup.pipeline import preflight, steps
from groundup.pipeline.recipe import Recipe
from groundup.posttraining import dpo, ppo, reward
from groundup.posttraining.batches import collate, prompt_of
from groundup.posttraining.config import DpoConfig, PpoConfig, RewardConfig, SftConfig
from groundup.posttraining.reference_answers import answer
from groundup.posttraining.rewards import ModelReward, Prompt
from groundup.posttraining.sft import compare_with_base, train
from groundup.posttraining.tokenize_rows import pair
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.chat import CHAT_TEMPLATE, after_answer, answer_ends, render
from groundup.tokenizer.config import TokenizerConfig
from groundup.tokenizer.load import for_run
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import PretrainingConfig
from groundup.training.pretraining import _whole_model, pretrain
from groundup.training.runtime import Runtime

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
trl = importlib.util.find_spec("trl")
TEMPLATES = Path(trl.submodule_search_locations[0]) / "chat_templates" if trl else None

CPU = Device(torch.device("cpu"), torch.float32, 1, "a processor", ())
ROWS = 40  # of the vocabulary, beyond its tokens
PLAIN = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPECIAL = (*SPECIAL_TOKENS[:3], "<|object_ref_start|>", "<think>", "</think>")
TALK = [{"role": "user", "content": "what is a"}, {"role": "assistant", "content": "the path"}]
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}


def template(name):
    if TEMPLATES is None or not (TEMPLATES / f"{name}.jinja").exists():
        pytest.skip("TRL's copies of the published templates are not there")
    return (TEMPLATES / f"{name}.jinja").read_text()


def publish(path, kind="qwen3", template=PLAIN, dtype=torch.bfloat16, instruct=True):
    """A folder as transformers alone writes it: tokenizer, model in its format with rows to spare, sampling."""
    own = Tokenizer.from_merges(tokenizer().merges, special=SPECIAL, composed=True)
    own.save(path)
    (path / "tokenizer_config.json").unlink()
    (path / "chat_template.jinja").unlink()
    description = json.loads((path / "tokenizer.json").read_text())
    description["post_processor"] = None
    for token in description["added_tokens"]:
        token["special"] = "think" not in token["content"]
    (path / "tokenizer.json").write_text(json.dumps(description))
    end = "<|im_end|>" if instruct else "<|endoftext|>"
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), eos_token=end, pad_token="<|endoftext|>", model_max_length=4096,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|object_ref_start|>"],
    )  # fmt: skip
    made.chat_template = template
    made.save_pretrained(path)
    config_class, model_class = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    sizes = {
        "vocab_size": own.size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "tie_word_embeddings": kind == "qwen2",
        "bos_token_id": own.end_of_text, "eos_token_id": own.special_tokens[end], "pad_token_id": None,
    }  # fmt: skip
    torch.manual_seed(3)
    model = model_class(config_class(**sizes))
    model.resize_token_embeddings(own.size + ROWS)
    with torch.no_grad():  # the rows without a token would be the likeliest of all
        model.lm_head.weight[own.size :] = 3 * model.lm_head.weight[:ROWS]
    ends = [own.message_end, own.end_of_text] if instruct else own.end_of_text
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=own.end_of_text, eos_token_id=ends, pad_token_id=own.end_of_text, repetition_penalty=1.05, **SAMPLING
    )
    model.to(dtype).save_pretrained(path)
    return path


def questions():
    pairs = [("what is a", "the path"), ("what is b", "the file"), ("what is c", "it returns"), ("what is d", "def")]
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "reference": a, "kind": "toy"}
        for q, a in pairs
    ]


def preferred(policy_rows=4):
    return [
        {"prompt": [TALK[0]], "chosen": [TALK[1]], "rejected": [{"role": "assistant", "content": "def"}]}
        for _ in range(policy_rows)
    ]


def continued(source, tmp_path, name="continued"):
    """Pre-trained on by the pipeline, whose tokenizer is a folder between."""
    between = tmp_path / f"{name} tokenizer"
    Tokenizer.load(source).save(between)
    encoder = for_run(between, str(source))
    write_tokens(tmp_path / f"{name} tokens", DOCUMENTS, encoder)
    settings = PretrainingConfig(start_from=str(source), context_length=32, tokens=4 * 64, batch_tokens=64, lr_scale=0.3)
    model, _ = pretrain(
        encoder, tmp_path / f"{name} tokens", settings, Runtime(choose(1), tmp_path / f"{name} work", "base", 1)
    )  # fmt: skip
    model_folder.save(tmp_path / name, model, encoder, chat=False)
    return model, encoder, tmp_path / name


def formats(path):
    with safe_open(path / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def same_to_transformers(first, second, chat=False):
    """Of what its users see everything but the weights; a chat model may have got an end more."""
    one, other = (transformers.AutoTokenizer.from_pretrained(path) for path in (first, second))
    for prompt in (True, False):
        talk = TALK[:1] if prompt else TALK
        before, after = (some.apply_chat_template(talk, add_generation_prompt=prompt, tokenize=False) for some in (one, other))
        assert (before == after and "the path" in before) or prompt
    assert one.chat_template == other.chat_template and one.special_tokens_map == other.special_tokens_map
    assert one.added_tokens_decoder == other.added_tokens_decoder and len(one) == len(other)
    assert one.encode("the path <think> x") == other.encode("the path <think> x")
    assert one.model_max_length == other.model_max_length
    wanted, found = (transformers.GenerationConfig.from_pretrained(path).to_dict() for path in (first, second))
    assert wanted | ({"eos_token_id": found["eos_token_id"]} if chat else {}) == found
    before, after = (transformers.AutoConfig.from_pretrained(path) for path in (first, second))
    for name in ("bos_token_id", "pad_token_id", "dtype", "vocab_size", "model_type", *(() if chat else ("eos_token_id",))):
        assert getattr(before, name) == getattr(after, name), name
    assert formats(first) == formats(second)
    assert transformers.AutoModelForCausalLM.from_pretrained(second).dtype == before.dtype


CASES = {
    "qwen3": ("qwen3", "qwen3", torch.bfloat16),
    "qwen2.5": ("qwen2", "qwen2_5", torch.float16),
    "qwen3 2507": ("qwen3", "qwen3_instruct_2507", torch.float32),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_continued_it_is_to_transformers_what_it_was(tmp_path, case):
    kind, name, dtype = case
    source = publish(tmp_path / "published", kind, template(name), dtype)
    model, encoder, path = continued(source, tmp_path)
    same_to_transformers(source, path)
    again = model_folder.load_decoder(path)
    assert again.generation == model.generation and again.generation.temperature == 0.6 and again.generation.top_k == 20
    assert again.generation.unknown == ("repetition_penalty",)
    assert again.unused_ids == model.unused_ids == tuple(range(encoder.size, encoder.size + ROWS))
    assert answer_ends(Tokenizer.load(path), again.generation.ends) == [encoder.end_of_text, encoder.message_end]
    train(again, encoder, questions(), SftConfig(epochs=1, max_answer_tokens=16), Runtime(CPU, tmp_path / "sft work", "sft"))
    model_folder.save(tmp_path / "sft", again, encoder, chat=True)
    same_to_transformers(source, tmp_path / "sft", chat=True)
    assert model_folder.load_decoder(tmp_path / "sft").generation.ends == again.generation.ends


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "qwen3_instruct_2507", "qwen3_vl", "lfm2"])
def test_conversations_are_rendered_as_transformers_does(tmp_path, name):
    source = publish(tmp_path, template=template(name))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(source), Tokenizer.load(source)
    talks = [
        TALK,
        [{"role": "system", "content": "be short\n"}, *TALK, {"role": "user", "content": "\n\n and <b>  "}, TALK[1]],
        [TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nthe path"}, *TALK],
    ]
    for talk in talks:
        for messages, prompt in ((talk, False), (talk[:-1], True)):
            ids, mask = render(ours, messages, add_generation_prompt=prompt)
            assert ids == theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=True, return_dict=False)
            assert len(mask) == len(ids)
        ids, mask = render(ours, talk)
        start = len(render(ours, talk[:-1], add_generation_prompt=True)[0])
        last = len(mask) - mask[::-1].index(1)
        assert mask[start:last] == [1] * (last - start) and ids[last - 1] == ours.message_end
        assert tuple(ids[last:]) == after_answer(ours)
        assert sum(token == ours.message_end for token, said in zip(ids, mask, strict=True) if said) == sum(
            message["role"] == "assistant" for message in talk
        )


def test_rows_without_a_token_are_never_said(tmp_path):
    """By chat, rollouts, samples and answers of a folder that transformers enlarged, of one that continues it, of one tuned."""
    source = publish(tmp_path / "published")
    model, encoder, path = continued(source, tmp_path)
    ends = answer_ends(encoder, model.generation.ends)
    tuned = model_folder.load_decoder(path)
    train(tuned, encoder, questions(), SftConfig(epochs=1, max_answer_tokens=16), Runtime(CPU, tmp_path / "sft work", "sft"))
    copied = type(tuned)(tuned.config)  # as what processes hold in parts is put together
    copied.load_state_dict(tuned.state_dict())
    prompts = [prompt_of(encoder, one) for one in ("what is a", "b")]
    for one in (model_folder.load_decoder(source), model, model_folder.load_decoder(path), tuned, copied):
        with torch.no_grad():  # whatever training made of them
            one.lm_head.weight[encoder.size :] = 5 * one.lm_head.weight[:ROWS]
            assert one(torch.tensor([[1, 2, 3]])).argmax(-1).max() >= encoder.size
        for sampling in (Sampling(20, 0), Sampling(20, 1.5), Sampling.from_config(one.generation, 20)):
            for ids in generate(one, prompts, [], sampling, 0):
                assert max(ids) < encoder.size
                encoder.decode(ids)
        answer(one, encoder, ["what is a"], Sampling(8), 0)
    reward_model = reward.train(
        tuned, encoder, preferred(), RewardConfig(epochs=1, batch_pairs=2), Runtime(CPU, tmp_path / "reward work", "reward")
    )
    assert reward_model.config.origin.dtype == "bfloat16"
    scores = ModelReward(reward_model, (0.0, 1.0), encoder, torch.float32)
    setup, actor = ppo.RewardSetup(tuned, scores, PpoConfig(), torch.float32), ppo.ActorCritic(tuned, reward_model)
    asked = [Prompt("", ids) for ids in prompts]
    batch, *_ = ppo.rollout(actor, setup, asked, ends, encoder.pad, Sampling(20, 1.5), 0)
    assert batch["targets"].max() < encoder.size


def test_a_model_put_together_from_parts_keeps_what_it_came_with(tmp_path):
    from groundup.training import checkpoint

    model = model_folder.load_decoder(publish(tmp_path / "published"))
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    checkpoint.save(tmp_path / "work", 3, state)
    whole = _whole_model(model, tmp_path / "work", {"steps": 3})
    assert whole.config.origin == model.config.origin and whole.unused_ids and whole.generation.top_k == 20


def test_every_later_stage_keeps_format_and_files(tmp_path):
    source = publish(tmp_path / "published", template=PLAIN)
    encoder, policy = Tokenizer.load(source), model_folder.load_decoder(source)
    dpo.train(policy, encoder, preferred(), DpoConfig(epochs=1, batch_pairs=2), Runtime(CPU, tmp_path / "dpo work", "dpo"))
    model_folder.save(tmp_path / "dpo", policy, encoder, chat=True)
    same_to_transformers(source, tmp_path / "dpo", chat=True)
    settings = RewardConfig(epochs=1, batch_pairs=2)
    reward_model = reward.train(policy, encoder, preferred(), settings, Runtime(CPU, tmp_path / "rm", "reward"))
    settings = PpoConfig(iterations=1, rollouts=2, epochs=1, minibatches=1)
    ppo.train(
        policy, encoder, ["what is a", "what is b"], settings, Runtime(CPU, tmp_path / "ppo work", "ppo"),
        ModelReward(reward_model, (0.0, 1.0), encoder, torch.float32), 8,
    )
    model_folder.save(tmp_path / "ppo", policy, encoder, chat=True)
    same_to_transformers(source, tmp_path / "ppo", chat=True)


def test_a_reward_model_reads_its_folders_template_as_transformers_does(tmp_path):
    source = publish(tmp_path / "published", dtype=torch.float32)
    encoder, policy = Tokenizer.load(source), model_folder.load_decoder(source)
    reward_model = reward.from_policy(policy, 1)
    model_folder.save(tmp_path / "reward", reward_model, encoder, chat=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "reward")
    chosen, rejected, _ = pair(encoder, preferred(1)[0])
    with torch.no_grad():
        ours = reward.rewards(reward_model, collate([chosen, rejected], encoder.pad, torch.device("cpu")))
        for value, said in zip(ours, ("the path", "def"), strict=True):
            talk = [TALK[0], {"role": "assistant", "content": said}]
            ids = torch.tensor([reader.apply_chat_template(talk, tokenize=True, return_dict=False)])
            assert theirs(ids).logits.item() == pytest.approx(value.item(), abs=1e-5)
    assert isinstance(model_folder.load_reward_model(tmp_path / "reward"), RewardModel)


def test_a_base_model_that_is_tuned_learns_when_to_stop(tmp_path):
    """Published without a template and with the end of a text for its only end."""
    source = publish(tmp_path / "published", template=None, instruct=False)
    model, encoder, path = continued(source, tmp_path)
    assert not (path / "chat_template.jinja").exists() and encoder.template is None
    assert model_folder.load_decoder(path).generation.ends == (encoder.end_of_text,)
    settings = SftConfig(epochs=80, batch_examples=4, learning_rate=5e-3)
    train(model, encoder, questions(), settings, Runtime(CPU, tmp_path / "work", "sft"))
    found = compare_with_base(model, model_folder.load_decoder(path), encoder, questions(), 16, 0)
    assert found["held_out"]["overlap"]["sft"]["overlap"] == 1
    model_folder.save(tmp_path / "sft", model, encoder, chat=True)
    tuned = model_folder.load_decoder(tmp_path / "sft")
    assert tuned.generation.ends == (encoder.message_end, encoder.end_of_text)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert reader.chat_template.strip() == CHAT_TEMPLATE.strip()
    assert reader.apply_chat_template(TALK, tokenize=True, return_dict=False) == render(Tokenizer.load(tmp_path / "sft"), TALK)[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sft", dtype=torch.float32)
    ids = torch.tensor([prompt_of(encoder, "what is a")])
    said = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)[0, ids.shape[1] :]
    assert said[-1] == encoder.message_end and encoder.decode(said.tolist()).strip() == "the path"
    again, _, _ = continued(tmp_path / "sft", tmp_path, "again")  # and is kept as it stands now
    same_to_transformers(tmp_path / "sft", tmp_path / "again")


def test_a_new_model_on_a_published_tokenizer_is_ours(tmp_path, toy_decoder):
    source = publish(tmp_path / "published")
    encoder = for_run(source, "")
    model_folder.save(tmp_path / "new", toy_decoder(vocab_size=encoder.size), encoder, chat=False)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert reader.encode("the path") == [encoder.end_of_text, *encoder.encode("the path")]
    assert reader.apply_chat_template(TALK, tokenize=True, return_dict=False) == render(encoder, TALK)[0]
    assert Tokenizer.load(tmp_path / "new").foreign_files == {}


def test_the_tokenizer_of_the_run_must_have_the_models_own_template(tmp_path):
    source, other = publish(tmp_path / "published"), publish(tmp_path / "other", template=PLAIN + " ")
    recipe = Recipe(
        name="toy", pages=PagesConfig(sources=[SourceConfig(source="pydoc:", domain="code")]),
        tokenizer=TokenizerConfig(folder=str(other)),
        base=PretrainingConfig(start_from=str(source), context_length=32),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"set tokenizer\.folder"):
        preflight.base_continues(recipe, {})
    preflight.base_continues(recipe.model_copy(update={"tokenizer": TokenizerConfig(folder=str(source))}), {})
    assert steps.STANDARD[5].name == "base"
