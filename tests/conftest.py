"""One thread a process: small networks are not faster on more, and tests that share a machine with other work stay steady."""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
