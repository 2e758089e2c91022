"""The page in the browser for a model: served on this machine, or as a static Space."""

import re
import shutil
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, SpaceCardData, constants

from .. import models
from ..files import write_json
from ..hub.card_signature import is_as_signed, sign_card, unsigned
from ..hub.commit import commit_folder
from ..hub.download import FILES, fetch_model, load_model
from ..hub.errors import FAILURES, explain
from ..hub.requests import retry
from .onnx import FOLDER, check_packages, export_onnx

PAGE = Path(__file__).parent / "space"
# What the page reads of a model's repo, besides the source that it links to.
MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "metrics.json",
    "figures/test_images.png",
    f"{FOLDER}/*.onnx",
)
LOCAL_MODEL = "local/model"  # its name on the local page
THUMBNAIL = "figures/samples.png"
# The title of a card, and an earlier link below it.
_LINK_PLACE = re.compile(r"^(# .*)\n(\n\[Try it in your browser\]\(.*\)\n)?", re.MULTILINE)


def write_page(folder: str | Path, **settings: str) -> None:
    """Copy the page into `folder`, with its settings: `hub` (an address), `model` (owner/name) and `revision`."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    write_json(Path(folder, "settings.json"), settings)


def write_local_page(folder: str | Path, name_or_path: str, revision: str | None = None) -> None:
    """Write the page into `folder` together with a model, at the addresses that it would have on the Hub.

    ONNX files that the model lacks are exported.

    Raises:
        ModuleNotFoundError: if they are, and the extra `onnx` is not installed.
        ValueError: if there is no such model.
    """
    write_page(folder, hub="", model=LOCAL_MODEL, revision="main")
    source = Path(fetch_model(name_or_path, revision, files=FILES + MODEL_FILES))
    target = Path(folder, LOCAL_MODEL, "resolve", "main")
    for pattern in MODEL_FILES:
        for path in source.glob(pattern):
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.relative_to(source))
    if not (target / FOLDER).exists():
        check_packages()
        export_onnx(load_model(str(source)), target)
    for path in Path(models.__file__).parent.glob("*.py"):  # as pushed repos have it: the page links to its lines
        shutil.copyfile(path, target / path.name)


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript", ".py": "text/plain"}

    def log_message(self, *_: object) -> None:
        """Do not print every request."""


def serve(folder: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """Make a server of the files in `folder` for this machine alone; port 0 takes any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))


def check_model(model_id: str, revision: str | None = None) -> None:
    """Check that a page in any browser can read the ONNX files of a repo.

    Raises:
        ValueError: if the repo is private, gated or has none.
    """
    info = retry(HfApi().repo_info, model_id, revision=revision)
    if info.private or info.gated:
        raise ValueError(f"{model_id} is private or gated, and a page in a browser could not read it: make it public.")
    if f"{FOLDER}/encoder.onnx" not in [file.rfilename for file in info.siblings]:
        raise ValueError(
            f"{model_id} has no ONNX files: push the model again with "
            f"`python scripts/push_to_hub.py FOLDER --hub_model_id {model_id} --onnx`."
        )


def write_space(folder: str | Path, model_id: str, revision: str | None, space_id: str, license: str) -> None:
    """Write the files of a static Space for a model on the Hub into `folder`: page, settings, card and thumbnail."""
    folder, name = Path(folder), space_id.split("/")[-1]
    write_page(folder, hub=constants.ENDPOINT, model=model_id, revision=revision or "main")
    api = HfApi()
    extra = {}
    if retry(api.file_exists, model_id, THUMBNAIL, revision=revision):
        shutil.copyfile(retry(api.hf_hub_download, model_id, THUMBNAIL, revision=revision), folder / "thumbnail.png")
        extra = {"thumbnail": f"{constants.ENDPOINT}/spaces/{quote(space_id)}/resolve/main/thumbnail.png"}
    data = SpaceCardData(
        title=name,
        emoji="🧩",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="static",
        license=license,
        models=[model_id],
        tags=["vq-vae", "pixelcnn", "hf_vqvae"],
        short_description="A VQ-VAE in your browser: draw, encode, edit, sample",
        **extra,
    )
    text = f"The page runs the model [{model_id}]({constants.ENDPOINT}/{model_id}) in the browser, without a server."
    (folder / "README.md").write_text(sign_card(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{text}\n"), "utf-8")


def link_from_card(model_id: str, address: str) -> str:
    """Link from a model's card to a Space, in a commit, and return what was done. A card edited by hand is kept."""
    link = f"[Try it in your browser]({address})"
    try:
        text = Path(retry(HfApi().hf_hub_download, model_id, "README.md")).read_text("utf-8")
        if link in text:
            return f"The card of {model_id} links to it already."
        reason = "is not as it was generated"
        if is_as_signed(text):
            linked = _LINK_PLACE.sub(lambda title: f"{title[1]}\n\n{link}\n", unsigned(text), count=1)
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "README.md").write_text(sign_card(linked), "utf-8")
                commit = commit_folder(folder, model_id, commit_message="Link to the page in the browser")
            return f"The card of {model_id} links to it: {commit.commit_url}"
    except FAILURES as error:
        reason = f"could not be changed ({explain(error)})"
    return f"The card of {model_id} {reason}. This line makes it link to the Space:\n\n    {link}"
