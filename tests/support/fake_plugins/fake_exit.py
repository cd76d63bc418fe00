import sys

sys.exit("a script, not a plugin")
