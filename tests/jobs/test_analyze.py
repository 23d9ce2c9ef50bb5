"""`unrefuse analyze`: its figures from a run on a tiny model, and the kernel that it writes."""

import json
import sys

import pytest

from tests import pico
from unrefuse import cli
from unrefuse.config import KernelConfig
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.analyze import analyze, write_kernel
from unrefuse.kernel import read_kernel
from unrefuse.metrics.layers import LayerStrength
from unrefuse.metrics.measurement import TooFew
from unrefuse.prompts.sets import load_prompts, select
from unrefuse.search.discrimination import Analysis, Discrimination


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A tiny model whose replies to target and keep prompts count as refusals."""
    folder = pico.save(tmp_path / "m")
    config = pico.run_config(str(folder), limit=16, languages=("en",), reply_tokens=8,
                             retention_bound=0.8)  # fmt: skip
    refused = {p.text for p in load_prompts(config) if p.set != "baseline"}
    monkeypatch.setattr(
        "unrefuse.engine.generate.grade",
        lambda text, tokens, prompt: "refused" if prompt in refused else "answered",
    )
    return config


def made(effect=(0.0, 2.0, -3.0, 1.0), auc=(0.9, 0.75, 0.9, 1.0), **topics):
    strengths = {"": LayerStrength(9, (0.0,) * 4, effect)}
    strengths |= {name: LayerStrength(3, (0.0,) * 4, own) for name, own in topics.items()}
    told = Discrimination(auc, (0.1,) * 4, 0.6, 9, {"homonym": (0.5, 3)})
    return Analysis(strengths, told, {"load": 1.2345})


def test_a_weight_is_the_effect_times_what_the_probe_is_better_than_chance():
    assert made().weights() == pytest.approx([0, 1, 0, 1])  # 2 x 0.5 and 1 x 1
    assert made(auc=(0.9, 0.6, 0.9, 1.0)).weights() == pytest.approx([0, 0.4, 0, 1])
    assert made(auc=(0.9, 0.3, 0.9, 1.0)).weights() == pytest.approx([0, 0, 0, 1])
    assert made(homonym=(1.0, 0.0, 0.0, 0.2)).weights("homonym") == pytest.approx([1, 0, 0, 0.25])


def test_where_nothing_can_be_told_all_layers_weigh_the_same():
    assert made(auc=(0.5,) * 4).weights() == [1.0] * 4
    assert made(effect=(0.0, -1.0, -2.0, 0.0)).weights() == [1.0] * 4


@pytest.mark.parametrize(
    ("effect", "peak", "width"),
    [((0, 0, 0, 5), 1.0, 0.08), ((1, 1, 1, 1), 0.5, 0.25), ((0, 1, 2, 1), 0.667, 0.236)],
)
def test_the_suggestion_is_the_centre_and_the_spread_of_the_weights(effect, peak, width):
    assert made(effect=effect, auc=(1.0,) * 4).suggest() == (peak, width)


def test_a_kernel_file_is_one_that_a_run_takes(tmp_path):
    file = tmp_path / "k.json"
    found = made(homonym=(0.05, 0.0, 0.7, 1.0), fiction=(0.0, 0.0, 0.3, 0.2))
    kept = write_kernel(found, "homonym", 0.1, file)
    # 0.05 x 0.8 is under the threshold, 0.7 x 0.8 is 0.56 of the highest.
    assert kept == [0.0, 0.0, 0.56, 1.0]
    assert read_kernel(file, 4).weights == tuple(kept)
    assert json.loads(file.read_text())["topic"] == "homonym"
    write_kernel(found, "", 0.1, tmp_path / "new folder" / "k.json")
    whole = read_kernel(tmp_path / "new folder" / "k.json", 4)
    assert whole.weights == pytest.approx(found.weights())
    with pytest.raises(UnrefuseError, match="exists"):
        write_kernel(found, "", 0.1, file)


def test_a_topic_that_is_not_there_is_told_in_one_line_with_those_that_are(tmp_path):
    with pytest.raises(UnrefuseError, match=r"no topic 'x' .*; .*: homonym, fiction$") as caught:
        write_kernel(made(homonym=(1,) * 4, fiction=(1,) * 4), "x", 0.1, tmp_path / "k.json")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_of_a_model(small):
    found = analyze(small)
    targets = select(load_prompts(small), "target", "search")
    whole = found.strengths[""]
    assert (whole.n, found.discrimination.n) == (len(targets), len(targets))
    assert (
        len(whole.effect) == len(found.discrimination.auc) == len(found.discrimination.freed) == 3
    )
    topics = [p.topic for p in targets]
    assert {name: n for name, (_, n) in found.discrimination.topics.items()} == {
        t: topics.count(t) for t in topics
    }
    assert {name: s.n for name, s in found.strengths.items() if name} == {
        t: topics.count(t) for t in topics if topics.count(t) > 1
    }
    record = json.loads(json.dumps(found.to_json()))
    assert record["effect"] == list(whole.effect)
    assert record["discrimination"]["verdict"] == found.discrimination.verdict()
    assert (record["suggested"]["peak"], record["suggested"]["width"]) == found.suggest()
    assert set(record["seconds"]) == {"load", "before", "capture", "probe", "layers"}
    assert analyze(small).to_json() | {"seconds": 0} == found.to_json() | {"seconds": 0}


def test_the_command_says_the_verdict_and_how_to_go_on(small, monkeypatch, capsys, tmp_path):
    def unrefuse(*words):
        monkeypatch.setattr(sys, "argv", ["unrefuse", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    model, file = tmp_path / "m", tmp_path / "k.json"
    settings = tmp_path / "s.json"
    settings.write_text(small.model_dump_json())
    code, out, _ = unrefuse("analyze", "--config", settings, "--kernel-out", file)
    assert code == 0
    assert f"to edit: unrefuse edit {model} --kernel {file} --out DIR" in out
    verdict = " ".join(out.split())
    assert "of 16 false refusals could be answered" in verdict
    assert "AUC" in verdict
    assert read_kernel(file, 3).weights
    code, out, told = unrefuse("analyze", "--config", settings, "--kernel-out", file)
    assert (code, out) == (2, "")
    assert str(file) in told
    code, out, told = unrefuse("analyze", "--config", settings, "--topic", "homonym")
    assert (code, out, len(told.splitlines())) == (2, "", 1)
    assert "--kernel-out FILE" in told


def test_mistakes_are_told_before_the_model_is_loaded(small, monkeypatch):
    monkeypatch.setattr("unrefuse.jobs.analyze.prepare", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UnrefuseError, match=r"no target prompt has the topic 'homonim'; .*homonym"):
        analyze(small, "homonim")
    kernel = KernelConfig(file="k.json")
    with pytest.raises(UnrefuseError, match="leave out the kernel file"):
        analyze(small.model_copy(update={"kernel": kernel}))


def test_the_method_of_a_configuration_does_not_matter(small):
    ablate = small.model_copy(update={"method": "ablate", "retention_bound": 0.99})
    assert analyze(ablate).discrimination == analyze(small).discrimination


def test_a_topic_without_an_effect_makes_no_kernel(tmp_path):
    with pytest.raises(UnrefuseError, match="no layer has an effect on the refusals of 'homonym'"):
        write_kernel(made(homonym=(-1.0,) * 4), "homonym", 0.1, tmp_path / "k.json")


def test_a_model_that_refuses_too_little_has_a_verdict_too(small, monkeypatch, capsys, tmp_path):
    def few(*_):
        raise TooFew("too few target prompts: the model has refused 3 of 290")

    monkeypatch.setattr("unrefuse.jobs.analyze.prepare", few)
    settings = tmp_path / "s.json"
    settings.write_text(small.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["unrefuse", "analyze", "--config", str(settings)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "Nothing measurable to gain" in capsys.readouterr().out
