#!/bin/sh
# A special token that is normalized, in a tokenizer that puts ▁ before a text, as Llama 2's: decoding does not skip it.
#
# Version: tokenizers 0.23.3.
# Expected: `decode(ids, skip_special_tokens=True)` leaves out the tokens that were added as special, whatever their `normalized` is.
# Seen: with the normalizer Prepend, "<end>" with normalized=True stays in "hi <end>". The library keeps the token under its normalized
#   name, "▁<end>" (`id_to_token` says so), and looks for that name among the special ones, where it is "<end>". With normalized=False,
#   or without Prepend, it is skipped. So an answer's end may be printed.
# What helps: add special tokens with normalized=False, the default of `AddedToken(..., special=True)`; and look at the `added_tokens`
#   of a tokenizer.json that was converted long ago.
#
# Exits with 1 if what is seen has changed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "tokenizers==0.23.3"
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

VOCABULARY = {"<unk>": 0, "▁": 1, "h": 2, "i": 3, "▁h": 4, "▁hi": 5}


def decoded(prepends, normalized):
    tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[("▁", "h"), ("▁h", "i")], unk_token="<unk>"))
    prefix = [normalizers.Prepend("▁")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=normalized)])
    text = tokenizer.decode(tokenizer.encode("hi <end>").ids, skip_special_tokens=True)
    print(f"prepends={prepends}, normalized={normalized}: {text!r}, named {tokenizer.id_to_token(6)!r}")
    return text.strip()


print("tokenizers", tokenizers.__version__)
kept = [decoded(prepends, normalized) for prepends in (True, False) for normalized in (True, False)]
as_seen = "<end>" in kept[0] and not any("<end>" in text for text in kept[1:])
print("as seen before" if as_seen else "CHANGED")
raise SystemExit(not as_seen)
PYTHON
