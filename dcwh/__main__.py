"""`python -m dcwh` is the command `dcwh`, for launchers that start modules."""

from .cli import app

if __name__ == '__main__':
    app(prog_name='dcwh')
