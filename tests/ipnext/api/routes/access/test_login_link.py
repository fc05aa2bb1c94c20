"""A link that logs a browser in says whose key it brings, and asks: a stranger may have sent it."""

import pytest

from ipnext.access.keys import parse_key
from ipnext.model.access.rights import Role
from tests.ipnext.api.browsers import patient

pytestmark = pytest.mark.browser

WHO = "fetch('/v1/sessions/current', {cache: 'no-store'}).then(a => a.ok ? a.json().then(b => b.name) : null)"


@pytest.fixture
def stranger(live):
    """Makes links of a key that may read the models of one owner."""
    live.rooms.seed("ranker")
    key = parse_key(live.rooms.add_key("stranger", Role.VIEWER, owner="search")).id

    def link():
        ticket = live.rooms.add_key(
            "stranger", Role.VIEWER, owner="search", kind="ticket", parent=key, created_by="key stranger"
        )
        return f"{live.url}/#ticket={ticket}"

    return link


@pytest.fixture
def page(browser):
    context = patient(browser.new_context(viewport={"width": 1000, "height": 700}))
    yield context.new_page()
    context.close()


def follow(page, link):
    """Open a link as a click in another program does: in this tab, whether the page is open in it or not."""
    page.goto("about:blank")
    page.goto(link, wait_until="domcontentloaded")


def log_in_as_operator(page, live):
    follow(page, f"{live.url}/#ticket={live.rooms.ticket()}")
    page.wait_for_selector("[data-model=ranker]")


def test_a_link_of_another_ones_key_logs_nobody_in_before_it_was_agreed_to(page, stranger, tmp_path):
    follow(page, stranger())
    page.wait_for_selector("#link:not([hidden])")
    page.screenshot(path=str(tmp_path / "link.png"))  # to look at: pytest --basetemp
    shown = page.locator("#link").inner_text()
    assert "with the key stranger (viewer of models of search)" in shown
    assert page.evaluate(WHO) is None
    assert not page.locator("main").is_visible()
    assert not page.locator("#login").is_visible()
    assert "ticket" not in page.url

    page.get_by_role("button", name="Log in as stranger").click()

    page.wait_for_selector("main:not([hidden])")
    assert page.evaluate(WHO) == "stranger"
    assert not page.locator("#link").is_visible()
    assert not page.locator("#login").is_visible()


def test_a_link_that_is_refused_leaves_nobody_logged_in(page, stranger):
    follow(page, stranger())
    page.get_by_role("button", name="Do not log in").click()
    page.wait_for_selector("#login:not([hidden])")
    assert page.evaluate(WHO) is None
    assert not page.locator("#link").is_visible()


def test_a_link_replaces_no_login_without_a_question(page, live, stranger):
    log_in_as_operator(page, live)
    page.evaluate("address => { location.href = address }", stranger())  # in the open page, as another page can do
    page.wait_for_selector("#link:not([hidden])")
    assert "replaces your login as admin" in page.locator("#link").inner_text()
    assert page.evaluate(WHO) == "admin"
    page.get_by_role("button", name="Stay admin").click()
    page.wait_for_selector("[data-model=ranker]")
    assert page.evaluate(WHO) == "admin"

    follow(page, stranger())
    page.get_by_role("button", name="Log in as stranger").click()
    page.wait_for_selector("main:not([hidden])")
    assert page.evaluate(WHO) == "stranger"

    follow(page, f"{live.url}/#ticket={live.rooms.ticket()}")
    page.get_by_role("button", name="Log in as admin").click()
    page.wait_for_selector("[data-model=ranker]")
    assert page.evaluate(WHO) == "admin"


def test_a_link_of_ipnext_dev_asks_nothing_and_another_one_of_the_same_key_neither(page, live, stranger):
    log_in_as_operator(page, live)
    log_in_as_operator(page, live)
    assert page.evaluate(WHO) == "admin"


def test_a_link_that_was_used_says_so(page, live, stranger):
    used = stranger()
    follow(page, used)
    page.get_by_role("button", name="Log in as stranger").click()
    page.wait_for_selector("main:not([hidden])")
    page.click("#logout")
    follow(page, used)
    page.wait_for_selector("#login:not([hidden])")
    assert "was used already" in page.locator("#login-refused").inner_text()
