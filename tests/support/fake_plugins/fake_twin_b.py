from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_objectives():
    yield Component(name="fake-twin", build="fake_twin_b:twin", summary="two plugins provide it")
    yield Component(name="fake-only-b", build="fake_twin_b:twin", summary="one plugin provides it")


def twin():
    return "b"
