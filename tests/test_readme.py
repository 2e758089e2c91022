"""The README, the guides and the card of a run: their code runs, their commands, links and file trees are true.

Conventions of the pages:

- ```python blocks of a page run in their order in one process, in a folder where `outputs/quickstart` is a finished
  run. Any repository `me/...` is that run, too. Statements that push are only compiled.
- ```bash blocks: every program, script, file, `make` target, flag and extra must exist. A command that ends with the
  comment `# tested` is run, after those above it.
- The first ```text block below a heading with "tree" in it lists all files of the page's folder except README.md and
  the folders' `__init__.py`: one path a line, indented below its folder, then two spaces and a comment. A folder ends
  with `/`; one with nothing listed below it stands for all that is in it. `*` stands for any characters.
"""

import contextlib
import fnmatch
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from support.scripts import ROOT

PAGES = ["README.md", "scripts/README.md", "scripts/BENCHMARKS.md", "src/hf_vqvae/README.md"]
PAGES += ["model_card/README.md", "tests/README.md"]
TEXTS = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
TREES = ["scripts/README.md", "src/hf_vqvae/README.md", "model_card/README.md"]
# Pages of other kinds: generated, or not for the reader of this version.
NO_PAGES = {"CHANGELOG.md", "model_card/template.md", "model_card/example/README.md"}
NO_PAGES |= {"model_card/example_cifar10/README.md", "model_card/notebook.md", "model_card/dataset_template.md"}
RUN = "outputs/quickstart"
TINY = ["--num_train_epochs", "1", "--prior_num_train_epochs", "1", "--hidden_sizes", "4", "8"]
TINY += ["--num_embeddings", "16", "--embedding_dim", "4", "--hidden_size", "8"]
TINY += ["--max_train_samples", "128", "--max_eval_samples", "32", "--num_eval_samples", "0"]
# Programs that take a script of this project, and those of others, of which flags are not looked at.
PYTHONS = {"python", "python3", ".venv/bin/python"}
OTHERS = {"git", "cd", "hf", "export", "tensorboard", "source", "."}

# Runs blocks of Python, [[line, code], ...], one after the other in one namespace.
RUNNER = """
import ast, json, sys
from pathlib import Path

def pushes(statement):
    calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
    names = (getattr(call, "attr", getattr(call, "id", "")) for call in calls)
    return any(name in ("push_to_hub", "push_folder") for name in names)

namespace = {"__name__": "__main__"}
for line, code in json.loads(Path(sys.argv[1]).read_text()):
    # So many empty lines before it that a traceback has the line of the page.
    tree = ast.parse("\\n" * line + code, sys.argv[2])
    tree.body = [statement for statement in tree.body if not pushes(statement)]
    exec(compile(tree, sys.argv[2], "exec"), namespace)
"""


def blocks_of(text, language):
    """The fenced blocks of a Markdown page: [line of the fence, code]."""
    fence = re.compile(rf"^```{language}[ ]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
    return [[text.count("\n", 0, match.start()) + 1, match[1]] for match in fence.finditer(text)]


@pytest.fixture(scope="session")
def workspace(scripts, tmp_path_factory):
    """Runs Python files as a person who has run `make quickstart`, but with a tiny run in outputs/quickstart."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("scripts", "model_card"):
        (folder / name).symlink_to(ROOT / name)
    workspace = Workspace(scripts, folder)
    workspace.run("scripts/train.py", "scripts/quickstart.yaml", *TINY)
    assert (folder / RUN / "model.safetensors").is_file()
    return workspace


class Workspace:
    """A folder to run Python files in."""

    def __init__(self, scripts, folder):
        self.scripts, self.folder = scripts, folder

    def run(self, *words):
        """Runs a Python file to its end; what it prints is in the message if it fails."""
        done = self.scripts.run(*words, folder=self.folder)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr[-3000:]}"


def run_blocks(text, page, workspace, tmp_path):
    """Runs the Python of a page; `page` is what tracebacks call it."""
    run = json.dumps(str(workspace.folder / RUN))
    code = [
        [line, re.sub(r"""(["'])me/[\w.-]+\1""", lambda _: run, block)] for line, block in blocks_of(text, "python")
    ]
    (tmp_path / "blocks.json").write_text(json.dumps(code))
    (tmp_path / "runner.py").write_text(RUNNER)
    workspace.run(tmp_path / "runner.py", tmp_path / "blocks.json", page)


