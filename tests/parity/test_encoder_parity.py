"""The encoder against transformers' BERT: names, hidden states, logits, and folders in both directions."""

import pytest
import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.encoder.bert import EncoderConfig, MaskedLanguageModel, SpanReader, initialise, load_config, save
from groundup.encoder.pairs import encode_pair
from groundup.encoder.question_answering import answer
from groundup.encoder.squad import Question
from groundup.tokenizer.wordpiece import WordPiece, count_words, train

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()

TEXT = "The river Seine flows through Paris, the capital of France."


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(train(count_words([TEXT] * 3), 120))


def random_model(kind, tokenizer, **changes):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
             "max_position_embeddings": 40}  # fmt: skip
    model = kind(EncoderConfig(tokenizer.size, **shape | changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # also biases and gains, so that nothing cancels
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)
    return model


def padded_pair(tokenizer):
    windows = [encode_pair(tokenizer, *texts, 32, pad=True)[0] for texts in (("What flows?", TEXT), ("Paris", "France"))]
    return [torch.tensor([getattr(window, name) for window in windows]) for name in ("ids", "segments", "mask")]


@pytest.mark.parametrize("changes", [{}, {"type_vocab_size": 3, "num_attention_heads": 2, "layer_norm_eps": 1e-5}])
@torch.no_grad()
def test_our_reader_is_their_question_answerer(tokenizer, tmp_path, changes):
    ours = random_model(SpanReader, tokenizer, **changes)
    save(tmp_path, ours, tokenizer)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "BertForQuestionAnswering"
    assert {name for name, _ in theirs.named_parameters()} == {name for name, _ in ours.named_parameters()}
    ids, segments, mask = padded_pair(tokenizer)
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask)
    found = ours(ids, segments, mask)
    for ours_logits, their_logits in ((found[..., 0], expected.start_logits), (found[..., 1], expected.end_logits)):
        assert ((ours_logits - their_logits) * mask).abs().max() < 1e-4 < their_logits.std()
    hidden = theirs.bert(ids, token_type_ids=segments, attention_mask=mask).last_hidden_state
    assert ((ours.bert(ids, segments, mask) - hidden) * mask[:, :, None]).abs().max() < 1e-4


@torch.no_grad()
def test_our_masked_language_model_is_theirs(tokenizer, tmp_path):
    ours = random_model(MaskedLanguageModel, tokenizer)
    save(tmp_path, ours, tokenizer)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids, segments, mask = padded_pair(tokenizer)
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask).logits
    assert ((ours(ids, segments, mask) - expected) * mask[:, :, None]).abs().max() < 1e-4 < expected.std()


def theirs_in(folder, tokenizer, kind):
    """A random model of transformers' own making, saved with our tokenizer."""
    torch.manual_seed(1)
    theirs = kind(transformers.BertConfig(**random_model(SpanReader, tokenizer).config.as_dict())).eval()
    for parameter in theirs.parameters():
        parameter.mul_(5)
    theirs.save_pretrained(folder)
    tokenizer.save(folder)
    return theirs


@torch.no_grad()
def test_their_masked_language_model_is_read_by_us(tokenizer, tmp_path):
    theirs, ours = theirs_in(tmp_path, tokenizer, transformers.BertForMaskedLM), MaskedLanguageModel.load(tmp_path)
    ids, segments, mask = padded_pair(tokenizer)
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask).logits
    assert ((ours(ids, segments, mask) - expected) * mask[:, :, None]).abs().max() < 1e-4 < expected.std()


@torch.no_grad()
def test_their_question_answerer_is_read_by_us(tokenizer, tmp_path):
    theirs, ours = theirs_in(tmp_path, tokenizer, transformers.BertForQuestionAnswering), SpanReader.load(tmp_path)
    ids, segments, mask = padded_pair(tokenizer)
    expected = theirs(ids, token_type_ids=segments, attention_mask=mask).start_logits
    assert ((ours(ids, segments, mask)[..., 0] - expected) * mask).abs().max() < 1e-4 < expected.std()
    found = answer(ours, tokenizer, [Question("1", "What flows?", TEXT, [])], choose(1))["1"]
    assert found.text and found.text in TEXT


def test_saving_twice_gives_the_same_bytes(tokenizer, tmp_path):
    for name in "ab":
        model = SpanReader(random_model(SpanReader, tokenizer).config)
        initialise(model, 5)
        save(tmp_path / name, model, tokenizer)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert load_config(tmp_path / "a") == model.config


def test_folders_that_are_no_bert_of_ours(tokenizer, tmp_path):
    save(tmp_path, random_model(MaskedLanguageModel, tokenizer), tokenizer)
    with pytest.raises(UserError, match=r"qa_outputs\.weight should be \(2, 32\), is absent"):
        SpanReader.load(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for old, new in (('"bert"', '"qwen3"'), ('"gelu"', '"relu"'), ('"intermediate_size"', '"other"')):
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(UserError):
            SpanReader.load(tmp_path)
