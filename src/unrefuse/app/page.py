"""The page: its fields, and what each of them does with the session."""

import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from html import escape
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from unrefuse.app import mine, parts
from unrefuse.app.bench import Compared, Knobs
from unrefuse.app.runs import past_runs
from unrefuse.app.session import Session
from unrefuse.detector.refusal import Grade
from unrefuse.engine.generate import Reply
from unrefuse.errors import UnrefuseError
from unrefuse.prompts.sets import SETS

PACE = 0.05  # seconds between two pictures of replies that are being written
SETTLE = 0.15  # seconds that a slider has to rest
NOW = "(clock, ...rest) => [performance.timeOrigin + performance.now(), ...rest]"
SILENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
THEME = gr.themes.Default(
    primary_hue="teal",
    font=("ui-sans-serif", "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "Consolas", "monospace"),
)


def build(session: Session) -> gr.Blocks:
    """The page of a session. All its tabs show the same, and the session outlives them."""
    first = _filled(session)
    page: gr.Blocks = gr.Blocks(title="unrefuse", analytics_enabled=False, fill_width=True)
    with page:
        with gr.Row(elem_id="top"):
            gr.HTML("<h1>unrefuse</h1>")
            folder = gr.Textbox(
                first[0],
                label="Your folder: prompts, corrections and edited models go there",
                scale=3,
                elem_id="folder",
            )
        with gr.Row():
            status = _html("status")
            stop = gr.Button("Stop", visible=False, scale=0, size="sm", elem_id="stop")
        seen, status_text, clock = gr.State(-1), gr.State(""), gr.Number(visible=False)
        with gr.Tabs():
            with gr.Tab("Model"):
                with gr.Row():
                    model = gr.Dropdown(
                        choices=_models(),
                        value=first[1],
                        allow_custom_value=True,
                        label="Model: a folder, a hub name, or demo",
                        scale=3,
                        elem_id="model",
                    )
                    limit = gr.Number(
                        first[2],
                        label="Prompts per set (empty: all)",
                        precision=0,
                        minimum=0,
                        elem_id="limit",
                    )
                    look = gr.Button("Look at it", variant="primary", scale=0, elem_id="look")
                with gr.Accordion("Prompts of your own", open=False, elem_id="own"), gr.Row():
                    sets = [
                        gr.Textbox(label=f"{name}: a file or a data set", elem_id=f"own-{name}")
                        for name in SETS
                    ]
                fit, analysis = _html("fit"), _html("analysis")
            with gr.Tab("Compare"):
                with gr.Row():
                    prompt = gr.Textbox(label="Prompt", lines=2, scale=5, elem_id="prompt")
                    ask = gr.Button("Ask both", variant="primary", scale=0, elem_id="ask")
                with gr.Row():
                    knobs = [
                        _slider(0, 1, 0.01, "Peak (depth)", "peak"),
                        _slider(0.02, 0.6, 0.01, "Width (depth)", "width"),
                        _slider(0, 3, 0.05, "Strength (multiplier)", "strength"),
                    ]
                layers = _html("layers")
                with gr.Row(equal_height=False):
                    replies, grades, wrongs = [], [], []
                    for side in ("original", "edited"):
                        with gr.Column(min_width=300):
                            replies.append(_html(side))
                            with gr.Row():
                                grades.append(
                                    gr.Dropdown(
                                        choices=get_args(Grade),
                                        value=None,
                                        label="It is really",
                                        elem_id=f"grade-{side}",
                                    )
                                )
                                wrongs.append(
                                    gr.Button("Wrong grade", scale=0, elem_id=f"wrong-{side}")
                                )
                margins = _html("margins")
                with gr.Row():
                    which = gr.Radio(
                        list(SETS),
                        value=SETS[0],
                        label="target: harmless, refused · baseline: harmless, answered · "
                        "keep: harmful, must stay refused",
                        elem_id="which",
                    )
                    add = gr.Button("Add to my set", scale=0, elem_id="add")
            with gr.Tab("Edit and save"):
                gr.Markdown(
                    "Both ways are `unrefuse edit`: the saved weights are measured on held-out "
                    "prompts, and an edit below a floor is not saved."
                )
                with gr.Row():
                    name = gr.Textbox(
                        label="Name of the edited model: a new folder in yours",
                        scale=2,
                        elem_id="name",
                    )
                    find = gr.Button("Find an edit in stages", variant="primary", elem_id="find")
                    save = gr.Button("Save what the sliders show", elem_id="save")
                result = _html("result")
            with gr.Tab("Runs"):
                runs = _html("runs")

        fields = [model, limit, *sets]
        both = [*replies, margins]
        found = [*knobs, fit, analysis, layers, *both, result, runs]

        def fill() -> list[Any]:
            """The fields of a page that was loaded again, as they were. Those of a new page are
            left alone: the user may be faster."""
            now = _filled(session)
            return [gr.skip()] * len(now) if now == first else now

        def show() -> tuple[Any, ...]:
            """What the session has found."""
            return (
                *(*session.knobs, parts.part("fit", session.found)),
                *(parts.analysis(session.bench), parts.layers(session.bench, session.knobs)),
                *parts.compared(session.shown),
                *(parts.part("result", session.record), _runs(session)),
            )

        def tick(version: int, before: str) -> list[Any]:
            """How far the job is, and where one has ended, what it found. What is as it was stays
            as the user has unfolded it."""
            now = parts.part("status", session.job)
            new = [gr.skip()] * 3
            if now != before:
                new = [now, gr.update(visible=session.busy), now]
            if version == session.version:
                return [*new, *[gr.skip()] * (1 + len(found))]
            return [*new, session.version, *show()]

        def pick(*given: Any) -> Iterator[str]:
            yield parts.part("fit", session.pick(_fields(*given)))

        def begin(do: Callable[..., None], *given: Any) -> Iterator[str]:
            do(*given)
            yield parts.part("status", session.job)

        def compare(settle: float, when: float, text: str, *at: float) -> Iterator[Any]:
            shown = session.compare(text, Knobs(*at), settle, when)
            yield from map(parts.compared, _paced(shown))

        def move(*at: float) -> str:
            return parts.layers(session.bench, Knobs(*at))

        def take_folder(text: str) -> Iterator[str]:
            if not text.strip():
                raise UnrefuseError("name a folder")
            session.folder = Path(text.strip()).expanduser()
            yield _runs(session)

        def add_prompt(kind: str, text: str) -> Iterator[None]:
            gr.Info(f"Added to {escape(str(mine.add_prompt(session.folder, kind, text)))}")
            yield None

        def correct(side: str, grade: str | None) -> Iterator[None]:
            file = mine.add_correction(session.folder, _correction(session, side, grade))
            gr.Info(f"Added to {escape(str(file))}")
            yield None

        page.load(fill, None, [folder, *fields, prompt], **SILENT)
        gr.Timer(1).tick(
            tick,
            [seen, status_text],
            [status, stop, status_text, seen, *found],
            queue=False,
            **SILENT,
        )
        folder.blur(_shown(take_folder), folder, runs, **SILENT)
        model.change(_shown(pick), fields, fit, **SILENT)
        look.click(
            _shown(partial(begin, lambda *given: session.look(_fields(*given)))), fields, status,
            **SILENT,
        )  # fmt: skip
        asked, moved = [clock, prompt, *knobs], [knob.input for knob in knobs]
        gr.on(
            [ask.click, prompt.submit], _shown(partial(compare, 0.0)), asked, both, js=NOW,
            concurrency_limit=None, trigger_mode="multiple", **SILENT,
        )  # fmt: skip
        gr.on(moved, move, knobs, layers, queue=False, trigger_mode="always_last", **SILENT)
        gr.on(
            moved, _shown(partial(compare, SETTLE)), asked, both, js=NOW,
            concurrency_limit=None, trigger_mode="multiple", **SILENT,
        )  # fmt: skip
        add.click(_shown(add_prompt), [which, prompt], None, **SILENT)
        for side, grade, wrong in zip(("original", "edited"), grades, wrongs, strict=True):
            wrong.click(_shown(partial(correct, side)), grade, None, **SILENT)
        find.click(
            _shown(partial(begin, lambda name, *given: session.edit(name, _fields(*given)))),
            [name, *fields], status, **SILENT,
        )  # fmt: skip
        save.click(
            _shown(partial(begin, lambda name, *at: session.save(name, Knobs(*at)))),
            [name, *knobs], status, **SILENT,
        )  # fmt: skip
        stop.click(session.stop, None, None, **SILENT)
    return page


def _html(name: str) -> gr.HTML:
    return gr.HTML(elem_id=name, apply_default_css=False)


def _slider(low: float, high: float, step: float, label: str, name: str) -> gr.Slider:
    return gr.Slider(low, high, step=step, label=label, elem_id=name, buttons=[])


def _shown(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The handler, whose UnrefuseError is shown to the user, and changes nothing on the page."""

    @wraps(handler)
    def tell(*given: Any) -> Iterator[Any]:
        try:
            yield from handler(*given)
        except UnrefuseError as error:
            gr.Warning(escape(str(error)))
            yield gr.skip()

    return tell


def _paced(shown: Iterator[Compared]) -> Iterator[Compared]:
    """Not each of them, where they come faster than can be seen; but the last one."""
    last, then = None, 0.0
    for last in shown:
        if time.monotonic() - then >= PACE:
            yield last
            then, last = time.monotonic(), None
    if last is not None:
        yield last


def _filled(session: Session) -> list[Any]:
    """What stands in the fields: folder, model, limit, the three sets, prompt."""
    kept = session.fields
    sources = (kept.get(each) or "" for each in SETS)
    return [str(session.folder), kept["model"], kept.get("limit"), *sources, session.prompt]


def _fields(model: str | None, limit: float | None, *sets: str) -> dict[str, Any]:
    """What the user filled in, as settings of a run."""
    sources = {name: (text or "").strip() or None for name, text in zip(SETS, sets, strict=True)}
    return {"model": (model or "").strip(), "limit": int(limit) if limit else None, **sources}


def _correction(session: Session, side: str, grade: str | None) -> dict[str, Any]:
    """The row of a grade that is wrong. Raises UnrefuseError where there is none."""
    reply = getattr(session.shown, side, "")
    if not isinstance(reply, Reply) or session.shown is None or session.bench is None:
        raise UnrefuseError("there is no graded reply yet")
    if grade in (None, reply.grade):
        raise UnrefuseError("choose a grade other than the one that the reply has")
    edit = session.shown.knobs._asdict() if side == "edited" else None
    return {
        "prompt": session.shown.prompt,
        "reply": reply.text,
        "grade": reply.grade,
        "label": grade,
        "model": session.bench.config.model,
        "edit": edit,
    }


def _runs(session: Session) -> str:
    try:
        return parts.part("runs", past_runs(session.folder))
    except UnrefuseError as error:
        return parts.part("notice", str(error))


def _models() -> list[str]:
    """The demo, and what lies in the hub's cache."""
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        cached = frozenset()
    return ["demo", *sorted(repo.repo_id for repo in cached if repo.repo_type == "model")]
