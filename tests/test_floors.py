"""No module imports from a floor below its own. Oracle: the order, written down here."""

import ast
import pathlib

import bsq_jax

ROOT = pathlib.Path(bsq_jax.__file__).parent

# From the top of the building down: a module may import from its own floor and those before it.
# A package's name stands for all modules in it that are not listed by themselves.
FLOORS = (
    ("core",),
    ("config",),
    ("media",),
    ("data",),
    ("quantizers",),
    ("models",),
    ("torch_import",),
    ("evaluation",),
    ("losses",),
    ("training",),
    ("inference",),
    ("coding",),
    ("api",),
    ("cli",),
    ("main", "__main__"),
)
# Typed arguments everywhere else: only these may import the config.
READERS = ("training", "inference", "coding", "api", "cli", "main", "torch_import")


def modules():
    """Source by dotted name inside the package; a package's ``__init__`` by the package's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path.read_text()
    del found[""]
    return found


def floor_of(name):
    """Number of the floor of the longest listed name that `name` is or lies in; None if none."""
    for length in range(name.count(".") + 1, 0, -1):
        prefix = ".".join(name.split(".")[:length])
        for number, floor in enumerate(FLOORS):
            if prefix in floor:
                return number
    return None


def imports(source, known):
    """Modules of this package that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write imports out from bsq_jax"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("bsq_jax.")
            while inside != name and inside and inside not in known:
                inside = inside.rpartition(".")[0]
            if inside != name and inside:
                found.add(inside)
    return found


def runs_down(sources):
    """Imports against the order, as text."""
    return [
        f"{name} imports {target}"
        for name, source in sources.items()
        for target in sorted(imports(source, sources))
        if floor_of(target) > floor_of(name)
    ]


def test_every_module_has_a_floor_and_every_name_is_one():
    names = modules()
    assert [name for name in names if floor_of(name) is None] == []
    assert [name for floor in FLOORS for name in floor if name not in names] == []


def test_no_import_runs_down():
    assert runs_down(modules()) == []


def test_only_some_know_the_config():
    readers = [name for name, source in modules().items() if "config" in imports(source, modules())]
    assert [name for name in readers if name.split(".")[0] not in (*READERS, "config")] == []


def test_a_bad_import_is_noticed():
    sources = modules()
    for line in (
        "from bsq_jax.training.loop import train",
        "from bsq_jax.training import loop",
        "import bsq_jax.training.loop",
        "def late():\n    from bsq_jax import losses, training",
    ):
        bad = {**sources, "models.factory": f"{sources['models.factory']}\n{line}\n"}
        found = runs_down(bad)
        assert any(text.startswith("models.factory imports training") for text in found), line
        assert all(text.startswith("models.factory imports ") for text in found)
    good = {**sources, "models.factory": "import bsq_jax.core.errors\nfrom bsq_jax.data import x\n"}
    assert runs_down(good) == []
