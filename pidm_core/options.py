"""Dataclasses of settings from plain values, YAML files and command lines, and back.

The standard library's argparse does the parsing, because the typed-configuration libraries
(jsonargparse, tyro) take 0.4 s to import and `--help` shall answer in under 0.3 s.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pidm_core.files import BAD_DATA, MAX_DEPTH, USAGE, UserError, read_text

T = TypeVar("T")


# ---------------------------------------------------------------- values to dataclasses


def narrowed(cls: type[T], options: Any) -> T:
    """The configuration of class `cls` within a tool's options, which have its fields and more."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return cls(**{field.name: getattr(options, field.name) for field in fields})


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values (tuples become lists)."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def from_dict(cls: type[T], values: dict[str, Any], where: str = "", default: T | None = None) -> T:
    """Build a configuration from a (nested) dict of differences from `default` (that of `cls`);
    unknown keys and wrong types are refused.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}expected names with values")
    hints = typing.get_type_hints(cls)
    given = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}unknown key '{key}'{_suggest(key, list(hints))}")
        if dataclasses.is_dataclass(kind := hints[key]):
            own = _section_default(cls, key) if default is None else getattr(default, key)
            if not isinstance(value, dict):
                raise UserError(f"{where}{key}: expected a section with keys, got {value!r}")
            given[key] = from_dict(
                typing.cast(type[Any], kind), value, f"{where}{key}.", default=own
            )
        else:
            given[key] = _coerce(value, kind, f"{where}{key}")
    try:
        return cls(**given) if default is None else dataclasses.replace(default, **given)  # type: ignore[type-var]
    except TypeError as error:  # a field without a default
        raise UserError(f"{where}{str(error).partition('()')[2].strip()}") from error


def _section_default(cls: type[Any], key: str) -> Any:
    """A section as it is in `cls`, which may differ from its own class (None: without default)."""
    (item,) = (item for item in dataclasses.fields(cls) if item.name == key)
    return None if item.default_factory is dataclasses.MISSING else item.default_factory()


_NOTHING = (None, "null", "none", "None", "~", "")


def _known(kind: Any) -> Any:
    """X of X | None; any other type as it is."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    return next(part for part in typing.get_args(kind) if part is not type(None))


def _coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` (text or a JSON value) as the declared type `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if (known := _known(kind)) is not kind:
        if value not in typing.get_args(known) and value in _NOTHING:  # guidance has a "none"
            return None
        return _coerce(value, known, where)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{where}: '{value}' is none of {', '.join(map(str, args))}")
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or (
            args[-1] is not Ellipsis and len(items) != len(args)
        ):
            raise UserError(f"{where}: expected a list such as 1,2, got {value!r}")
        return tuple(_coerce(item, args[0], where) for item in items)
    if origin is dict:
        if isinstance(value, str):
            parts: list[str] = []
            for item in value.split(","):
                if parts and parts[-1].count("=") > 1 and "=" not in item:
                    parts[-1] += f",{item}"  # a setting's value is a list: row=sample.interval=0,1
                else:
                    parts.append(item)
            pairs = [part.partition("=") for part in parts]
            value = {name: item for name, sign, item in pairs if sign}
            if len(value) != len(pairs):
                raise UserError(f"{where}: expected a list such as name=value,name=value")
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected names with values, got {value!r}")
        return {name: _coerce(item, args[1], f"{where}.{name}") for name, item in value.items()}
    return _scalar(value, kind, where)


def _scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
            whole = kind is float or not isinstance(value, float) or value == number
            if math.isfinite(number) and whole:
                return number
        except (TypeError, ValueError, OverflowError):
            pass
    raise UserError(f"{where}: expected {kind.__name__}, got {value!r}")


def _suggest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(sorted(known))}" if len(known) < 12 else ""


