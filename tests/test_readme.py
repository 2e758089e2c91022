"""The README and the card of a run: their code runs, their commands exist, the file tree is true.

Conventions of the README:

- ```python blocks run in their order in one process, in a folder where `outputs/quickstart` is a finished run. Any
  repository `me/...` is that run, too. Statements that push are only compiled.
- ```bash blocks: every program, script, file of scripts/, `make` target, flag and extra must exist. A command that ends
  with the comment `# tested` is run.
- The first ```text block below a heading with "tree" in it lists files: one path a line, below the folder that it is
  in and further to the right (by spaces or by box-drawing), then a comment after `#` or two spaces. A folder ends with
  `/`; one with nothing listed below it stands for all that is in it. `*` stands for any characters.
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
from functools import cache
from importlib.metadata import metadata
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUN = "outputs/quickstart"
TINY = ["--num_train_epochs", "1", "--prior_num_train_epochs", "1", "--hidden_sizes", "4", "8"]
TINY += ["--num_embeddings", "16", "--embedding_dim", "4", "--hidden_size", "8"]
TINY += ["--max_train_samples", "128", "--max_eval_samples", "32", "--num_eval_samples", "0"]
# Folders of which the tree must list everything that is tracked.
LISTED = ("src/", "scripts/", "tests/", "model_card/")
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
        [line, re.sub(r"""(["'])me/[\w.-]+\1""", lambda _: run, block)]
        for line, block in blocks_of(text, "python")
    ]
    (tmp_path / "blocks.json").write_text(json.dumps(code))
    (tmp_path / "runner.py").write_text(RUNNER)
    workspace.run(tmp_path / "runner.py", tmp_path / "blocks.json", page)


# Python


def test_the_python_of_the_readme_runs(workspace, tmp_path):
    text = README.read_text("utf-8")
    assert len(blocks_of(text, "python")) >= 2
    run_blocks(text, "README.md", workspace, tmp_path)


def test_the_python_of_a_generated_card_runs(workspace, tmp_path):
    text = (workspace.folder / RUN / "README.md").read_text("utf-8")
    code = "\n".join(block for _, block in blocks_of(text, "python"))
    assert ".sample(" in code and ".encode(" in code and RUN in code
    run_blocks(text, "the card", workspace, tmp_path)


def test_a_wrong_block_is_found_with_its_line(workspace, tmp_path):
    page = '# Page\n\n```python\nmodel = "me/vqvae"\n```\n\n```python\nassert model == "me/other"\n1 / 0\n```\n'
    with pytest.raises(AssertionError, match=r'File "page.md", line 9.*\n*ZeroDivisionError'):
        run_blocks(page, "page.md", workspace, tmp_path)
    page = "```python\nx = [\n```\n"
    with pytest.raises(AssertionError, match="SyntaxError"):
        run_blocks(page, "page.md", workspace, tmp_path)
    run_blocks("```python\nnobody.push_to_hub('me/x')\n```\n", "page.md", workspace, tmp_path)


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
    """Raises AssertionError if a command of the README names something that is not there."""
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
    provided = set(metadata("hf_vqvae").get_all("Provides-Extra"))
    assert words[0] == "install", command
    for word in words[1:]:
        own = re.fullmatch(r"(?:\.|hf_vqvae)(?:\[([\w,]+)\])?(?: @ .*)?", word)
        extras = set(own[1].split(",")) if own and own[1] else set()
        assert extras <= provided, f"{command}: no extra {', '.join(extras - provided)}"
        assert not word.endswith(".txt") or (ROOT / word).is_file(), f"{command}: no file {word}"


def test_every_command_of_the_readme_exists():
    commands = list(commands_of(README.read_text("utf-8")))
    bare = {shlex.join(shlex.split(command, comments=True)) for command in commands}
    assert {"make quickstart", "make test"} <= bare
    for command in commands:
        check_command(command)


def test_every_flag_that_the_readme_mentions_exists():
    files = sorted((ROOT / "scripts").glob("*.py"))
    scripts = [f"scripts/{path.name}" for path in files if "__main__" in path.read_text("utf-8")]
    known = set().union(*(flags_of(script) for script in scripts)) | launch_flags() | {"--help"}
    text = re.sub(r"^```.*?^```", "", README.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    mentioned = {
        flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"--\w[\w-]*", code)
    }
    assert mentioned <= known, mentioned - known


def test_the_commands_marked_as_tested_run(workspace):
    marked = [
        command
        for command in commands_of(README.read_text("utf-8"))
        if command.endswith("# tested")
    ]
    assert marked, "mark a command that is quick, on outputs/quickstart, with `# tested`"
    for command in marked:
        program, *words = shlex.split(command, comments=True)
        assert program == "python", command
        workspace.run(*words)


@pytest.mark.parametrize(
    "command, message",
    [
        ("python scripts/trian.py", "no script scripts/trian.py"),
        ("python scripts/train.py scripts/other.yaml", "no file scripts/other.yaml"),
        ("python scripts/train.py --seeed 1", "no flag --seeed"),
        ("A=1 accelerate launch --num_proceses 2 scripts/train.py", "no flag --num_proceses"),
        ("accelerate launch --num_processes 2 scripts/train.py --x", "no flag --x"),
        ("accelerate launch --num_processes 2", "no script"),
        ("cd x && make quikstart", "no target quikstart"),
        ('pip install -e ".[trian]"', "no extra"),
        ("pip install -r wishes.txt", "no file wishes.txt"),
        ("conda install everything", "unknown program conda"),
    ],
)
def test_a_command_that_is_not_there_is_found(command, message):
    with pytest.raises(AssertionError, match=message):
        check_command(command)


