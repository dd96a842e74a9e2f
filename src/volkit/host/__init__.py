"""Node-side primitives on Linux: mounts, paths and processes, loop and block devices, file systems.

Import the module that is needed (`from volkit.host import mounts`): the package itself loads none of them.
"""
