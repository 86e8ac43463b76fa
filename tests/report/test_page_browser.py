"""The run page in a real browser: it opens from disk, filters, shows and compares episodes, obeys the keyboard, and takes no text for a program."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from epo_jax.batch import pad
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.report.page.run_page import RunPage
from epo_jax.trajectory import Trajectory, read_jsonl, write_jsonl
from tests.report.conftest import Browser
from tests.report.page_runs import HOSTILE, MINI, episode, make_hostile_run, make_run, make_stepagent_run

VIEWS = ("overview", "episodes", "evaluation", "health", "provenance")
CHOSEN = ".row[aria-selected=true] .task"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("browser") / "run", rounds=3, episodes=70, turns=4, resumed_after=2)


@pytest.fixture(scope="module")
def page(run_folder: pathlib.Path) -> str:
    return RunPage(run_folder).write().as_uri()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return RunPage(make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")).write().as_uri()


def played(folder: pathlib.Path) -> list[tuple[str, Trajectory]]:
    """(what the page calls the file, episode) of all episodes, in the page's order."""
    names = {"evaluation/round_000": "held out, before", "evaluation/round_003": "held out, after 3"}
    names |= {f"trajectories/round_{round:03d}": f"round {round + 1}" for round in range(3)}
    order = ["evaluation/round_000", *[f"trajectories/round_{round:03d}" for round in range(3)], "evaluation/round_003"]
    return [(names[name], trajectory) for name in order for trajectory in read_jsonl(folder / f"{name}.jsonl")]


def wait_for_count(browser: Browser, count: int, total: int) -> None:
    browser.until("document.querySelector('.view > .note').textContent.startsWith(arguments[0])", f"{count:,} of {total:,} episodes")


# --- opening ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_every_view_opens_without_a_complaint_and_fits(browser: Browser, page: str, width: int, dark: bool) -> None:
    for view in VIEWS:
        browser.open(f"{page}#{view}", width=width, dark=dark)
        assert browser.texts("nav a[aria-current=page]") == [view.capitalize()]
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert contrast(browser, "main") >= 7 and contrast(browser, ".note, .about, .tick, td, .label") >= 4.5
    assert browser.complaints() == []


def contrast(browser: Browser, selector: str) -> float:
    """WCAG 2 contrast of an element's text with the page's ground."""
    colours = browser.run(
        """const node = document.querySelector(arguments[0]);
        return [getComputedStyle(node).color, getComputedStyle(document.documentElement).backgroundColor];""",
        selector,
    )
    light = []
    for colour in colours:
        values = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_curves_show_what_was_measured(browser: Browser, page: str) -> None:
    browser.open(f"{page}#overview")
    titles = browser.texts(".chart h3")
    assert {"alfworld: success", "webshop: mean reward", "Process reward a turn", "Entropy, nats a token", "Repeated tokens in a strategy"} <= set(
        titles
    )
    assert len(browser.texts(".chart:first-child .resume")) == 1
    kl = "Array.from(document.querySelectorAll('.chart')).find((each) => each.querySelector('h3').textContent.startsWith('KL'))"
    browser.run(f"document.querySelector('.switch a:last-child').click(); return {kl}")
    browser.until(f"{kl}.querySelector('.at').textContent === 'step 6'")
    browser.run(f"{kl}.querySelector('.plot').focus()")
    read = []
    for key in (Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.HOME):
        browser.press(key)
        read.append(browser.run(f"return [{kl}.querySelector('.at').textContent, {kl}.querySelector('.value').textContent]"))
    assert read == [["step 6", "0.060"], ["step 5", "0.050"], ["step 1", "0.010"]]
    assert browser.complaints() == []


# --- the browser of episodes ------------------------------------------------------------------------------------------------------------------


