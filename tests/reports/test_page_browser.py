"""The page in a browser, used as a reader uses it: looked at, clicked on, typed into."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raft.reports.page.page import write_page
from raft.reports.page.records import read_rows
from tests.reports.conftest import Screen
from tests.reports.page_runs import HOSTILE, PHRASE, write_align_run, write_drift, write_sft_run

MINUS = "−"
LABELS_OUTSIDE = """
return [...document.querySelectorAll('.plot svg text')].filter((text) => {
    const own = text.getBoundingClientRect(), box = text.closest('svg').getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 9 || own.top < box.top - 3 || own.bottom > box.bottom + 3;
}).map((text) => text.textContent);
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of different kinds and lengths, by name."""
    home = tmp_path_factory.mktemp("runs")
    write_align_run(home / "first", texts=(f"{PHRASE} designed to assist",))
    write_drift(home / "first", 5)
    write_align_run(home / "second", num_iterations=3, lift=0.5, seed=1)
    write_align_run(home / "short", num_iterations=1)
    write_align_run(home / "long", num_iterations=20, num_prompts=8)
    write_align_run(home / "hostile", num_iterations=1, texts=HOSTILE, num_held_out=len(HOSTILE))
    write_sft_run(home / "sft")
    return home


@pytest.fixture(scope="module")
def page(runs: Path) -> Callable[..., Path]:
    """The page of some of the runs."""

    def make(*names: str) -> Path:
        return write_page([runs / name for name in names], runs / f"{'-'.join(names)}.html")

    return make


def number(text: str) -> float:
    return float(text.replace(MINUS, "-").replace(",", ""))


# ---------------------------------------------------------------- nothing runs, nothing is loaded


def test_nothing_in_a_text_runs(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("hostile"))
    screen.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for row in screen.all(".row-toggle"):
        screen.js("arguments[0].click()", row)
    while screen.all("#samples .more"):
        screen.click("#samples .more")
    assert screen.driver.title == "hostile · RAFT report"
    assert screen.js("return [...document.querySelectorAll('main *')].map((one) => one.localName)") != []
    foreign = "main :is(script, img, iframe, object, embed, style, base, link, form, meta)"
    assert screen.js("return document.querySelectorAll(arguments[0]).length", foreign) == 0
    assert all(link.startswith("#") for link in screen.js(
        "return [...document.querySelectorAll('main a')].map((one) => one.getAttribute('href'))"))  # fmt: skip
    attributes = screen.js("return [...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())")
    assert "class" in attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert screen.js("return performance.getEntriesByType('resource').length") == 0
    assert screen.complaints() == []
    screen.js("setTimeout(() => { document.body.dataset.later = 'yes'; }, 300)")
    screen.wait(lambda: screen.js("return document.body.dataset.later"))
    assert screen.driver.title == "hostile · RAFT report"


def test_texts_are_shown_as_they_are(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("hostile"))
    shown = screen.js("return [...document.querySelectorAll('#samples .response .text')].map((one) => one.textContent)")
    for text in HOSTILE[:5]:
        assert text in shown
    assert "to the right U+202Eand back to frontU+202C, U+2067isolatedU+2069, שלום مرحبا" in shown
    assert (
        "a nullU+0000byte, a bellU+0007, an escapeU+001B[31m, a lineU+2028and a paragraphU+2029separator, U+FEFFU+D800"
        in shown
    )
    assert "empty" in shown
    assert any(len(text) > 4000 and text.startswith("xxx") for text in shown)
    notes = screen.texts("#samples .note")
    assert "46,000 characters left out of the middle" in notes


def test_the_browser_itself_refuses_what_a_mistake_would_let_through(screen: Screen, page: Callable[..., Path]) -> None:
    """The policy in the page's head: no markup from strings, no script put in, no request."""
    screen.open(page("short"))
    parse = "try { document.body.innerHTML = '<b>x</b>'; return 'parsed' } catch (error) { return error.name }"
    assert screen.js(parse) == "TypeError"
    screen.js(
        "const image = new Image(); image.onerror = () => { document.body.dataset.image = 'refused'; };"
        "image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);"
    )
    screen.wait(lambda: screen.js("return document.body.dataset.image") == "refused")
    fetched = screen.driver.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), (e) => done(e.name))"
    )
    assert fetched == "TypeError"
    assert any("Content Security Policy" in text for text in screen.complaints())


