"""Pages of the reference, from what stands in the source: docstrings, signatures, and the
comments behind parameters and fields (docments). Modules are read, not imported.

fastcore.docments reads functions at run time and no fields of pydantic models; `Config`, the
longest table of all, is one. So comments are read here."""

import ast
import copy
import io
import re
import tokenize
from collections.abc import Callable
from pathlib import Path

from notebooks import mark, targets

Comments = dict[int, str]  # row -> comment that ends it
Function = ast.FunctionDef | ast.AsyncFunctionDef
CODE = re.compile(r'(``.*?``|`[^`\n]*`)', re.DOTALL)
SPECIAL = re.compile(r'([\\*_\[\]<>$|{}#])')
RAISES = re.compile(r'(?:^|(?<=[.:;] )|(?<=\n))Raises\s+(.*?\.)(?=\s|$)', re.DOTALL)


class Module:
    "A module of the package as its source says it."

    def __init__(self, path: Path) -> None:
        self.title = path.stem
        self.name = f'dcwh.{path.stem}'
        self.source = path.read_text(encoding='utf-8')
        self.tree = ast.parse(self.source)
        self.comments = comments_of(self.source)
        self.summary = ast.get_docstring(self.tree) or ''
        self.notebook = next(iter(re.findall(r'File to edit: \.\./(\S+\.ipynb)', self.source)), '')
        self.values = {name: node for node in self.tree.body for name in targets(node)}
        self.aliases = {
            name: node.value.slice.elts[0]
            for name, node in self.values.items()
            if isinstance(node.value, ast.Subscript)
            and ast.unparse(node.value.value) == 'Annotated'
        }
        public = self.values.get('__all__')
        self.public = ast.literal_eval(public.value) if public else []

    def definitions(self) -> dict[str, ast.stmt]:
        "Public names with what defines them, in the order of the source."
        found = {}  # of overloads, the last is the definition
        for node in self.tree.body:
            names = [node.name] if hasattr(node, 'name') else targets(node)
            found |= {name: node for name in names if name in self.public}
        return found

    def type_of(self, annotation: ast.expr | None) -> str:
        "A type as one reads it: without the limits of Annotated, aliases of it resolved."
        if annotation is None:
            return ''
        return ast.unparse(Plain(self.aliases).visit(copy.deepcopy(annotation)))


class Plain(ast.NodeTransformer):
    "Annotated[X, ...] becomes X."

    def __init__(self, aliases: dict[str, ast.expr]) -> None:
        self.aliases = aliases

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if ast.unparse(node.value) == 'Annotated':
            return self.visit(node.slice.elts[0])
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.visit(copy.deepcopy(self.aliases[node.id])) if node.id in self.aliases else node


def comments_of(source: str) -> Comments:
    "The comment of each row, without those for tools."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}
    return {row: text for row, text in said.items() if not re.match(r'type:|noqa|%%', text)}


def prose(text: str) -> str:
    "A docstring as Markdown: code stays code, an indented block becomes one, all else is text."
    blocks = []
    for block in filter(None, re.split(r'\n\s*\n', text.strip())):
        if all(line.startswith('    ') for line in block.splitlines()):
            blocks.append('```python\n' + '\n'.join(x[4:] for x in block.splitlines()) + '\n```')
        else:
            blocks.append(escaped(re.sub(r'::$', ':', block)))
    return '\n\n'.join(blocks)


def escaped(text: str) -> str:
    "Text in which only backticks mean something."
    parts = CODE.split(text)
    return ''.join(part if n % 2 else SPECIAL.sub(r'\\\1', part) for n, part in enumerate(parts))


def documentation(docstring: str | None) -> tuple[str, str]:
    "What a docstring says, and apart from it what is raised."
    text = docstring or ''
    raised = ' '.join(' '.join(found.split()) for found in RAISES.findall(text))
    return prose(RAISES.sub('', text)), f'**Raises** {escaped(raised)}' if raised else ''


def first_sentence(docstring: str | None) -> str:
    "Of a docstring, in one line."
    text = ' '.join((docstring or '').split('\n\n')[0].split())
    return escaped(re.split(r'(?<=[a-z)`])\. (?=[A-Z])', text)[0].rstrip('.'))


def code(text: str) -> str:
    "In a cell of a table."
    return f'`{text}`'.replace('|', '\\|') if text else ''


