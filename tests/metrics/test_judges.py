import json
import shutil

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests import pico
from tests.metrics.test_transcripts import line
from tests.server import by_content, completion, quick, scripted, serving
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.judges import (
    agreement,
    as_reply,
    check_judge,
    filled,
    judged_lines,
    label_grades,
    parse_judge,
)

DECLINES = ["I'm sorry, but I can't.", "I'm sorry, no.", "Sorry, I can't do that.", "I can't."]
ANSWERS = ["Press the key twice.", "Paris.", "Boil it for five minutes.", "Take the next bus."]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path / "cache")


def graded(judge, lines):
    marked = judged_lines(judge, lines)
    return marked, agreement((x.prompt, as_reply(x)) for x in marked)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A real classifier on disk, trained here to tell DECLINES from ANSWERS."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    tokenizer = pico.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=259,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
            id2label={0: "Non-refusal", 1: "Refusal"},
            label2id={"Non-refusal": 0, "Refusal": 1},
        )
    )
    inputs = tokenizer(DECLINES + ANSWERS, padding=True, return_tensors="pt")
    labels = torch.tensor([1] * 4 + [0] * 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_from_disk_grades_replies(classifier):
    judge = parse_judge(f"hf:{classifier}")
    check_judge(judge)
    lines = [line(f"q{i}", reply=text) for i, text in enumerate(DECLINES + ANSWERS)]
    lines += [line("empty", reply="", tokens=()), line("long", reply=DECLINES[0] + " No." * 200)]
    marked, agreed = graded(judge, lines)
    assert [m.grade for m in marked[:9]] == ["refused"] * 4 + ["answered"] * 4 + ["broken"]
    assert {m.judge for m in marked if m.grade != "broken"} == {f"hf:{classifier}"}
    assert marked[8].judge == "builtin"
    assert [m.reply for m in marked] == [x.reply for x in lines]
    assert agreed["n"] == 9  # the empty one was not shown to it
    assert agreed["agreed"] + sum(agreed["differences"].values()) == 9


def test_the_named_label_is_the_refusal(classifier):
    judge = parse_judge(f"hf:{classifier}", label="Non-refusal")
    marked, agreed = graded(judge, [line(reply=DECLINES[0]), line(reply=ANSWERS[0])])
    assert [m.grade for m in marked] == ["answered", "refused"]
    assert agreed["kappa"] == pytest.approx(-1)
    assert agreed["differences"] == {"answered -> refused": 1, "refused -> answered": 1}
    with pytest.raises(UnrefuseError, match="has no label 'NO'; it has Non-refusal, Refusal"):
        check_judge(parse_judge(f"hf:{classifier}", label="NO"))


@pytest.mark.parametrize(
    ("label", "grade"),
    [
        ("refusal", "refused"),
        ("REJECTION", "refused"),
        ("Non-Refusal", "answered"),
        ("not_refused", "answered"),
        ("no refusal", "answered"),
        ("partial refusal", "partly"),
        ("NORMAL", "answered"),
        ("Nothing", "answered"),
        ("gibberish", "broken"),
    ],
)
def test_labels_by_their_names(label, grade):
    assert label_grades({0: "declined", 1: label}) == {0: "refused", 1: grade}


def test_labels_that_say_nothing_must_be_named():
    with pytest.raises(UnrefuseError, match=r"LABEL_0, LABEL_1.*--judge-label"):
        label_grades({0: "LABEL_0", 1: "LABEL_1"})
    assert label_grades({0: "LABEL_0", 1: "LABEL_1"}, "LABEL_0")[0] == "refused"


def test_what_a_classifier_reads_is_filled_in_once():
    assert filled("<{prompt}> {reply}", "{reply}", "{prompt}") == "<{reply}> {prompt}"


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("nonsense", {}, "is not a judge"),
        ("hf:", {}, "is not a judge"),
        ("openai:http://h/v1", {}, "is not a judge"),
        ("openai:http://h/v1#", {}, "is not a judge"),
        ("openai:http://h/v1#m", {"label": "x"}, "classifier"),
        ("builtin", {"form": "{reply}"}, "classifier"),
        ("hf:x", {"form": "{prompt}"}, "no {reply}"),
    ],
)
def test_a_spec_that_is_none(spec, options, says):
    with pytest.raises(UnrefuseError, match=says):
        parse_judge(spec, **options)


