"""The tables that benchmarks write: whole, after everything is measured, and never a shorter
one."""

import csv
import io
from pathlib import Path

from dcwh.files import write_whole


def write_table(
    file: str | Path,
    lines: list[list],  # the head and the rows
) -> bool:  # whether it is written
    "Write a table. One that is there and has more rows stays; a line on the screen says so."
    file = Path(file)
    if file.is_file() and len(lines) < len(file.read_text(encoding='utf-8').splitlines()):
        print(
            f'{file.name} stays as it is: it has more rows than were measured now; '
            'delete it first if it is to be shorter'
        )
        return False
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(lines)
    write_whole(file, lambda f: f.write(text.getvalue().encode()))
    return True


def most_of(
    words: list[str],  # of the command line: none, or one number
    least: int,  # below it nothing is measured
    most: int,  # where none is said
) -> int:
    "How many codes there are at most. Raises SystemExit with a line for what is no such number."
    text = ''.join(words[:1]) or str(most)
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise SystemExit(f'{text} is no number of codes to measure; give {least} or more')
    return int(text)
