"""The pictures: written, of the type that the name says, the same bytes for the same data."""

import pytest

from tests.results import result
from unrefuse.errors import UnrefuseError
from unrefuse.kernel import gaussian
from unrefuse.metrics.layers import LayerStrength
from unrefuse.report.plots import plot_kernels, plot_layers, plot_result
from unrefuse.search.discrimination import Analysis, Discrimination

KERNELS = [("a", gaussian(8, 0.6, 0.15)), ("b", gaussian(6, 0.4, 0.2))]
FOUND = Analysis(
    {"": LayerStrength(9, (0.1, 2.0), (0.0, 3.0)), "t": LayerStrength(3, (0, 1), (1, 2))},
    Discrimination((0.6, 0.9), (0.1, 0.5), 0.4, 9, {"t": (0.5, 3)}),
    {},
)
STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("ending", STARTS)
def test_pictures_are_of_the_type_named(tmp_path, ending):
    for i, draw in enumerate(
        (
            lambda file: plot_kernels(KERNELS, file),
            lambda file: plot_layers(FOUND, "m", file),
            lambda file: plot_result(result(), file),
        )
    ):
        file = tmp_path / f"{i}{ending}"
        draw(file)
        assert file.read_bytes().startswith(STARTS[ending])
        assert file.stat().st_size > 1000
        again = tmp_path / f"again{i}{ending}"
        draw(again)
        assert again.read_bytes() == file.read_bytes()


def test_the_chart_of_layers_shows_effect_probe_and_suggestion(tmp_path):
    plot_layers(FOUND, "some model", tmp_path / "l.svg")
    text = (tmp_path / "l.svg").read_text(encoding="utf-8")
    # Layer 1 alone has an effect.
    for said in ("harm told from alarm (AUC)", "false refusals that could be freed",
                 "some model: suggested peak 1.00, width 0.08"):  # fmt: skip
        assert f"<!-- {said} -->" in text


def test_svg_names_the_kernels(tmp_path):
    plot_kernels(KERNELS, tmp_path / "k.svg")
    text = (tmp_path / "k.svg").read_text(encoding="utf-8")
    assert "<!-- a -->" in text
    assert "<!-- b -->" in text


def test_another_type_and_a_missing_folder_are_told(tmp_path):
    with pytest.raises(UnrefuseError, match=r"must end in \.png"):
        plot_kernels(KERNELS, tmp_path / "k.gif")
    with pytest.raises(UnrefuseError, match="cannot write"):
        plot_kernels(KERNELS, tmp_path / "nowhere" / "k.png")
    assert list(tmp_path.iterdir()) == []


def test_names_are_printed_as_they_are(tmp_path):
    """Not as formulas, and not left out of the legend."""
    names = ["_k.json", "a$_{$b", r"$\\nope$"]
    plot_kernels([(name, KERNELS[0][1]) for name in names], tmp_path / "k.svg")
    plot_layers(FOUND, "$x$_{", tmp_path / "l.png")
    drawn = (tmp_path / "k.svg").read_text()
    assert all(f"<!-- {' ' * name.startswith('_')}{name} -->" in drawn for name in names)
