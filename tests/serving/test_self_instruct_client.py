"""What self-instruct asks for, our own server gives: texts and chat, sampled as asked, with tokens counted."""

import pytest

from groundup.posttraining.completion_clients import CUT, STOPPED, PromptRequest, ServedClient, open_client


@pytest.mark.parametrize(("model", "chat"), [("base", False), ("chat", True)])
def test_our_server_answers_as_the_folder(address, served_folders, model, chat):
    ask = PromptRequest("what does the function", 8, ("\n\n", "\n16."), 0.7, 0.5, 2.0, seed=3)
    found = ServedClient(f"{address}/v1#{model}", chat)(ask)
    assert found.end in (STOPPED, CUT) and found.prompt_tokens and 0 < found.answer_tokens <= 8
    with open_client(str(served_folders[model]), chat, 2) as client:
        assert client(ask) == found
