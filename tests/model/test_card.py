import re
import shutil

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.model import card as cards
from groundup.model import model_folder
from groundup.model.card import Card, escaped, head_of
from groundup.model.decoder import RewardModel


@pytest.fixture(scope="module")
def model(toy_decoder, toy_tokenizer):
    return toy_decoder(vocab_size=toy_tokenizer.size)


def head(path):
    text = (path / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1]), text


def test_what_the_hub_reads(model, toy_tokenizer, tmp_path):
    card = Card("Trained on things.", "no", {"steps": 1200, "of the web": {"tokens": 5}}, {"loss": 2.34567, "none": None})
    model_folder.save(tmp_path, model, toy_tokenizer, chat=True, card=card)
    found, text = head(tmp_path)
    assert found == {
        "language": ["no"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["groundup", "conversational"],
    }  # fmt: skip
    assert "Trained on things." in text and "| steps | 1,200 |" in text and "| of the web, tokens | 5 |" in text
    assert "| loss | 2.346 |" in text and "| none |" not in text and "apply_chat_template" in text and '.chat("' in text
    assert "No licence is stated" in text and "## Limits" in text and "| layers | 2 |" in text and "float32" in text


def test_the_hub_takes_it(model, toy_tokenizer, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    model_folder.save(tmp_path, model, toy_tokenizer, chat=False, card=Card(language="en"))
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert data.pipeline_tag == "text-generation" and data.library_name == "transformers" and data.language == ["en"]


def test_a_reward_model_and_ours_that_no_other_tool_knows(model, toy_tokenizer, tmp_path):
    model_folder.save(tmp_path / "reward", RewardModel(model.config, model.model), toy_tokenizer, chat=True)
    found, text = head(tmp_path / "reward")
    assert found["pipeline_tag"] == "text-classification" and "AutoModelForSequenceClassification" in text
    assert "conversational" not in found["tags"] and not (tmp_path / "reward" / "generation_config.json").exists()
    from groundup.model import architectures

    for name, vocabulary in (("lstm", toy_tokenizer.size), ("convolution", toy_tokenizer.size)):
        made, _ = architectures.build(name, 1, vocabulary, 32, 0)
        model_folder.save(tmp_path / name, made, toy_tokenizer, chat=False)
        found, text = head(tmp_path / name)
        assert found["library_name"] == "groundup" and "transformers" not in text and "groundup.load" in text
        assert (tmp_path / name / "generation_config.json").is_file()


def theirs(model, tokenizer, path, text):
    model_folder.save(path, model, tokenizer, chat=False)
    (path / "README.md").write_text(text, encoding="utf-8")
    return path


def test_somebodys_model_is_named_with_its_licence_also_by_what_is_made_of_it(model, toy_tokenizer, tmp_path):
    text = '---\nlicense: apache-2.0\nlanguage:\n  - "de"\n  - en\nbase_model: far/away\ntags:\n- text\n---\n# Theirs\n'
    place = theirs(model, toy_tokenizer, tmp_path / "Their-Model", text)
    continued = model_folder.load_decoder(place)
    model_folder.save(tmp_path / "mine", continued, toy_tokenizer, chat=False)
    model_folder.save(tmp_path / "chat", model_folder.load_decoder(tmp_path / "mine"), toy_tokenizer, chat=True)
    reward = RewardModel(continued.config, continued.model)
    model_folder.save(tmp_path / "reward", reward, toy_tokenizer, chat=True)
    for name in ("mine", "chat", "reward"):
        found, text = head(tmp_path / name)
        assert (found["base_model"], found["license"], found["language"]) == ("Their-Model", "apache-2.0", ["de"])
        assert "It began as Their-Model" in text and "No licence" not in text
    assert "base_model" not in head_of(theirs(model, toy_tokenizer, tmp_path / "what? (2)", ""))


def test_a_model_of_the_hubs_cache_has_its_name_there(model, toy_tokenizer, tmp_path):
    place = theirs(model, toy_tokenizer, tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "c1899de", "no head")
    assert head_of(place) == {"base_model": "Qwen/Qwen3-0.6B"}


@pytest.mark.parametrize(
    "text", ["---\nlicense: [a, b]\nbase_model: '../../x'\nlanguage: true#\n---\n", "---\nlicense: mit\n", "\0", "---"]
)
def test_a_head_that_says_nothing_usable_is_passed_over(model, toy_tokenizer, tmp_path, text):
    assert head_of(theirs(model, toy_tokenizer, tmp_path / "x", text)) == {"base_model": "x"}


def test_a_card_that_a_person_wrote_stays(model, toy_tokenizer, tmp_path):
    place = theirs(model, toy_tokenizer, tmp_path / "x", "# Mine\n")
    model_folder.save(place, model, toy_tokenizer, chat=False)
    assert (place / "README.md").read_text() == "# Mine\n"


def test_the_same_model_has_the_same_card_wherever_it_is_written(model, toy_tokenizer, tmp_path):
    for name in ("a", "b/c.partial"):
        model_folder.save(tmp_path / name, model, toy_tokenizer, chat=True, card=Card(figures={"loss": 1.0}))
    assert (tmp_path / "a" / "README.md").read_bytes() == (tmp_path / "b" / "c.partial" / "README.md").read_bytes()


@given(st.text(max_size=60))
def test_text_of_others_is_one_cell_and_no_markup(text):
    cell = escaped(text)
    assert "\n" not in cell and not re.search(r"(?<!\\)(\\\\)*[|<>*_`\[\]]", re.sub(r"\\.", "", cell))
    assert len(re.sub(r"\\(.)", r"\1", cell)) <= cards.MAX_NAME_LENGTH


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=3), st.text(max_size=20))
def test_whatever_a_domain_is_called_head_and_table_stay_whole(tmp_path_factory, data, language):
    place = tmp_path_factory.mktemp("card")
    description = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    cards.write(place, description, 7, False, Card("Made.", language, data), {})
    found, text = head(place)
    assert found["pipeline_tag"] == "text-generation" and len(found.get("language", [])) <= 1
    shown = [line for line in text.splitlines() if line.startswith("| ") and line != "| | |" and "---" not in line]
    assert len(shown) == sum(value != "" for value in data.values()) and all(line.endswith(" |") for line in shown)
    shutil.rmtree(place)
