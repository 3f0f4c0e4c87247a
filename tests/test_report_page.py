"""The page is whole without a network, escapes what it shows, reads well, and says what the run does not show."""

import itertools
import re
from html.parser import HTMLParser

import pytest
from synthetic_run import EVIL, make_run, printed, recipe, reported

from ssd_ray.reporting import words
from ssd_ray.reporting.terminal import summary


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def shown(made):
    out, facts, scores = reported(made)
    return out, facts, scores, (out / "report.html").read_text()


def all_numbers(value):
    if isinstance(value, dict):
        return set().union(*map(all_numbers, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(all_numbers, value)) if value else set()
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_every_percentage_and_difference_in_the_tables_is_a_number_of_scores_json(shown):
    _, _, scores, html = shown
    numbers = all_numbers(scores)
    percentages = {words.percent(number) for number in numbers if 0 <= number <= 1}
    signed = {words.points(number) for number in numbers if abs(number) <= 1}
    result = html[html.index('<section id="result">') : html.index('<section id="run">')]
    tables_only = result + html[html.index('<section id="benchmarks">') : html.index('<section id="data">')]
    cells = re.sub("<[^>]+>", "|", "".join(re.findall(r"<tbody.*?</tbody>", tables_only, re.DOTALL)))
    shown_percentages = set(re.findall(r"\d[\d.]*\u00a0%", cells))
    assert len(shown_percentages) > 20
    assert shown_percentages <= percentages
    assert set(re.findall(r"[+\u2212]\d[\d.]*", cells)) <= signed


class Page(HTMLParser):
    """What an HTML page is made of; raises where tags are not nested."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "line", "circle"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.stack, self.text = [], [], []
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


def assert_safe(html):
    page = Page(html)
    assert not page.all("script", "iframe", "object", "embed", "link")
    for attrs in page.all(*{tag for tag, _ in page.tags}):
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:image/svg+xml;base64,"))
    assert not re.search(r"@import|url\(", html)
    return page


def test_the_page_is_self_contained_and_a_screen_reader_finds_its_way(shown):
    html = shown[3]
    page = assert_safe(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("title")) == len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(th.get("scope") for th in page.all("th"))
    assert all(img["alt"] for img in page.all("img"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}


def test_the_page_says_in_plain_words_what_the_run_shows_and_what_it_does_not(shown):
    text = " ".join("".join(Page(shown[3]).text).split())
    assert re.search(r"ssd − base: [+−]?\d+\.\d points, 95 % interval [+−]?\d+\.\d to [+−]?\d+\.\d: ", text)
    for promised in (
        "It proves the pipeline, not the method.",
        "135 million parameters",
        "no independent reproduction of its gains was known",
        "No arm decodes the base model in the way of ssd.",
        "There is no control in it.",
        "10 duplicate, 2 too long",
        "2 empty, 1 stub",
        "paper, table 3; 1.5 in the released configuration",
        "namespaces; network not isolated",
    ):
        assert promised in text


def test_nothing_that_a_model_recipe_or_problem_says_becomes_markup(tmp_path):
    chosen = recipe(description=EVIL, model={"source": EVIL}, sources={"sample": EVIL})
    arms = {"base": chosen.evaluate.arms["base"], EVIL: chosen.evaluate.arms["ssd"]}
    chosen = chosen.model_copy(update={"evaluate": chosen.evaluate.model_copy(update={"arms": arms})})
    out, _, scores = reported(make_run(tmp_path, chosen, evil=EVIL))
    html = (out / "report.html").read_text()
    page = assert_safe(html)
    assert "<script" not in html
    assert "".join(page.text).count(EVIL) > 30
    text = printed(summary(scores))
    assert EVIL in text


def test_a_run_of_the_base_model_alone_and_one_of_many_arms_both_have_a_page(tmp_path):
    alone = recipe(evaluate={"arms": {"base": {"model": "base"}}, "pass_at": [1]})
    out, _, _ = reported(make_run(tmp_path / "one", alone))
    assert_safe((out / "report.html").read_text())
    arms = {f"base@T={t}": {"model": "base", "temperature": t} for t in (0, 0.5, 1, 1.5)}
    many = recipe(evaluate={"arms": arms | {"ssd": {"model": "ssd"}, "base": {"model": "base"}}})
    out, _, scores = reported(make_run(tmp_path / "many", many))
    html = (out / "report.html").read_text()
    assert_safe(html)
    assert "6 arms answered the same problems" in html
    assert "No arm decodes the base model in the way of" not in html
    assert scores["order"]["arms"][-1] == "base"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ((0.012, -0.031, 0.054, "cannot tell"), "+1.2 points, 95 % interval −3.1 to +5.4: this run cannot tell them apart"),
        ((0.05, 0.01, 0.09, "higher"), "+5.0 points, 95 % interval +1.0 to +9.0: ssd did better than base in this run"),
        ((-0.05, -0.09, -0.01, "lower"), "−5.0 points, 95 % interval −9.0 to −1.0: ssd did worse than base in this run"),
        (
            (0.3, 0.3, 0.3, "too few problems"),
            "+30.0 points, 95 % interval +30.0 to +30.0: too few problems (4) to tell them apart",
        ),
        (
            (0.0, 0.0, 0.0, "cannot tell"),
            "0.0 points: every problem came out the same in both, so this run cannot tell them apart",
        ),
    ],
)
def test_a_difference_ends_in_plain_words(found, told):
    values = dict(zip(("estimate", "low", "high", "reading"), found, strict=True)) | {"problems": 4}
    assert words.reading("ssd", "base", values, 0.95).replace("\u00a0", " ") == f"ssd − base: {told}"
