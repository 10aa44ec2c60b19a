"""Processes of Python that have imported everything when they begin.

A new Python takes five seconds to import torch, pandas and seaborn, and tests start a hundred.
These are forked from a server that has imported what conftest.py lists, and has done nothing else.
"""

import os
import shutil
import sys
from multiprocessing import get_all_start_methods, get_context, set_start_method
from multiprocessing.connection import Connection
from threading import Timer

import programs

processes = get_context('forkserver')


def program(code: str, args: list[str], stdin: Connection, stdout: Connection) -> None:
    "What `python -c` does, in the process of its own."
    os.dup2(stdout.fileno(), 1)
    os.dup2(stdout.fileno(), 2)
    set_start_method(get_all_start_methods()[0], force=True)  # the system's own, not the server's
    sys.argv, sys.executable = ['-c', *args], shutil.which('python')
    sys.stdin = os.fdopen(os.dup(stdin.fileno()))
    exec(code, {'__name__': '__main__'})


class Python:
    "A process that runs a piece of code, as `python -c` does; stdout has stderr, too."

    def __init__(self, code, *args):
        programs.start()
        stdin, write = processes.Pipe(duplex=False)
        read, stdout = processes.Pipe(duplex=False)
        given = code, list(map(str, args)), stdin, stdout
        self.process = processes.Process(target=program, args=given)
        self.process.start()
        stdin.close()
        stdout.close()
        self.stdin = os.fdopen(os.dup(write.fileno()), 'w')
        self.stdout = os.fdopen(os.dup(read.fileno()))
        write.close()
        read.close()

    def kill(self):
        self.process.kill()

    def end(self, limit=None):
        """The exit code, and what was said since it was last read; a signal is negative.

        What runs for more than `limit` seconds is killed."""
        self.stdin.close()
        timer = Timer(limit or 2**20, self.kill)
        timer.daemon = True
        timer.start()
        with self.stdout:
            said = self.stdout.read()
        self.process.join()
        timer.cancel()
        return self.process.exitcode, said


def python(code, *args, limit=None):
    "Run a piece of code to its end, or for `limit` seconds: the exit code, and what was said."
    return Python(code, *args).end(limit)
