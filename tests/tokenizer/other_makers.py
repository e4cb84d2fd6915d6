"""Small tokenizers put together as those of well-known models are, by the `tokenizers` library alone; and their templates."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    ["The cat sat on the mat, and the other cat sat on the hat.", "def cat(hat):\n        return hat\n", "1234567 in 2024"] * 8
    + ["Naïve café façade: «größer»", "user assistant system answers question", "It's 7 o'clock; she'd say we're late."] * 8
    + ["[INST] the question [/INST] the answer", "  two  spaces   three\n\nlines\t\ttabs", "{ } ( ) == != 3.14"] * 8
)
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles!') }}"
    "{% endif %}{% endfor %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def byte_level(splitters, special, pattern=None, normalizer=None, vocabulary=420, first=(), **model):
    made = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        made.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated") if pattern else None
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([*([split] if split else []), *splitters, last])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=list(first), show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    made.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return made


def begins_with(made, name, byte_level):
    number = made.token_to_id(name)
    put = processors.TemplateProcessing(f"{name} $A", f"{name} $A {name} $B:1", [(name, number)])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), put]) if byte_level else put
    return made


def llama3():
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return begins_with(byte_level([], special, GPT4, ignore_merges=True), "<|begin_of_text|>", True)


def qwen():
    made = byte_level([], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], QWEN, normalizers.NFC())
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return made


def gpt2():
    return byte_level([], ["<|endoftext|>"])


def neox():
    made = byte_level([], [], normalizer=normalizers.NFC(), first=["<|endoftext|>", "<|padding|>"])
    made.add_tokens([AddedToken(" " * count, normalized=True) for count in range(2, 6)])
    return made


def smol():
    return byte_level([pre_tokenizers.Digits(individual_digits=True)], [], first=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def falcon():
    made = byte_level([], ["<|endoftext|>"])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    return made


@cache
def _pieces():
    """A vocabulary of words with ▁ before them, as SentencePiece makes it: merges do not join words."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]


def sentencepiece(normalizer, splitter, strip, first=("<unk>", "<s>", "</s>"), special=(), textual=()):
    pieces, merges = _pieces()
    names = [*first, *BYTES, *pieces]
    model = models.BPE(
        {name: number for number, name in enumerate(names)}, merges, unk_token=first[0] if "unk" in first[0] else "<unk>",
        fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    made = Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    if splitter is not None:
        made.pre_tokenizer = splitter
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    made.add_special_tokens([AddedToken(name, normalized=False) for name in first])
    made.add_special_tokens(list(special))
    made.add_tokens([AddedToken(name, normalized=False) for name in textual])
    return made


def mistral():
    """As Mistral 7B and Mixtral 8x7B came; [INST] is text."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return begins_with(sentencepiece(normalizer, None, True), "<s>", False)


def mistral_extended():
    """After `add_tokens` of transformers, which are normalized: in a text their ▁ is the space before them."""
    made = mistral()
    made.add_tokens(["<tool>", "cats", AddedToken("naïve", normalized=False)])
    return made


def mistral_new():
    """As later Mistrals, and what transformers 5 makes of a Llama 2."""
    splitter = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = [AddedToken(name, normalized=False) for name in ("[INST]", "[/INST]")]
    return begins_with(sentencepiece(None, splitter, True, special=special), "<s>", False)


def gemma():
    splitter = pre_tokenizers.Split(" ", "merged_with_previous")
    special = [AddedToken(name, normalized=False) for name in ("<start_of_turn>", "<end_of_turn>")]
    made = sentencepiece(
        normalizers.Replace(" ", "▁"), splitter, False, ("<pad>", "<eos>", "<bos>", "<unk>"), special, ("\n\n", "▁▁", "<h1>")
    )
    return begins_with(made, "<bos>", False)


def phi3():
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    names = ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>")
    return sentencepiece(normalizer, None, True, special=[AddedToken(name, rstrip=True, normalized=False) for name in names])


# By name: how it is made, what its folder names, its template.
MAKERS = {
    "llama3": (llama3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, LLAMA3_TEMPLATE),
    "mistral": (mistral, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL_TEMPLATE),
    "mistral extended": (
        mistral_extended, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL_TEMPLATE,
    ),
    "mistral new": (mistral_new, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL_TEMPLATE),
    "mistral tight": (
        mistral_new, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        MISTRAL_TEMPLATE.replace("INST] '", "INST]'").replace("' [/", "'[/").replace("' ' + ", ""),
    ),
    "qwen": (qwen, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML_TEMPLATE),
    "gemma": (gemma, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}, GEMMA_TEMPLATE),
    "phi3": (phi3, {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}, PHI_TEMPLATE),
    "smol": (smol, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, CHATML_TEMPLATE),
    "gpt2": (gpt2, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, None),
    "neox": (neox, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, None),
    "falcon": (falcon, {"eos_token": "<|endoftext|>"}, None),
}  # fmt: skip


@cache
def written_by(name):
    """Its tokenizer.json."""
    return MAKERS[name][0]().to_str()


def publish(path, name):
    """The folder as transformers writes it."""
    import transformers

    _, named, template = MAKERS[name]
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(written_by(name)), **named)
    made.chat_template = template
    made.save_pretrained(path)
    return path
