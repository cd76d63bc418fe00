from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_objectives():
    yield Component(name="fake-twin", build="fake_twin_a:twin", summary="two plugins provide it")
    yield Component(name="fake-only-a", build="fake_twin_a:twin", summary="one plugin provides it")


def twin():
    return "a"
