"""Pages: what they hold, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter

import pytest
from attrs import evolve
from comparisons import BUDGET, PROFILE, WORKLOAD, comparison, plan_of
from schedules import timeline_of

from lohan_core.errors import StorageError
from lohan_core.report import comparison_page, plan_page, record_page, write_page
from lohan_core.schedule.record import StepRecord
from lohan_core.schedule.task import Op
from lohan_core.schedule.timeline import Span

LOSSES = {"keeper": (3.5, 2.5, 1.5), "</script>&": (3.5, 2.5, 1.5)}


@pytest.fixture
def compared(tmp_path):
    write_page(tmp_path / "compared.html", comparison_page(comparison(LOSSES)))
    return tmp_path / "compared.html"


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text()).group(1))


def test_a_page_needs_nothing_but_itself(compared):
    text = compared.read_text()
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG, which nothing fetches"
    assert not re.search(r"<(link|img|iframe)\b|\bsrc=|@import|url\(|fetch\(", text)
    assert "default-src 'none'" in text


def test_names_cannot_become_markup(compared):
    assert compared.read_text().count("</script>") == 2
    assert [step["name"] for step in data_of(compared)["steps"]] == ["keeper", "</script>&"]


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path):
    with pytest.raises(StorageError, match=r"missing/page\.html: cannot be written: No such file or directory"):
        write_page(tmp_path / "missing" / "page.html", comparison_page(comparison()))


def lanes_of(timeline):
    """What a timeline should look like: tasks by lane."""
    return Counter(task.lane.value for task in timeline.schedule.tasks)


def drawn_lanes(group):
    """What it does look like, counting what each rectangle stands for."""
    return {
        row.attributes["data-lane"]: sum(int(piece.attributes["data-tasks"]) for piece in row.all("rect.piece"))
        for row in group.all("g.lane")
    }


def test_a_browser_draws_every_lane_and_task_of_the_first_planner(browser, compared):
    page = browser.look(compared)
    assert page.one("body").attributes["data-drawn"] == "yes"
    steps = page.one("#steps")
    assert steps.attributes["data-step"] == "keeper"
    expected = lanes_of(comparison().contenders[0].prediction.timeline)
    predicted, measured = steps.all("g.timeline")
    assert [predicted.attributes["data-kind"], measured.attributes["data-kind"]] == ["predicted", "measured"]
    assert drawn_lanes(predicted) == drawn_lanes(measured) == expected
    tops = [float(group.all("rect")[0].attributes["y"]) for group in (predicted, measured)]
    assert tops[0] < tops[1], "predicted above measured"


def test_a_browser_draws_the_planner_that_the_address_names(browser, compared):
    page = browser.look(compared, "%3C%2Fscript%3E%26")
    assert page.one("#steps").attributes["data-step"] == "</script>&"
    chosen = [button.words for button in page.one("nav").all("button") if button.attributes["aria-selected"] == "true"]
    assert chosen == ["</script>&"]


def test_a_browser_shows_the_table_and_the_verdict(browser, compared):
    page = browser.look(compared)
    assert "identical, bit for bit" in page.one("#verdict").words
    rows = {row.attributes["data-planner"]: row for row in page.one("#comparison").all("tr") if row.attributes}
    assert list(rows) == ["keeper", "</script>&", "greedier"]
    assert "it needs 3 GiB more" in rows["greedier"].words
    assert "+100 %" in rows["keeper"].words
    width = {name: sum(int(cell.attributes.get("colspan", 1)) for cell in row.children) for name, row in rows.items()}
    assert len(set(width.values())) == 1, "every row has as many columns"


def test_a_browser_marks_every_choice_on_its_curves(browser, compared):
    sweep = browser.look(compared).one("#sweep")
    marks = {mark.attributes["data-planner"]: mark for mark in sweep.all("g.mark")}
    assert list(marks) == ["keeper", "</script>&"]
    for mark in marks.values():
        predicted, measured = mark.one("circle.predicted").attributes, mark.one("circle.measured").attributes
        assert predicted["cx"] == measured["cx"]
        assert float(predicted["cy"]) > float(measured["cy"]), "twice as long is higher up"
    assert len(sweep.all("path.curve")) == 2, "one for each placement of states"
    assert len(sweep.all("path.paper")) == 1


def test_a_plan_that_could_not_be_carried_out_is_shown_as_predicted(browser, tmp_path):
    found = comparison({"keeper": (3.5, 2.5)})
    failed = evolve(found.contenders[1], reason="memory.gpu: step 1 needs more")
    write_page(tmp_path / "page.html", comparison_page(evolve(found, contenders=(found.contenders[0], failed))))
    page = browser.look(tmp_path / "page.html", "%3C%2Fscript%3E%26")
    keeper, other = [row for row in page.one("#comparison").all("tr") if row.attributes]
    assert len(keeper.children) == len(other.children)
    (cell,) = [cell for cell in other.children if cell.words == "failed"]
    assert cell.attributes["title"] == "memory.gpu: step 1 needs more"
    assert [group.attributes["data-kind"] for group in page.all("g.timeline")] == ["predicted"]


def test_losses_that_differ_are_shouted(browser, tmp_path):
    differs = {**LOSSES, "keeper": (3.5, 2.5, 1.25)}
    write_page(tmp_path / "page.html", comparison_page(comparison(differs)))
    verdict = browser.look(tmp_path / "page.html").one("#verdict")
    assert verdict.attributes["class"] == "bad"
    assert "LOSSES DIFFER" in verdict.words


def test_gaps_are_coloured_by_what_was_waited_for_and_say_so(browser, tmp_path):
    predicted = timeline_of((Op.FETCH_WEIGHTS, 0, 2), (Op.UPLOAD_WEIGHTS, 2, 3, (0,)), (Op.FORWARD, 3, 5, (1,)))
    late = evolve(predicted, spans=(Span(0, 2), Span(2, 3), Span(3.5, 6)))
    write_page(tmp_path / "page.html", record_page(StepRecord(step=9, predicted=predicted, measured=late), "my run"))
    page = browser.look(tmp_path / "page.html")
    assert page.one("h1").words == "Step 9 of my run"
    for group in page.all("g.timeline"):
        (gpu,) = [row for row in group.all("g.lane") if row.attributes["data-lane"] == "gpu"]
        waits = gpu.all("rect.wait")
        assert [wait.attributes["data-cause"] for wait in waits] == ["ssd_read", "h2d"]
        assert waits[0].attributes["fill"] != waits[1].attributes["fill"]
        assert "gpu waits for ssd_read" in waits[0].words
        (forward,) = gpu.all("rect.piece")
        assert forward.words.startswith("forward, block 2")
    assert [key.words for key in page.one("#causes").all("span")] == ["h2d", "ssd read"]
    assert not page.all("#sweep"), "a run keeps no profile to draw curves by"
    assert "hidden" in page.one("nav").attributes, "nothing to choose from"


def test_a_plan_alone_has_a_page_too(browser, tmp_path):
    write_page(tmp_path / "plan.html", plan_page(plan_of("keeper"), PROFILE, WORKLOAD, BUDGET))
    page = browser.look(tmp_path / "plan.html")
    assert page.one("h1").words == "Plan"
    (timeline,) = page.all("g.timeline")
    assert timeline.attributes["data-kind"] == "predicted"
    assert not page.all("#verdict")
    assert "measured" not in page.one("#comparison").words


def test_a_page_is_seen(browser, compared, tmp_path):
    browser.photograph(compared, tmp_path / "page.png")
    picture = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1500, 1400)
    assert len(picture) > 20_000, "a blank page compresses to a few thousand bytes"
