"""A federation of hospitals on Flower, with certificates, keys and a proxy; docs/deployment.md.

at the server:
    federation.py init FOLDER --host fl.hospital.org        certificates and keys, once
    federation.py add-site FOLDER north                     a folder to hand to the site
    federation.py start-server FOLDER                       SuperLink on loopback, nginx before it
    federation.py run FOLDER "method='fednml' clients=3"    a run, with its log
at a site:
    federation.py start-site FOLDER --name north --server fl.hospital.org:8443 --data-dir /data
at both:
    federation.py stop FOLDER                               ends all, checks that nothing is left

Nothing that exists is overwritten. Linux only. Exit codes: 0 done, 1 something goes on running or
the run has failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.federation_code import processes, server, site
from utils_.errors import UserError, nearest
from utils_.script import Parser, end_with, exit_code
from utils_.side_by_side import signals_interrupt

DONE, LEFT = 0, 1
FOLDERS, NUMBERS = ("state-dir", "cache-dir"), ("worker-idle", "fewest-cases")
TEXTS = ("device", "ignore-columns", "label-format", "uncertain", "combine")
SWITCHES = ("skip-bad-images", "allow-duplicates")
NODE_SETTINGS = (*FOLDERS, *NUMBERS, *TEXTS, *SWITCHES)


def main(words: Sequence[str] | None = None) -> int:
    """Do one command; return the exit code."""
    given = sys.argv[1:] if words is None else words
    return exit_code(lambda: _run(given), name="federation", interrupted="see stop")


def _run(words: Sequence[str]) -> int:
    options = build_federation_parser().parse_args(words)
    work: Callable[[argparse.Namespace], int] = options.work
    try:
        return work(options)
    except OSError as error:
        raise UserError(f"{error.filename or 'federation'}: {error.strerror or error}") from error


def build_federation_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=raw, prog="federation.py")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, work: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        first = (work.__doc__ or "").splitlines()[0]
        made = commands.add_parser(name, help=first, description=first)
        made.add_argument("folder", type=Path, metavar="FOLDER", help="of the server or the site")
        made.set_defaults(work=lambda options: processes.refuse_other_systems() or work(options))
        return made

    for name, work in (("init", _init), ("renew", _renew)):
        add = command(name, work).add_argument
        add(
            "--host",
            action="append",
            required=True,
            metavar="NAME",
            help="or address; may be repeated",
        )
        add("--days", type=int, default=365, help="that the server's certificate holds (365)")
    _site_commands(command)
    _server_options(command("start-server", _start_server).add_argument)
    _site_options(command("start-site", _start_site).add_argument)
    add = command("run", _start_run).add_argument
    add("settings", nargs="?", default="", metavar="SETTINGS", help="as of flwr run --run-config")
    command("status", _status)
    add = commands.add_parser("leaves", help=_leaves.__doc__, description=_leaves.__doc__)
    add.add_argument("--model", default="resnet18", help="the backbone (resnet18)")
    add.add_argument("--classes", type=int, default=20, help="how many (20)")
    add.set_defaults(work=_leaves)
    command("stop", _stop)
    return parser


def _site_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    add = command("add-site", _add_site).add_argument
    add("name", metavar="NAME", help="of the site")
    add("--public-key", type=Path, metavar="FILE", help="site.pub that the site made with new-key")
    command("remove-site", _remove_site).add_argument("name", metavar="NAME", help="of the site")
    command("new-key", _new_key)


def _server_options(add: Callable[..., argparse.Action]) -> None:
    add("--port", type=int, default=8000, help="of SuperLink, on loopback (8000)")
    add("--listen", metavar="ADDRESS", help="of this machine, for the proxy (all of them)")
    add("--proxy-port", type=int, default=8443, help="that sites reach (8443)")
    add("--most-mb", type=int, default=32, help="largest body of a request, in MB (32)")
    add("--without-proxy", action="store_true", help="another one is set up, see nginx.conf")
    add("--insecure", action="store_true", help="no keys, no TLS, no proxy: loopback only")
    add("--wait", action="store_true", help="stay until it ends, or is ended; then end all")


def _site_options(add: Callable[..., argparse.Action]) -> None:
    add("--name", required=True, help="of the site, as the server has added it")
    add("--server", required=True, metavar="HOST:PORT", help="of the proxy")
    add("--data-dir", required=True, metavar="DIR", help="the site's images and label files")
    for name in (*FOLDERS, *TEXTS):
        add(f"--{name}", metavar="VALUE", help="of the node, see docs/deployment.md")
    for name in NUMBERS:
        add(f"--{name}", type=int, metavar="N", help="of the node, see docs/deployment.md")
    for name in SWITCHES:
        add(f"--{name}", action="store_true", help="as on the command line of the main job")
    add("--port", type=int, help="of the SuperNode on loopback (a free one)")
    add("--insecure", action="store_true", help="no key, no TLS: loopback only")
    add("--wait", action="store_true", help="stay until it ends, or is ended; then end all")


def _init(options: argparse.Namespace) -> int:
    """make certificates and keys of a federation, once"""
    server.make_server(options.folder, options.host, days=_days(options.days))
    print(f"{options.folder}: made; keep ca.key and code.key in a backup, and show them to nobody")
    return DONE


def _renew(options: argparse.Namespace) -> int:
    """make a new certificate of the server by the same authority; sites change nothing"""
    server.renew_certificate(options.folder, options.host, days=_days(options.days))
    print(f"{options.folder}: renewed; it holds from the next start-server on")
    return DONE


def _days(days: int) -> int:
    if not 1 <= days <= 3650:
        raise UserError(f"--days {days}: give a number from 1 to 3650")
    return days


def _add_site(options: argparse.Namespace) -> int:
    """make the folder that a site is given, and register its key; no other site is touched"""
    place = server.add_site(options.folder, options.name, options.public_key)
    runs = processes.running(options.folder, server.SUPERLINK)
    print(f"{place}: hand it to {options.name} by a way that nobody else can read")
    print("its key is registered" if runs else "its key is registered when the server starts")
    return DONE


def _remove_site(options: argparse.Namespace) -> int:
    """have the server forget a site's key"""
    server.remove_site(options.folder, options.name)
    print(f"{options.name}: removed; it takes part in nothing from now on")
    return DONE


