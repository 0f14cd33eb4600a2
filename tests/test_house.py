"""The structure of the code, read from its text by `ast`: which module may import which, names, and sizes."""

import ast
import functools
import pathlib
import statistics

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Lines of a file: the most, and the most of the median.
LONGEST, MEDIAN = 500, 200
# Imports point one way: a part imports from its own layer or from one before.
LAYERS = (
    ("version", "rounding", "platforms", "checks", "registry", "progress", "files"),
    ("layers", "windows", "losses", "jacobian", "metrics", "classifier", "models", "parallel", "binding", "state"),
    ("attacks", "certify", "torch_import"),
    ("checkpoints", "old_checkpoints", "runs"),
    ("data", "defenses", "generative", "training"),
    ("evaluation", "masking"),
)
# What attacks must never import, at any place, although a file may import within a function elsewhere.
NOT_IN_ATTACKS = ("absl", "flax", "equinox", "torch", "tensorflow_datasets", "orbax", "matplotlib")


@functools.cache
def modules():
    """The modules by their dotted names: the path and the parsed text."""
    found = {}
    for package in ("ddjax", "launch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def absolute(module, node):
    """The module that `from MODULE import ...` names, whether relative or not."""
    if not node.level:
        return node.module
    package = module.split(".")
    # A package's own file is one level lower than its modules.
    drop = node.level - (modules()[module][0].name == "__init__.py")
    base = package[: len(package) - drop]
    return ".".join([*base, *([node.module] if node.module else [])])


def at_import(node):
    """The statements that run when a module is imported: not those of functions, nor what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def imported(module, nodes):
    """What a module imports among some nodes: (module, name or None, line)."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                if f"{base}.{alias.name}" in modules():
                    yield f"{base}.{alias.name}", None, node.lineno
                else:
                    yield base, alias.name, node.lineno


def everywhere(module):
    return imported(module, ast.walk(modules()[module][1]))


def test_modules_do_not_import_in_circles():
    graph = {}
    for module, (_, tree) in modules().items():
        found = {other for other, _, _ in imported(module, at_import(tree)) if other in modules()}
        graph[module] = found - {module}
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            path.append(module)
            for other in sorted(graph[module]):
                visit(other)
            path.pop()
            done.add(module)

    for module in graph:
        visit(module)


def test_library_does_not_import_launchers():
    wrong = [
        f"{module}:{line} imports {other}"
        for module in modules()
        if module.split(".")[0] == "ddjax"
        for other, _, line in everywhere(module)
        if other.split(".")[0] == "launch"
    ]
    assert not wrong


def part(module):
    """The part of the library that a module belongs to: the name below `ddjax`."""
    return module.split(".")[1]


def layer(module):
    """The number of the layer of a module of the library; None where it belongs to none."""
    return next((number for number, layer in enumerate(LAYERS) if part(module) in layer), None)


def test_every_part_of_the_library_has_a_layer():
    parts = {part(module) for module in modules() if module.startswith("ddjax.")}
    assert parts - {name for layer in LAYERS for name in layer} == set()


def test_imports_point_one_way():
    wrong = [
        f"{module}:{line} imports {other}"
        for module in modules()
        if module.startswith("ddjax.")
        for other, _, line in everywhere(module)
        if other.startswith("ddjax.") and (layer(other) or 0) > (layer(module) or 0)
    ]
    assert not wrong


def test_modules_of_the_library_do_not_import_its_front():
    """`from ddjax import name` of a function would need all that `ddjax` exports; modules are imported by path."""
    wrong = [
        f"{module}:{line} imports {name} from {other}"
        for module in modules()
        if module.startswith("ddjax.")
        for other, name, line in everywhere(module)
        if other == "ddjax"
    ]
    assert not wrong


def test_attacks_import_neither_flags_nor_data_nor_frameworks():
    wrong = [
        f"{module}:{line} imports {other}"
        for module in modules()
        if module.split(".")[:2] == ["ddjax", "attacks"]
        for other, _, line in everywhere(module)
        if other.split(".")[0] in NOT_IN_ATTACKS
    ]
    assert not wrong


def is_private(name):
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def test_no_module_takes_a_private_name_from_another():
    wrong = []
    for module, (_, tree) in modules().items():
        package = module if modules()[module][0].name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for other, name, line in imported(module, [node]):
                if name is not None and other.split(".")[0] in ("ddjax", "launch") and is_private(name):
                    wrong.append(f"{module}:{line} imports {name} from {other}")
                # A private module belongs to the package that it stands in, and to what is below.
                owner, _, last = other.rpartition(".")
                if other in modules() and is_private(last) and not f"{package}.".startswith(f"{owner}."):
                    wrong.append(f"{module}:{line} imports {other}")
        ours = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (absolute(module, node) or "").split(".")[0] in ("ddjax", "launch")
            for alias in node.names
            if f"{absolute(module, node)}.{alias.name}" in modules()
        }
        wrong += [
            f"{module}:{node.lineno} uses {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ours
            and is_private(node.attr)
        ]
    assert not wrong


def test_no_module_has_the_name_of_a_function_that_its_package_exports():
    wrong = []
    for module, (path, tree) in modules().items():
        if path.name != "__init__.py":
            continue
        exported = {
            (alias.asname or alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            # `from package import module` exports the module itself.
            if f"{absolute(module, node)}.{alias.name}" not in modules()
        }
        exported |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        wrong += [f"{module}.{name}" for name in sorted(exported) if f"{module}.{name}" in modules()]
    assert not wrong


def test_launchers_import_one_another_relatively():
    wrong = [
        f"{module}:{node.lineno}"
        for module, (_, tree) in modules().items()
        if module.split(".")[0] == "launch"
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "launch")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "launch" for alias in node.names))
    ]
    assert not wrong


def lines():
    return {module: len(path.read_text(encoding="utf-8").splitlines()) for module, (path, _) in modules().items()}


def test_no_file_is_long():
    assert {module: count for module, count in lines().items() if count > LONGEST} == {}
    assert statistics.median(lines().values()) < MEDIAN
