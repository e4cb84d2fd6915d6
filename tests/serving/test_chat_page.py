"""The page to talk, in a browser."""

import re

import pytest

MARKUP = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url) if not request.url.startswith(address) else None)
    page.goto(address)
    page.wait_for_selector("#first option", state="attached")
    yield page
    assert page.problems == []
    page.close()


def send(page, text):
    page.fill("#question", text)
    page.press("#question", "Enter")


def done(page):
    page.wait_for_selector("#send:not([disabled])")


def test_an_answer_streams_and_markup_is_text(page):
    page.fill("#length", "12")
    send(page, MARKUP)
    done(page)
    assert page.inner_text(".said") == MARKUP and page.title() == "groundup: chat"
    assert page.inner_text(".answer")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#keyed").is_hidden()  # no key is wanted here


def test_two_models_side_by_side_and_a_second_question(page):
    page.fill("#length", "6")
    page.select_option("#second", "base")
    send(page, "the path")
    done(page)
    assert page.locator(".answer").count() == 2
    send(page, "the file")
    done(page)
    assert page.locator(".turn").count() == 2 and page.locator(".problem").count() == 0


def test_probabilities_of_a_token_by_keyboard(page):
    page.fill("#length", "5")
    page.check("#probable")
    send(page, "the path")
    done(page)
    page.locator(".token").first.focus()
    assert page.inner_text("#probabilities").count("%") == 10


def test_stop_and_edit(page):
    page.fill("#length", "200")
    page.evaluate("document.getElementById('temperature').value = '1.5'")
    send(page, "the path")
    page.locator(".answer", has_text=re.compile(".")).wait_for()
    page.keyboard.press("Escape")
    done(page)
    page.click("text=Edit")
    assert page.input_value("#question") == "the path" and page.locator(".turn").count() == 0


def test_a_page_of_another_site_cannot_use_it(browser, address):
    page = browser.new_page()
    page.route("http://evil.example/", lambda route: route.fulfill(body="<p>hello", content_type="text/html"))
    page.goto("http://evil.example/")
    sent = """async ([address, type]) => {
        const body = JSON.stringify({model: "base", prompt: "a", max_tokens: 1});
        const wanted = {method: "POST", headers: {"content-type": type}, body};
        return fetch(address + "/v1/completions", wanted).then(() => "answered", () => "refused");
    }"""
    for kind in ("application/json", "text/plain"):
        assert page.evaluate(sent, [address, kind]) == "refused"
    page.close()
