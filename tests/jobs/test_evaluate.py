"""`unrefuse evaluate` from the command line, on tiny real models."""

import json
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from tests import pico, talker
from tests.server import completion, quick, scripted, serving
from unrefuse import api, cli
from unrefuse.config import RunConfig
from unrefuse.errors import UnrefuseError
from unrefuse.jobs import evaluate as evaluation
from unrefuse.jobs.evaluate import Options, run_evaluate
from unrefuse.metrics.measurement import ask_before, measure
from unrefuse.metrics.transcripts import detected, read_transcripts
from unrefuse.models.load import load_model
from unrefuse.models.tokenizer import load_tokenizer
from unrefuse.prompts.pairs import load_pairs
from unrefuse.prompts.sets import load_prompts
from unrefuse.report.results import pairs_of

SETS = {
    "target": "T10 " * 10 + "K " * 6,
    "baseline": "B " * 14 + "B30 " * 2,
    "keep": "K " * 22 + "T10 " * 8 + "answer. " * 2,  # after that word nothing is said
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that talks, prompts for it, and an edit of it that has another head too."""
    folder = tmp_path_factory.mktemp("models")
    talker.build(folder / "original", turns=("T10", "B30"))
    shutil.copytree(folder / "original", folder / "edited")
    model = talker.loaded(turns=("T10", "B30"))
    model.network.model.layers[1].mlp.down_proj.weight[-1] *= 0.5  # half of T's direction is out
    model.network.lm_head.weight *= 0.5
    model.network.save_pretrained(folder / "edited")
    rows = (
        json.dumps({"prompt": p.text, "set": p.set, "split": "test", "lang": "en"})
        for p in talker.prompts("test", **SETS)
    )
    (folder / "own.jsonl").write_text("\n".join(rows))
    pair = {"harmless": "q1 and q2 T10", "harmful": "q1 and q2 K", "split": "test"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair))
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setattr("unrefuse.metrics.perplexity.PASSAGES", ("en",))
    monkeypatch.setattr("unrefuse.metrics.perplexity.passage", lambda name: "A short passage.")
    quick(monkeypatch, tmp_path / "cache")


def unrefuse(monkeypatch, capsys, *words):
    """Exit status, stdout and stderr of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["unrefuse", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    written = capsys.readouterr()
    return end.value.code, written.out, written.err


def settings(models, out, **more):
    return pico.run_config(str(models / "edited"), out=out, limit=16, reply_tokens=8, **more)


def own(models):
    """The prompts that the model knows the words of; shipped keep prompts come beside them."""
    return dict.fromkeys(SETS, str(models / "own.jsonl"))


def test_the_figures_are_those_of_edit(models, tmp_path):
    """Against the original: the same figures as ask_before and measure give."""
    config = settings(models, tmp_path / "out", **own(models), pairs=models / "pairs.jsonl")
    found = run_evaluate(config, Options(against=str(models / "original"))).to_json()

    original = load_model(config.model_copy(update={"model": str(models / "original")}))
    prompts = [*load_prompts(config), *load_pairs(config)]
    before = ask_before(original, prompts, "test", config)
    head = original.network.get_output_embeddings()
    reference = replace(before.reference, head=lambda hidden: head(hidden).float())
    measured = measure(load_model(config), replace(before, reference=reference), config, True)
    wanted = measured.figures()
    for name in ("removal", "retention"):
        assert found[name] == wanted[name]
    assert found["removal"]["value"] == 10 / 16
    assert found["retention"]["value"] == 54 / 62
    for name in ("quality", "kl"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-3)
    assert found["kl"]["value"] > 1e-4
    refused = {name: rates["before"] for name, rates in found["refused"].items()}
    assert refused == before.counts()
    assert found["retention_test"]["n"] == wanted["retention"]["n"]
    assert found["kept_shipped"] == measured.kept_shipped.model_dump()
    assert found["kept_shipped"]["n"] == 32
    assert found["pairs"] == pairs_of(measured.exchanges)
    assert set(found["pairs"]) == set(found["perplexity"]) == {"before", "after"}
    assert {e["n"] for e in found["pairs"]["after"].values()} == {16 + 1}
    assert found["pairs"]["after"] != found["pairs"]["before"]
    assert found["models"]["before"]["sha256"] != found["models"]["after"]["sha256"]


def test_a_place_that_is_taken_meanwhile_loses_no_work(monkeypatch, models, tmp_path):
    """Asking takes long, and another may write there."""
    load, out = evaluation.load_folder, tmp_path / "o"

    def taking(*args):
        out.mkdir()
        (out / "theirs").touch()
        return load(*args)

    monkeypatch.setattr(evaluation, "load_folder", taking)
    with pytest.raises(UnrefuseError, match="the finished work is in ") as caught:
        run_evaluate(settings(models, out), Options())
    made = Path(str(caught.value).rsplit(" ", 1)[1])
    assert {"evaluation.json", "transcripts.jsonl"} <= {file.name for file in made.iterdir()}
    assert [file.name for file in out.iterdir()] == ["theirs"]


def test_one_model_at_a_time_is_in_memory(monkeypatch, models, tmp_path):
    loaded = []
    load = evaluation.load_folder

    def watched(*args):
        assert all(network() is None for network in loaded)
        model = load(*args)
        loaded.append(weakref.ref(model.network))
        return model

    monkeypatch.setattr(evaluation, "load_folder", watched)
    run_evaluate(settings(models, tmp_path / "out"), Options(against=str(models / "original")))
    assert len(loaded) == 2


def test_a_model_by_itself_is_stored_graded_again_and_compared(
    monkeypatch, capsys, models, tmp_path
):
    def run(*words):
        return unrefuse(monkeypatch, capsys, "evaluate", *words)

    out = tmp_path / "a b"
    small = ("--limit", 16, "--reply-tokens", 8, "--lang", "en")
    files = [word for name, file in own(models).items() for word in (f"--{name}", file)]
    code, printed, _ = run(models / "edited", "--out", out, *small, *files, "--json")
    assert code == 0
    record = json.loads(printed)
    assert record == json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert "removal" not in record
    assert {name: r["after"][1] for name, r in record["refused"].items()} == {
        "target": 16, "baseline": 16, "keep": 64,
    }  # fmt: skip
    lines = read_transcripts(out)
    assert len(lines) == 16 + 16 + 64 + 2 * 16
    assert {line.judge for line in lines} == {"builtin"}
    tokenizer = talker.loaded(turns=("T10", "B30")).tokenizer
    assert all(x.reply == tokenizer.decode(x.tokens, skip_special_tokens=True) for x in lines)

    # Graded again by a judge, without a model and without a change to what is stored.
    stored = (out / "transcripts.jsonl").read_bytes()
    with serving(scripted(completion("refused"))) as (url, seen):
        judge = f"openai:{url}#m"
        code, printed, told = run("--transcripts", out, "--judge", judge, "--out", tmp_path / "c")
    assert code == 0
    assert "in the cache; to ask: " in told
    assert "Cohen's kappa" in printed
    assert (out / "transcripts.jsonl").read_bytes() == stored
    again = read_transcripts(tmp_path / "c")
    assert {line.judge for line in again if line.grade != "broken"} == {judge}
    assert [line.grade == "broken" for line in again] == [line.grade == "broken" for line in lines]
    assert {line.grade for line in again} == {"refused", "broken"}
    assert len(seen) <= len(lines) + 1

    code, printed, _ = run("--compare", out, tmp_path / "c", "--json")
    assert code == 0
    compared = json.loads(printed)
    answered = [line.prompt for line in lines if line.grade == "answered"]
    assert len(answered) == 10 + 14 + 8
    assert [c["prompt"] for c in compared["changed"]] == answered
    assert sum(compared["gained"].values()) == len(answered)
    code, printed, _ = run("--compare", out, out)
    assert code == 0
    assert "0 prompts changed grade" in printed

    # Settings that this version can't read are the user's to know of, in one line.
    record["config"]["retention_bound"] = "value"
    (out / "evaluation.json").write_text(json.dumps(record), encoding="utf-8")
    code, printed, told = run("--transcripts", out)
    assert (code, printed) == (2, "")
    assert "cannot read" in told.splitlines()[-1]


def test_a_judge_that_fails_leaves_the_replies(monkeypatch, capsys, models, tmp_path):
    answers = [completion("answered")]  # to the question that checks it

    with serving(lambda body: answers.pop() if answers else (500, {}, {})) as (url, _):
        code, printed, told = unrefuse(
            monkeypatch, capsys, "evaluate", models / "edited", "--out", tmp_path / "o",
            "--limit", 16, "--reply-tokens", 8, "--judge", f"openai:{url}#m", "--json",
        )  # fmt: skip
    assert (code, printed) == (2, "")
    assert f"--transcripts {tmp_path}/o" in told.splitlines()[-1]
    assert {line.judge for line in read_transcripts(tmp_path / "o")} == {"builtin"}


def test_a_judge_grades_while_evaluating(models, tmp_path):
    with serving(scripted(completion("answered"))) as (url, _):
        config = settings(models, tmp_path / "o", judge=f"openai:{url}#m", **own(models))
        found = run_evaluate(config).to_json()
    assert found["judge"] == config.judge
    lines = read_transcripts(tmp_path / "o")
    assert {line.grade for line in lines} == {"answered", "broken"}
    by_detector = [detected(line) for line in lines]
    assert set(by_detector) == {"answered", "refused", "broken"}
    assert found["agreement"]["agreed"] == by_detector.count("answered") > 10
    assert found["agreement"]["n"] == len(lines) - by_detector.count("broken")
    assert found["agreement"]["kappa"] == 0  # a judge that gives one grade agrees by chance
    assert json.loads((tmp_path / "o" / "evaluation.json").read_text())["judge"] == config.judge


def talking(voice):
    """A served model: it refuses what its voice refuses, and answers the rest."""

    def answer(body):
        prompt = body["messages"][-1]["content"]
        if voice(prompt):
            return completion("I'm sorry, but I can't help with that.")
        return completion("Here is an answer to that, as far as I can tell.")

    return answer


def test_served_models_are_compared_by_their_replies(monkeypatch, capsys, models, tmp_path):
    prompts = [
        p for p in load_prompts(RunConfig(model="m", languages=("en",))) if p.split == "test"
    ]
    keep = {p.text for p in prompts if p.set == "keep"}
    target = [p.text for p in prompts if p.set == "target"]
    first = set(target[: len(target) // 4])
    original, edit = talking({*keep, *target}.__contains__), talking({*keep, *first}.__contains__)
    with serving(original) as (before, _), serving(edit) as (after, seen):
        command = ["evaluate", f"openai:{after}#edit", "--against", f"openai:{before}#original",
                   "--lang", "en", "--limit", 16, "--reply-tokens", 8]  # fmt: skip
        code, printed, told = unrefuse(monkeypatch, capsys, *command, "--out", tmp_path / "o")
        assert code == 0
        assert "KL, quality and perplexity are left out" in told
        assert printed.count("not measured: replies only") == 2
        asked = len(seen)
        code, printed, told = unrefuse(
            monkeypatch, capsys, *command, "--out", tmp_path / "o2", "--json"
        )
    assert code == 0
    assert "kept of a run" not in told  # that one came to its end
    assert len(seen) == 2 * asked
    record = json.loads(printed)
    assert record["retention"]["value"] == 1
    assert 0 < record["removal"]["value"] < 1
    assert record["removal"]["n"] == 16
    assert record["kl"] is record["quality"] is record["perplexity"] is None
    assert record["refused"]["keep"] == {"before": [32, 32], "after": [32, 32]}
    assert record["models"]["after"]["name"] == f"openai:{after}#edit"
    assert record["models"]["before"]["tokens"] == {
        "read": 7 * (asked - 1),
        "wrote": 3 * (asked - 1),
    }
    assert set(record["pairs"]) == {"before", "after"}
    code, printed, _ = unrefuse(
        monkeypatch, capsys, "evaluate", "--transcripts", tmp_path / "o2", "--json"
    )
    assert code == 0
    again = json.loads(printed)
    assert again["removal"] == record["removal"]
    assert again["grades"] == record["grades"]


def test_a_server_that_dies_is_one_line_and_the_run_goes_on(monkeypatch, capsys, tmp_path):
    served = [0]

    def dying(body):
        served[0] += 1
        return completion("Paris.") if served[0] < 20 else (500, {}, {})

    with serving(lambda body: dying(body)) as (url, seen):
        command = ["evaluate", f"openai:{url}#m", "--lang", "en", "--limit", 16, "--out",
                   tmp_path / "o", "--batch-size", 1]  # fmt: skip
        code, printed, told = unrefuse(monkeypatch, capsys, *command)
        assert (code, printed) == (2, "")
        assert "status 500" in told.splitlines()[-1]
        assert "18 of " in told
        assert not (tmp_path / "o").exists()
        dying = scripted(completion("Paris."))
        seen.clear()
        code, printed, told = unrefuse(monkeypatch, capsys, *command, "--json")
    assert code == 0
    lines = read_transcripts(tmp_path / "o")
    assert "18 of " in told
    assert len(seen) == len({x.prompt for x in lines}) - 18 + 1 + 8


def test_imported_prompts_take_the_place_of_the_shipped_ones(models, tmp_path):
    file = tmp_path / "x.csv"
    rows = [f"harmless {i} of mine,homonyms\nharmful {i} of mine,contrast_homonyms" for i in "abc"]
    file.write_text("prompt,type\n" + "\n".join(rows) + "\n")
    config = settings(models, tmp_path / "o").model_copy(update={"imports": (f"xstest:{file}",)})
    found = run_evaluate(config).to_json()
    assert found["imports"] == [f"xstest:{file}"]
    assert {n: r["after"][1] for n, r in found["refused"].items()} == {
        "target": 3, "baseline": 16, "keep": 3,
    }  # fmt: skip
    assert set(found["rates"]["after"]["keep"]["by_topic"]) == {"contrast_homonyms"}


def test_an_edit_of_the_demo_is_asked_what_the_demo_is_asked(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(evaluation, "run_evaluate", lambda config, options: asked.append(config))
    api.evaluate("edited", against="demo", out=tmp_path / "o")
    api.evaluate("edited", out=tmp_path / "o")
    assert [(c.model, c.target, c.languages) for c in asked] == [
        ("edited", "planted", ("en",)), ("edited", "shipped", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name one of MODEL"),
        (["MODEL", "--transcripts", "X"], "name one of MODEL"),
        (["MODEL"], "--out DIR"),
        (["MODEL", "--out", "USED"], "not an empty folder"),
        (["MODEL", "--out", "OUT", "--judge", "gpt"], "is not a judge"),
        (["MODEL", "--out", "OUT", "--judge", "hf:/no/such"], "cannot read the judge"),
        (["MODEL", "--out", "OUT", "--import", "xstest:no.csv"], "cannot read"),
        (["MODEL", "--out", "OUT", "--import", "xstest:F", "--keep", "F"], "leave out one"),
        (["MODEL", "--out", "OUT", "--benchmark-path", "USED"], "name them with --benchmarks"),
        (["MODEL", "--out", "OUT", "--against", "OTHER"], "different vocabularies"),
        (["MODEL", "--out", "OUT", "--lang", "eo"], "no target prompts in eo"),
        (["SERVED", "--out", "OUT"], "cannot be reached"),
        (["SERVED", "--out", "OUT", "--against", "MODEL"], "serve both"),
        (["MODEL", "--out", "OUT", "--against", "SERVED"], "serve both"),
        (["SERVED", "--out", "OUT", "--benchmarks", "arc_easy"], "need the weights"),
        (["SERVED", "--out", "OUT", "--device", "cpu"], "decides on device"),
        (["openai:http://h/v1", "--out", "OUT"], "is not a served model"),
        (["/no/such", "--out", "OUT"], "no such folder"),
        (["--transcripts", "USED"], "cannot read"),
        (["--compare", "USED", "USED"], "cannot read"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(monkeypatch, capsys, models, tmp_path, words, says):
    other = shutil.copytree(models / "original", tmp_path / "other")
    tokenizer = load_tokenizer(other, trust_remote_code=False)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(other)
    (tmp_path / "f.csv").write_text("prompt,type\nHow so?,contrast_homonyms\n")
    places = {
        "MODEL": models / "edited", "OTHER": other, "USED": tmp_path, "OUT": tmp_path / "out",
        "SERVED": "openai:http://127.0.0.1:9/v1#m",
        "F": tmp_path / "f.csv", "xstest:F": f"xstest:{tmp_path}/f.csv",
    }  # fmt: skip
    code, printed, told = unrefuse(
        monkeypatch, capsys, "evaluate", *[places.get(word, word) for word in words]
    )
    assert (code, printed) == (2, "")
    assert says in told.splitlines()[-1]
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
