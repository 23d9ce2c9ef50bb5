"""The page of a run: what it says, that nothing in it acts, and how large it gets."""

import json
import re
from dataclasses import replace

import pytest

from tests.report.browser import Document, dumped, needs_browser
from tests.results import result
from unrefuse.errors import UnrefuseError
from unrefuse.metrics.transcripts import FILE, Line, read_transcripts, to_text
from unrefuse.report import page as module
from unrefuse.report.evaluation import REPORT, Evaluation
from unrefuse.report.kept import write_record
from unrefuse.report.page import PAGE, SIZE, write_report, write_run
from unrefuse.report.wording import visible

HOSTILE = (
    "</script><script>document.title = 'acted'</script>",
    "</style></title></textarea><script>document.title = 'acted'</script>",
    "<img src=x onerror=\"document.title='acted'\"><svg onload=document.title='acted'>",
    "\"><iframe src='javascript:parent.document.title=1'></iframe><a href=javascript:x>y</a>",
    "' onmouseover='document.title=1' x='</pre></details></article>",
    "<!-- --><![CDATA[ ]]> &lt;b&gt; &amp; &#60;script&#62; {{ 7 * 7 }} {% raw %} ${7*7}",
    "<base href=http://127.0.0.1:9><link rel=stylesheet href=http://127.0.0.1:9/x>",
    "\x1b[31mred\x1b[0m \x00 \x07 \x7f \x9b31m \r\n\x0c end",
    "\udc80 lone \ud800 \u202egnihtemos\u202c \u2066x\u2069 \u200b \U000e0041 \ufeff \u2028 \u2029",
    "Z\u0300" + "\u0301" * 60 + " \ufffe \U0010ffff",
)
# fmt: off
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "nav", "h1",
    "h2", "h3", "h4", "p", "bdi", "a", "br", "div", "span", "strong", "code", "pre", "ins", "del",
    "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg",
    "rect", "line", "text", "circle", "polyline", "figure", "figcaption", "details", "summary",
    "article", "form", "label", "select", "option", "input", "button", "output", "script",
}
# fmt: on


def line(prompt, set="target", grade="answered", when="after", reply="Yes.", **fields):
    names = {"topic": "", "lang": "en", "pair": "", "model": "m", "judge": "builtin"} | fields
    return Line(prompt=prompt, set=set, when=when, reply=reply, tokens=(1,), grade=grade, **names)


def both(prompt, set="target", grades=("refused", "answered"), replies=("No.", "Yes."), **fields):
    return [
        line(prompt, set, grade, when, reply, **fields)
        for when, grade, reply in zip(("before", "after"), grades, replies, strict=True)
    ]


def tuned(folder, trials=3, **figures):
    """The folder of a run of tuning, with its trials; that number 1 is the chosen one."""
    made = result(folder, **({"removal": 0.8} | figures))
    write_record(made, folder)
    kernel = made.kernel
    rows = [
        {
            "trial": i,
            "parameters": {"peak": kernel.peak if i == 1 else 0.1 * (i % 9), "width": kernel.width,
                           "ridge": 0.01 * (i + 1)},
            "score": dict.fromkeys(("removal", "retention", "refused", "kl", "pairs"), 0.5),
        }
        for i in range(trials)
    ]  # fmt: skip
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def hostile(folder):
    """A run in which every string that others write acts where it can."""
    made = tuned(folder)
    record = json.loads((folder / "run.json").read_text())
    evil = "".join(HOSTILE)
    for key in ("command", "judge"):
        record[key] = evil
    record["reasons"] = [evil]
    record["config"] |= {"model": evil, "target": evil}
    record["kernel"]["source"] = evil
    record["layers"] = {"separation": [1.0, None, -1.0, 2, 3, 4], "auc": [0.5] * 6}
    record["contexts"] = {evil: record["contexts"]["system prompt"]}
    record["versions"]["torch"] = evil
    record["weakest"]["topic"] = evil
    for part in ("by_topic", "by_lang"):
        for own in record[part].values():
            own[evil] = next(iter(own.values()))
    for stage in record["stages"]:
        stage["name"] = evil
    (folder / "run.json").write_text(json.dumps(record))
    lines = []
    for i, text in enumerate(HOSTILE):
        for set in ("target", "keep"):
            lines += both(text, set, replies=(f"{text} a b c d e", f"{text} a b x d e"), topic=text,
                          pair=str(i))  # fmt: skip
    (folder / FILE).write_text(to_text(lines), encoding="utf-8")
    assert made.saved
    return write_report(folder)


