"""The code's own rules: who imports whom, how long things may be, what is never called."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import ROOT

FILE_LINES, METHOD_LINES, CLASS_LINES, FUNCTION_LINES = 400, 300, 120, 60
TEST_LINES = 600  # tables of cases are long, and are read from top to bottom

# What each part may import of the project; `a.` stands for all of a. See docs/architecture.md.
ENGINE_PARTS = ("src.messages", "src.methods.base", "src.plan", "utils_.")
ALLOWED: dict[str, tuple[str, ...]] = {
    "src/losses.py": ("utils_.",),
    "src/supervision.py": ("src.losses", "utils_."),
    "src/models.py": ("src.weights", "utils_."),
    "src/weights.py": ("src.weight_files", "utils_."),
    "src/weight_files.py": ("utils_.",),
    "src/messages.py": (),
    "src/plan.py": (),
    "src/aggregation.py": ("src.messages", "utils_."),  # the reports it folds
    "src/aggregator_options.py": ("utils_.",),
    "src/outliers.py": ("utils_.",),
    "src/attacks.py": ("src.client", "utils_."),
    "src/methods/__init__.py": ("src.methods.base", "utils_."),
    "src/methods/base.py": (
        "src.losses",
        "src.supervision",
        "src.aggregation",
        "src.messages",
        "src.plan",
        "utils_.",
    ),
    "src/client.py": ENGINE_PARTS,
    "src/server.py": (*ENGINE_PARTS, "src.aggregation", "src.outliers"),
}
METHOD_IMPORTS = ("src.methods.base", "src.losses", "src.aggregation", "utils_.")


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


CODE = files("src", "utils_", "scripts")
LIBRARY = files("src", "utils_")
METHODS = [p for p in files("src/methods") if p.stem not in ("__init__", "base")]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def checked_only_by_types(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` imports nothing when the program runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, but for what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not checked_only_by_types(child):
            yield child
            yield from running(child)


def imports(path: Path) -> set[str]:
    """Modules that the file imports when it runs, inside functions too."""
    found: set[str] = set()
    for node in running(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{identity(path)}: relative import"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            as_modules = {m for m in modules if is_module(m)}
            found |= as_modules or {node.module}
    return found


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def own(modules: set[str]) -> set[str]:
    return {m for m in modules if m.split(".")[0] in ("src", "utils_", "scripts", "tests")}


def permitted(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == a or (a.endswith(".") and f"{module}.".startswith(a)) for a in allowed)


def wrong_imports(path: Path, allowed: tuple[str, ...]) -> list[str]:
    return [f"{identity(path)}: {m}" for m in own(imports(path)) if not permitted(m, allowed)]


def test_utils_import_nothing_of_src() -> None:
    assert [w for path in files("utils_") for w in wrong_imports(path, ("utils_.",))] == []


@pytest.mark.parametrize("name", ALLOWED)
def test_import_directions(name: str) -> None:
    assert wrong_imports(ROOT / name, ALLOWED[name]) == []


def test_methods_import_the_base_losses_and_aggregation() -> None:
    assert [w for path in METHODS for w in wrong_imports(path, METHOD_IMPORTS)] == []


def test_what_one_method_alone_uses_lies_in_its_file() -> None:
    """A module of utils_ serves at least two methods, or something else than methods."""
    users: dict[str, set[str]] = {}
    for path in files("src", "utils_", "scripts"):
        for module in own(imports(path)):
            users.setdefault(module, set()).add(identity(path))
    methods = {identity(path) for path in METHODS}
    shared = {m: by for m, by in users.items() if m.startswith("utils_.") and "__" not in m}
    assert {m: by for m, by in shared.items() if len(by) == 1 and by <= methods} == {}


def test_no_two_things_have_one_name() -> None:
    """Public functions and classes of src and utils_."""
    places: dict[str, list[str]] = {}
    for path in LIBRARY:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(identity(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_nothing_imports_the_main_job_or_scripts() -> None:
    for path in LIBRARY:
        found = own(imports(path))
        assert not [m for m in found if m.startswith(("src.main_fednml", "scripts", "tests"))], path


def test_imports_form_no_circle() -> None:
    names = {identity(p).removesuffix(".py").replace("/", "."): p for p in files("src", "utils_")}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    open_now: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in open_now, " -> ".join([*open_now, name])
        if name in done or name not in names:
            return
        open_now.append(name)
        for module in sorted(top_level_imports(names[name])):
            visit(module)
        open_now.pop()
        done.add(name)

    for name in names:
        visit(name)


def top_level_imports(path: Path) -> set[str]:
    """As `imports`, but not those inside functions, which run later."""
    module = ast.Module(
        [n for n in tree(path).body if isinstance(n, ast.Import | ast.ImportFrom)], []
    )
    found: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {m for m in modules if is_module(m)} or {node.module}
    return found


# ---- sizes and documentation


def test_no_file_is_too_long() -> None:
    for path in files("src", "utils_", "scripts", "tests"):
        limit = METHOD_LINES if path in METHODS else FILE_LINES
        limit = TEST_LINES if identity(path).startswith("tests/") else limit
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= limit, f"{identity(path)}: {lines} lines"


def test_a_method_s_class_is_short() -> None:
    for path in METHODS:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= CLASS_LINES, f"{identity(path)}, {node.name}: {lines} lines"


def test_functions_are_short() -> None:
    sizes = {
        f"{identity(path)}, {node.name}": node.end_lineno - node.lineno + 1
        for path in CODE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in sizes.items() if lines > FUNCTION_LINES} == {}
    assert sorted(sizes.values())[len(sizes) // 2] <= 12, "the median; most are about 10"


def test_what_is_public_is_documented() -> None:
    """Modules, public classes and public functions of more than one statement."""
    for path in LIBRARY:
        if not path.read_text(encoding="utf-8").strip():
            continue
        assert ast.get_docstring(tree(path)), identity(path)
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                short = isinstance(node, ast.FunctionDef) and len(node.body) == 1
                assert short or ast.get_docstring(node), f"{identity(path)}, {node.name}"


# ---- what is never called


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Where, the name of what is called, and the call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield f"{path.name}, line {node.lineno}", ast.unparse(node.func), node


def test_nothing_is_printed_outside_main_and_scripts() -> None:
    for path in LIBRARY:
        found = [where for where, name, _ in calls(path) if name == "print"]
        assert not found or identity(path) == "src/main_fednml.py", found


def test_no_global_state_is_drawn_from() -> None:
    """`np.random.x` and `random.x` draw from global state; the only source is utils_.rng."""
    seeds = ("torch.seed", "torch.random.seed", "torch.cuda.manual_seed", "random.seed")
    for path in CODE:
        assert "random" not in imports(path), identity(path)
        for where, name, call in calls(path):
            assert name not in seeds, where
            if name.startswith(("np.random.", "numpy.random.")):
                assert identity(path) == "utils_/rng.py", where
                assert name == "np.random.default_rng" and (call.args or call.keywords), where


def test_torch_is_seeded_within_a_fork_only() -> None:
    for path in CODE:
        within = {
            id(node)
            for block in ast.walk(tree(path))
            if isinstance(block, ast.With) and "fork_rng" in ast.unparse(block.items[0])
            for node in ast.walk(block)
        }
        for where, name, call in calls(path):
            assert name != "torch.manual_seed" or id(call) in within, where


def test_files_are_loaded_safely() -> None:
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in CODE:
        assert not {m.split(".")[0] for m in imports(path)} & unsafe, identity(path)
        for where, name, call in calls(path):
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name != "torch.load" or options.get("weights_only") == "True", where
            assert name != "np.load" or options.get("allow_pickle", "False") == "False", where
            assert name not in ("yaml.load", "eval", "exec", "os.system"), where
            assert options.get("shell") != "True", where


def test_no_exception_is_swallowed() -> None:
    """`except: pass` and bare `except:` hide what went wrong."""
    for path in LIBRARY:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                where = f"{path.name}, line {node.lineno}"
                assert node.type is not None, where
                assert not isinstance(node.body[0], ast.Pass), where


def test_no_absolute_path_is_written_down() -> None:
    for path in LIBRARY:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("/home/", "/root/", "/tmp/")), node.value


# ---- the rules themselves


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        "import pickle\nfrom src import client\n"
        "def f():\n    from src.server import Server\n    print(1)\n"
        "if TYPE_CHECKING:\n    from src.evaluator import Evaluator\n"
    )
    assert imports(path) == {"pickle", "src.client", "src.server"}
    assert [name for _, name, _ in calls(path)] == ["print"]
    assert not permitted("src.client", ("src.messages", "utils_."))
    assert permitted("utils_.labels", ("utils_.",))
    assert permitted("utils_", ("utils_.",))
