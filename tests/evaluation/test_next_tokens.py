import pytest
import torch

from groundup.evaluation.next_tokens import LIKELIEST, next_tokens


def test_the_likeliest_are_those_of_the_model(toy_decoder, toy_tokenizer):
    model = toy_decoder(seed=1, scale=0.5, vocab_size=toy_tokenizer.size + 40)  # rows of the vocabulary without a token
    with torch.no_grad():
        model.lm_head.weight[toy_tokenizer.size :] *= 100
    text = "the path é"
    [found] = next_tokens(model, toy_tokenizer, [text])
    ids = toy_tokenizer.encode(text)
    assert "".join(found["tokens"][:-2]) == "the path " and found["tokens"][-2:] == [r"\xc3", r"\xa9"]
    assert len(found["likeliest"]) == len(ids)
    for place, likeliest in enumerate(found["likeliest"]):
        logits = model(torch.tensor([[toy_tokenizer.end_of_text, *ids[: place + 1]]]))[0, -1, : toy_tokenizer.size]
        expected = logits.softmax(0).sort(descending=True).values[:LIKELIEST]
        shares = [share for _, share in likeliest]
        assert shares == pytest.approx(expected.tolist(), abs=1e-5) and len({name for name, _ in likeliest}) > 1


def test_a_text_longer_than_the_context_is_cut(toy_decoder, toy_tokenizer):
    model = toy_decoder(vocab_size=toy_tokenizer.size)
    [found] = next_tokens(model, toy_tokenizer, ["the path " * 500])
    assert len(found["tokens"]) == len(found["likeliest"]) == model.config.max_position_embeddings - 1