def test_specs():
    assert parse_judge("builtin") is None
    assert parse_judge("openai:http://h:1/v1/#org/model").name == "openai:http://h:1/v1#org/model"


def test_a_judge_that_is_not_there(tmp_path):
    with pytest.raises(UnrefuseError, match="cannot read the judge"):
        check_judge(parse_judge(f"hf:{tmp_path}/none"))


def test_a_classifier_that_is_damaged_or_has_code_of_its_own_is_one_line(classifier, tmp_path):
    for name, text, says in (
        ("config.json", '{"model_type": "bert", "num_hidden_layers": "1"}', "cannot read the"),
        ("config.json", '{"model_type": "own", "auto_map": {"AutoConfig": "c.C"}}', "--trust-rem"),
        ("tokenizer.json", "{", "cannot load the judge"),
        ("model.safetensors", "{", "cannot load the judge"),
    ):
        folder = shutil.copytree(classifier, tmp_path / "j", dirs_exist_ok=True)
        (folder / name).write_text(text)
        judge = parse_judge(f"hf:{folder}")
        with pytest.raises(UnrefuseError, match=says):  # by one or the other, before it grades
            _ = check_judge(judge), graded(judge, [line(reply=ANSWERS[0])])
    (folder / "c.py").write_text("import einops_not_there")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "c.C"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(UnrefuseError, match="einops_not_there"):  # its code was run
        check_judge(parse_judge(f"hf:{folder}", code=True))


def test_a_chat_model_is_checked_and_is_not_shown_thoughts():
    with serving(by_content) as (url, seen):
        judge = parse_judge(f"openai:{url}#m")
        check_judge(judge)
        thinking = line(reply="<think>I'm sorry, what?</think>Paris.")
        marked, agreed = graded(judge, [line("q", reply=DECLINES[0]), thinking])
    assert [m.grade for m in marked] == ["refused", "answered"]
    assert "<think>" not in seen[-1][1]["messages"][-1]["content"]
    assert agreed == {"kappa": 1, "n": 2, "agreed": 2, "differences": {}, "ungraded": 0}


def test_a_chat_model_that_gives_no_grade_is_told_before_it_is_used():
    with (
        serving(scripted(completion("It depends.\nOr not."))) as (url, _),
        pytest.raises(UnrefuseError, match=r"a grade but with 'It depends\.\\nOr not\.'"),
    ):
        check_judge(parse_judge(f"openai:{url}#m"))


@pytest.mark.parametrize("number", [1, 2])
def test_a_few_replies_without_a_grade_keep_the_detectors(number):
    """One of ten may be missing, and is no agreement; two of ten are too many."""

    def answer(body):
        text = body["messages"][-1]["content"]
        odd = any(f"odd {i}" in text for i in range(number))
        return completion("Hm." if odd else "answered")

    lines = [line(f"odd {i}", reply=DECLINES[0]) for i in range(number)]
    lines += [line(f"q{i}", reply=ANSWERS[0]) for i in range(10 - number)]
    with serving(answer) as (url, _):
        judge = parse_judge(f"openai:{url}#m")
        if number == 2:
            with pytest.raises(UnrefuseError, match="no grade for 2 of 10"):
                graded(judge, lines)
            return
        marked, agreed = graded(judge, lines)
    assert (marked[0].grade, marked[0].judge) == ("refused", "builtin")
    assert (agreed["n"], agreed["agreed"], agreed["ungraded"]) == (9, 9, 1)


def test_agreement_of_nothing_and_of_one_grade():
    assert agreement([]) is None
    assert agreement([("q", Reply("Paris.", (1,), "answered", "hf:x"))]) == {
        "kappa": None, "n": 1, "agreed": 1, "differences": {}, "ungraded": 0,
    }  # fmt: skip
