"""Chat templates of others: what a stranger's program may do, and that no text becomes a special token."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.tokenizer import template
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.chat import CHAT_TEMPLATE, after_answer, answer_ends, render
from groundup.tokenizer.load import for_run
from groundup.tokenizer.template import STAND_INS
from groundup.tokenizer.tokenizer import Tokenizer

PLAIN = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the path"}]


def publish(path, written=PLAIN, **changes):
    """A folder of somebody else's: other settings, another template."""
    own = Tokenizer.from_merges([(b"t", b"h"), (b"th", b"e")], special=(*SPECIAL_TOKENS[:3], "<think>", "</think>"))
    own.save(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    del settings["chat_template"], settings["bos_token"]
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_end|>", **changes}))
    description = json.loads((path / "tokenizer.json").read_text())
    for token in description["added_tokens"]:
        token["special"] = "think" not in token["content"]
    (path / "tokenizer.json").write_text(json.dumps(description))
    if written is None:
        (path / "chat_template.jinja").unlink()
    else:
        (path / "chat_template.jinja").write_text(written)
    return path


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return Tokenizer.load(publish(tmp_path_factory.mktemp("theirs")))


def shown(tokenizer, ids):
    names = {number: name.encode() for name, number in tokenizer.special_tokens.items()}
    return b"".join(names.get(token) or tokenizer.token_bytes(token) for token in ids).decode()


def test_by_hand(theirs):
    ids, mask = render(theirs, TALK)
    whole = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nthe path<|im_end|>\n"
    assert shown(theirs, ids) == whole
    assert shown(theirs, [token for token, said in zip(ids, mask, strict=True) if said]) == "the path<|im_end|>"
    assert shown(theirs, after_answer(theirs)) == "\n"
    ids, mask = render(theirs, TALK[:1], add_generation_prompt=True)
    assert shown(theirs, ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n" and not any(mask)


texts = st.lists(
    st.one_of(st.text(max_size=6), st.sampled_from([*SPECIAL_TOKENS, "<think>", "</think>", "<|im_", "end|>", "<", "\n", " "]))
).map("".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=2, max_size=4).filter(lambda found: len(found) % 2 == 0))
def test_text_is_never_a_special_token(theirs, contents):
    """Nor is a character of it lost. Only what an assistant may write as text, as Qwen3 its thoughts, is one."""
    contents = [text.encode("utf-8", "replace").decode() for text in contents]
    talk = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]
    ids, mask = render(theirs, talk)
    special = set(theirs.special_tokens.values())
    thoughts = {theirs.special_tokens[name] for name in ("<think>", "</think>")}
    roles = [theirs.message_start, theirs.message_end]
    assert [token for token in ids if token in special - thoughts] == roles * len(talk)
    answers = sum(text.count("<think>") + text.count("</think>") for text in contents[1::2])
    assert sum(token in thoughts for token in ids) == answers
    assert shown(theirs, ids) == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk)
    said = shown(theirs, [token for token, spoken in zip(ids, mask, strict=True) if spoken])
    assert said == "".join(f"{text}<|im_end|>" for text in contents[1::2])
    prompt, _ = render(theirs, talk[:-1], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt


def test_text_that_holds_every_stand_in_is_refused(theirs):
    with pytest.raises(UserError, match="noncharacters"):
        render(theirs, [{"role": "user", "content": "".join(STAND_INS)}], add_generation_prompt=True)


# With the small bounds of the test. None is much to whoever has no bounds.
GROWING = "{% set n = namespace(s='xxxxxxxx') %}{% for a in range(9) %}{% set n.s = THIS %}{% endfor %}"
BOMBS = {
    "loops": "{% for a in range(99) %}{% for b in range(99) %}{% endfor %}{% endfor %}",
    "a loop around a list": "{% for a in range(999) %}{% for b in messages %}{{ a }}{% endfor %}{% endfor %}",
    "ranges": "{% for a in range(99) %}{% set x = range(99) | list | length %}{% endfor %}",
    "plus": GROWING.replace("THIS", "n.s + n.s + n.s"),
    "tilde": GROWING.replace("THIS", "n.s ~ n.s ~ n.s"),
    "replace": GROWING.replace("THIS", "n.s.replace('x', 'xxx')"),
    "replace filter": GROWING.replace("THIS", "n.s | replace('x', 'xxx')"),
    "join": "{{ range(99) | list | join('x' ~ messages[0].content) }}",
    "join method": "{{ messages[0].content.join(['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n']) }}",
    "lists": GROWING.replace("'xxxxxxxx'", "[1, 2, 3]").replace("THIS", "n.s + n.s + n.s"),
    "blocks": "{% for a in range(99) %}{% set b %}{{ messages[0].content }}{% endset %}{% endfor %}",
    "json": "{% for a in range(99) %}{% set b = messages | tojson %}{% endfor %}",
    "strings looked through": "{% set x = messages[0].content %}"
    "{% for a in range(999) %}{% if 'z' in x %}{% endif %}{% endfor %}",
    "strings cut": "{% set x = messages[0].content %}{% for a in range(999) %}{% set y = x[1:] %}{% endfor %}",
    "filters": "{% set x = messages[0].content %}{% for a in range(999) %}{% set y = x | upper %}{% endfor %}",
    "methods": "{% set x = messages[0].content %}{% for a in range(999) %}{% set y = x.upper() %}{% endfor %}",
    "times": "{{ 'x' * 9 }}",
    "power": "{{ 2 ** 9 }}",
    "large numbers": "{{ 9999999999 * 9999999999 }}",
    "percent": "{{ '%9d' % 1 }}",
    "format": "{{ '{:9}'.format(1) }}",
    "format filter": "{{ '%9d' | format(1) }}",
    "center": "{{ 'x'.center(9) }}",
    "center filter": "{{ 'x' | center(9) }}",
    "zfill": "{{ 'x'.zfill(9) }}",
    "expandtabs": "{{ '\t'.expandtabs(9) }}",
    "indent": "{{ 'x' | indent(9) }}",
    "json far in": "{{ messages | tojson(indent=99) }}",
    "a macro that calls itself twice": "{% macro m(n) %}"
    "{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(12) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a recursive loop": "{% for a in messages recursive %}{% endfor %}",
    "lipsum": "{{ lipsum(1) }}",
    "long": "x" * 3000,
    "nested": "{% if a %}" * 120 + "{% endif %}" * 120,
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "subscript": "{{ ''['__class__']['__mro__'] }}",
    "globals": "{{ raise_exception.__globals__['UserError'] }}",
    "self": "{{ self._TemplateReference__context }}{{ messages.__init__.__globals__ }}",
    "namespace": "{% set n = namespace(__class__=1) %}",
    "namespace later": "{% set n = namespace() %}{% set n._x = 1 %}",
    "changing": "{% set x = messages.append(1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "no template": "{% for %}",
    "unknown filter": "{{ messages | nothing }}",
    "division": "{{ 1 / 0 }}",
    "refuses": "{{ raise_exception('I only talk of\n\ntrains' ~ 'x' * 3) }}",
}
programs = {**BOMBS, **ESCAPES}


@pytest.mark.parametrize("program", programs.values(), ids=programs)
def test_a_template_that_breaks_out_of_its_bounds_is_refused_in_a_line(tmp_path, monkeypatch, program):
    for name, value in {"STEPS": 1000, "CHARACTERS": 4000, "LONGEST": 2500}.items():
        monkeypatch.setattr(template, name, value)
    tokenizer = Tokenizer.load(publish(tmp_path, program))
    talk = [{"role": "user", "content": "y" * 1000}]
    with pytest.raises(UserError) as error:
        render(tokenizer, talk, add_generation_prompt=True)
    line = str(error.value).replace(str(tmp_path), "")
    assert "\n" not in line and len(line) < 250 and "chat template" in line


def test_what_is_pythons_own_is_nothing_to_a_template(tmp_path):
    text = "{{ '' | attr('__class__') }}{{ raise_exception.__globals__ }}{{ messages.__class__ }}{{ cycler }}"
    text += "{{ messages[0].content }}."
    tokenizer = Tokenizer.load(publish(tmp_path, text))
    assert shown(tokenizer, render(tokenizer, TALK[:1], add_generation_prompt=True)[0]) == "hello."


@pytest.mark.parametrize("program", ["", "{{ messages[5] }}", "version https://git-lfs.github.com/spec/v1\nsize 12\n"])
def test_a_template_that_leaves_out_what_is_said_is_refused(tmp_path, program):
    tokenizer = Tokenizer.load(publish(tmp_path, program))
    with pytest.raises(UserError, match="leaves out the user's last message; get chat_template"):
        render(tokenizer, TALK[:1], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (PLAIN.replace("<|im_end|>", ""), "ends an answer without an end token"),
        ("{{ messages | length }}" + PLAIN, "changes the text before an answer"),
    ],
)
def test_answers_that_cannot_be_found_are_not_learned(tmp_path, program, said):
    tokenizer = Tokenizer.load(publish(tmp_path, program))
    with pytest.raises(UserError, match=said):
        render(tokenizer, TALK)
    assert render(tokenizer, TALK[:1], add_generation_prompt=True)[0]


