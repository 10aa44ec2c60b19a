"""Run a command on GPUs that no other such command uses.

    python workflow/on_gpu.py 1 dcwh run --bits 48
    python workflow/on_gpu.py 2 accelerate launch --num_processes 2 -m dcwh run --bits 48

The command sees its own GPUs only: CUDA_VISIBLE_DEVICES names them. They are chosen from those in
CUDA_VISIBLE_DEVICES where it is set, as Slurm does, and from all GPUs where it is not. Each GPU has
a file with a lock on it (flock). The kernel takes the lock away when the last process of the
command has ended, also after a kill. Where too few are free, the command waits. With 0 GPUs it
simply runs.
"""

import fcntl
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cards() -> dict[str, str]:
    "The GPUs of this machine, index -> UUID, as nvidia-smi tells."
    command = ['nvidia-smi', '--query-gpu=index,uuid', '--format=csv,noheader']
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    pairs = [line.split(', ') for line in said.splitlines()]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def counted() -> list[str]:
    "Indices of the GPUs that torch finds, where there is no nvidia-smi."
    try:
        import torch
    except ImportError:
        return []
    return [str(index) for index in range(torch.cuda.device_count())]


def devices(known: dict[str, str]) -> list[str]:
    "Names of the GPUs that may be used: indices, UUIDs, or parts of a GPU (MIG)."
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    if given is None:
        return list(known) or counted()
    names = [name.strip() for name in given.split(',')]
    for number, name in enumerate(names):
        if not name or name in ('-1', 'NoDevFiles'):  # CUDA looks no further
            names = names[:number]
            break
    return list(dict.fromkeys(names))


def lock_of(device: str, known: dict[str, str]) -> str:
    "Name of the file that stands for a GPU, whether it was named by index or by UUID."
    for index, uuid in known.items():
        if device == index or device.startswith('GPU-') and uuid.startswith(device):
            return uuid
    job = os.environ.get('SLURM_JOB_ID', 'all')  # each job of Slurm counts its GPUs from 0
    return f'{job}-{device}'.replace('/', '_')


def place_of_locks() -> Path:
    "The folder of the locks, one for each user of this machine."
    folder = Path(tempfile.gettempdir()) / f'dcwh-gpus-{os.getuid()}'
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def locked(file: Path) -> int | None:
    "A descriptor that holds the lock of a file; None if somebody else holds it."
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def take(files: dict[str, Path], count: int) -> dict[str, int]:
    "So many free GPUs with the descriptors of their locks; none at all if there are fewer."
    held = {}
    for device, file in files.items():
        descriptor = locked(file)
        if descriptor is not None:
            held[device] = descriptor
        if len(held) == count:
            return held
    for descriptor in held.values():
        os.close(descriptor)
    return {}


def wait_for(count: int) -> dict[str, int]:
    "As `take`, as soon as so many are free. Raises ValueError where there never will be."
    known = cards()
    names = devices(known)
    if len(names) < count:
        there = f'those there are: {", ".join(names)}' if names else 'there is none here'
        given = os.environ.get('CUDA_VISIBLE_DEVICES')
        seen = '' if given is None else f' (CUDA_VISIBLE_DEVICES is {given!r})'
        raise ValueError(
            f'a run asks for {count} GPU, and {there}{seen}; '
            'without one, say gpu: 0 in the grid file (--config gpu=0)'
        )
    folder = place_of_locks()
    files = {name: folder / lock_of(name, known) for name in names}
    held = take(files, count)
    if not held:
        print(f'waiting for {count} of the GPUs {", ".join(names)}', file=sys.stderr)
    while not held:
        time.sleep(random.uniform(0.5, 1.5))  # two that wait for two each do not move in step
        held = take(files, count)
    return held


def main(words: list[str]) -> None:
    "Take GPUs and become the command. Raises ValueError or OSError."
    if len(words) < 2 or not words[0].isdecimal():
        raise ValueError('give a number of GPUs and a command, such as: on_gpu.py 1 dcwh run')
    count, command = int(words[0]), words[1:]
    held = wait_for(count) if count else {}
    for descriptor in held.values():
        os.set_inheritable(descriptor, True)
    if held:
        os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(held)
    os.execvp(command[0], command)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f'on_gpu: {error}')
    except KeyboardInterrupt:  # while it waits; the command has one of its own
        print('on_gpu: stopped', file=sys.stderr)
        sys.exit(130)