def _new_key(options: argparse.Namespace) -> int:
    """make a site's key at the site, so that it never leaves it"""
    site.make_site(options.folder)
    print(f"{options.folder / 'site.pub'}: send it to the server; site.key stays here")
    return DONE


def _start_server(options: argparse.Namespace) -> int:
    """start SuperLink and the proxy, and register all sites"""
    return _started(options, lambda: _begin_server(options))


def _begin_server(options: argparse.Namespace) -> None:
    server.start_server(
        options.folder,
        port=options.port,
        listen=options.listen or ("127.0.0.1" if options.insecure else "0.0.0.0"),
        proxy_port=options.proxy_port,
        most_mb=options.most_mb,
        with_proxy=not options.without_proxy,
        insecure=options.insecure,
    )
    at = options.port if options.without_proxy or options.insecure else options.proxy_port
    print(f"the server is up on port {at}; logs in {options.folder / 'logs'}", flush=True)


def _start_site(options: argparse.Namespace) -> int:
    """start a site's SuperNode"""
    return _started(options, lambda: _begin_site(options))


def _begin_site(options: argparse.Namespace) -> None:
    settings: dict[str, str | int] = {"data-dir": str(Path(options.data_dir).resolve())}
    for name in NODE_SETTINGS:
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value is not False:
            settings[name] = str(Path(value).resolve()) if name in FOLDERS else value
    said = site.start_site(
        options.folder,
        options.name,
        server=options.server,
        settings=settings,
        port=options.port,
        insecure=options.insecure,
    )
    print(f"site {options.name}: {said}", flush=True)


def _started(options: argparse.Namespace, begin: Callable[[], None]) -> int:
    """Begin; with ``--wait`` stay until a part ends. What was begun in vain is ended."""
    signals_interrupt()
    before = processes.running(options.folder)
    try:
        begin()
        if not options.wait:
            return DONE
        parts = processes.parts(options.folder)
        while processes.parts(options.folder) >= parts:
            time.sleep(1)
        print(f"{options.folder}: a part has ended; see its logs", file=sys.stderr)
    except BaseException:
        if not before:
            processes.end_all(options.folder)
        raise
    processes.end_all(options.folder)
    return LEFT


def _start_run(options: argparse.Namespace) -> int:
    """start a run and show its log"""
    from scripts.federation_code.runs import run_to_its_end

    return run_to_its_end(options.folder, options.settings)


def _status(options: argparse.Namespace) -> int:
    """what runs of a folder"""
    parts = processes.parts(options.folder)
    print(f"running: {', '.join(sorted(parts))}" if parts else "nothing runs")
    return DONE


def _leaves(options: argparse.Namespace) -> int:
    """say what leaves a site in every round, by method"""
    from scripts.federation_code.privacy import tables  # torch comes with it
    from src.models import MODELS

    if options.model not in MODELS:
        raise UserError(f"--model {options.model}: {nearest(options.model, MODELS)}")
    if not 1 <= options.classes <= 1000:
        raise UserError(f"--classes {options.classes}: give a number from 1 to 1000")
    print(tables(options.model, options.classes), end="")
    return DONE


def _stop(options: argparse.Namespace) -> int:
    """end all that was started from a folder, and check that nothing is left"""
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder")
    left = processes.end_all(options.folder)
    if left:
        print(f"{options.folder}: goes on running: {left}; end these by hand", file=sys.stderr)
        return LEFT
    print(f"{options.folder}: nothing runs")
    return DONE


if __name__ == "__main__":
    end_with(main)