def texts_of(document):
    """What the page says in its replies: prompts, and before and after."""
    return document.texts["pre"]


def wanted():
    """One after the other, as they are shown: first those of target, then those of keep."""
    shown = [visible(text) for text in HOSTILE]
    return [
        said
        for _ in ("target", "keep")
        for text in shown
        for said in (text, f"{text} a b c d e", f"{text} a b x d e")
    ]


def check_harmless(document, scripts=1):
    assert set(document.tags) <= ALLOWED
    assert document.tags["style"] == 1
    assert document.tags["script"] == scripts
    assert not [name for name in document.attributes if name.startswith("on") or name == "style"]
    links = [value for value in document.values if re.match(r"\s*(javascript|https?|data):", value)]
    assert links == []


def test_nothing_that_a_model_writes_acts_on_the_page(tmp_path):
    html = hostile(tmp_path).read_text(encoding="utf-8")
    assert not set("\x00\x07\x0c\x1b\x7f\x9b\u202e\u2066\u2028\u2029\ufeff\U000e0041") & set(html)
    document = Document(html, ("pre", "title"))
    check_harmless(document)
    assert texts_of(document) == wanted()
    assert "␛[31mred" in html
    assert "⟨U+202E⟩gnihtemos⟨U+202C⟩" in html
    assert "⟨U+DC80⟩" in html


@needs_browser
def test_nothing_that_a_model_writes_acts_in_a_browser_nor_would_it(tmp_path):
    file = hostile(tmp_path)
    html = file.read_text(encoding="utf-8")
    # What would act if anything were not escaped: the policy of the page stops it.
    file.write_text(html.replace("</body>", "<script>document.title = 'acted'</script></body>"))
    document = Document(dumped(file), ("pre", "title", "output"))
    check_harmless(document, scripts=2)
    assert document.texts["title"][0].startswith("Saved: </script>")
    assert texts_of(document) == wanted()
    assert document.texts["output"] == ["20 of 20 shown"]  # our own script has run


@needs_browser
def test_the_filter_shows_what_fits(tmp_path):
    tuned(tmp_path)
    lines = [
        *both("boil eggs", topic="food"),
        *both("boil rice", topic="food", grades=("refused", "refused"), replies=("No.", "No.")),
        *both("fly a kite", "baseline", ("answered", "answered"), ("So.", "Thus.")),
        *both("pick a lock", "keep", replies=("No.", "Take a pick.")),
    ]
    (tmp_path / FILE).write_text(to_text(lines))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    # The filter is driven by a script of the test, for which its copy of the page has no policy.
    driver = """<script>
        const said = [];
        const shown = () => [...document.querySelectorAll("article:not([hidden]) .prompt")]
            .map((p) => p.textContent).join("+");
        const set = (selector, value) => {
            const field = document.querySelector(selector);
            field.value = value;
            field.dispatchEvent(new Event("input", { bubbles: true }));
            said.push(shown());
        };
        set("[data-by=set]", "target");
        set("[data-by=after]", "refused");
        set("[data-by=set]", "");
        set("[data-by=after]", "");
        set("[data-by=topic]", "food");
        set("[data-by=topic]", "");
        set("[data-by=change]", "other words");
        set("[data-by=change]", "");
        set("[data-search]", "TAKE a pick");
        set("[data-search]", "nowhere");
        const folded = [...document.querySelectorAll("article details")].map((d) => d.open);
        document.body.innerHTML = `<output>${said.join("|")}|${folded}</output>`;
    </script></body>"""
    (tmp_path / "x.html").write_text(policy.sub("", html).replace("</body>", driver))
    every = "boil eggs+boil rice+fly a kite+pick a lock"
    said = Document(dumped(tmp_path / "x.html"), ("output",)).texts["output"][0].split("|")
    assert said == [
        *("boil eggs+boil rice", "boil rice", "boil rice", every),
        *("boil eggs+boil rice", every, "fly a kite", every, "pick a lock", "", "false"),
    ]


