from stzoo.errors import MissingExtraError

raise MissingExtraError("faker", "fake")
