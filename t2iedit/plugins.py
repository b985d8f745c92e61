"""Finding plugins: guarded loading, the edits by name, and a report of what failed."""

import functools
import importlib.metadata
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint

import pluggy

from t2iedit import families, hookspecs, provenance
from t2iedit.edit import Edit
from t2iedit.errors import PluginError, UnknownEdit

BUILT_IN = {"families": families, "provenance": provenance}


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One entry point: its name, where it comes from, the edits it brought, and why it failed if it did."""

    name: str
    distribution: str
    version: str
    edits: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class Plugins:
    """What is installed: `edits` by name, and a `manager` whose hooks call every plugin that loaded."""

    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(hookspecs.PROJECT)
    )
    edits: dict[str, type[Edit]] = field(default_factory=dict)
    infos: list[PluginInfo] = field(default_factory=list)

    @property
    def failed(self) -> list[PluginInfo]:
        return [info for info in self.infos if info.error is not None]

    def edit(self, name: str) -> type[Edit]:
        """The edit class of this name. Raises `UnknownEdit` with the names there are."""
        if name in self.edits:
            return self.edits[name]
        close = get_close_matches(name, self.edits, n=1)
        hint = f'did you mean "{close[0]}"? ' if close else ""
        broken = ", ".join(f"{info.name} ({info.distribution})" for info in self.failed)
        failed = f"; these plugins failed to load: {broken}" if broken else ""
        names = ", ".join(sorted(self.edits)) or "none"
        raise UnknownEdit(
            f'no installed plugin has the edit "{name}"; {hint}installed: {names}{failed}'
        )

    def source(self, name: str) -> str:
        """The distribution and version that brought the edit of this name, empty if none did."""
        found = (info for info in self.infos if name in info.edits)
        return next((f"{info.distribution} {info.version}" for info in found), "")


@functools.cache
def installed() -> Plugins:
    """The plugins of this environment, found once."""
    return load(list(importlib.metadata.entry_points(group=hookspecs.PROJECT)))


def load(entry_points: Iterable[EntryPoint], *, strict: bool = False) -> Plugins:
    """Load each entry point on its own: one that fails is recorded and the rest work.

    Raises `PluginError` for the first failure if `strict`.
    """
    plugins = Plugins()
    plugins.manager.add_hookspecs(hookspecs)
    for name, module in BUILT_IN.items():
        plugins.manager.register(module, name)
    for entry in sorted(entry_points, key=lambda entry: (entry.name, _distribution(entry))):
        plugins.infos.append(_load_one(plugins, entry))
    if strict and plugins.failed:
        first = plugins.failed[0]
        raise PluginError(f"the plugin {first.name} of {first.distribution} failed: {first.error}")
    return plugins


def _load_one(plugins: Plugins, entry: EntryPoint) -> PluginInfo:
    distribution, version = _distribution(entry), entry.dist.version if entry.dist else "?"
    found: dict[str, type[Edit]] = {}
    module = None

    def register(edit: type[Edit]) -> None:
        if edit.name in found:
            raise PluginError(f'it registers two edits with the name "{edit.name}"')
        _refuse_taken(plugins, edit, f"{distribution} {version}")
        found[edit.name] = edit

    try:
        # What a plugin prints when imported must not stand among a command's results.
        with redirect_stdout(sys.stderr):
            module = entry.load()
            plugins.manager.register(module, f"{distribution}:{entry.name}")
            others = [plugin for plugin in plugins.manager.get_plugins() if plugin is not module]
            plugins.manager.subset_hook_caller("register_edits", others)(register=register)
    # A plugin's import may do anything, so whatever it raises is that plugin's failure.
    except (Exception, SystemExit) as error:
        if module is not None and plugins.manager.is_registered(module):
            plugins.manager.unregister(module)
        reason = f"{type(error).__name__}: {error}"
        return PluginInfo(entry.name, distribution, version, error=" ".join(reason.split()))
    plugins.edits |= found
    return PluginInfo(entry.name, distribution, version, tuple(found))


def _refuse_taken(plugins: Plugins, edit: type[Edit], newcomer: str) -> None:
    if edit.name in plugins.edits:
        holder = next(info for info in plugins.infos if edit.name in info.edits)
        raise PluginError(
            f'two plugins register the edit "{edit.name}": {holder.distribution} {holder.version}'
            f" and {newcomer}; uninstall one of them"
        )


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"
