"""The page to label on, in two browsers at once, of which one reloads and one loses its connection."""


import pytest

from groundup.data.contracts import read_preferences
from groundup.labelling.results import export, log_of, report
from groundup.labelling.store import Pair, open_store

MARKUP = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


@pytest.fixture
def annotator(browser):
    """A browser of its own, at the page, under a name; outside addresses and script errors fail the test."""
    opened = []

    def start(address, name, width=1100):
        page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda one: page.problems.append(one.url) if not one.url.startswith(address) else None)
        opened.append(page)
        page.goto(address)
        page.fill("#name", name)
        page.press("#name", "Enter")
        page.wait_for_selector("#pair:visible")
        return page

    yield start
    for page in opened:
        assert page.problems == []
        page.context.close()


def prefer(page, wanted):
    """Press the key that says of the pair on the page what `wanted` says of its question: a, b or tie."""
    page.wait_for_selector("#pair:visible")
    question = page.locator("#prompt .text").first.inner_text()
    choice = wanted[question]
    key = "3" if choice == "tie" else "1" if page.inner_text("#left").startswith(f"answer {choice}") else "5"
    page.keyboard.press(key)
    until(page, lambda: page.locator("#pair").is_hidden() or page.locator("#prompt .text").first.inner_text() != question)


def sent(page):
    until(page, lambda: page.inner_text("#waiting") == "")


def until(page, holds):
    """The page allows no `wait_for_function`, which evaluates text."""
    for _ in range(400):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("did not come about in 20 seconds")


ADA = "aabbabtt" * 5
BOB = "aabbbbta" * 5


def test_two_browsers_label_40_pairs_at_once_one_reloads_one_loses_its_connection(annotator, project, served, tmp_path):
    store = project(40, overlap=2, cost_per_hour=36.0)
    votes = {"ada": ADA, "bob": BOB}
    wanted = {
        name: {f"question {n}": {"t": "tie"}.get(vote, vote) for n, vote in enumerate(row)} for name, row in votes.items()
    }
    with served(store) as address:
        ada, bob = (annotator(address, name) for name in votes)
        for _ in range(10):
            prefer(ada, wanted["ada"])
            prefer(bob, wanted["bob"])
        sent(bob)
        bob.wait_for_timeout(200)  # what it fetches ahead is there
        bob.context.set_offline(True)
        prefer(bob, wanted["bob"])
        prefer(bob, wanted["bob"])
        until(bob, lambda: "wait for the connection" in bob.inner_text("#waiting"))
        prefer(ada, wanted["ada"])
        ada.reload()  # at once: what was said is on its way
        ada.wait_for_selector("#pair:visible")
        for _ in range(29):
            prefer(ada, wanted["ada"])
        bob.context.set_offline(False)
        sent(bob)
        bob.wait_for_selector("#pair:visible")
        for _ in range(28):
            prefer(bob, wanted["bob"])
        for page in (ada, bob):
            sent(page)
            page.wait_for_selector("text=No more pairs for you")
            assert page.evaluate("Object.keys(localStorage).filter(one => one.includes('unsent')).length") == 0
        until(ada, lambda: "40 yours" in ada.inner_text("#done"))
    log = log_of(store)
    said = {(event["prompt"], event["annotator"]): event["choice"] for event in log}
    assert len(log) == 80 and said == {(question, name): vote for name in votes for question, vote in wanted[name].items()}
    found = report(store)
    # By hand, in each eight: equal on 6; ada says a 3, b 3, tie 2, bob a 3, b 4, tie 1: by chance (9 + 12 + 2) / 64.
    assert found["cohen_kappa"]["ada, bob"] == pytest.approx((48 - 23) / (64 - 23))
    assert found["labels"] == 80 and found["cost"] == pytest.approx(found["seconds"] / 100) and found["seconds"] > 0
    # Of each eight both say a on two pairs, b on three; one of the other three has one vote, one none, and one is split.
    assert export(store, tmp_path)["preferences"] == 30
    rows = read_preferences([tmp_path / "preferences.jsonl"]).rows
    assert sorted(row.margin for row in rows) == [0.5] * 5 + [1] * 25


