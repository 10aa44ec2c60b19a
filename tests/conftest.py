"""One thread a process: small networks are not faster on more, and tests that share a machine
with other work stay steady. No folder of decoded images."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('DCWH_CACHE', '')  # nothing is left in the home of whoever runs them
