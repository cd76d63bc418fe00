import shutil

import pytest

from stzoo.testing import tiny_masked_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    SentenceTransformer(str(tiny_masked_lm("bert", folder / "mlm", seed=3)), device="cpu").save(
        str(folder / "tiny")
    )
    return str(folder / "tiny")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, whose version matters little: nothing newer than 2023 is used."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