def test_filters_find_what_a_search_through_the_files_finds(browser: Browser, page: str, run_folder: pathlib.Path) -> None:
    everything = played(run_folder)
    word = "fridge mug"

    def spoken(trajectory: Trajectory) -> str:
        parts = [trajectory.task_id, trajectory.first_observation]
        return "\n".join([*parts, *(text for turn in trajectory.turns for text in (turn.strategy, turn.action, turn.observation))]).lower()

    for filters, wanted in (
        ({"Environment": "webshop"}, lambda file, one: one.environment == "webshop"),
        ({"Round": "2"}, lambda file, one: file == "round 2"),
        ({"Round": "evaluation"}, lambda file, one: file.startswith("held out")),
        ({"Result": "success"}, lambda file, one: one.success),
        ({"Result": "failure", "Environment": "alfworld"}, lambda file, one: not one.success and one.environment == "alfworld"),
        ({"Reward from": "0.3", "to": "0.6"}, lambda file, one: 0.3 <= one.outcome <= 0.6),
        ({"Text": word.upper()}, lambda file, one: word in spoken(one)),
        ({"Result": "masked"}, lambda file, one: False),
    ):
        count = sum(wanted(file, one) for file, one in everything)
        assert count or filters == {"Result": "masked"}
        browser.open(f"{page}#episodes")
        wait_for_count(browser, len(everything), len(everything))
        for label, value in filters.items():
            browser.choose(label, value)
        wait_for_count(browser, count, len(everything))
        browser.run("location.reload()")  # the address keeps the filters
        browser.until("document.documentElement.dataset.ready === 'true'")
        wait_for_count(browser, count, len(everything))
    assert browser.complaints() == []


def test_rows_are_drawn_on_demand(browser: Browser, tmp_path: pathlib.Path) -> None:
    folder, tokenizer = make_run(tmp_path / "run", rounds=1), Tokenizer.load(MINI)
    write_jsonl(folder / "trajectories" / "round_000.jsonl", [episode(tokenizer, seed, turns=1) for seed in range(1200)])
    browser.open(f"{RunPage(folder).write().as_uri()}#episodes")
    wait_for_count(browser, 1216, 1216)
    assert 10 < len(browser.texts(".row")) < 40
    browser.run("document.querySelector('.list').scrollTop = 1e9")
    browser.until("document.querySelector('#row-1215') !== null")
    assert len(browser.texts(".row")) < 40 and len(browser.texts("*")) < 1000


def test_an_episode_as_a_conversation(browser: Browser, page: str, run_folder: pathlib.Path) -> None:
    place = 9
    trajectory = read_jsonl(run_folder / "trajectories" / "round_001.jsonl")[place]
    browser.open(f"{page}#episodes?open=2.{place}")
    browser.until("document.querySelector('.episode') !== null")
    assert browser.texts(".episode h3") == [trajectory.task_id]
    assert browser.texts(".opening .said") == [trajectory.first_observation]
    assert browser.texts(".turn .action") == [turn.action for turn in trajectory.turns]
    assert browser.texts(".turn .seen") == [turn.observation for turn in trajectory.turns]
    said = browser.run(
        "const texts = (each) => Array.from(each.querySelectorAll('.token:not(.special)'), (token) => token.textContent);"
        "return Array.from(document.querySelectorAll('.turn .strategy'), texts)"
    )
    assert ["".join(tokens) for tokens in said] == [turn.strategy for turn in trajectory.turns]
    shown = [float(text.replace("−", "-")) for text in browser.texts(".turn .advantage dd")]
    assert shown == pytest.approx([turn.advantage for turn in trajectory.turns], abs=6e-4)
    picked = [turn.process_reward > 0 for turn in trajectory.turns]
    assert browser.run("return Array.from(document.querySelectorAll('.turn'), (each) => each.querySelector('.star') !== null)") == picked
    assert browser.complaints() == []


def test_tokens_are_tinted_by_their_weight_in_the_loss(browser: Browser, page: str, run_folder: pathlib.Path) -> None:
    """Against the learner's own batch."""
    trajectory = read_jsonl(run_folder / "trajectories" / "round_001.jsonl")[9]
    (batch,), _ = pad([trajectory], length_buckets=[1024], rows=1, max_length=1024, pad_id=0)
    weights = batch.loss_weights[batch.turn_ids > 0]
    browser.open(f"{page}#episodes?open=2.9")
    browser.until("document.querySelector('.token') !== null")
    browser.run("document.querySelector('input[value=weight]').click()")
    tokens = browser.run(
        "const told = (token) => [token.title, token.className, getComputedStyle(token).textDecorationStyle];"
        "return Array.from(document.querySelectorAll('.turn .token'), told)"
    )
    told = [float(re.search(r"weight in the loss ([−+\d.e]+)", title)[1].replace("−", "-")) for title, _, _ in tokens]
    assert told == pytest.approx(weights.tolist(), rel=0.06)
    assert all(("raised" if weight > 0 else "lowered") in classes for weight, (_, classes, _) in zip(weights, tokens, strict=True))
    assert all(style == ("solid" if weight > 0 else "dotted") for weight, (_, _, style) in zip(weights, tokens, strict=True))  # without colours too
    logprobs = [value for turn in trajectory.turns for value in turn.logprobs]
    assert [float(re.search(r"log-probability ([−\d.]+)", title)[1].replace("−", "-")) for title, _, _ in tokens] == pytest.approx(
        logprobs, abs=0.006
    )


