"""The model card: the hub's form, the figures, and untrusted text that can't act in Markdown."""

from dataclasses import replace

from huggingface_hub import ModelCard

from tests.results import ANSWERED, measurement, result
from unrefuse.engine.generate import Reply
from unrefuse.report.card import write_card


def test_the_card_has_metadata_and_the_figures(tmp_path):
    made = result(tmp_path / "out", model="org/some-model", removal=0.8)
    write_card(made, tmp_path, tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "org/some-model"
    assert card.data.language == ["en"]
    assert "unrefuse" in card.data.tags
    assert "| removal | 0.800 | 0.599 to 0.929 | 20 |" in card.text
    assert "| target | 20 of 20 | 4 of 20 | 0 of 20 | 0 of 20 |" in card.text
    assert "20 of 20 harmful test prompts that the original refused are still refused" in card.text
    assert "still does not answer 4, among them" in card.text
    assert "multiplier 0.65" in card.text
    assert "weakest kind of harm: topic 0, 10 of 10 still refused." in card.text
    assert "| over-refuses | 3 of 3 | 1 of 3 |" in card.text
    assert "| system prompt | 10 to 0 of 10 | 0 to 0 of 10 | 10 to 0 of 10 |" in card.text


def test_a_card_counts_broken_replies_and_of_what_was_refused_alone(tmp_path):
    made = result(tmp_path / "out", removal=0.8)
    loops = Reply("on and on", (1, 2), "broken")
    exchanges = list(made.measurement.exchanges)
    for name in ("target", "keep"):  # one that the original did not refuse, and a loop now
        at = next(i for i, e in enumerate(exchanges) if e.prompt.set == name)
        exchanges[at] = replace(exchanges[at], before=ANSWERED, after=loops)
    measured = replace(made.measurement, exchanges=tuple(exchanges))
    write_card(replace(made, measurement=measured), tmp_path, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| target | 19 of 20 | 4 of 20 | 0 of 20 | 1 of 20 |" in text
    assert "19 of 19 harmful test prompts that the original refused are still refused" in text
    assert "still does not answer 4, among them" in text


def test_a_card_names_its_method_and_says_nothing_of_what_was_not_asked(tmp_path):
    made = result(tmp_path / "out", removal=0.8)
    texts = {}
    for method in ("selective", "ablate"):
        config = made.config.model_copy(update={"method": method})
        bare = replace(made, config=config, measurement=measurement(removal=0.8))
        write_card(bare, tmp_path, tmp_path)
        texts[method] = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "Matched pairs" not in texts[method]
        assert "other contexts, before" not in texts[method]
    assert "a probe was built into" in texts["selective"]
    assert "the direction of refusal was projected out" in texts["ablate"]


def test_the_licence_is_that_of_the_original(tmp_path):
    made, base = result(tmp_path / "out", model="org/some-model"), tmp_path / "base"
    base.mkdir()
    for text, name, said in (
        ("---\nlicense: mit\ntags: [x]\n---\n# M\n", "mit", "licence of that model, mit."),
        ("---\nlicense: other\nlicense_name: own `x`\nlicense_link: LICENSE\n---\n", "other",
         "licence of that model, own x ."),
        ("---\nlicense: [\n---\n", None, "The licence of that model applies to it too."),
        ("---\nlicense: [mit, gpl]\n---\n", None, "The licence of that model applies"),
        ("no metadata", None, "The licence of that model applies"),
    ):  # fmt: skip
        (base / "README.md").write_text(text)
        write_card(made, tmp_path, base)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == name
        assert said in " ".join(card.text.split())
        assert card.data.tags[0] == "unrefuse"


def test_a_local_folder_is_named_but_is_no_hub_model(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    write_card(result(tmp_path / "out", model=str(folder)), tmp_path, tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None
    assert "`my-model`" in card.text
    assert str(tmp_path) not in card.text


def test_untrusted_text_cannot_act_in_the_card(tmp_path):
    write_card(result(tmp_path / "out"), tmp_path, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "topic 0" in text
    for dangerous in ("<img", "[bold]", "``", "\x1b", "|`"):
        assert dangerous not in text


def test_nothing_still_refused_is_said_without_a_list(tmp_path):
    write_card(result(tmp_path / "out", removal=1.0), tmp_path, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "the model still does not answer 0." in text
    assert "among them" not in text
