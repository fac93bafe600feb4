"""Changes a module of the package in one place at a time, and prints the changes that its tests do not notice.

    python tests/support/mutants.py _passes/layout.py tests/passes/test_layout.py -- tests/test_model.py

The tests after `--` run for the mutants that survive the first ones. Runs on PyTorch, which needs no compilation. Keras
is imported once, and each mutant is tested in a fork of this process.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPARISONS = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def excluded_nodes(tree):
    """Returns the ids of the nodes of error messages, annotations and docstrings."""
    roots = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Raise, ast.JoinedStr)):
            roots.append(node)
        elif isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            roots += [argument.annotation for argument in arguments if argument and argument.annotation]
            roots += [node.returns] if node.returns else []
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            roots.append(node)
    return {id(node) for root in roots for node in ast.walk(root)}


def changes_of(node):
    """Yields a function for each change of a node. It changes the node that it is called with."""
    if isinstance(node, ast.Compare):
        for index in range(len(node.ops)):
            yield lambda n, i=index: n.ops.__setitem__(i, COMPARISONS[type(n.ops[i])]())
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    elif isinstance(node, ast.BoolOp):
        yield lambda n: setattr(n, "op", ast.And() if isinstance(n.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda n: setattr(n, "op", ast.UAdd())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (int, float))):
        yield lambda n: setattr(n, "value", 0 if n.value is None else n.value + 1)
    elif isinstance(node, ast.Call):
        for index, keyword in enumerate(node.keywords):
            if keyword.arg:
                yield lambda n, i=index: n.keywords.pop(i)
    elif isinstance(node, (ast.Return, ast.Expr)) and isinstance(node.value, ast.expr):
        if isinstance(node, ast.Return) or isinstance(node.value, ast.Call):
            yield lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))


def mutants(source):
    """Yields the line number and the code of each mutant."""
    tree = ast.parse(source)
    excluded = excluded_nodes(tree)
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in excluded:
            continue
        for change in changes_of(node):
            mutant = copy.deepcopy(tree)
            change(list(ast.walk(mutant))[index])
            code = ast.unparse(ast.fix_missing_locations(mutant))
            if code != ast.unparse(tree):
                yield node.lineno, code


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module from other code than that of its file."""

    def __init__(self, name, path, code):
        self.name, self.path, self.code = name, path, code

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.code, self.path, "exec"), module.__dict__)


def passes(finder, tests, limit):
    """Whether the tests pass with the code of the finder, within a number of seconds."""
    import pytest

    process = os.fork()
    if process == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.meta_path.insert(0, finder)
        try:
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests])
        finally:
            os._exit(int(code) if "code" in locals() else 1)
    start = time.monotonic()
    while time.monotonic() - start < limit:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="path of the module in keras_rdrop/")
    parser.add_argument("tests", nargs="+", help="test files of the module, then `--` and those of its neighbours")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    stages = [stage for stage in (args.tests, sys.argv[split + 1 :]) if stage]

    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import hypothesis.extra.numpy  # noqa: F401, imported once for all forks
    import keras
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    keras.utils.set_random_seed(0)  # Keras imports TensorFlow here, once instead of in every fork
    path = str(ROOT / "keras_rdrop" / args.module)
    source = Path(path).read_text()
    name = "keras_rdrop." + args.module.removesuffix(".py").replace("/", ".")
    limits = []
    for tests in stages:
        start = time.monotonic()
        if not passes(MutantFinder(name, path, source), tests, limit=600):
            raise SystemExit(f"The tests fail without a change: {tests}")
        limits.append(4 * (time.monotonic() - start) + 20)
    count, survivors = 0, [0] * len(stages)
    for line, code in mutants(source):
        count += 1
        for stage, (tests, limit) in enumerate(zip(stages, limits, strict=True)):
            if not passes(MutantFinder(name, path, code), tests, limit):
                break
            survivors[stage] += 1
        else:
            changed = set(code.splitlines()) - set(ast.unparse(ast.parse(source)).splitlines())
            print(f"{args.module}:{line}: {' '.join(sorted(changed)).strip()}", flush=True)
    print(f"{args.module}: {' and then '.join(map(str, survivors))} of {count} mutants survive")


if __name__ == "__main__":
    main()
