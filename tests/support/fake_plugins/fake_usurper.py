from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_poolings():
    yield Component(name="fake-usurper", build=print, summary="from a plugin that calls itself builtin")