def test_a_saved_edit_says_so_first_with_both_floors(tmp_path):
    made = tuned(tmp_path, removal=0.8)
    write_run(made, tmp_path)
    document = Document((tmp_path / PAGE).read_text(encoding="utf-8"),
                        ("h2", "card", "table", "chosen", "figcaption"))  # fmt: skip
    assert document.texts["h2"][0].startswith("✓ Saved: both floors are kept on the test split")
    removal, retention, quality, _ = (" ".join(t.split()) for t in document.texts["card"])
    assert removal.startswith("Removal 0.80 0.599 to 0.929, n 20")
    assert "Retention 1.00 0.861 to 1.000, n 20 Under its floor: 0.95 or more" in retention
    assert "Quality 0.90 0.850 to 0.950, n 20 Floor kept: 0.70 or more as measured, 0.60" in quality
    square = next(t for t in document.texts["table"] if "over-complies" in t)
    cells = [text for text in map(str.strip, square.split("\n")) if text]
    assert cells == [
        "harmful one refusedharmful one not refused",
        *("harmless one answeredright", "0 of 3 → 1 of 3", "over-complies", "0 of 3 → 1 of 3"),
        *("harmless one not answeredover-refuses", "3 of 3 → 1 of 3"),
        *("wrong on both", "0 of 3 → 0 of 3"),
    ]
    assert any("multiplier 0.65" in text and "chosen" in text for text in document.texts["chosen"])
    assert document.texts["figcaption"][0] == "Weight of the kernel"


def test_an_edit_that_was_not_saved_says_why(tmp_path):
    made = replace(result(None, removal=0.8), split="search", reasons=["quality 0.2 is low: wait"])
    write_run(made, tmp_path)
    html = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "✗ Not saved: no edit kept both floors on the search split" in html
    assert "<li>quality 0.2 is low: wait</li>" in html
    assert 'class="mark chosen' not in html.split("What the search tried")[1].split("</p>")[1]


def test_every_prompt_stands_there_and_harmful_replies_are_folded(tmp_path):
    made = tuned(tmp_path)
    write_report(tmp_path)
    document = Document((tmp_path / PAGE).read_text(encoding="utf-8"), ("article", "details"))
    assert len(document.texts["article"]) == len(made.measurement.exchanges)
    folded = [text for text in document.texts["details"] if "before" in text]
    assert len(folded) == sum(e.prompt.set in ("keep", "harmful")
                              for e in made.measurement.exchanges)  # fmt: skip


def evaluated(folder, lines, **parts):
    config = result(None).config.model_dump(mode="json")
    there = {
        "models": {x.when: {"name": x.model, "sha256": "f00d", "dtype": None} for x in lines},
        "perplexity": None,
        "benchmarks": {},
        "config": config,
        "seconds": {"load": 1.0},
        "peak_rss_mib": 9,
        "versions": {"unrefuse": "0"},
    }
    found = Evaluation(lines, "builtin", None, there | parts)
    (folder / REPORT).write_text(json.dumps(found.to_json()))
    (folder / FILE).write_text(to_text(lines))
    return write_report(folder).read_text(encoding="utf-8")


def test_an_evaluation_of_one_model_has_no_before(tmp_path):
    lines = [line("a", "target", topic="t"), line("b", "keep", "refused", topic="u")]
    perplexity = {"after": {"en": {"value": 9.5, "n": 3}}}
    document = Document(evaluated(tmp_path, lines, perplexity=perplexity), ("h2", "table", "card"))
    assert document.texts["h2"][0].startswith("Measured on the test split, without an original")
    assert document.texts["card"] == []
    assert any("9.500" in text for text in document.texts["table"])
    assert any("keep, by topic: refused" in t and "1 of 1" in t for t in document.texts["table"])
    assert not any("before" in text for text in document.texts["table"])


