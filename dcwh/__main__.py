"""`python -m dcwh` is the command `dcwh`, for launchers that start modules."""
from .cli import app

app(prog_name='dcwh')
