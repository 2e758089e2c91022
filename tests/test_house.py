"""Which room of the package may import from which, and how large rooms, files and functions may be."""

import ast

from support.scripts import ROOT

PACKAGE = ROOT / "src" / "hf_vqvae"
# A room imports from rooms on its own line or on lines above it.
ORDER = """
models
files command_line
hub arguments distributed
metrics figures
data
evaluation
model_card
publishing
training
export
"""
FLOORS = {room: floor for floor, line in enumerate(ORDER.split("\n")) for room in line.split()}
ROOMLESS = {"__init__", "digits"}  # registers the models; the name that pushed cards import
# (importing file, room): the model hands `push_to_hub` over to the package, where it is installed.
ALLOWED = {("models/hub_mixin.py", "publishing")}

# What is over a limit today. A name goes when it is not any more; none is added.
LONG_FUNCTIONS = set()


def imported_rooms(path):
    """Pairs of a line and a room of the package that is imported there."""
    package = ["hf_vqvae", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("hf_vqvae."):
                yield node.lineno, name.split(".")[1]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_rooms_import_only_from_rooms_before_them():
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in ROOMLESS]
    assert {room_of(path) for path in files} <= FLOORS.keys(), "every file is in a room"
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports from {room}, which comes after {room_of(path)}"
        for path in files
        for line, room in imported_rooms(path)
        if FLOORS.get(room, -1) > FLOORS[room_of(path)] and (path.relative_to(PACKAGE).as_posix(), room) not in ALLOWED
    ]
    assert not upward, "\n".join(upward)


def test_the_guide_shows_the_order_of_the_rooms():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    floors = [", ".join(room for room in line.split() if room in rooms) for line in ORDER.split("\n")]
    guide = (PACKAGE / "README.md").read_text("utf-8")
    assert f"`{' < '.join(filter(None, floors))}`" in guide


def test_rooms_and_files_are_small_enough_to_be_taken_in():
    rooms = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) <= 10
    for room in rooms:
        assert room.name == "models" or len(list(room.glob("[!_]*.py"))) <= 9, room.name
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    long = {
        path.name for path in files if path.parent.name != "models" and len(path.read_text("utf-8").splitlines()) > 320
    }
    assert not long, long


def test_functions_are_at_most_50_lines_without_docstrings():
    long = set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                docstring = first if ast.get_docstring(node, clean=False) is not None else None
                lines = node.end_lineno - node.lineno + 1
                lines -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
                if lines > 50:
                    long.add(f"{path.name}:{node.name}")
    assert long == LONG_FUNCTIONS
