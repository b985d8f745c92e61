"""Finding plugins: one that fails is named and the rest work; two edits with one name are refused."""

import sys
import types
from importlib.metadata import Distribution, EntryPoint

import pytest

import t2iedit
from t2iedit.errors import PluginError, UnknownEdit
from t2iedit.plugins import installed, load


class FakeDistribution(Distribution):
    def __init__(self, name, version):
        self._name, self._version = name, version

    @property
    def metadata(self):
        return {"Name": self._name, "Version": self._version}

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        raise NotImplementedError


@pytest.fixture
def entry(monkeypatch):
    """Make an entry point to a module of this name, which runs `body` when imported."""

    def make(name, body, distribution="someone", version="1.0"):
        module = f"t2iedit_test_{name}"

        class Finder:
            def find_spec(self, wanted, path=None, target=None):
                if wanted != module:
                    return None
                from importlib.machinery import ModuleSpec

                return ModuleSpec(wanted, self)

            def create_module(self, spec):
                return types.ModuleType(spec.name)

            def exec_module(self, loaded):
                body(loaded)

        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        monkeypatch.delitem(sys.modules, module, raising=False)
        point = EntryPoint(name, module, "t2iedit")
        vars(point)["dist"] = FakeDistribution(distribution, version)
        return point

    return make


def registering(name):
    def body(module):
        edit = type("Found", (t2iedit.Edit,), {"name": name})

        def register_edits(register):
            register(edit)

        module.register_edits = t2iedit.hookimpl(register_edits)

    return body


def broken(module):
    raise ImportError("no module named flux_capacitor")


def exiting(module):
    sys.exit("I need Windows")


def test_in_repository_plugins_are_found():
    assert {"decor", "t2i_zero"} <= set(installed().edits)
    assert installed().failed == []


def test_broken_plugin_is_named_and_the_rest_load(entry):
    plugins = load([entry("bad", broken, "evil", "0.3"), entry("good", registering("good"))])
    assert set(plugins.edits) == {"good"}
    (failed,) = plugins.failed
    assert (failed.name, failed.distribution, failed.version) == ("bad", "evil", "0.3")
    assert failed.error == "ImportError: no module named flux_capacitor"


def test_plugin_that_exits_when_imported_is_only_a_failed_plugin(entry):
    plugins = load([entry("quits", exiting), entry("good", registering("good"))])
    assert [info.name for info in plugins.failed] == ["quits"]
    assert set(plugins.edits) == {"good"}


def test_strict_raises_for_a_broken_plugin(entry):
    with pytest.raises(PluginError, match="the plugin bad of evil failed: ImportError"):
        load([entry("bad", broken, "evil")], strict=True)


def test_second_edit_of_a_name_is_refused_naming_both(entry):
    plugins = load(
        [
            entry("first", registering("fog"), "alpha", "1.0"),
            entry("second", registering("fog"), "beta", "2.0"),
        ]
    )
    assert plugins.source("fog") == "alpha 1.0"
    (failed,) = plugins.failed
    assert failed.name == "second"
    assert 'two plugins register the edit "fog": alpha 1.0 and beta 2.0' in str(failed.error)


def test_two_edits_of_one_name_in_one_plugin_are_refused(entry):
    def body(module):
        edits = [type("Found", (t2iedit.Edit,), {"name": "fog"}) for _ in range(2)]

        def register_edits(register):
            for edit in edits:
                register(edit)

        module.register_edits = t2iedit.hookimpl(register_edits)

    plugins = load([entry("twins", body), entry("good", registering("good"))])
    (failed,) = plugins.failed
    assert 'it registers two edits with the name "fog"' in str(failed.error)
    assert set(plugins.edits) == {"good"}


def test_what_a_plugin_prints_is_not_among_the_results(entry, capsys):
    def body(module):
        print("welcome")
        registering("chatty")(module)

    assert set(load([entry("chatty", body)]).edits) == {"chatty"}
    assert capsys.readouterr() == ("", "welcome\n")


def test_hook_that_raises_fails_its_own_plugin_only(entry):
    def body(module):
        def register_edits(register):
            raise RuntimeError("half way")

        module.register_edits = t2iedit.hookimpl(register_edits)

    plugins = load([entry("raises", body), entry("good", registering("good"))])
    assert [info.name for info in plugins.failed] == ["raises"]
    assert set(plugins.edits) == {"good"}


def test_hook_with_an_unknown_argument_fails_its_own_plugin_only(entry):
    def body(module):
        def register_edits(register, surprise):
            raise AssertionError

        module.register_edits = t2iedit.hookimpl(register_edits)

    plugins = load([entry("odd", body), entry("good", registering("good"))])
    assert [info.name for info in plugins.failed] == ["odd"]


def test_unknown_edit_mentions_failed_plugins(entry):
    plugins = load([entry("bad", broken, "evil")])
    with pytest.raises(
        UnknownEdit, match=r"installed: none; these plugins failed to load: bad \(evil\)"
    ):
        plugins.edit("fog")


def test_image_ready_sees_each_image_in_seed_order(sd1, monkeypatch):
    seen = []

    class Listener:
        @t2iedit.hookimpl
        def image_ready(self, image, request):
            seen.append((image.size, request.seeds))

    listener = Listener()
    installed().manager.register(listener)
    try:
        t2iedit.generate(sd1, t2iedit.Request("a cat", steps=1, seeds=(8, 2)))
    finally:
        installed().manager.unregister(listener)
    assert seen == [((64, 64), (8,)), ((64, 64), (2,))]


def test_strangers_wrap_a_pipeline_before_the_built_in_families(sd1):
    class Stranger:
        @t2iedit.hookimpl
        def wrap_pipeline(self, pipeline):
            return sd1

    stranger = Stranger()
    installed().manager.register(stranger)
    try:
        assert t2iedit.open_model(sd1.pipeline) is sd1
    finally:
        installed().manager.unregister(stranger)
