"""Starts a helper: ``python3 -I -S -X utf8 launch.py authorized_keys|session|dial ARGUMENT...``.

``-I`` keeps the user's environment and directory off the import path, ``-S`` skips ``site`` (about 10 ms); both also
remove the package's own directory, so this adds it again. ``-X utf8`` prevents the client's locale from changing the
bytes of the client's command, which must reach the remote unchanged. It is a separate script because Python compiles
the script at each start, and caches only the modules that it imports.
"""

import sys
from posix import _exit  # not os, whose import takes a fifth of the key command's time

if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0] + "/..")
    name = sys.argv[1]
    if name == "authorized_keys":
        from helpers.authorized_keys import main
    elif name == "session":
        from helpers.session.main import main
    elif name == "dial":
        from helpers.happy_eyeballs import main
    else:
        sys.exit(f"launch.py: no helper is called {name!r}")
    status = main(sys.argv[2:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _exit(status)  # skips Python's finalization, which takes 3 ms
