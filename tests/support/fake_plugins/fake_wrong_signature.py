from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_decoders():
    yield Component(name="fake-beside-wrong", build=print, summary="left out with its plugin")


@hookimpl
def stzoo_objectives(model):
    yield Component(name="fake-wrong", build=print, summary=str(model))
