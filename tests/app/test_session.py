"""What the page does, without a browser: on a model built by hand, with the real job."""

import threading
import time

import pytest
import torch

from tests import talker
from unrefuse.app.bench import Knobs
from unrefuse.app.session import Job, Session
from unrefuse.config import load_config
from unrefuse.edits.plan import load_plan
from unrefuse.engine.generate import Reply, reply_to
from unrefuse.errors import UnrefuseError
from unrefuse.progress import stderr, track


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    files = talker.write_prompts(folder)
    model = talker.build(folder / "talker")
    return {"model": str(model), "limit": 40, **{name: str(f) for name, f in files.items()}}


@pytest.fixture(scope="module")
def session(fields, tmp_path_factory):
    """One whose model was looked at."""
    session = Session(tmp_path_factory.mktemp("mine"))
    session.look(fields)
    ended(session)
    assert not session.job.failed
    return session


def ended(session):
    session.job.thread.join(120)
    assert not session.busy


def last(shown):
    return list(shown)[-1]


KNOBS = Knobs(0.6, 0.15, 0.5)


def test_a_look_tells_how_far_it_is_and_sets_the_sliders(session):
    assert session.version == 2
    assert session.found.model["parameters"] > 0
    assert any("refused before, search" in line for line in session.job.lines)
    assert session.job.step[1] > 0
    kernel = session.bench.prepared.kernel
    assert session.knobs == (kernel.peak, kernel.width, 1.0)


def test_the_replies_are_those_of_the_original_and_of_the_edit_and_grow_word_by_word(session):
    prompt = "q5 q9 T"
    shown = list(session.compare(prompt, KNOBS))
    texts = [each.original if isinstance(each.original, str) else "" for each in shown]
    assert sum(bool(text) for text in texts) > 3
    assert isinstance(shown[-1].original, Reply)
    (whole,) = reply_to(session.bench.model, [prompt], 100)
    assert shown[-1].original.text == whole.text
    assert shown[-1].original.tokens == whole.tokens
    assert (shown[-1].original.grade, shown[-1].edited.grade) == ("refused", "answered")
    assert session.shown == shown[-1]
    (again,) = reply_to(session.bench.model, [prompt], 100)
    assert again == whole  # the hooks are gone


def test_a_slider_acts_at_once_and_the_original_is_not_asked_again(session):
    last(session.compare("q5 q9 T", KNOBS))
    shown = list(session.compare("q5 q9 T", KNOBS._replace(strength=0.0)))
    assert all(isinstance(each.original, Reply) for each in shown)
    assert shown[0].margins  # before a word of the reply
    assert shown[-1].edited.text == shown[-1].original.text


def test_the_margin_says_by_token_where_the_edited_model_leaves_the_refusal(session):
    shown = last(session.compare("q5 q9 T", KNOBS))
    assert "".join(token.text for token in shown.margins) == shown.original.text
    original, edited = shown.opening()
    assert original > 0 > edited
    assert all(token.original > 0 for token in shown.margins)
    kept = last(session.compare("q5 q9 K", KNOBS))
    assert kept.opening()[1] > 0
    same = last(session.compare("q5 q9 T", KNOBS._replace(strength=0.0)))
    assert [token.edited for token in same.margins] == pytest.approx(
        [token.original for token in same.margins], abs=1e-3
    )


def test_a_later_question_ends_an_earlier_one(session):
    first = session.compare("q1 q2 T", KNOBS)
    next(first)
    last(session.compare("q2 q3 T", KNOBS))
    assert list(first) == []


def test_moves_of_a_slider_may_come_in_another_order(session):
    now = 1000 * time.time()
    late = last(session.compare("q5 q9 T", KNOBS._replace(strength=0.0), 0, now + 20))
    assert list(session.compare("q5 q9 T", KNOBS, 0, now + 10)) == []
    assert session.shown == late
    assert session.knobs.strength == 0
    time.sleep(0.03)  # the next move is later


