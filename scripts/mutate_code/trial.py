"""Tries mutants: the tests that reach a line, run on a fork that has the mistake in it."""

from __future__ import annotations

import gc
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from scripts.mutate_code.mutants import Mutant, Mutants
from scripts.mutate_code.transplant import transplant
from scripts.mutate_code.verdicts import ENDLESS, KILLED, SURVIVED, UNREACHED
from utils_.errors import UserError

if TYPE_CHECKING:
    import pytest

LEAST_SECONDS, TIMES_LONGER = 5, 8
BUDGET, EXAMPLES = 3, 25  # of tests for a mutant: most seconds, and of a property most examples


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant.

    Attributes:
        mutant: which one.
        outcome: ``killed`` by a test, ``endless`` where it was stopped, ``survived``, or
            ``unreached`` where no test runs its line.
        test: which one noticed; empty if none.
    """

    mutant: Mutant
    outcome: str
    test: str


def try_module(
    path: Path, *, root: Path, tests: Sequence[str], done: Collection[int]
) -> Iterator[Verdict]:
    """Yield the verdict of each mutant of the module at ``path`` that is not ``done``.

    A forked process does the work, so that the module is imported by its tests alone.

    Raises:
        UserError: a test fails without any mistake, or none reaches the module.
    """
    source = path.read_text(encoding="utf-8")
    every = list(Mutants(source, str(path)))
    waiting = [mutant for mutant in every if mutant.number not in done]
    if not waiting:
        return
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _quiet()
        _session(path, root, tests=tests, waiting=waiting, writer=writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as lines:
        for line in lines:
            number, outcome, test = line.rstrip("\n").split("\t")
            if outcome == "broken":
                raise UserError(f"{path}: {test}")
            yield Verdict(every[int(number)], outcome, test)
    os.waitpid(child, 0)


def _quiet() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


def _session(
    path: Path, root: Path, *, tests: Sequence[str], waiting: Sequence[Mutant], writer: int
) -> NoReturn:
    """Collect the tests, find what each reaches, and try the mutants; ends the process."""
    import pytest

    def tell(number: int, outcome: str, test: str = "") -> None:
        os.write(writer, f"{number}\t{outcome}\t{' '.join(test.split())}\n".encode())

    session = Session(path, root, waiting, tell)
    os.chdir(root)
    words = ["-p", "no:cacheprovider", "-o", "tmp_path_retention_policy=none", "-m", "not slow"]
    with tempfile.TemporaryDirectory(prefix="mutate-") as own:  # others remove what pytest shares
        try:
            code = pytest.main([*words, f"--basetemp={own}/tests", *tests], plugins=[session])
        except BaseException as error:
            tell(0, "broken", f"{type(error).__name__}: {error}")
            code = 0
    if code and not session.began:
        tell(0, "broken", f"pytest ends with {code} before any test: {' '.join(tests)}")
    os._exit(0)


class Session:
    """A plugin of pytest that runs the tests once as they are, then some of them per mutant."""

    def __init__(
        self,
        path: Path,
        root: Path,
        waiting: Sequence[Mutant],
        tell: Callable[..., None],
    ) -> None:
        self._path, self._root, self._waiting, self._tell = path, root, waiting, tell
        self._name = ".".join(path.relative_to(root).with_suffix("").parts)
        self._name = self._name.removesuffix(".__init__")
        self._lines: set[int] = set()
        self._failed, self.began = "", False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants instead of running the tests."""
        self.began = True
        reached = self._reached(session.items)
        if reached is None:
            return True
        mutants = Mutants(self._path.read_text(encoding="utf-8"), str(self._path))
        gc.collect()
        gc.freeze()
        for mutant in self._waiting:
            tests = _tests_of(mutant, reached)
            if not tests:
                self._tell(mutant.number, UNREACHED)
                continue
            code = mutants.code(mutant.number)
            self._tell(mutant.number, *self._verdict(mutant, code, tests))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep how a test failed."""
        if report.failed:
            self._failed = str(report.longrepr) or "failed"

    def _failure(self, item: Any) -> str:
        """Run a test with fixtures of its own; how it failed, or nothing."""
        self._failed = ""
        item._initrequest()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self._failed

    def _reached(self, items: Sequence[pytest.Item]) -> dict[int, list[Any]] | None:
        """By line, the tests that reach it, with their seconds; by 0, those that reach any."""
        found: dict[int, list[Any]] = defaultdict(list)
        _with_few_examples(items)
        for item in items:
            self._lines = set()
            begun = time.process_time()
            with self._traced():
                failed = self._failure(item)
            if failed:
                self._tell(0, "broken", f"{item.nodeid} fails as it is: {failed[-300:]}")
                return None
            taken = time.process_time() - begun
            for line in {0, *self._lines} if self._lines else ():
                found[line].append((taken, item))
        if not found:
            self._tell(0, "broken", "no test reaches it; is what they need installed?")
            return None
        return found

    @contextmanager
    def _traced(self) -> Iterator[None]:
        """Note which lines of the module run."""
        place, lines = str(self._path), self._lines

        def within(frame: FrameType, event: str, argument: object) -> Any:
            lines.add(frame.f_lineno)
            return within

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            return within if frame.f_code.co_filename == place else None

        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)

    def _verdict(
        self, mutant: Mutant, code: Any, tests: Sequence[tuple[float, Any]]
    ) -> tuple[str, str]:
        seconds = LEAST_SECONDS + TIMES_LONGER * sum(taken for taken, _ in tests)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            self._try(mutant, code, [item for _, item in tests], seconds=seconds, writer=writer)
        os.close(writer)
        test = _all_of(reader)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGALRM):
            return ENDLESS, ""
        if status:
            return KILLED, test or "the process ended"
        return SURVIVED, ""

    def _try(
        self, mutant: Mutant, code: Any, items: Sequence[Any], *, seconds: float, writer: int
    ) -> NoReturn:
        """Be the process that has the mistake: ends with 1 at the first test that fails."""
        for number in (signal.SIGALRM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, hard))
        signal.alarm(int(seconds) * 20)
        try:
            transplant(sys.modules[self._name], code, root=self._root, inside=mutant.inside)
        except BaseException as error:
            _end(writer, f"import: {type(error).__name__}")
        for item in items:
            if self._failure(item):
                _end(writer, item.nodeid)
        os._exit(0)


def _with_few_examples(items: Sequence[Any]) -> None:
    """Properties are tried on the same examples every time; failing ones are not made smaller."""
    if "hypothesis" not in sys.modules:
        return
    from hypothesis import Phase, settings

    own = {"database": None, "derandomize": True, "phases": (Phase.explicit, Phase.generate)}
    for item in items:
        before = getattr(item.obj, "_hypothesis_internal_use_settings", None)
        if before is not None:
            few = min(before.max_examples, EXAMPLES)
            item.obj._hypothesis_internal_use_settings = settings(before, max_examples=few, **own)


def _tests_of(mutant: Mutant, reached: dict[int, list[Any]]) -> list[Any]:
    """The tests that may notice it, with their seconds: the quickest, as many as there is time."""
    first, last = mutant.lines if mutant.inside else (0, 0)
    found = {item: taken for n in range(first, last + 1) for taken, item in reached.get(n, ())}
    tests = sorted(((taken, item) for item, taken in found.items()), key=lambda one: one[0])
    until = itertools.accumulate(taken for taken, _ in tests)
    return [test for test, total in zip(tests, until, strict=True) if total < BUDGET] or tests[:1]


def _end(writer: int, what: str) -> NoReturn:
    os.write(writer, what.encode())
    os._exit(1)


def _all_of(reader: int) -> str:
    with os.fdopen(reader, encoding="utf-8") as file:
        return file.read()
