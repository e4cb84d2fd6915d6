"""What an answer costs: the report's rule for energy, operations of a pass, and what is counted."""

import json

import pytest

from groundup.core.cost import cost
from groundup.evaluation import efficiency
from groundup.model import model_folder
from groundup.model.architectures import multiplied


def test_by_the_reports_rule():
    machine = {"watts": 720.0, "price_per_hour": 1.0, "grams_co2_per_kwh": 400.0}
    found = efficiency.of_task({"own": 1}, 50.0, 10, machine)
    assert found["kwh"] == 0.01 and found["grams_co2e"] == 4 and found["examples_per_second"] == 0.2 and found["own"] == 1
    assert {name: found[name] for name in ("kwh", "dollars", "grams_co2e")} == cost(50.0, **machine)
    assert efficiency.of_task({}, 0.0, 0, machine)["examples_per_second"] == 0
    assert found["peak_memory_bytes"] > 10e6


def test_speed_of_a_model(toy_decoder):
    model = toy_decoder()
    context, config = model.config.max_position_embeddings, model.config
    found = efficiency.speed(model)
    length = min(efficiency.PROMPT_TOKENS, context - min(efficiency.DECODED_TOKENS + 1, context // 2))
    width = config.num_attention_heads * config.head_dim
    # 2 operations a parameter, and 4 x layers x width x context of attention.
    by_hand = 2 * multiplied(model) + 4 * config.num_hidden_layers * width * length
    assert found["forward_flop_per_token"] == pytest.approx(by_hand)
    for name in ("prefill", "decode"):
        rate = found[f"{name}_tokens_per_second"]
        assert 0 < rate["low"] <= rate["value"] <= rate["high"]


@pytest.mark.parametrize("context", [2, 3, 8])
def test_a_context_of_a_few_tokens(toy_decoder, context):
    assert efficiency.speed(toy_decoder(max_position_embeddings=context))["forward_flop_per_token"] > 0


def test_the_verb(groundup_here, toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=128)
    model_folder.save(tmp_path / "one", model, toy_tokenizer, chat=False)
    rows = [{"context": f"the {word} of", "continuation": "file"} for word in ("path", "file", "object")]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", tmp_path / "one", "--task", "lambada", "--data", tmp_path, "--out", tmp_path / "out"]
    done = groundup_here(*words, "--watts", 100)
    assert done.returncode == 2 and "--watts needs --efficiency" in done.stderr
    done = groundup_here(*words, "--efficiency", "--watts", 100)
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout.splitlines()[-1])["results"]
    found = result["efficiency"]
    assert found["examples"] == 3 and found["kwh"] == pytest.approx(found["seconds"] * 100 / 3.6e6)
    assert "prefill tokens/s" in done.stderr and "Wh" in done.stderr
    again = json.loads(groundup_here(*words, "--efficiency").stdout.splitlines()[-1])["results"][0]["efficiency"]
    assert again["examples"] == 0 and again["watts"] == 30  # all records were there
    assert "efficiency" not in json.loads(groundup_here(*words).stdout.splitlines()[-1])["results"][0]
