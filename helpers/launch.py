"""Starts a helper: ``python3 -I -S -X utf8 launch.py authorized_keys|session|dial ARGUMENT...``.

``-I`` keeps the user's environment and directory off the import path, ``-S`` leaves out ``site`` (about 10 ms);
both leave the package's own directory out too, so this puts it back. ``-X utf8`` keeps the client's locale from saying
what the bytes of its command mean, which the remote is to have as they are. It is apart from the helpers because Python
compiles the script it is given anew at each start, and only what that imports is cached.
"""

import sys
from posix import _exit  # not os, whose import is a fifth of what the key command takes

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
    _exit(status)  # nothing is left to do, and Python's own way out takes 3 ms to put everything in order
