"""What is streamed is the whole answer, whatever is asked for in whatever company."""

import json

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

OPTIONS = {
    "n": [1, 3], "temperature": [0, 2.0], "top_k": [1, 5], "logit_bias": [{"5": 100}, {"6": -100}],
    "stop": ["a", ["e", "the"], []], "max_tokens": [1, 6], "min_p": [0.1], "repetition_penalty": [0.5, 2.0],
}  # fmt: skip
OF = {
    "completions": OPTIONS | {
        "prompt": ["", "a", [5], [[5], [6, 7]], ["a", ""], [7] * 40], "echo": [True], "logprobs": [0, 3], "max_tokens": [0, 1, 6],
    },
    "chat/completions": OPTIONS | {"logprobs": [True]},
}  # fmt: skip
ASKED = st.sampled_from([*OF]).flatmap(
    lambda path: st.tuples(st.just(path), st.fixed_dictionaries({}, optional={
        name: st.sampled_from(values) for name, values in OF[path].items()
    }))
)  # fmt: skip
MESSAGES = [{"role": "user", "content": "what does it return"}]
VALID = {
    "completions": {"model": "base", "prompt": "the path", "max_tokens": 4},
    "chat/completions": {"model": "chat", "messages": MESSAGES, "max_tokens": 4},
}


def test_what_is_streamed_is_the_whole_answer(address):
    with httpx.Client(base_url=f"{address}/v1/", timeout=60) as client:

        @settings(max_examples=40)
        @given(ASKED, st.integers(0, 99))
        def same(asked, seed):
            path, options = asked
            body = VALID[path] | options | {"seed": seed}
            whole = client.post(path, json=body)
            streamed = client.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
            assert whole.status_code == streamed.status_code and whole.status_code in (200, 400), body
            if whole.status_code == 400:
                return
            *events, usage = [json.loads(one[6:]) for one in streamed.text.split("\n\n")[:-2]]
            assert streamed.text.endswith("data: [DONE]\n\n") and usage["usage"] == whole.json()["usage"] and not usage["choices"]
            for choice in whole.json()["choices"]:
                parts = [one for event in events for one in event["choices"] if one["index"] == choice["index"]]
                assert joined(parts) == joined([choice]), body

        same()


def joined(parts):
    """Text, why it ended, and all that is said of its tokens."""
    said = [one.get("delta") or one.get("message") or {"content": one.get("text")} for one in parts]
    text = "".join(one.get("content") or "" for one in said)
    ends = [one["finish_reason"] for one in parts if one["finish_reason"]]
    tokens = [one["logprobs"] for one in parts if one.get("logprobs")]
    names = {name for one in tokens for name, value in one.items() if value is not None}
    return text, ends, {name: [value for one in tokens for value in one[name] or []] for name in names}
