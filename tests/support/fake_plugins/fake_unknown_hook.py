from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_objectivs():
    yield Component(name="fake-misspelt", build=print, summary="never seen")


@hookimpl
def stzoo_poolings():
    yield Component(name="fake-beside-misspelt", build=print, summary="left out with its plugin")