def rows_table(head: list[str], rows: list[list[str]]) -> str:
    "A Markdown table, without columns in which nothing stands."
    kept = [n for n in range(len(head)) if n == 0 or any(row[n] for row in rows)]
    lines = [[line[n] for n in kept] for line in (head, ['---'] * len(head), *rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def signature(node: Function) -> str:
    "Parameters with their defaults; types stand in the table."
    args = copy.deepcopy(node.args)
    for arg in every(args):
        arg.annotation = None
    names = ast.unparse(args)
    bound = re.match(r'(self|cls)(?:, |$)', names)
    return f'({names[bound.end() :] if bound else names})'


def every(args: ast.arguments) -> list[ast.arg]:
    "Parameters in their order."
    starred = [[arg] if arg else [] for arg in (args.vararg, args.kwarg)]
    return [*args.posonlyargs, *args.args, *starred[0], *args.kwonlyargs, *starred[1]]


def defaults(args: ast.arguments) -> dict[str, str]:
    "The default of each parameter that has one."
    usual = [*args.posonlyargs, *args.args]
    pairs = list(zip(usual[len(usual) - len(args.defaults) :], args.defaults, strict=True))
    pairs += zip(args.kwonlyargs, args.kw_defaults, strict=True)
    return {arg.arg: ast.unparse(value) for arg, value in pairs if value}


def parameters(node: Function, module: Module) -> str:
    "The table of parameters, and what comes back."
    default, rows = defaults(node.args), []
    stars = {id(node.args.vararg): '*', id(node.args.kwarg): '**'}
    last = {arg.end_lineno: arg for arg in every(node.args)}  # a comment is of the last in its row
    for arg in every(node.args):
        if arg.arg in ('self', 'cls'):
            continue
        said = module.comments.get(arg.end_lineno, '') if last[arg.end_lineno] is arg else ''
        name = code(stars.get(id(arg), '') + arg.arg)
        kind = code(module.type_of(arg.annotation))
        rows.append([name, kind, code(default.get(arg.arg, '')), escaped(said)])
    text = rows_table(['parameter', 'type', 'default', 'meaning'], rows) if rows else ''
    if node.returns is not None and ast.unparse(node.returns) not in ('None', 'NoReturn'):
        said = module.comments.get(node.returns.end_lineno, '')
        text += f'\n\n**Returns** `{module.type_of(node.returns)}`'
        text += f', {escaped(said)}' * bool(said)
    return text


def fields(node: ast.ClassDef, module: Module) -> str:
    "The table of the fields that a class declares."
    rows = [
        [
            code(ast.unparse(field.target)),
            code(module.type_of(field.annotation)),
            code(ast.unparse(field.value) if field.value else ''),
            escaped(module.comments.get(field.end_lineno, '')),
        ]
        for field in node.body
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith('_')
    ]
    return rows_table(['field', 'type', 'default', 'meaning'], rows) if rows else ''


def directive(kind: str, name: str, body: str, options: str = '', fence: int = 4) -> str:
    "A definition of Sphinx's Python domain."
    return f'{":" * fence}{{py:{kind}}} {name}\n{options}\n{body.strip()}\n{":" * fence}\n'


def function(node: Function, module: Module, kind: str = 'function', fence: int = 4) -> str:
    "A function or method: what it does, its parameters, what it gives and raises."
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    options = ''.join(f':{mark}:\n' for mark in ('classmethod', 'staticmethod') if mark in marks)
    said, raised = documentation(ast.get_docstring(node))
    body = '\n\n'.join([said, parameters(node, module), raised])
    name = node.name + signature(node)
    if any(mark.endswith('property') for mark in marks):
        kind, name, options = 'property', node.name, ''
    return directive(kind, name, body, options, fence)


def members(node: ast.ClassDef) -> list[Function]:
    "Public methods and properties, without overloads and setters."
    return [
        item
        for item in node.body
        if isinstance(item, Function)
        and not item.name.startswith('_')
        and not any(
            'overload' in ast.unparse(m) or '.setter' in ast.unparse(m) for m in item.decorator_list
        )
    ]


def class_(node: ast.ClassDef, module: Module) -> str:
    "A class: how one is made, its fields, its methods."
    made = next((i for i in node.body if isinstance(i, Function) and i.name == '__init__'), None)
    bases = ', '.join(f'`{ast.unparse(base)}`' for base in node.bases)
    said, raised = documentation(ast.get_docstring(node))
    parts = [
        said,
        f'Bases: {bases}' if bases else '',
        parameters(made, module) if made else '',
        raised,
        fields(node, module),
        *(function(item, module, 'method', fence=4) for item in members(node)),
    ]
    name = node.name + (signature(made) if made else '')
    return directive('class', name, '\n\n'.join(filter(None, parts)), fence=5)


def value(name: str, node: ast.Assign | ast.AnnAssign, module: Module) -> str:
    "A constant: what it is, if that is short."
    said = module.comments.get(node.end_lineno, '') or module.comments.get(node.lineno, '')
    shown = ast.unparse(node.value)
    if isinstance(node.value, ast.Tuple) and len(targets(node)) > 1:
        shown = ast.unparse(node.value.elts[targets(node).index(name)])
    options = f':value: {shown}\n' if len(shown) <= 80 else ''
    return directive('data', name, escaped(said), options)


def definition(name: str, node: ast.stmt, module: Module) -> str:
    "A public name, and where its source is."
    if isinstance(node, ast.ClassDef):
        text = class_(node, module)
    elif isinstance(node, Function):
        text = function(node, module)
    else:
        return value(name, node, module)
    source = mark(f'{module.name}.{name}')
    return text + f'\n{{.source}}\n[Source and tests](#{source})\n'


def module_page(module: Module, place: Callable[[str], str]) -> str:
    "The page of one module; `place` tells the page of its notebook."
    parts = [
        f'# {module.name}',
        f'> {escaped(module.summary)}',
        f'Written from the notebook [{Path(module.notebook).stem}](../{place(module.notebook)}).',
        f'```{{py:currentmodule}} {module.name}\n```',
        *(definition(name, node, module) for name, node in module.definitions().items()),
    ]
    return '\n\n'.join(parts) + '\n'


def commands_page() -> str:
    "The page of the command line: each command with its arguments and options."
    import typer

    from dcwh.cli import app

    parts = ['# Command line', '> All commands of `dcwh`, with what they take.']

    def tell(command, name: str, depth: int) -> None:
        if hasattr(command, 'commands'):
            if depth:
                parts.extend([f'{"#" * (depth + 1)} {name}', help_text(command.help or '')])
            for word, inner in command.commands.items():
                tell(inner, f'{name} {word}', depth + 1)
            return
        rows = [option_row(option) for option in command.params if not option.hidden]
        parts.extend([f'{"#" * (depth + 1)} {name}', help_text(command.help or '')])
        parts.append(rows_table(['name', 'kind', 'default', 'meaning'], rows))

    tell(typer.main.get_command(app), 'dcwh', 0)
    parts.append('Written from the notebook [23_cli](../notebooks/23_cli.ipynb).')
    return '\n\n'.join(parts) + '\n'


def help_text(text: str) -> str:
    "The help of a command; paragraphs that keep their lines, after a backspace, are examples."
    shown = []
    for block in text.split('\n\n'):
        lines = block.strip().splitlines()
        if lines and lines[0] == '\b':
            shown.append('\n'.join(['```sh', *lines[1:], '```']))
        else:
            shown.append(prose(' '.join(block.split())))
    return '\n\n'.join(shown)


def option_row(option) -> list[str]:
    "An argument or option of a command."
    words = [*option.opts, *option.secondary_opts]
    kind = 'option' if words[0].startswith('-') else 'argument'
    kind = 'flag' if getattr(option, 'is_flag', False) else kind
    default = '' if option.default in (None, '') or kind == 'flag' else str(option.default)
    said = ' '.join((option.help or '').split())
    needed = ', required' * bool(option.required)
    return [', '.join(map(code, words)), kind + needed, code(default), escaped(said)]


def modules(package: Path) -> list[Module]:
    "All modules that notebooks export, in the order of the notebooks."
    found = [Module(path) for path in sorted(package.glob('[a-z]*.py'))]
    kept = [m for m in found if m.notebook and m.title != 'cli']  # commands have a page of theirs
    return sorted(kept, key=lambda m: m.notebook)


def overview_page(package: Path) -> str:
    "The front of the reference: public names, then modules."
    homes = next(
        ast.literal_eval(node.value)
        for node in ast.parse((package / '__init__.py').read_text(encoding='utf-8')).body
        if targets(node) == ['_HOMES']
    )
    known = {module.title: module for module in modules(package)}
    names = []
    for name, home in homes.items():
        node = known[home].definitions()[name]
        said = first_sentence(ast.get_docstring(node)) if hasattr(node, 'body') else ''
        said = said or escaped(known[home].comments.get(node.lineno, ''))
        names.append([f'[`dcwh.{name}`](#dcwh.{home}.{name})', said])
    files = [[f'[{n}]({n}.md)', escaped(module.summary)] for n, module in known.items()]
    return OVERVIEW.format(
        names=rows_table(['name', 'what it is'], names),
        modules=rows_table(['module', 'what it is about'], files),
        pages='\n'.join(['commands', *known]),
    )


OVERVIEW = """# Reference

> Every public name, with its parameters, what it gives and what it raises.

## Public names

`import dcwh` gives you these names. They are the API. Everything else may change.

{names}

## From a shell

[Command line](commands.md): all commands of `dcwh`.

## Modules

Each is written from one notebook.

{modules}

```{{toctree}}
:hidden:

{pages}
```
"""