def test_a_server_that_is_not_there_for_a_while(annotator, project, server_process):
    store = project(3)
    process, address = server_process(store.address)
    page = annotator(address, "ada")
    until(page, lambda: page.inner_text("#done") != "")
    process.kill()
    process.wait()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("2")
    page.wait_for_selector("text=wait for the connection")
    server_process(store.address, int(address.rpartition(":")[2]))
    sent(page)
    page.keyboard.press("b")
    sent(page)
    assert sorted((event["choice"], event["strength"]) for event in log_of(store))[-1] == ("both_bad", 0.0)
    assert sorted(event["strength"] for event in log_of(store)) == [0.0, 0.5, 1.0]


def test_hostile_text_is_text_and_undo_reason_skip(annotator, served, tmp_path):
    store = open_store(str(tmp_path / "labels.db"), make=True)
    with store.transaction() as connection:
        store.change_settings(connection, {"guidelines": MARKUP})
        for n in range(3):
            store.add(connection, Pair(f"p{n}", [{"role": "user", "content": MARKUP}], MARKUP + "a", f"{MARKUP}b"))
    with served(store) as address:
        page = annotator(address, MARKUP[:90], width=390)
        assert page.locator("#prompt .text").inner_text() == MARKUP
        assert page.inner_text("#left").startswith(MARKUP) and page.title() == "groundup: label"
        assert page.locator("#guide").text_content() == MARKUP and page.locator("main img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("r")
        page.keyboard.type("s15 because")  # in the box keys are letters
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        page.keyboard.press("s")
        sent(page)
        page.keyboard.press("u")
        page.keyboard.press("u")
        page.click("button[data-choice=tie]")
        sent(page)
        page.reload()
        page.wait_for_selector("#pair:visible")
        page.keyboard.press("u")  # what was said before the page was loaded anew
        page.keyboard.press("4")
        for _ in range(2):
            page.wait_for_selector("#pair:visible")
            page.keyboard.press("6")
        sent(page)
    log = log_of(store)
    assert sorted(event["choice"] for event in log if event["choice"] == "both_bad") == ["both_bad"] * 2
    assert [event["strength"] for event in log if event["choice"] in "ab"] == [0.5] and len(log) == 3


KEYS = {  # what a keyboard sends: key, code, modifiers; and what it says
    "digits of a French keyboard": ("&", "Digit1", {}, ("left", 1.0)), "caps lock": ("B", "KeyB", {}, ("both_bad", 0.0)),
    "Cyrillic letters": ("\u0442", "KeyT", {}, ("tie", 0.0)), "Dvorak's letters": ("b", "KeyN", {}, ("both_bad", 0.0)),
    "another letter there": ("x", "KeyB", {}, None), "number block": ("5", "Numpad5", {}, ("right", 1.0)),
    "arrow": ("ArrowLeft", "ArrowLeft", {}, ("left", 1.0)), "held down": ("1", "Digit1", {"repeat": True}, None),
    "of the browser": ("1", "Digit1", {"ctrlKey": True}, None), "a word's end": ("1", "Digit1", {"isComposing": True}, None),
}  # fmt: skip


def test_keys_of_any_keyboard(annotator, project, served):
    store, expected = project(len(KEYS)), {}
    with served(store) as address:
        page = annotator(address, "ada")
        press = "given => document.body.dispatchEvent(new KeyboardEvent('keydown', {bubbles: true, cancelable: true, ...given}))"
        for name, (key, code, more, says) in KEYS.items():
            page.wait_for_selector("#pair:visible")
            question = page.locator("#prompt .text").first.inner_text()
            page.evaluate(press, {"key": key, "code": code, **more})
            same = page.locator("#pair").is_visible() and page.locator("#prompt .text").first.inner_text() == question
            assert same == (says is None), name
            if says:
                expected[question] = says
        sent(page)
    log = {event["prompt"]: event for event in log_of(store)}
    for event in log.values():
        event["choice"] = {"a": "left", "b": "right"}.get(event["choice"], event["choice"]) if event["shown_left"] == "a" else (
            {"b": "left", "a": "right"}.get(event["choice"], event["choice"]))  # fmt: skip
    assert {question: (event["choice"], event["strength"]) for question, event in log.items()} == expected


def test_who_leaves_before_all_is_sent_is_asked_and_loses_nothing(annotator, project, served):
    store = project(3, overlap=2)
    with served(store) as address:
        page = annotator(address, "ada")
        until(page, lambda: page.locator("#leave").is_visible())
        page.context.set_offline(True)
        page.keyboard.press("1")
        asked = []
        for answer in ("dismiss", "accept"):
            page.once("dialog", lambda dialog, answer=answer: (asked.append(dialog.message), getattr(dialog, answer)()))
            page.click("#leave")
            assert page.locator("#enter").is_visible() == (answer == "accept")
        page.context.set_offline(False)
        for name in ("bob", "ada"):
            page.fill("#name", name)
            page.press("#name", "Enter")
            page.wait_for_selector("#pair:visible")
            sent(page)
            assert len(log_of(store)) == (name == "ada")
            if name == "bob":
                page.click("#leave")
    assert len(asked) == 2 and asked[0].startswith("1 of your judgements")
    assert [event["annotator"] for event in log_of(store)] == ["ada"]


def test_two_clicks_in_a_row_judge_one_pair_and_long_texts_are_read_by_keys(annotator, served, tmp_path):
    store = open_store(str(tmp_path / "labels.db"), make=True)
    with store.transaction() as connection:
        for n in range(3):
            store.add(connection, Pair(f"p{n}", [{"role": "user", "content": f"q{n}"}], "a line\n" * 200, "another\n" * 200))
    with served(store) as address:
        page = annotator(address, "ada", width=390)
        below = "(one => one.scrollHeight - one.scrollTop - one.clientHeight)(document.getElementById('work'))"
        for _ in range(2):
            page.keyboard.press("End")
            until(page, lambda: page.evaluate(below) < 200)
            page.dblclick("[data-choice=tie]")
            assert page.evaluate("document.getElementById('work').scrollTop") == 0
        sent(page)
        assert page.locator("#pair").is_visible()
    assert len(log_of(store)) == 2


def test_an_undo_comes_after_what_it_takes_back_where_the_clock_is_set_back(annotator, project, served):
    store = project(1)
    with served(store) as address:
        page = annotator(address, "ada")
        until(page, lambda: page.inner_text("#done") != "")
        page.context.set_offline(True)
        page.keyboard.press("1")
        page.evaluate("Date.now = () => 1e12")  # 2001
        page.keyboard.press("u")
        page.keyboard.press("6")
        page.context.set_offline(False)
        sent(page)
        assert page.locator("#problem").is_hidden()
    assert [event["choice"] for event in log_of(store)] == ["both_bad"]


def test_by_a_link_with_a_token(browser, project, served):
    from groundup.labelling.label_server import invite

    store = project(2)
    token = invite(store, ["ada"])["ada"]
    with served(store) as address:
        page = browser.new_context().new_page()
        page.goto(address)
        page.wait_for_selector("#token:visible")
        page.goto("about:blank")
        page.goto(f"{address}/#token={token}")
        page.wait_for_selector("#pair:visible")
        assert token not in page.url
        page.keyboard.press("1")
        sent(page)
        page.context.close()
    assert [event["annotator"] for event in log_of(store)] == ["ada"]


def test_an_invitation_is_followed_from_a_page_of_another_site(browser, project, served):
    """Of mail, say. In a frame there the page is not shown."""
    from groundup.labelling.label_server import invite

    store = project(1)
    token = invite(store, ["ada"])["ada"]
    with served(store) as address:
        page = browser.new_context().new_page()
        mail = f'<a href="{address}/#token={token}">label</a><iframe src="{address}/"></iframe>'
        page.route("http://mail.example/", lambda route: route.fulfill(body=mail, content_type="text/html"))
        page.goto("http://mail.example/")
        assert page.frames[1].locator("#choices").count() == 0
        page.click("a")
        page.wait_for_selector("#pair:visible")
        page.keyboard.press("1")
        sent(page)
        page.context.close()
    assert [event["annotator"] for event in log_of(store)] == ["ada"]


def test_what_waits_is_sent_with_a_new_token_of_the_same_person_and_of_nobody_else(browser, project, served):
    from groundup.labelling.label_server import invite

    store = project(2, overlap=2)
    with served(store) as address:
        tokens = invite(store, ["ada", "bob"])
        page = browser.new_context().new_page()
        page.goto(f"{address}/#token={tokens['ada']}")
        page.wait_for_selector("#pair:visible")
        new = invite(store, ["ada"])["ada"]
        page.keyboard.press("1")  # refused: the token is void
        for token in (tokens["bob"], new):
            page.wait_for_selector("#token:visible")
            page.fill("#token", token)
            page.press("#token", "Enter")
            page.wait_for_selector("#pair:visible")
            if token != new:
                assert log_of(store) == []
                page.click("#leave")
        sent(page)
        page.context.close()
    assert [event["annotator"] for event in log_of(store)] == ["ada"]
