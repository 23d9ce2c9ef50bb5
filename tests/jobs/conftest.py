import pytest

from tests import talker


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """The model's folder, and the options that name its prompts."""
    folder = tmp_path_factory.mktemp("a folder with a space")
    model = talker.build(folder / "talker")
    files = talker.write_prompts(folder)
    return model, [word for name, file in files.items() for word in (f"--{name}", file)]
