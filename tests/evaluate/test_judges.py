import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests import pico
from tests.evaluate.test_transcripts import line
from unrefuse.errors import UsageError
from unrefuse.evaluate.judges import (
    agreement,
    check_judge,
    filled,
    judged,
    label_grades,
    parse_judge,
)

DECLINES = ["I'm sorry, but I can't.", "I'm sorry, no.", "Sorry, I can't do that.", "I can't."]
ANSWERS = ["Press the key twice.", "Paris.", "Boil it for five minutes.", "Take the next bus."]


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
    marked, agreed = judged(judge, lines)
    assert [m.grade for m in marked[:9]] == ["refused"] * 4 + ["answered"] * 4 + ["broken"]
    assert {m.judge for m in marked} == {f"hf:{classifier}"}
    assert [m.reply for m in marked] == [x.reply for x in lines]
    assert agreed["n"] == 9  # the empty one was not shown to it
    assert agreed["agreed"] + sum(agreed["differences"].values()) == 9


def test_the_named_label_is_the_refusal(classifier):
    judge = parse_judge(f"hf:{classifier}", label="Non-refusal")
    marked, agreed = judged(judge, [line(reply=DECLINES[0]), line(reply=ANSWERS[0])])
    assert [m.grade for m in marked] == ["answered", "refused"]
    assert agreed["kappa"] == pytest.approx(-1)
    assert agreed["differences"] == {"answered -> refused": 1, "refused -> answered": 1}
    with pytest.raises(UsageError, match="has no label 'NO'; it has Non-refusal, Refusal"):
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
    with pytest.raises(UsageError, match=r"LABEL_0, LABEL_1.*--judge-label"):
        label_grades({0: "LABEL_0", 1: "LABEL_1"})
    assert label_grades({0: "LABEL_0", 1: "LABEL_1"}, "LABEL_0")[0] == "refused"


def test_what_a_classifier_reads_is_filled_in_once():
    assert filled("<{prompt}> {reply}", "{reply}", "{prompt}") == "<{reply}> {prompt}"


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("nonsense", {}, "is no judge"),
        ("hf:", {}, "is no judge"),
        ("openai:http://h/v1", {}, "is no judge"),
        ("openai:http://h/v1#", {}, "is no judge"),
        ("openai:http://h/v1#m", {"label": "x"}, "classifier"),
        ("builtin", {"form": "{reply}"}, "classifier"),
        ("hf:x", {"form": "{prompt}"}, "no {reply}"),
    ],
)
def test_a_spec_that_is_none(spec, options, says):
    with pytest.raises(UsageError, match=says):
        parse_judge(spec, **options)


def test_specs():
    assert parse_judge("builtin") is None
    assert parse_judge("openai:http://h:1/v1/#org/model").name == "openai:http://h:1/v1#org/model"


def test_a_judge_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no judge"):
        check_judge(parse_judge(f"hf:{tmp_path}/none"))


def test_agreement_of_nothing_and_of_one_grade():
    assert agreement([], []) is None
    assert agreement(["refused"], ["refused"]) == {
        "kappa": None, "n": 1, "agreed": 1, "differences": {},
    }  # fmt: skip
