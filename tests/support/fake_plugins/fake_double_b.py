from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_objectives():
    yield Component(name="fake-double-b", build=print, summary="never seen: its plugin's name is taken")
