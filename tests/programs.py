"""The programs `dcwh` and `python -m …`, and the kernel of reports, that begin with everything
imported.

What a test or a notebook starts by name takes five seconds to import torch, pandas and seaborn.
`folder()` is a folder with programs of the same names, for the PATH. Each is a small script that
asks a server for a fork of itself, hands over its words, folder, environment and files, passes
signals on, and ends as the fork does. Where no server answers, or PYTHONPATH is another, it becomes
the real program. What a fresh process imports is tested with a fresh one."""

import atexit
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import cache
from multiprocessing import (
    current_process,
    get_all_start_methods,
    get_context,
    parent_process,
    set_start_method,
)
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread

REAL = Path(sys.executable).parent
FORWARDED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

CLIENT = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
asked = socket.socket(socket.AF_UNIX)
try:
    if name == 'python' and words[:1] != ['-m']:
        raise OSError('no module')
    if os.environ.get('PYTHONPATH') != {os.environ.get('PYTHONPATH')!r}:
        raise OSError('other modules')
    asked.connect(os.path.join(os.path.dirname(sys.argv[0]), 'socket'))
except OSError:
    real = os.path.join({str(REAL)!r}, name)
    os.execv(real, [real, *words])
given = {{'words': sys.argv, 'folder': os.getcwd(), 'env': dict(os.environ)}}
socket.send_fds(asked, [b'.'], [0, 1, 2])
asked.sendall(json.dumps(given).encode() + b'\\n')
answers = asked.makefile()
fork = int(answers.readline() or 0)
last = signal.SIGKILL
def pass_on(number, frame):
    global last
    last = number
    os.kill(fork, number)
for number in {[int(number) for number in FORWARDED]}:
    signal.signal(number, pass_on)
code = int(answers.readline() or -last)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def folder() -> Path:
    "A folder with the programs, and with the kernel's specification, as PATH and JUPYTER_PATH."
    place = Path(tempfile.mkdtemp(prefix='programs'))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for name in ('python', 'dcwh'):
        (place / name).write_text(CLIENT)
        (place / name).chmod(0o755)
    kernel = place / 'kernels/python3/kernel.json'
    kernel.parent.mkdir(parents=True)
    words = [str(place / 'python'), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    kernel.write_text(json.dumps({'argv': words, 'display_name': 'python3', 'language': 'python'}))
    return place


@cache
def start() -> None:
    "The server, for as long as this process is there."
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder() / 'socket'))
    server.listen(64)
    process = get_context('forkserver').Process(target=serve, args=(server,), daemon=True)
    process.start()
    server.close()


def serve(server: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no fork is waited for
    while server in wait([server, parent_process().sentinel]):
        asked = server.accept()[0]
        if not os.fork():
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            fork(asked)
        asked.close()


def fork(asked: socket.socket) -> None:
    "One program, to its end."
    code = 1
    try:
        files = socket.recv_fds(asked, 1, 3)[1]
        given = json.loads(asked.makefile().readline())
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        asked.sendall(f'{os.getpid()}\n'.encode())
        Thread(target=end_with, args=(asked,), daemon=True).start()
        code = program(**given)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):  # it may be closed
            stream.flush()
    asked.sendall(f'{code}\n'.encode())
    os._exit(code % 256)


def end_with(asked: socket.socket) -> None:
    "Who asked is gone, as when it was killed."
    if not asked.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


def program(words: list[str], folder: str, env: dict[str, str]) -> int:
    "What the program of this name does in a process of its own; the code that it ends with."
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    as_begun(words)
    try:
        if words[0].endswith('dcwh'):
            from dcwh.cli import app

            app()
        else:
            runpy.run_module(words[2], run_name='__main__', alter_sys=True)
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exc()
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    finally:
        atexit._run_exitfuncs()


def as_begun(words: list[str]) -> None:
    "What a process has at its beginning, and a fork of a server has not."
    current_process()._config['daemon'] = False  # it may have children
    set_start_method(get_all_start_methods()[0], force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, 'w', 1 if os.isatty(1) else -1)
    sys.stderr = os.fdopen(2, 'w', 1, errors='backslashreplace')
    sys.executable = str(Path(words[0]).with_name('python'))
    of_tests = '', str(Path(__file__).parent)
    first = REAL if words[0].endswith('dcwh') else Path.cwd()
    sys.path[:] = [str(first), *(place for place in sys.path if place not in of_tests)]
    sys.argv = words if words[0].endswith('dcwh') else words[2:]
    if 'ipykernel_launcher' in sys.argv:
        import matplotlib

        matplotlib.rcParams['backend'] = 'module://matplotlib_inline.backend_inline'
        sys.modules.pop(
            'matplotlib_inline.backend_inline', None
        )  # shows figures from its import on