def test_the_same_task_side_by_side(browser: Browser, page: str, run_folder: pathlib.Path) -> None:
    browser.open(f"{page}#episodes?open=0.5")
    browser.until("document.querySelector('.episode .button') !== null")
    assert browser.texts(".episode .button") == ["This task side by side: 2 episodes"]
    browser.run("document.querySelector('.episode .button').click()")
    browser.until("document.querySelectorAll('.side-turn').length === 8")
    before, after = (read_jsonl(run_folder / "evaluation" / name)[5] for name in ("round_000.jsonl", "round_003.jsonl"))
    assert browser.texts(".cell.head a") == ["held out, before", "held out, after 3"]
    assert browser.texts(".cell .action") == [
        text for turns in zip(before.turns, after.turns, strict=True) for text in (turns[0].action, turns[1].action)
    ]
    assert browser.texts(".beside .chip") == ["first difference"] * 2
    browser.run("document.querySelector('.toggle').click()")
    browser.until("document.querySelectorAll('.cell.head').length === 1")
    assert browser.complaints() == []


def test_a_group_side_by_side(browser: Browser, tmp_path: pathlib.Path) -> None:
    """Where one round has the task several times: each has a number and its reward, and the best stands beside the worst."""
    folder, tokenizer = make_run(tmp_path / "run", rounds=1), Tokenizer.load(MINI)
    rewards = [0.31, 0.8, 0.05, 0.5]
    group = [episode(tokenizer, seed, task_id="train/7", environment="webshop", outcome=reward) for seed, reward in enumerate(rewards)]
    write_jsonl(folder / "trajectories" / "round_000.jsonl", group)
    page = RunPage(folder).write().as_uri()
    browser.open(f"{page}#beside?task=1.0")
    browser.until("document.querySelectorAll('.cell.head').length === 2")
    assert [text[1:] for text in browser.texts(".toggle")] == [
        f"round 1, no. {number}, reward {reward:.2f}" for number, reward in enumerate(rewards, start=1)
    ]
    assert browser.texts(".cell.head a") == ["round 1, no. 2", "round 1, no. 3"] and browser.complaints() == []


def test_back_leads_from_an_episode_to_the_list(browser: Browser, page: str) -> None:
    """With its filters and as it was scrolled, also where the episode covers it; closed by hand, it is not opened again by going back."""
    shown = "return [location.hash, document.querySelector('.list').scrollTop]"

    def click(selector: str) -> None:
        """As a person does: a browser whose history is full first forgets what a program left."""
        browser.driver.find_element("css selector", selector).click()

    for width, by_back in ((400, True), (1280, True), (400, False)):
        browser.open(f"{page}#overview", width=width)
        click("nav a:nth-child(2)")
        browser.until("document.querySelector('.row') !== null")
        browser.choose("Environment", "webshop")
        browser.until("location.hash === '#episodes?environment=webshop'")
        browser.run("document.querySelector('.list').scrollTop = 1000")
        browser.until("document.querySelector('#row-24') !== null")
        click("#row-24")
        browser.until("document.querySelector('.episode') !== null")
        task = browser.texts(".episode h3")[0]
        assert "&open=" in browser.run("return location.hash")
        if by_back:
            browser.driver.back()
        else:
            click(".back")
        browser.until("document.querySelector('.episode') === null && !location.hash.includes('open')")
        assert browser.run(shown) == ["#episodes?environment=webshop", 1000] and browser.texts(CHOSEN) == [task]
        if by_back:
            browser.driver.forward()
            browser.until("document.querySelector('.episode h3')?.textContent === arguments[0]", task)
            browser.driver.back()
            browser.until("document.querySelector('.episode') === null")
        browser.driver.back()
        browser.until("document.querySelector('nav a[aria-current]').textContent === 'Overview'")
    assert browser.complaints() == []