# ---------------------------------------------------------------- summary and curves


def test_the_summary_of_one_run(screen: Screen, page: Callable[..., Path], runs: Path) -> None:
    screen.open(page("first"))
    assert screen.text("h1") == "first"
    assert screen.text("#subtitle") == "raft align"
    tiles = {tile.split("\n")[0]: tile.split("\n")[1:] for tile in screen.texts(".tile")}
    first, last = (sum(row["reward"] for row in read_rows(runs / f"first/held_out/{i:04d}.jsonl")) / 8 for i in (0, 6))
    before, after = tiles["Held-out reward"][0].split(" → ")
    assert (number(before), number(after)) == (pytest.approx(first, abs=6e-4), pytest.approx(last, abs=6e-4))
    assert "95% interval +0.250 to +0.750" in tiles["Held-out reward"][1]
    assert tiles["distinct-2"][0] == "0.640 → 0.520"
    assert tiles["Drift alarms"][0] == "1"
    assert ["Prompts kept (b)", "4"] in [fact.split("\n") for fact in screen.texts(".facts > div")]
    screen.click("details.file summary", "config.yaml")
    assert '"raft_batch_size": 4' in screen.text("details.file pre")


def test_an_unfinished_run_says_so(screen: Screen, tmp_path: Path) -> None:
    screen.open(write_page([write_align_run(tmp_path / "going", num_iterations=2, finished=False)]))
    assert screen.text("#subtitle") == "raft align · not finished"


def legend(screen: Screen, chart: str) -> str:
    found = next(one for one in screen.all(".chart") if one.text.startswith(chart + "\n"))
    return " ".join(found.find_element("css selector", ".legend").text.split())