# Python


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(TEXTS[page], "python")])
def test_the_python_of_a_page_runs(page, workspace, tmp_path):
    run_blocks(TEXTS[page], page, workspace, tmp_path)


def test_the_python_of_a_generated_card_runs(workspace, tmp_path):
    text = (workspace.folder / RUN / "README.md").read_text("utf-8")
    code = "\n".join(block for _, block in blocks_of(text, "python"))
    assert ".sample(" in code and ".encode(" in code and RUN in code
    run_blocks(text, "the card", workspace, tmp_path)


# Commands


def commands_of(text):
    """The commands of the bash blocks, one a line (joined where they go on), without empty ones and comments."""
    for _, block in blocks_of(text, "(?:bash|sh|shell|console)"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


@cache
def flags_of(script):
    """The flags that a script's --help lists."""
    spec = importlib.util.spec_from_file_location(f"scripts_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output, before = io.StringIO(), sys.argv
    try:
        sys.argv = [script, "--help"]
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            module.main()
    finally:
        sys.argv = before
    lines = re.findall(r"^  (-.*)$", output.getvalue(), re.MULTILINE)
    assert lines, f"{script} --help lists no flag"
    return {flag for line in lines for flag in re.findall(r"--[\w-]+", line)}


def check_command(command):
    """Raises AssertionError if a command names something that is not there."""
    for part in re.split(r"\s*(?:&&|;)\s*", command):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        program, *words = words
        if program in PYTHONS:
            check_script(words, command)
        elif program == "accelerate":
            assert words[0] == "launch", command
            launched = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
            assert launched is not None, f"{command}: no script"
            check_flags(words[1:launched], launch_flags(), command)
            check_script(words[launched:], command)
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            for word in words:
                assert "=" in word or word in targets, f"{command}: no target {word}"
        elif program == "pip":
            check_installation(words, command)
        else:
            assert program in OTHERS, f"{command}: unknown program {program}"


@cache
def launch_flags():
    actions = launch_command_parser()._actions
    return {option for action in actions for option in action.option_strings}


def check_script(words, command):
    if words[:2] == ["-m", "pytest"]:
        for word in words[2:]:
            assert not word.endswith(".py") or (ROOT / word).is_file(), f"{command}: no file {word}"
        return
    script, *rest = words
    assert script.endswith(".py") and (ROOT / script).is_file(), f"{command}: no script {script}"
    for word in rest:
        if word.startswith("scripts/"):
            assert (ROOT / word).is_file(), f"{command}: no file {word}"
    check_flags(rest, flags_of(script), command)


def check_flags(words, known, command):
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    assert flags <= known, f"{command}: no flag {', '.join(flags - known)}"


def check_installation(words, command):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    provided = set(project["optional-dependencies"])
    assert words[0] == "install", command
    for word in words[1:]:
        own = re.fullmatch(r"(?:\.|hf_vqvae)(?:\[([\w,]+)\])?(?: @ .*)?", word)
        extras = set(own[1].split(",")) if own and own[1] else set()
        assert extras <= provided, f"{command}: no extra {', '.join(extras - provided)}"
        assert not word.endswith(".txt") or (ROOT / word).is_file(), f"{command}: no file {word}"


def test_every_script_that_make_runs_exists():
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    commands = re.findall(r"python\)? (scripts/[^&\n]*)", text, re.IGNORECASE)
    assert len(commands) == 5
    for command in commands:
        check_script(shlex.split(command), command)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists(page):
    for command in commands_of(TEXTS[page]):
        check_command(command)


def test_the_readme_has_the_two_commands_and_the_oldest_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"Python {oldest} or later" in TEXTS["README.md"]
    assert {"make quickstart", "make test"} <= set(commands_of(TEXTS["README.md"]))


def test_every_flag_that_a_page_mentions_exists():
    files = sorted((ROOT / "scripts").glob("*.py"))
    scripts = [f"scripts/{path.name}" for path in files if "__main__" in path.read_text("utf-8")]
    known = set().union(*(flags_of(script) for script in scripts)) | launch_flags() | {"--help"}
    for page, text in TEXTS.items():
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        code = " ".join(re.findall(r"`([^`]+)`", text))
        mentioned = set(re.findall(r"--\w[\w-]*", code))
        assert mentioned <= known, (page, mentioned - known)


def test_the_commands_marked_as_tested_run(workspace):
    commands = [command for text in TEXTS.values() for command in commands_of(text)]
    marked = [command for command in commands if command.endswith("# tested")]
    assert marked, "mark a command that is quick, on outputs/quickstart, with `# tested`"
    for command in marked:
        program, *words = shlex.split(command, comments=True)
        assert program == "python", command
        workspace.run(*words)


@pytest.mark.parametrize(
    "command, message",
    [
        ("python scripts/trian.py", "no script scripts/trian.py"),
        ("python scripts/train.py --seeed 1", "no flag --seeed"),
        ("A=1 accelerate launch --num_proceses 2 scripts/train.py", "no flag --num_proceses"),
        ("cd x && make quikstart", "no target quikstart"),
        ('pip install -e ".[trian]"', "no extra"),
        ("conda install everything", "unknown program conda"),
    ],
)
def test_a_command_that_is_not_there_is_found(command, message):
    with pytest.raises(AssertionError, match=message):
        check_command(command)


# Links


def anchors_of(text):
    """The anchors that GitHub gives the headings of a Markdown page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def check_links(text, page):
    """Raises AssertionError if a link or picture leads to a file or heading of the project that is not there."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)|\bsrc="([^"]+)"', text):
        path, _, anchor = "".join(link).partition("#")
        if path.startswith(("https:", "http:")):
            continue
        target = ROOT / Path(page).parent / path if path else ROOT / page
        assert target.is_file(), f"{page}: no file {path}"
        known = anchors_of(text if not path else target.read_text("utf-8")) if anchor else {anchor}
        assert anchor in known, f"{page}: no heading #{anchor} in {path or page}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    check_links(TEXTS[page], page)


def test_every_page_is_looked_at():
    pages = {file for file in project_files() if file.endswith(".md")}
    assert {page for page in pages if not page.startswith("tests/fixtures/")} == {*PAGES, *NO_PAGES}


def test_the_readme_can_be_read_in_minutes():
    assert len(TEXTS["README.md"].splitlines()) <= 170


# The file trees


def listed_in(text):
    """The paths in the page's tree, and those of its folders with nothing listed below them."""
    heading = re.search(r"^#+ .*\btree\b.*$", text, re.MULTILINE | re.IGNORECASE)
    assert heading, "no heading with `tree` in it"
    (_, block), *_ = blocks_of(text[heading.end() :], "text") or [(0, "")]
    assert block, "no text block below the heading of the tree"
    above, listed = [], []  # above: the folders that a line is in, each with its indentation
    for line in block.splitlines():
        entry = line.lstrip()
        path = re.split(r"\s{2,}", entry)[0].strip()
        assert not re.search(r"\s", path), f"one path a line, then two spaces: {line!r}"
        indent = len(line) - len(entry)
        while above and above[-1][0] >= indent:
            above.pop()
        folder = above[-1][1] if above else ""
        assert not folder or folder.endswith("/"), f"not in a folder: {line!r}"
        above.append((indent, folder + path))
        listed.append(folder + path)
    leaves = {
        path
        for path in listed
        if path.endswith("/") and not any(other != path and other.startswith(path) for other in listed)
    }
    return listed, leaves


def check_tree(text, files):
    """Raises AssertionError if the page's tree lists what is not in `files` (paths), or leaves out one of them."""
    listed, leaves = listed_in(text)
    for path in listed:
        found = fnmatch.filter(files, path + "*" if path.endswith("/") else path)
        assert found, f"the tree lists {path}, which is not there"
    for file in files:
        covered = file.startswith(tuple(leaves)) or any(
            fnmatch.fnmatch(file, path) and file.count("/") == path.count("/") for path in listed
        )
        assert covered, f"the tree leaves out {file}"


def project_files():
    """Paths of the files that git tracks; of all that are there where there is no repository."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        return [name for name in git.stdout.split("\0") if name]
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    unlisted = {"__pycache__", ".git", ".venv", "outputs"}
    return [path.as_posix() for path in files if unlisted.isdisjoint(path.parts)]


@pytest.mark.parametrize("page", TREES)
def test_the_file_tree_of_a_page_is_true(page):
    folder = page.removesuffix("README.md")
    files = [file.removeprefix(folder) for file in project_files() if file.startswith(folder)]
    unlisted = ("README.md", "/__init__.py")
    check_tree(TEXTS[page], [file for file in files if not file.endswith(unlisted)])