def test_commands_are_found_in_any_form():
    page = "```bash\n# a comment\nmake \\\n  test\n\nA=1 python x.py  # tested\n```\n```python\nmake\n```\n"
    commands = list(commands_of(page))
    assert [command.split() for command in commands] == [
        ["make", "test"],
        ["A=1", "python", "x.py", "#", "tested"],
    ]


# The file tree


def listed_in(text):
    """The paths in the page's tree, and those of its folders with nothing listed below them."""
    heading = re.search(r"^#+ .*\btree\b.*$", text, re.MULTILINE | re.IGNORECASE)
    assert heading, "no heading with `tree` in it"
    (_, block), *_ = blocks_of(text[heading.end() :], "text") or [(0, "")]
    assert block, "no text block below the heading of the tree"
    above, listed = [], []
    for line in block.splitlines():
        entry = line.lstrip(" │├└─|`-+\u00a0")
        if not entry or entry.startswith("#"):
            continue
        indent = len(line) - len(entry)
        path = re.split(r"\s{2,}|\s+#", entry)[0].strip()
        assert not re.search(r"\s", path), f"one path a line, then two spaces or #: {line!r}"
        while above and above[-1][0] >= indent:
            above.pop()
        assert not above or above[-1][1].endswith("/") or above[-1][1] == "", (
            f"not in a folder: {line!r}"
        )
        # A first line that names the checkout itself.
        full = "" if path in (".", "./", "hf_vqvae/", "vqvae/") and not listed else path
        full = "".join(name for _, name in above) + full
        above.append((indent, full.removeprefix("".join(name for _, name in above))))
        listed.append(full)
    listed = [path for path in listed if path]
    leaves = {
        path
        for path in listed
        if path.endswith("/")
        and not any(other != path and other.startswith(path) for other in listed)
    }
    return listed, leaves


def check_tree(text, files):
    """Raises AssertionError if the page's tree lists what is not in `files` (paths), or leaves out what it must not."""
    listed, leaves = listed_in(text)
    for path in listed:
        found = fnmatch.filter(files, path + "*" if path.endswith("/") else path)
        assert found, f"the tree lists {path}, which is not there"
    for file in files:
        covered = file.startswith(tuple(leaves)) or any(
            fnmatch.fnmatch(file, path) and file.count("/") == path.count("/") for path in listed
        )
        assert covered or not file.startswith(LISTED), f"the tree leaves out {file}"


def project_files():
    """Paths of the files that git tracks; of all that are there where there is no repository."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        return [name for name in git.stdout.split("\0") if name]
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    unlisted = {"__pycache__", ".git", ".venv", "outputs"}
    return [path.as_posix() for path in files if unlisted.isdisjoint(path.parts)]


def test_the_file_tree_of_the_readme_is_true():
    check_tree(README.read_text("utf-8"), project_files())


TREE = """
# The file tree

Words.

```text
.
├── README.md           what it is
├── src/hf_vqvae/       # the package
│   ├── models/         what the Hub receives
│   └── data.py         # images
├── scripts/
│   ├── train.py
│   └── *.yaml          settings
└── tests/              one a module
```
"""
FILES = ["README.md", "LICENSE", "src/hf_vqvae/models/a.py", "src/hf_vqvae/models/b.py"]
FILES += ["src/hf_vqvae/data.py", "scripts/train.py", "scripts/quick.yaml", "tests/test_data.py"]


@pytest.mark.parametrize("drawn", [True, False])
def test_a_true_tree_is_accepted_in_either_form(drawn):
    check_tree(TREE if drawn else re.sub("[│├└─]", " ", TREE), FILES)


@pytest.mark.parametrize(
    "there, gone, message",
    [
        (["src/hf_vqvae/card.py"], [], "leaves out src/hf_vqvae/card.py"),
        (["scripts/deep/x.yaml"], [], "leaves out scripts/deep/x.yaml"),
        ([], ["src/hf_vqvae/data.py"], "lists src/hf_vqvae/data.py, which is not there"),
        ([], ["tests/test_data.py"], "lists tests/, which is not there"),
        ([], ["scripts/quick.yaml"], r"lists scripts/\*.yaml, which is not there"),
        (["pyproject.toml", "src/hf_vqvae/models/deep/c.py", "tests/test_card.py"], [], None),
    ],
)
def test_a_tree_that_is_not_true_is_found(there, gone, message):
    files = [file for file in FILES if file not in gone] + there
    if message is None:
        check_tree(TREE, files)
    else:
        with pytest.raises(AssertionError, match=message):
            check_tree(TREE, files)


def test_a_page_without_a_tree_or_with_two_paths_a_line_is_found():
    with pytest.raises(AssertionError, match="no heading with `tree`"):
        check_tree("# Files\n\n```text\nREADME.md\n```\n", FILES)
    with pytest.raises(AssertionError, match="no text block"):
        check_tree("# Tree\n\n```bash\nls\n```\n", FILES)
    with pytest.raises(AssertionError, match="one path a line"):
        check_tree("# Tree\n\n```text\nREADME.md LICENSE\n```\n", FILES)
