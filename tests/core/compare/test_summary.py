from __future__ import annotations

import json
import math

import pytest
from attrs import evolve
from comparisons import PROFILE, WORKLOAD, comparison, measured

from lohan_core.compare.summary import render, summarize, verdict
from lohan_core.plan import Tier
from lohan_core.schedule.task import Lane

NAN = math.nan
SAME = {"keeper": (3.5, 2.5, 1.5), "</script>&": (3.5, 2.5, 1.5)}


@pytest.mark.parametrize(
    ("losses", "identical", "says"),
    [
        (SAME, True, "identical, bit for bit, in 3 steps of 2 planners"),
        ({**SAME, "keeper": (3.5, 2.5, math.nextafter(1.5, 2))}, False, "those of </script>& are not those of keeper"),
        ({**SAME, "keeper": (3.5, 2.5)}, False, "LOSSES DIFFER"),
        ({"keeper": (NAN, 1.0), "</script>&": (NAN, 1.0)}, True, "identical"),
        ({"keeper": (0.0, 0.0), "</script>&": (0.0, -0.0)}, False, "LOSSES DIFFER"),
        ({"keeper": (3.5, 2.5)}, None, None),
        ({}, None, None),
    ],
)
def test_losses_are_compared_to_the_bit(losses, identical, says):
    found = comparison(losses)
    assert found.losses_identical is identical
    assert (verdict(found) is None) == (says is None)
    if says:
        assert says in verdict(found)
        assert render(found).endswith(verdict(found))


def test_the_typical_step_is_the_median():
    prediction = comparison().contenders[0].prediction
    steps = measured(prediction, (1.0,) * 5).steps
    run = evolve(measured(prediction, (1.0,) * 5), steps=[steps[3], steps[0], steps[2], steps[1]])
    assert run.typical is steps[1]


def test_a_summary_is_plain_and_adds_up():
    found = comparison(SAME)
    summary = json.loads(json.dumps(summarize(found)))
    keeper, host, greedier = summary["planners"]
    assert summary["tokens"] == 2 * 3 * 50
    assert keeper["note"] == "what keeper thinks"
    assert greedier == {
        "planner": "greedier",
        "reason": "it needs 3 GiB more",
        "note": None,
        "predicted": None,
        "measured": None,
    }
    prediction = found.contenders[0].prediction
    predicted = keeper["predicted"]
    assert predicted["seconds"] == prediction.timeline.seconds
    assert predicted["tokens_per_second"] == pytest.approx(300 / prediction.timeline.seconds)
    assert predicted["busy_seconds"] == {lane.value: busy for lane, busy in prediction.timeline.busy_seconds().items()}
    parameters = sum(block.elements for block in PROFILE.blocks)
    assert predicted["written_bytes"] == (12 + 2 + 2) * parameters  # states, P16, and G16 that waits for the norm
    assert host["predicted"]["written_bytes"] == 0
    kept = 20_480 + 40_960  # input and the first operator's output, in whole sectors
    assert predicted["activation_bytes"] == WORKLOAD.micro_batches * 4 * kept
    assert predicted["peak_bytes"] == {tier.value: prediction.peak_bytes[tier] for tier in Tier}
    assert keeper["measured"]["seconds"] == 2 * prediction.timeline.seconds
    assert keeper["measured"]["losses"] == [3.5, 2.5, 1.5]
    assert (keeper["measured"]["read_bytes"], keeper["measured"]["written_bytes"]) == (1000, 2000)


def test_text_leaves_out_what_was_not_measured():
    text = render(comparison())
    header = text.split("\n\n")[1].splitlines()[0].split()
    assert "measured" not in header
    assert "greedier has no plan: it needs 3 GiB more" in text
    assert "measured" not in text
    ran = render(comparison(SAME))
    header, keeper, *_ = ran.split("\n\n")[1].splitlines()
    assert header.split()[:5] == ["planner", "predicted", "measured", "off", "by"]
    assert "gpu measured" not in header
    assert "+100%" in keeper
    assert "In turn, step by step: keeper, </script>&." in ran
    for lane in Lane:
        assert lane in ran.split("\n\n")[2].splitlines()[0].split()


def test_device_memory_is_shown_where_it_was_measured():
    found = comparison(SAME)
    contender = found.contenders[0]
    weighed = evolve(contender, measurement=measured(contender.prediction, (1.0, 1.0), gpu_peak_bytes=5 * 2**20))
    text = render(evolve(found, contenders=(weighed, *found.contenders[1:])))
    header, keeper, *_ = text.split("\n\n")[1].splitlines()
    assert header.endswith("gpu measured")
    assert keeper.endswith("5.00 MiB")


def test_a_plan_that_could_not_be_carried_out_says_why():
    found = comparison({"keeper": (3.5, 2.5)})
    failed = evolve(found.contenders[1], reason="memory.gpu: step 1 needs more")
    text = render(evolve(found, contenders=(found.contenders[0], failed)))
    assert "</script>& was not carried out: memory.gpu: step 1 needs more" in text
    assert verdict(found) is None