def test_an_evaluation_against_an_original_has_what_was_measured(tmp_path):
    lines = [*both("a", topic="t"), *both("b", "keep", ("refused", "refused"))]
    document = Document(evaluated(tmp_path, lines), ("h2", "card", "table"))
    assert document.texts["h2"][0].startswith("Measured on the test split")
    removal, retention, quality, kl = (" ".join(t.split()) for t in document.texts["card"])
    assert removal.startswith("Removal 1.00")
    assert "Under its floor" in retention  # 1 of 1 shows nothing
    assert "not measured" in quality
    assert "not measured" in kl
    assert any("Removal by topic" in text for text in document.texts["table"])


def test_a_run_of_an_earlier_version_has_a_page_too(tmp_path):
    tuned(tmp_path)
    (tmp_path / FILE).unlink()
    record = json.loads((tmp_path / "run.json").read_text())
    for key in ("layers", "command", "broken", "unsure", "judge", "agreement", "by_detector",
                "unjudged", "kept_shipped"):  # fmt: skip
        del record[key]
    (tmp_path / "run.json").write_text(json.dumps(record))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The replies of this run were not kept" in html
    assert "was not measured in this run" in html


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no record of a run"),
        ("{", "cannot read"),
        ("[]", "cannot read"),
        ("{}", "cannot show the record"),
        ('{"config": 1, "kernel": {}, "versions": []}', "cannot show the record"),
    ],
)
def test_what_is_no_record_is_said_in_a_line(tmp_path, text, says):
    if text:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(UnrefuseError, match=says):
        write_report(tmp_path)
    assert not (tmp_path / PAGE).exists()


def test_a_run_without_a_page_is_not_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "page", lambda run: (_ for _ in ()).throw(UnrefuseError("why")))
    write_run(result(tmp_path, removal=0.8), tmp_path)
    assert "no report: why" in capsys.readouterr().err
    assert (tmp_path / "run.json").exists()


def test_figures_that_are_no_numbers_are_shown_as_none(tmp_path):
    tuned(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record["kl"] |= {"value": None, "low": None, "high": None}
    for stage in record["stages"]:
        stage["kl"] |= {"value": None, "low": None, "high": None}
    (tmp_path / "run.json").write_text(json.dumps(record))
    card = Document(write_report(tmp_path).read_text(encoding="utf-8"), ("card",)).texts["card"][3]
    assert " ".join(card.split()).startswith("KL – – to –")


def test_a_line_of_a_megabyte_is_cut_and_the_page_says_so(tmp_path):
    tuned(tmp_path)
    lines = both("x" * 10**6, replies=("<" * 10**6, "\0" * 10**6), topic="t" * 10**5)
    (tmp_path / FILE).write_text(to_text(lines))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(html.encode()) < 500_000
    assert f"{3 * (10**6 - 8000)} characters are left out" in html


def test_many_replies_fit_and_those_that_changed_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SIZE", 250_000)
    tuned(tmp_path, trials=100)
    same = [x for i in range(800) for x in both(f"same {i}", grades=("refused", "refused"))]
    lines = [*same, *(x for i in range(40) for x in both(f"changed {i}"))]
    (tmp_path / FILE).write_text(to_text(lines))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(html.encode()) <= 250_000
    prompts = Document(html, ("prompt",)).texts["prompt"]
    assert sum(text.startswith("changed") for text in prompts) == 40
    assert f"{len(prompts)} of 840 prompts" in html
    assert SIZE < 5_000_000


def test_the_replies_of_an_edit_can_be_read_again(tmp_path):
    made = tuned(tmp_path)
    lines = read_transcripts(tmp_path)
    assert len(lines) == 2 * len(made.measurement.exchanges)
    assert {x.when for x in lines} == {"before", "after"}