def test_while_a_slider_moves_only_its_last_place_is_asked(session):
    found = []
    asked = threading.Thread(target=lambda: found.extend(session.compare("q T", KNOBS, 0.5)))
    asked.start()
    while session.prompt != "q T":
        time.sleep(0.01)
    assert last(session.compare("q B", KNOBS)).prompt == "q B"
    asked.join(10)
    assert found == []


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (lambda s: next(s.compare(" ", KNOBS)), "no prompt to ask"),
        (lambda s: next(s.compare("q T", Knobs(0.25, 0.02, 1.0))), "widen the kernel"),
        (lambda s: s.save(" ", KNOBS), "name a new folder"),
        (lambda s: s.save("x", KNOBS._replace(strength=0.0)), "strength"),
        (lambda s: s.save("x", KNOBS._replace(strength=9.0)), "strength"),
        (lambda s: s.look({"model": ""}), "model"),
        (lambda s: s.edit("x", {"model": "demo", "limit": 3}), "limit"),
        (lambda s: s.pick({"model": "demo", "retention_floor": 0.1}), "retention_floor"),
    ],
)
def test_a_mistake_is_told_and_nothing_begins(session, do, told):
    job = session.job
    with pytest.raises(UnrefuseError, match=told):
        do(session)
    assert session.job is job


def test_without_a_model_there_is_nothing_to_ask_or_to_save(tmp_path):
    session = Session(tmp_path)
    with pytest.raises(UnrefuseError, match="look at one first"):
        next(session.compare("q T", KNOBS))
    with pytest.raises(UnrefuseError, match="look at a model first"):
        session.save("x", KNOBS)


def test_what_the_sliders_made_is_measured_and_saved_only_above_the_floors(session):
    plan = session.bench.plan(KNOBS)
    session.save("harmless", KNOBS)
    with pytest.raises(UnrefuseError, match=r"editing .* stop it"):
        session.save("another", KNOBS)
    with pytest.raises(UnrefuseError, match=r"editing .* stop it"):
        next(session.compare("q T", KNOBS))
    ended(session)
    assert session.record["saved"] is True, session.job.failed
    assert session.record["split"] == "test"
    assert (session.record["kernel"]["peak"], session.record["kernel"]["multiplier"]) == (0.6, 0.5)
    made = load_plan(session.folder / "harmless" / "tuning" / "plan.safetensors")[0]
    assert [edit.module for edit in made] == [edit.module for edit in plan]
    for one, other in zip(made, plan, strict=True):
        torch.testing.assert_close(one.write @ one.read, other.write @ other.read)


def test_an_edit_below_a_floor_is_not_written(session):
    session.save("harmful", Knobs(0.6, 0.3, 1.0))
    ended(session)
    assert session.record["saved"] is False
    assert session.record["reasons"]
    assert not (session.folder / "harmful").exists()


def test_a_job_that_is_stopped_ends_where_it_next_tells_how_far_it_is():
    reached = threading.Event()

    def work():
        stderr.print("one line\nand another")
        for i in track(range(100_000), "counting", 100_000):
            if i == 3:
                reached.set()
            time.sleep(0.001)

    job = Job("counting", work)
    assert reached.wait(10)
    job.stop()
    job.thread.join(10)
    assert not job.running
    assert "stopped" in job.failed
    assert job.lines == ["one line", "and another"]
    assert job.step[0] == "counting"
    assert 0 < job.step[1] < 100_000


def test_a_job_tells_its_mistake_and_its_defect(capsys):
    def mistake():
        raise UnrefuseError("no such thing")

    def defect():
        raise ValueError("<secret>")

    for work, told in ((mistake, "no such thing"), (defect, "a defect of unrefuse")):
        job = Job("failing", work)
        job.thread.join(10)
        assert told in job.failed
    assert "<secret>" in capsys.readouterr().err


def test_the_settings_of_the_page_are_those_of_a_run(fields, tmp_path):
    session = Session(tmp_path)
    found = session.pick(fields)
    assert found.model["parameters"] > 0
    assert any(mode.fits for mode in found.modes)
    assert session.fields == fields
    assert load_config(**fields).limit == 40