def test_curves_answer_the_pointer(screen: Screen, page: Callable[..., Path], runs: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    screen.open(page("first"))
    log = [row for row in read_rows(runs / "first/metrics.jsonl") if row.get("iteration") == 1]
    reward = next(row for row in log if "reward/all_mean" in row)
    held_out = next(row for row in log if "held_out/reward_mean" in row)
    assert legend(screen, "Mean reward").startswith("iteration 6 all samples ")
    plot = next(one for one in screen.all(".chart") if "Mean reward" in one.text).find_element("css selector", ".plot")
    screen.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    width = plot.size["width"]
    # The axis goes from 0 at about a tenth of the width to 6 at its end: iteration 1 is a quarter of the way.
    ActionChains(screen.driver).move_to_element_with_offset(plot, int(-0.26 * width), 0).perform()
    expected = [reward["reward/all_mean"], reward["reward/selected_mean"], held_out["held_out/reward_mean"]]
    words = legend(screen, "Mean reward").split()
    assert words[:2] == ["iteration", "1"]
    values = [number(word) for word in words[2:] if word.replace(MINUS, "").replace(".", "").isdigit()]
    assert values == pytest.approx(expected, abs=6e-4)
    # The other charts of the same axis follow, those of another do not.
    assert legend(screen, "Tokens a response").startswith("iteration 1 all samples 51")
    assert legend(screen, "Loss").startswith("step 27")
    assert screen.js("return document.querySelectorAll('.spot').length") >= 3
    ActionChains(screen.driver).move_to_element(screen.one("h2")).perform()
    assert legend(screen, "Mean reward").startswith("iteration 6 ")


def test_curves_answer_the_keyboard(screen: Screen, page: Callable[..., Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    screen.open(page("first"))
    plot = screen.all(".plot")[1]
    plot.send_keys(Keys.ARROW_LEFT)
    title = "distinct-2 (different word pairs)"
    assert legend(screen, title) == "iteration 5 all samples 0.560 selected 0.600 held-out 0.540"
    plot.send_keys(Keys.HOME)
    assert legend(screen, title) == "iteration 0 all samples – selected – held-out 0.640"
    plot.send_keys(Keys.ESCAPE)
    assert legend(screen, title).startswith("iteration 6")


def test_every_metric_has_a_curve_and_a_row(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("first"))
    assert "of something" not in " ".join(screen.texts("figcaption"))
    screen.click("#curves summary", "All other metrics")
    assert "of something" in screen.texts("figcaption")
    screen.wait(lambda: all(one.rect["width"] > 100 for one in screen.all(".plot svg")))
    rows = {text.split()[0]: text.split()[1:] for text in screen.texts("#numbers tbody tr:not(.group)")}
    assert rows["length_mean"][-6:] == ["51", "52", "53", "54", "55", "56"]
    assert screen.texts("#numbers thead th") == ["iteration", "0", "1", "2", "3", "4", "5", "6"]


# ---------------------------------------------------------------- alarms


def test_an_alarm_leads_to_the_samples(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("first"))
    alarm = screen.text(".alarm")
    assert alarm.startswith(f"phrase {PHRASE}\n")
    assert "In 42% of the responses of iteration 5, 3.1% at the start; 13 times as frequent" in alarm
    assert "To counter it: --discard_regex 'any confusion' catches 95% of these responses." in alarm
    screen.click(".alarm button", "Find it in the samples")
    assert screen.one("#sample-search").get_property("value") == PHRASE
    marked = screen.texts("#samples .response mark")
    assert set(marked) == {PHRASE}
    assert screen.text("#samples [role=status]") == "6 responses to 3 prompts"


def test_without_a_watch_there_is_no_section_of_alarms(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("short"))
    assert screen.texts("nav a") == ["Summary", "Curves", "Before and after", "Samples", "Numbers by iteration"]


# ---------------------------------------------------------------- before and after


def test_before_and_after_sorts_searches_and_opens(screen: Screen, page: Callable[..., Path], runs: Path) -> None:
    before, after = (
        {row["prompt"][0]["content"]: row for row in read_rows(runs / f"first/held_out/{i:04d}.jsonl")} for i in (0, 6)
    )
    change = {prompt: after[prompt]["reward"] - before[prompt]["reward"] for prompt in before}
    screen.open(page("first"))

    def prompts() -> list[str]:
        return screen.texts("#before-after tbody .row-toggle")

    assert prompts() == sorted(change, key=lambda prompt: -change[prompt])
    screen.click("#before-after button.sort", "change")
    assert prompts() == sorted(change, key=change.__getitem__)
    assert screen.one('#before-after th[aria-sort="ascending"]').text == "change"
    screen.click("#before-after button.sort", "before")
    assert prompts() == sorted(before, key=lambda prompt: -before[prompt]["reward"])
    screen.click("#before-after button.sort", "Prompt")
    assert prompts() == sorted(before)

    screen.click("#before-after .row-toggle", "held-out question 3")
    shown = screen.texts("#before-after .detail .response .text")
    assert shown == [before["held-out question 3"]["response"], after["held-out question 3"]["response"]]
    assert screen.js("return document.activeElement.textContent") == "held-out question 3"
    screen.click("#before-after .row-toggle", "held-out question 3")
    assert screen.all("#before-after .detail") == []

    screen.type("#before-after input", "QUESTION 5")
    assert prompts() == ["held-out question 5"]
    assert screen.text("#before-after [role=status]") == "1 held-out prompt found"
    screen.type("#before-after input", "designed to")
    assert prompts() == ["held-out question 0"]


# ---------------------------------------------------------------- samples


def responses(screen: Screen) -> list[str]:
    return screen.texts("#samples .response .text")


def test_samples_by_prompt_across_iterations(screen: Screen, page: Callable[..., Path], runs: Path) -> None:
    screen.open(page("first"))
    assert screen.text("#samples .lead") == "All 96 responses that were recorded."
    assert screen.text("#samples [role=status]") == "96 responses to 12 prompts"
    card = screen.one("#samples .card")
    prompt = card.find_element("css selector", ".prompt-text").text
    rounds = [one.text for one in card.find_elements("css selector", ".round h4")]
    by_iteration = {
        int(path.parent.name): [row for row in read_rows(path) if row["prompt"][0]["content"] == prompt]
        for path in sorted(runs.glob("first/iterations/*/samples.jsonl"))
    }
    assert rounds == [f"Iteration {i}" for i, rows in by_iteration.items() if rows]
    assert len(rounds) == 2
    expected = [
        row["response"]
        for rows in by_iteration.values()
        for row in sorted(rows, key=lambda row: (row["reward"] is None, -(row["reward"] or 0)))
    ]
    assert [one.text for one in card.find_elements("css selector", ".response .text")] == expected
    selected = [one.text for one in card.find_elements("css selector", ".response.selected .text")]
    assert selected == [row["response"] for rows in by_iteration.values() for row in rows if row["selected"]]


def test_samples_are_filtered_and_sorted(screen: Screen, page: Callable[..., Path], runs: Path) -> None:
    screen.open(page("first"))
    rows = [row | {"iteration": int(path.parent.name)} for path in sorted(runs.glob("first/iterations/*/samples.jsonl"))
            for row in read_rows(path)]  # fmt: skip
    screen.choose("Order", "reward, highest first")
    rewarded = sorted((row["reward"] for row in rows if row["reward"] is not None), reverse=True)
    shown = [number(text) for text in screen.texts("#samples .reward")]
    assert shown == pytest.approx(rewarded[:30], abs=6e-4)
    screen.click("#samples .more")
    assert len(screen.texts("#samples .reward")) == 60
    screen.choose("Order", "log_ratio, lowest first")
    assert len(responses(screen)) == 30
    screen.choose("Order", "reward, lowest first")
    assert number(screen.text("#samples .reward")) == pytest.approx(rewarded[-1], abs=6e-4)
    screen.choose("Which", "discarded")
    discarded = [row for row in rows if row["discarded"]]
    assert screen.text("#samples [role=status]") == f"{len(discarded)} responses"
    assert set(screen.texts("#samples .pill.discard")) == {"discarded: matches a discard rule"}
    screen.choose("Which", "selected")
    screen.choose("Iteration", "3")
    chosen = [row["response"] for row in rows if row["selected"] and row["iteration"] == 3]
    assert sorted(responses(screen)) == sorted(chosen)


def test_the_search_finds_and_marks(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("first"))
    status = "#samples [role=status]"
    screen.type("#sample-search", "as A chatbot DESIGNED")
    screen.wait(lambda: screen.text(status) == "6 responses to 3 prompts")
    assert set(screen.texts("#samples mark")) == {"as a chatbot designed"}
    screen.type("#sample-search", "sorry for any confusion but as")  # what stands between words does not matter
    screen.wait(lambda: screen.text(status) == "6 responses to 3 prompts")
    screen.type("#sample-search", ".*")  # and it is a text, not an expression
    screen.wait(lambda: "nothing matches" in screen.text(status))
    screen.type("#sample-search", "question 7 of")
    screen.wait(lambda: screen.text(status) == "8 responses to 1 prompt")
    assert screen.texts("#samples .prompt-text mark") == ["question 7 of"]


def test_one_prompt_can_be_followed(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("first"))
    screen.choose("Order", "longest first")
    prompt = screen.text("#samples .card .prompt-text")
    screen.click("#samples .card button", "this prompt in all iterations")
    assert screen.texts("#samples .card .prompt-text") == [prompt]
    assert screen.text("#samples [role=status]") == "8 responses to 1 prompt"
    screen.click("#samples .chip")
    assert screen.text("#samples [role=status]") == "96 responses to 12 prompts"


def test_held_out_responses_are_there_too(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("first"))
    screen.choose("Show", "held-out responses")
    assert screen.text("#samples [role=status]") == "56 responses to 8 prompts"
    rounds = [one.text for one in screen.one("#samples .card").find_elements("css selector", ".round h4")]
    assert rounds == ["Before training", *(f"Iteration {i}" for i in range(1, 7))]


def test_a_page_with_a_part_of_the_samples_says_so(screen: Screen, tmp_path: Path) -> None:
    run = write_align_run(tmp_path / "run", num_iterations=2, num_prompts=60, num_held_out=60, num_words=60)
    screen.open(write_page([run], max_megabytes=0.09))
    lead = screen.text("#samples .lead")
    assert " of 480 responses (" in lead
    assert lead.endswith("The others are in iterations/*/samples.jsonl.")
    assert "left out to keep this page small" in screen.text("#before-after [role=status]")


# ---------------------------------------------------------------- several runs


def test_runs_side_by_side(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("first", "second", "sft"))
    assert screen.text("h1") == "first · second · sft"
    cells = "return [...arguments[0].rows].map((row) => [...row.cells].map((one) => one.innerText))"
    rows = {label: values for label, *values in screen.js(cells, screen.one(".runs tbody"))}
    assert rows["Command"] == ["raft align", "raft align", "raft sft"]
    assert rows["Held-out perplexity"] == ["–", "–", "12.20 → 4.500"]
    assert rows["Seed"] == ["0", "0", "3"]
    assert screen.text("#summary h3") == "Held-out reward on the 8 prompts that these runs share"
    assert "Mean reward, held-out" in screen.texts("figcaption")
    assert legend(screen, "Mean reward, held-out").startswith("iteration 6 first ")
    heads = screen.texts("#before-after thead th")
    assert heads == ["", "first", "second", "Prompt", *["before", "after", "change"] * 2]
    screen.click("#before-after .row-toggle")
    assert len(screen.texts("#before-after .detail .response .text")) == 4
    screen.choose("Show", "second: samples")
    assert screen.text("#samples [role=status]") == "48 responses to 6 prompts"


def test_a_run_without_texts(screen: Screen, page: Callable[..., Path]) -> None:
    screen.open(page("sft"))
    assert screen.texts("nav a") == ["Summary", "Curves"]
    assert "Held-out loss\n2.500 → 1.500\nstep 0 to 300" in screen.texts(".tile")
    assert screen.texts("figcaption") == ["Loss", "Learning rate"]
    assert screen.complaints() == []


# ---------------------------------------------------------------- how it looks, and for whom


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("names", ["short", "first", "long", "hostile", "first second", "first second sft"])
def test_nothing_sticks_out(screen: Screen, page: Callable[..., Path], names: str, width: int) -> None:
    screen.open(page(*names.split()), width=width)
    for row in screen.all(".row-toggle")[:3]:
        screen.js("arguments[0].click()", row)
    screen.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert screen.js("return document.documentElement.scrollWidth") <= width
    # No label of a chart lies outside of its picture.
    assert screen.js(LABELS_OUTSIDE) == []
    assert screen.complaints() == []


def test_ink_and_paper_change_places_in_the_dark(screen: Screen, page: Callable[..., Path]) -> None:
    for dark in (False, True):
        screen.open(page("first"), dark=dark)
        colours = screen.js("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        ink, paper = (sum(json.loads("[" + colour[colour.index("(") + 1 : -1] + "]")) for colour in colours)
        assert (ink > 600 and paper < 100) if dark else (ink < 100 and paper > 700)


def test_everything_can_be_reached_by_keyboard(screen: Screen, page: Callable[..., Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    screen.open(page("first"))
    reached = []
    for _ in range(60):
        ActionChains(screen.driver).send_keys(Keys.TAB).perform()
        reached.append(screen.js("const one = document.activeElement; return one.className || one.id || one.tagName"))
        if reached[-1] == "row-toggle":
            break
    assert {"plot", "sort", "row-toggle", "link"} <= set(reached)
    ActionChains(screen.driver).send_keys(Keys.ENTER).perform()
    assert len(screen.all("#before-after .detail")) == 1
    assert screen.js("return document.activeElement.className") == "row-toggle"
