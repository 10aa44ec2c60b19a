"""The programs `dcwh`, `python -m …` and `python -c …`, and the kernel of reports, that begin with
everything imported.

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
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from threading import Thread, Timer

sys.modules['rfc3987_syntax'] = None  # jsonschema takes it where it is there; a second to import
IMPORTED = (
    *('torch._dynamo', 'torchvision', 'accelerate', 'numba', 'pandas', 'seaborn'),
    *('sklearn.datasets', 'sklearn.manifold', 'nbformat', 'nbdev.test', 'torchmetrics'),
    *('dcwh.cli', 'dcwh.experiment', 'dcwh.search', 'dcwh.sources', 'ipykernel.kernelapp'),
    *('pytest', 'timm'),
)
REAL = Path(sys.executable).parent
FORWARDED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

CLIENT = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
asked = socket.socket(socket.AF_UNIX)
try:
    if name == 'python' and words[:1] not in (['-m'], ['-c']):
        raise OSError('no module, no piece of code')
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
def start() -> Popen:
    "The server, for as long as this process is there."
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder() / 'socket'))
        server.listen(64)
        words = [sys.executable, __file__, str(server.fileno())]
        return Popen(words, stdin=PIPE, pass_fds=[server.fileno()])


class Python(Popen):
    "A process that runs a piece of code, as `python -c` does; stdout has stderr, too."

    def __init__(self, code, *args):
        start()
        words = [folder() / 'python', '-c', code, *map(str, args)]
        super().__init__(words, text=True, stdin=PIPE, stdout=PIPE, stderr=STDOUT)

    def end(self, limit=900):
        """The exit code, and what was said since it was last read; a signal is negative.

        What runs for more than `limit` seconds is killed."""
        self.stdin.close()
        timer = Timer(limit, self.kill)
        timer.daemon = True
        timer.start()
        with self.stdout:
            said = self.stdout.read()
        timer.cancel()
        return self.wait(), said


def free_port() -> int:
    "Of 127.0.0.1."
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def python(code, *args, limit=900):
    "Run a piece of code to its end, or for `limit` seconds: the exit code, and what was said."
    return Python(code, *args).end(limit)


def serve(server: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no fork is waited for
    while server in wait([server, sys.stdin]):
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
            import_module('dcwh.cli').app()
        elif words[1] == '-c':
            exec(words[2], {'__name__': '__main__'})
        else:
            runpy.run_module(words[2], run_name='__main__', alter_sys=True)
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except BaseException as error:
        traceback.print_exc()
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    finally:
        atexit._run_exitfuncs()


def as_begun(words: list[str]) -> None:
    "What a process has at its beginning, and a fork of a server has not."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, 'w', 1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, 'w', 1, errors='backslashreplace', closefd=False)
    sys.executable = str(Path(words[0]).with_name('python'))
    if words[0].endswith('dcwh'):
        sys.path[0], sys.argv = str(REAL), words
    elif words[1] == '-c':
        sys.path[0], sys.argv = '', ['-c', *words[3:]]
    else:
        sys.path[0], sys.argv = os.getcwd(), words[2:]
    if 'ipykernel_launcher' in sys.argv:
        import matplotlib

        matplotlib.rcParams['backend'] = 'module://matplotlib_inline.backend_inline'
        sys.modules.pop(
            'matplotlib_inline.backend_inline', None
        )  # shows figures from its import on


if __name__ == '__main__':
    for name in IMPORTED:
        import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