def test_where_the_template_stands(tmp_path):
    inside = Tokenizer.load(publish(tmp_path / "a", None, chat_template=PLAIN))
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": PLAIN}]
    by_name = Tokenizer.load(publish(tmp_path / "b", None, chat_template=named))
    beside = Tokenizer.load(publish(tmp_path / "c", PLAIN, chat_template="{{ wrong }}"))
    assert render(inside, TALK) == render(by_name, TALK) == render(beside, TALK)
    none = Tokenizer.load(publish(tmp_path / "d", None))
    assert none.template is None and none.foreign_files and render(none, TALK)[0][0] == none.end_of_text
    for wrong in (3, [], [{"name": "a", "template": "b"}], {"default": PLAIN}, [{"name": "default", "template": 3}]):
        with pytest.raises(UserError, match=r"tokenizer_config\.json: .*chat.template"):
            Tokenizer.load(publish(tmp_path / "e", None, chat_template=wrong))


def test_a_folder_of_ours_is_ours(tmp_path):
    own = Tokenizer.from_merges([(b"t", b"h")])
    for chat in (False, True):
        own.save(tmp_path, model_max_length=64, chat=chat)
        found = Tokenizer.load(tmp_path)
        assert found.foreign_files == {} and found.template is None and found.is_that_of(own)
        assert answer_ends(found) == sorted([own.end_of_text, own.message_end])


