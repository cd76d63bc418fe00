"""A plugin as it should be: one part of every kind, heavy code named as a string."""

from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe, hookimpl


def widen(dim, *, factor=2, bias: bool = False):
    """A builder whose options the host can check."""
    return ("wide", dim * factor, bias)


@hookimpl
def stzoo_objectives():
    yield Component(name="fake-objective", build="fake_good.heavy:Objective", summary="an objective")
    yield Component(name="fake-missing", build="fake_good.heavy:NoSuch", summary="its attribute is missing")
    yield Component(name="fake-broken", build="fake_good.broken:Objective", summary="its import fails")
    yield Component(name="fake-extra", build="fake_good.extra:Objective", summary="it needs an extra")
    yield Component(name="fake-constant", build="fake_good.heavy:CONSTANT", summary="it cannot be called")


@hookimpl
def stzoo_preparations():
    return ()


@hookimpl
def stzoo_poolings():
    return [Component(name="fake-wide", build=widen, summary="a pooling", source="https://example.org")]


@hookimpl
def stzoo_losses():
    return ()


@hookimpl
def stzoo_balancers():
    return ()


@hookimpl
def stzoo_commands():
    return ()


@hookimpl
def stzoo_decoders():
    return ()


@hookimpl
def stzoo_checkpoints():
    yield Checkpoint(
        name="fake-base.nothing",
        hub_id="example/fake",
        revision="main",
        license="apache-2.0",
        source="https://example.org",
        recipe="fake-recipe",
        summary="no weights at all",
    )


@hookimpl
def stzoo_recipes():
    yield Recipe(name="fake-recipe", resource="fake_good:settings.yaml", summary="a recipe")
    yield Recipe(name="fake-lost", resource="fake_good:nowhere.yaml", summary="its file is missing")


@hookimpl(optionalhook=True)
def stzoo_hooks_of_a_later_version():
    return ()