def test_on_paper_nothing_is_cut_off(browser: Browser, page: str) -> None:
    """As wide as A4 within its margins; without what only a screen has a use for."""
    try:
        for view in (*VIEWS, "episodes?open=2.9", "beside?task=0.5"):
            browser.open(f"{page}#{view}")
            browser.until("document.querySelector('main h2, main h3') !== null")
            media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            size = {"width": 700, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.until("innerWidth === 700")
            beyond = browser.run(
                "const cut = (each) => each.checkVisibility() && !each.closest('.hidden, .said') && each.getBoundingClientRect().right > 701;"
                "return Array.from(document.querySelectorAll('main *'), (each) => cut(each) ? each.outerHTML.slice(0, 80) : '').filter(Boolean)"
            )
            assert beyond == [], view
            pressed = "return Array.from(document.querySelectorAll('button, .button, nav, .filters'), (each) => each.checkVisibility())"
            assert not any(browser.run(pressed)), view
            assert browser.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        browser.open(f"{page}#episodes?open=2.9")
        browser.until("document.querySelector('.token') !== null")
        assert browser.run("return getComputedStyle(document.querySelector('.token')).printColorAdjust") == "economy"
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert browser.run("return getComputedStyle(document.querySelector('.token')).printColorAdjust") == "exact"  # the tint says something
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_judge_picks_reasons_and_masks(browser: Browser, tmp_path: pathlib.Path) -> None:
    folder, tokenizer = make_run(tmp_path / "run", rounds=1), Tokenizer.load(MINI)
    told = episode(tokenizer, 1, turns=2, extra={"index": 0, "judge": {"reasoning": "The first was decisive."}})
    graded = episode(tokenizer, 2, turns=2, extra={"index": 1, "judge": {"grades": [9, 2], "reasons": ["names the place", "says nothing"]}})
    failed = episode(tokenizer, 3, turns=2, learned=False, masked="judge openai: 429 too many requests")
    write_jsonl(folder / "trajectories" / "round_000.jsonl", [told, graded, failed])
    page = RunPage(folder).write().as_uri()
    browser.open(f"{page}#episodes?open=1.0")
    browser.until("document.querySelector('.episode') !== null")
    assert browser.texts(".reasoning .said") == ["The first was decisive."]
    browser.open(f"{page}#episodes?open=1.1")
    browser.until("document.querySelector('.episode') !== null")
    assert browser.texts(".reason") == ["names the place", "says nothing"] and browser.texts(".grade dd") == ["9", "2"]
    browser.open(f"{page}#episodes?open=1.2")
    browser.until("document.querySelector('.episode') !== null")
    assert browser.texts(".alert .said") == ["judge openai: 429 too many requests"]
    browser.open(f"{page}#health")
    assert browser.texts("td")[:2] == ["1", "judge openai: 429 too many requests"]


@pytest.mark.parametrize("normalisation", ["trajectory", "token"])
def test_weights_are_those_of_the_learner_in_every_normalisation(browser: Browser, tmp_path: pathlib.Path, normalisation: str) -> None:
    """And of every token apart, where the estimator tells them apart. By `token` the page leaves out the step's own factor."""
    folder, tokenizer = make_run(tmp_path / "run", rounds=1, **{"learn.normalisation": normalisation}), Tokenizer.load(MINI)
    told = episode(tokenizer, 3, turns=3)
    told.turns[1].token_advantages = [0.1 * (place + 1) for place in range(len(told.turns[1].tokens))]
    write_jsonl(folder / "trajectories" / "round_000.jsonl", [told])
    (batch,), _ = pad([told], length_buckets=[1024], rows=1, max_length=1024, pad_id=0, normalisation=normalisation)
    weights = batch.loss_weights[batch.turn_ids > 0]
    if normalisation == "token":
        weights = weights * len(weights)
    browser.open(f"{RunPage(folder).write().as_uri()}#episodes?open=1.0")
    browser.until("document.querySelector('.token') !== null")
    browser.run("document.querySelector('input[value=numbers]').click()")
    shown = browser.texts(".numbered small")
    assert [float(text.replace("−", "-")) for text in shown[1::2]] == pytest.approx(weights.tolist(), rel=0.06)
    logprobs = [value for turn in told.turns for value in turn.logprobs]
    assert [float(text.replace("−", "-")) for text in shown[::2]] == pytest.approx(logprobs, abs=0.006)
    assert browser.complaints() == []


def test_an_expert_s_episode_with_what_the_policy_would_have_said(browser: Browser, tmp_path: pathlib.Path) -> None:
    folder = make_stepagent_run(tmp_path / "run")
    (expert, _) = read_jsonl(folder / "inspections" / "cycle_000.jsonl")
    page = RunPage(folder).write().as_uri()
    browser.open(f"{page}#episodes?open=1.0")
    browser.until("document.querySelector('.episode') !== null")
    assert browser.texts(".turn:first-child .speaker") == ["Expert", "Policy", "Action", "Environment"]
    assert browser.texts(".instead .chip") == ["≠ says something else", "= says the same"]
    assert [text.removesuffix("<|end|>") for text in browser.texts(".instead .tokens")] == [each["text"] for each in expert.extra["inspected"]]
    browser.choose("Round", "states")
    wait_for_count(browser, 4, 22)
    assert browser.texts(".row .reward") == ["–"] * 4
    browser.choose("Result", "failure")
    wait_for_count(browser, 0, 22)
    browser.open(f"{page}#episodes?open=2.3")
    browser.until("document.querySelector('.episode') !== null")
    assert browser.texts(".turn .speaker") == ["Policy"] and browser.texts(".turn .advantage dd") == ["+1.500"]
    assert browser.texts(".turn .process dd") == ["+0.500"] and browser.texts(".star") == browser.texts(".episode .button") == []
    assert browser.texts(".turn .token.special") == ["<|end|>"]
    assert browser.complaints() == []


def test_self_play_says_who_met_whom(browser: Browser, tmp_path: pathlib.Path) -> None:
    folder, tokenizer = make_run(tmp_path / "run", rounds=1), Tokenizer.load(MINI)
    partner = {"strategist": "mini", "weights": "step-0", "actor": "talker"}
    extra = {"partner": partner, "scenario": "bargaining", "scores": {"goal": 7, "secret": 0}}
    met = [
        episode(tokenizer, place // 2, environment="sotopia", seat=str(place % 2), task_id=f"deal/{place // 2}/{place % 2}", outcome=outcome,
                success=outcome == 1.0, weights_version="step-2", extra=extra | {"index": place // 2})
        for place, outcome in enumerate([1.0, 0.0, 0.5, 1.0])
    ]  # fmt: skip
    write_jsonl(folder / "trajectories" / "round_000.jsonl", met)
    page = RunPage(folder).write().as_uri()
    browser.open(f"{page}#meetings")
    cells = browser.run("return Array.from(document.querySelectorAll('tbody tr'), (row) => Array.from(row.children, (cell) => cell.textContent))")
    assert cells == [
        ["sotopia", "round 1", "0", "step-2", "mini step-0 (actor talker)", "2", "0", "0.750", "50.0\u00a0%"],
        ["sotopia", "round 1", "1", "step-2", "mini step-0 (actor talker)", "2", "0", "0.500", "50.0\u00a0%"],
    ]
    browser.open(f"{page}#episodes?open=1.1")
    browser.until("document.querySelector('.episode') !== null")
    assert {"mini step-0 (actor talker)", "bargaining", "goal 7, secret 0"} <= set(browser.texts(".facts dd"))
    assert browser.texts(".episode .button") == ["Both seats side by side"]
    browser.run("document.querySelector('.episode .button').click()")
    browser.until("document.querySelectorAll('.cell.head').length === 2")
    assert browser.texts(".cell.head a") == ["round 1, seat 1", "round 1, seat 0"] and browser.complaints() == []


# --- the keyboard -----------------------------------------------------------------------------------------------------------------------------


def test_the_keyboard_alone(browser: Browser, page: str, run_folder: pathlib.Path) -> None:
    everything = played(run_folder)
    browser.open(page)
    browser.press("2")
    wait_for_count(browser, len(everything), len(everything))
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "search"
    browser.press("t", "r", "a", "i", "n", "/", "2", "0", "0", "0", "1")  # letters and digits are text now
    wanted = [one for _, one in everything if "train/20001" in one.task_id]
    wait_for_count(browser, len(wanted), len(everything))
    browser.press(Keys.ESCAPE)
    browser.run("document.querySelector('.list').focus()")
    browser.press(Keys.ARROW_DOWN)
    assert browser.texts(CHOSEN) == [wanted[0].task_id]
    browser.press(Keys.ENTER)
    browser.until("document.querySelector('.episode') !== null")
    browser.press("j")
    browser.until("document.querySelector('.episode h3').textContent === arguments[0]", wanted[1].task_id)
    browser.press("k")
    browser.until("document.querySelector('.episode h3').textContent === arguments[0]", wanted[0].task_id)
    browser.press(Keys.ESCAPE)
    browser.until("document.querySelector('.episode') === null && document.activeElement.className === 'list'")
    browser.press("?")
    assert browser.run("return document.getElementById('keys').open")
    browser.press(Keys.ESCAPE)
    browser.press("4")
    browser.until("document.querySelector('nav a[aria-current]').textContent === 'Health'")
    browser.open(page)
    reached = []
    for _ in range(12):
        browser.press(Keys.TAB)
        reached.append(browser.run("return document.activeElement.textContent"))
    assert reached[:3] == ["Skip to the content", "Overview", "Episodes"] and len(set(reached)) == 12
    assert browser.complaints() == []


# --- text that means harm ---------------------------------------------------------------------------------------------------------------------


def test_hostile_text_is_shown_as_text(browser: Browser, hostile: str) -> None:
    for index, text in enumerate(HOSTILE):
        browser.open(f"{hostile}#episodes?open=1.{index}&text=a")
        browser.until("document.querySelector('.episode') !== null")
        shown = browser.texts(".opening .said")[0]
        if len(text) > 20_000:
            assert "show all 20,008 characters" in shown and len(shown) < 4_000
            browser.run("document.querySelector('.opening .more').click()")
            assert len(browser.texts(".opening .said")[0]) == 20_008
        else:
            marks = [chr(int(mark[2:], 16)) for mark in browser.texts(".opening .unseen")]
            hidden = "\u202e\u202c\u2066\u2069\u200b\u00ad\x07\x1b\x00\x7f\x85\u2028\u200f\u200d\ud800\ue000"
            assert marks == [character for character in text if character in hidden]
            assert re.sub("U\\+[0-9A-F]{4,6}", "", shown) == "".join(character for character in text if character not in hidden)
        assert browser.run("return [typeof window.harmed, document.querySelectorAll('main script, main img, main b, main iframe').length]") == [
            "undefined",
            0,
        ]
        assert browser.run("return getComputedStyle(document.querySelector('.opening .said')).unicodeBidi") == "isolate"
        assert browser.run("return document.documentElement.scrollWidth") <= 1280
    for view in (*VIEWS, "meetings", "beside?task=1.0"):
        browser.open(f"{hostile}#{view}", width=400)
        assert browser.run("return [typeof window.harmed, document.querySelectorAll('main script, main img, main b').length]") == ["undefined", 0]
        assert browser.run("return document.documentElement.scrollWidth") <= 400
    assert HOSTILE[0] in browser.run("return document.title") and browser.texts("h1") == [HOSTILE[0]]
    assert browser.complaints() == []


def test_its_policy_holds(browser: Browser, page: str) -> None:
    """Were text ever taken for markup, nothing would run, load or leave."""
    browser.open(page)
    for harm in ("document.body.innerHTML = '<img src=x>'", "eval('1')", "document.write('x')", "document.createElement('script').text = '1'"):
        # Later, since what the driver itself runs may do more than a page.
        browser.run(
            f"setTimeout(() => {{ try {{ {harm}; var word = 'harmed'; }} catch {{ word = 'refused'; }}"
            "document.documentElement.dataset.did = word; })"
        )
        assert browser.until("document.documentElement.dataset.did") == "refused", harm
        browser.run("delete document.documentElement.dataset.did")
    answer = "fetch('http://127.0.0.1:9/').then(() => 'left', () => 'refused').then((word) => { document.documentElement.dataset.answer = word; })"
    browser.run(answer)
    assert browser.until("document.documentElement.dataset.answer") == "refused"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


@pytest.mark.slow
def test_five_thousand_episodes_fit(browser: Browser, tmp_path: pathlib.Path) -> None:
    """Twenty-five rounds of 200 episodes of 18 turns: under 15 MB with every conversation, and drawn as quickly as a small page."""
    folder = make_run(tmp_path / "run", rounds=25, episodes=200, turns=18)
    path = RunPage(folder).write()
    assert path.stat().st_size < 15_000_000
    browser.open(f"{path.as_uri()}#episodes")
    wait_for_count(browser, 5_016, 5_016)
    assert len(browser.texts(".row")) < 40 and "not in the page" not in browser.texts(".view > .note")[0]
    assert browser.complaints() == []