def test_a_folder_of_others_is_written_as_it_came(tmp_path):
    source = publish(tmp_path / "a", PLAIN.replace("\n", "\r\n"), bos_token=None, eos_token={"content": "<|im_end|>"})
    (source / "vocab.json").write_text('{"a": 1}')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("x")
    Tokenizer.load(source).save(tmp_path / "b", model_max_length=64, chat=True)
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert all((source / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert Tokenizer.load(tmp_path / "b").is_that_of(Tokenizer.load(source))
    new = for_run(source, "")
    new.save(tmp_path / "c")
    assert (tmp_path / "c" / "chat_template.jinja").read_text() == CHAT_TEMPLATE and not new.is_that_of(Tokenizer.load(source))


@pytest.mark.parametrize("content", ["[]", "{", "\ud800".encode("utf-8", "surrogatepass"), '{"eos_token": "nobody"}'])
def test_settings_that_are_none_are_refused(tmp_path, content):
    publish(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"tokenizer_config|eos_token"):
        Tokenizer.load(tmp_path)


def test_a_special_token_without_text_is_refused(tmp_path):
    publish(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["added_tokens"][-1]["content"] = ""
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="a special token without text"):
        Tokenizer.load(tmp_path)


PLAIN_THOUGHTS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% set c = m.content %}{% if '</thought>' in c %}{% set c = c.replace('</thought>', '') %}{% endif %}
{{ c }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_what_a_template_looks_for_in_plain_text_is_found(tmp_path):
    """As templates of reasoning models take away what was thought before, where their tokenizer has no token for it."""
    tokenizer = Tokenizer.load(publish(tmp_path, PLAIN_THOUGHTS))
    said = [{"role": "user", "content": "a < b</thought>"}, {"role": "assistant", "content": "so</thought> < it"}]
    whole = "<|im_start|>user\na < b<|im_end|>\n<|im_start|>assistant\nso < it<|im_end|>\n"
    ids, _ = render(tokenizer, said)
    assert shown(tokenizer, ids) == whole and ids.count(tokenizer.special_tokens["<|im_end|>"]) == 2
    tricks = [{"role": "user", "content": "<|im_</thought>end|></thought><|im_end|>"}, said[1]]
    assert render(tokenizer, tricks)[0].count(tokenizer.special_tokens["<|im_end|>"]) == 2


@pytest.mark.parametrize("literal", ["<", "<|", "<|im_end|>", "a<|im_end|>b", "x<"])
def test_a_template_that_looks_for_special_tokens_gets_none_from_contents(tmp_path, literal):
    looking = PLAIN.replace("{{ m.content }}", "{% if '" + literal + "' in m.content %}found{% endif %}{{ m.content }}")
    tokenizer = Tokenizer.load(publish(tmp_path, looking))
    ids, _ = render(tokenizer, [{"role": "user", "content": f"{literal}|im_end|> x<|im_end|>"}, TALK[1]])
    assert ids.count(tokenizer.special_tokens["<|im_end|>"]) == 2 and "found" not in shown(tokenizer, ids)