# ---------------------------------------------------------------- YAML


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of differences with every scalar as text, to be typed by the dataclass.

    (YAML's own guesses read `1e-4` as text, `no` as False and `010` as 8.)
    Tags, anchors, duplicate keys, over 32 levels and files over 256 KiB are refused.
    """
    import yaml

    class Loader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("anchors and aliases are not accepted")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
            node: Any = super().compose_node(parent, index)
            if str(node.tag).removeprefix("tag:yaml.org,2002:") not in ("str", "seq", "map"):
                raise yaml.YAMLError(f"tags such as {node.tag} are not accepted")
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = Counter(str(key.value) for key, _ in node.value)
            if twice := [key for key, count in keys.items() if count > 1]:
                raise yaml.YAMLError(f"'{twice[0]}' stands twice")
            return super().construct_mapping(node, deep)

    text = read_text(Path(path), limit=256 << 10)
    try:
        value = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # its scanner's own too
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values")
    return value


def load_config(cls: type[T], path: str | Path) -> T:
    """Read a YAML file of differences into `cls`; UserError names the file and the key."""
    return _typed(cls, read_yaml(path), path)


def _typed(cls: type[T], values: dict[str, Any], path: str | Path) -> T:
    try:
        return from_dict(cls, values)
    except UserError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path}: {text}", error.code) from error


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML that `load_config` reads back to an equal one."""
    import yaml

    from pidm_core.files import write_bytes

    write_bytes(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())


# ---------------------------------------------------------------- the command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)", USAGE)


class _Extend(argparse.Action):
    """Collects 1,2 and a later 3 as the list 1, 2, 3."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, getattr(namespace, self.dest, []) + values.split(","))


def parse(
    cls: type[T],
    argv: list[str] | None,
    *,
    prog: str,
    description: str | None,
    example: str,
    rest: str = "",
) -> T:
    """Read a tool's options: the defaults of `cls`, then --config FILE, then the flags.

    A field `per_image` is the flag --per-image, a field of a section --section.field;
    tuples are written 1,2,3, those of any length also as the flag again and again; booleans
    --flag and --no-flag. prog: the tool's name, and its verb if it has several. rest: a tuple
    field that takes the arguments without a flag.
    """
    tool, _, verb = prog.partition(" ")
    parser = _Parser(
        prog=f"python tools/{tool}.py {verb}".strip(),
        usage=f"%(prog)s [--config FILE] [options] {rest and rest.upper() + ' …'}".strip(),
        description=(description or "").strip(),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of differences")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    paths = dict(_flags(cls))
    for flag, (path, kind, default, text) in paths.items():
        if "(default" not in text:
            text = f"{text} (default: {_show(default)})"
        options: dict[str, Any] = {"dest": path, "help": text}
        kind = _known(kind)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = _metavar(kind)
            if Ellipsis in typing.get_args(kind):
                options["action"] = _Extend
        parser.add_argument(flag, **options)
    given, others = parser.parse_known_args(argv)
    values = vars(given)
    unknown = [text for text in others if text[:1] == "-" or not rest]
    if unknown:
        close = _suggest(unknown[0].split("=")[0], list(paths)) if unknown[0][:1] == "-" else ""
        raise UserError(f"unknown argument '{unknown[0]}'{close} (see {parser.prog} --help)")
    if others:
        values[rest] = values.get(rest, []) + others
    values.pop("debug", None)
    file = values.pop("config", None)
    tree = read_yaml(file) if file else {}
    wrong = _refusal(cls, tree, file) if file else None
    try:
        for path, value in values.items():
            _put(tree, path.split("."), value)
        return from_dict(cls, tree)
    except UserError as error:
        if wrong and str(error) in str(wrong):  # no flag's: it is reported with the file's name
            raise wrong from error
        raise


def _refusal(cls: type[Any], values: dict[str, Any], path: str) -> UserError | None:
    try:
        _typed(cls, values, path)
    except UserError as error:
        return error
    return None


def _metavar(kind: Any) -> str:
    """How a value is written, for --help."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if typing.get_origin(kind) is tuple:
        return ",".join("..." if part is Ellipsis else _metavar(part) for part in parts)
    return getattr(kind, "__name__", "value").upper()


def _flags(
    cls: type[Any], prefix: str = "", section: Any = None
) -> Iterator[tuple[str, tuple[str, Any, Any, str]]]:
    """Yield (flag, (dotted field, type, default, help)) of every field, sections included."""
    hints, texts = typing.get_type_hints(cls), _field_docs(cls)
    for item in dataclasses.fields(cls):
        path, kind = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(kind):
            own = getattr(section, item.name, None) or _section_default(cls, item.name)
            yield from _flags(typing.cast(type[Any], kind), f"{path}.", own)
            continue
        flag = "--" + path.replace("_", "-")
        default = None if item.default is dataclasses.MISSING else item.default
        default = default if section is None else getattr(section, item.name)
        yield flag, (path, kind, default, texts.get(item.name, "").replace("%", "%%"))


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """The string under each field, inherited or own, which Python itself throws away."""
    docs = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for item, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                match text:
                    case ast.Expr(value=ast.Constant(value=str(words))):
                        docs[item.target.id] = " ".join(words.split())
    return docs


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "none" if default in (None, "") else str(default)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{section}: expected a section", BAD_DATA)
    tree[key] = value
